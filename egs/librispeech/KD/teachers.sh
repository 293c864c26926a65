#!/usr/bin/env bash
# Write what the teachers say about the audio as Shar fields.
#
#   bash egs/librispeech/KD/teachers.sh [--teachers FILE] [--codec int8]
#
# Stage 1: embeddings of all teachers in one pass -> data/shar/<set>/<teacher>.*.tar
# Stage 2: what Whisper reads in the pool         -> data/shar/<pool>_whisper/
# Stage 3: on demand (--stop-stage 3), a trained model in our tokens as a teacher
#          -> data/shar/<set>/zipformer_{ctc,path}.*.tar
#
# Three large teachers take 12 GB with pq16 in the profile 100h, 700 with int8, 1,400 with
# fp16 (README.md).  Every stage makes only what is missing or damaged.
stage=1              # first stage to run
stop_stage=2         # last stage to run
profile=             # 100h or 960h; empty: 100h
teachers=conf/teachers.yaml # the teachers and their options
codec=pq16           # of the embeddings: fp16, int8, pq16 or another of bin.extract
sets=                # folders of data/shar; empty: labelled, pool and dev of the profile
whisper=download/teachers/whisper_large_v3 # CTranslate2 folder, reads in stage 2
compute_type=float16 # of stage 2; int8 on a CPU
zipformer=conf/zipformer_teacher.yaml # the teacher of stage 3
numbers=spoken       # in stage 2's transcripts, as the readers of books say them
device=cuda          # cuda or cpu
num_processes=1      # of each stage, which share the shards; each takes a GPU
num_threads=         # CPU threads of a process; empty: its share of the CPUs
max_batch_duration=240 # seconds of audio in one call of a teacher
overwrite=false      # replace fields that were made with other options

set -euo pipefail
export CALLED_IN=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"
source ../../../local/env.sh
source ../../../local/parse_options.sh
source ../../../local/systems.sh
as_called teachers whisper zipformer

sets=${sets:-$labelled $pool $dev_set}
run=(python -m)
if ((num_processes > 1)); then
  run=(python -m torch.distributed.run --standalone
    --nproc_per_node "$num_processes" -m)
fi

speak() {  # file of teachers, sets, further options: what they say about the sets
  local file=$1 set folders=() options=()
  for set in $2; do
    folders+=("data/shar/$set")
  done
  if [[ $overwrite == true ]]; then
    options=(--overwrite)
  fi
  "${run[@]}" icefall_kd.bin.extract --shar-dir "${folders[@]}" --teachers "$file" \
    --device "$device" ${num_threads:+--num-threads "$num_threads"} \
    --max-batch-duration "$max_batch_duration" "${options[@]}" "${@:3}"
}

if in_stage 1 "Extract embeddings -> data/shar/{${sets// /,}}/<teacher>.*"; then
  # All sets share the codecs of the first labelled one, whenever they are made.
  speak "$teachers" "$sets" --codec "$codec" --codec-from "data/shar/${labelled%% *}"
fi

if in_stage 2 "What Whisper reads -> data/shar/<pool>$pseudo"; then
  for set in $pool; do
    "${run[@]}" icefall_kd.bin.pseudo_label --shar-dir "data/shar/$set" \
      --model-dir "$whisper" --compute-type "$compute_type" --device "$device" \
      ${num_threads:+--num-threads "$num_threads"} --batch-size 16 \
      --numbers "$numbers" --output "data/shar/$set$pseudo"
  done
fi

if in_stage 3 "A model in our tokens -> data/shar/<set>/zipformer_*"; then
  taught=  # the pool beside its transcripts, where the terms of fine-tuning learn
  for set in $sets; do
    if [[ " $pool " == *" $set "* ]]; then
      set+=$pseudo
    fi
    taught+="$set "
  done
  speak "$zipformer" "$taught"
fi
