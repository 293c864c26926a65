#!/usr/bin/env bash
# Fetch the teachers and write what they say about the audio as Shar fields.
#
#   bash egs/asterisk/KD/teachers.sh [--stage 0] [--stop-stage 1] [--profile full]
#
# Stage 0: OpenAI Whisper tiny.en and base  -> download/teachers/<teacher>/
# Stage 1: their embeddings, 50 Hz          -> data/shar/<set>/<teacher>.*.tar
#
# Transcripts of the unlabelled audio, and a teacher in our vocabulary, for the terms on
# distributions (--stop-stage 5):
# Stage 2: what Whisper base reads          -> data/shar/<pool>_whisper_base/
# Stage 3: train an adapter on the embeddings -> exp/adapter/pretrained.pt
# Stage 4: its distributions, 25 Hz         -> data/shar/<set>/adapter_{ctc,path}.*
# Stage 5: decode it                        -> exp/adapter/decode/
#
# For systems C and D:
# Stage 6: a trained student as a teacher   -> exp/student/pretrained.pt and
#          data/shar/<set>/student_{layer<k>,ctc}.*
# Stage 7: adapters on one Whisper each     -> exp/adapter_{base,tiny_en}/pretrained.pt
# Stage 8: their distributions and WER      -> data/shar/<set>/adapter_<whisper>_ctc.*
#          and those of all adapters as one -> data/shar/<set>/ensemble_path.*
#
# Every stage looks at what is there and makes only what is missing or damaged.
stage=0              # first stage to run
stop_stage=1         # last stage to run
profile=quick        # quick: a slice of the unlabelled pool; full: all of its English
fetch="whisper_tiny_en whisper_base" # teachers of stage 0; those of stage 1: conf
conf=conf/teachers.yaml # the teachers and their options
adapter_sets=        # that the adapter learns from; empty: train and stage 2's
adapter_epochs=12    # of the adapter
adapter_avg=3        # of its last epochs are averaged
judged=              # sets that the adapter speaks about; empty: train, dev, stage 2's
judges=conf/adapter_teacher.yaml # of stage 4; conf/adapter_lm_teacher.yaml: with an LM
student=             # of stage 6; empty: exp/<profile>/unified/both_pool/finetune/pretrained.pt
numbers=spoken       # in stage 2's transcripts: spoken (dialogues) or digits (prompts)
seed=42              # of the adapter
codec=fp16           # of the embeddings; pq16 takes a sixtieth, see bin.extract --help
sets=                # folders of data/shar; empty: train, dev and the unlabelled ones
from_dir=            # folder with one Whisper folder a teacher, instead of the index
num_threads=         # CPU threads of the teachers; empty: one a CPU
max_batch_duration=60 # seconds of audio in one call of a teacher
overwrite=false      # replace fields that were made with other options

set -euo pipefail
export CALLED_IN=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"
source ../../../local/env.sh
source ../../../local/parse_options.sh
as_called conf judges student from_dir

case $profile in
  quick) pool=unlabelled_en_quick ;;
  full) pool=unlabelled_en ;;
  *) die "--profile is \"$profile\"; it can be quick or full" ;;
esac
sets=${sets:-train dev $pool}
adapter_sets=${adapter_sets:-train ${pool}_whisper_base}
judged=${judged:-train dev ${pool}_whisper_base}

if in_stage 0 "Fetch the teachers -> download/teachers"; then
  for teacher in $fetch; do
    python -m icefall_kd.bin.fetch_teacher --teacher "$teacher" \
      --out-dir "download/teachers/$teacher" \
      ${from_dir:+--from-dir "$from_dir/$teacher"}
  done
fi

if in_stage 1 "Extract embeddings -> data/shar/{${sets// /,}}/<teacher>.*"; then
  folders=()
  for set in $sets; do
    folders+=("data/shar/$set")
  done
  options=(--codec "$codec" ${num_threads:+--num-threads "$num_threads"})
  options+=(--max-batch-duration "$max_batch_duration")
  if [[ $overwrite == true ]]; then
    options+=(--overwrite)
  fi
  python -m icefall_kd.bin.extract --shar-dir "${folders[@]}" --teachers "$conf" \
    "${options[@]}"
fi

train_adapter() {  # folder, further options
  export OMP_NUM_THREADS=${num_threads:-$OMP_NUM_THREADS}
  export MKL_NUM_THREADS=$OMP_NUM_THREADS
  python -m icefall_kd.bin.train --exp-dir "$1" --config conf/adapter.yaml \
    --data.train "[${adapter_sets// /, }]" --num-epochs "$adapter_epochs" \
    --seed "$seed" "${@:2}"
  run_once --reads "$1/done" --reads "$1/metrics.jsonl" \
    --code training/averaging.py "$1/.averaged" \
    python -m icefall_kd.bin.average --exp-dir "$1" --avg "$adapter_avg"
}

judge() {  # file of teachers: what they say about the sets that are judged
  local set folders=() options=(${num_threads:+--num-threads "$num_threads"})
  for set in $judged; do
    folders+=("data/shar/$set")
  done
  if [[ $overwrite == true ]]; then
    options+=(--overwrite)
  fi
  python -m icefall_kd.bin.extract --shar-dir "${folders[@]}" --teachers "$1" \
    "${options[@]}"
}

decode_adapter() {  # folder
  local set
  python -m icefall_kd.bin.extract --shar-dir data/shar/test --teachers "$conf" \
    ${num_threads:+--num-threads "$num_threads"}
  for set in dev test; do
    python -m icefall_kd.bin.decode --method modified_beam_search \
      --shar-dir "data/shar/$set" --checkpoint "$1/pretrained.pt" --out-dir "$1/decode"
  done
}

if in_stage 2 "What Whisper base reads -> data/shar/${pool}_whisper_base"; then
  python -m icefall_kd.bin.pseudo_label --shar-dir "data/shar/$pool" \
    --model-dir download/teachers/whisper_base ${num_threads:+--num-threads "$num_threads"} \
    --numbers "$numbers" --output "data/shar/${pool}_whisper_base"
fi

if in_stage 3 "Train an adapter on the embeddings -> exp/adapter"; then
  train_adapter exp/adapter
fi

if in_stage 4 "What the adapter says -> data/shar/{${judged// /,}}/adapter_*"; then
  judge "$judges"
fi

if in_stage 5 "Decode the adapter -> exp/adapter/decode"; then
  decode_adapter exp/adapter
fi

if in_stage 6 "A student as a teacher -> exp/student"; then
  mkdir -p exp/student
  cp "${student:-exp/$profile/unified/both_pool/finetune/pretrained.pt}" \
    exp/student/pretrained.pt
  judge conf/student_teacher.yaml
fi

if in_stage 7 "Train adapters on one Whisper each -> exp/adapter_{base,tiny_en}"; then
  for one in base tiny_en; do
    train_adapter "exp/adapter_$one" --model.adapter.fields "[whisper_$one]"
  done
fi

if in_stage 8 "What they say -> data/shar/{${judged// /,}}/adapter_{base,tiny_en}_ctc"; then
  judge conf/adapter_ensemble_teachers.yaml
  for one in base tiny_en; do
    decode_adapter "exp/adapter_$one"
  done
fi
