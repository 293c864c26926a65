#!/usr/bin/env bash
# Fetch the teachers, and write their outputs as fields of the sets.
#
#   bash egs/asterisk/KD/teachers.sh [--stop-stage 5] [--profile full]
#
# Stage 0: fetch OpenAI Whisper tiny.en and base -> download/teachers/<teacher>/
# Stage 1: extract their embeddings, 50 Hz       -> data/shar/<set>/<teacher>.*.tar
# Stage 2: transcribe the unlabelled audio       -> data/shar/<unlabelled>_whisper_base/
#
# For systems with the parts one_best, inter_ctc, lfmmi and essence (--stop-stage 5):
# Stage 3: train the vocabulary teacher, a recogniser that reads the embeddings and
#          predicts the student's tokens         -> exp/vocab_teacher/pretrained.pt
# Stage 4: extract its distributions, 25 Hz      -> data/shar/<set>/vocab_teacher_{ctc,path}.*
# Stage 5: compute its WER on dev and test       -> exp/vocab_teacher/decode/
#
# For systems with the parts hidden (6) and essence_ensemble (7, 8):
# Stage 6: extract a trained student's outputs   -> exp/student/pretrained.pt,
#          data/shar/<set>/student_{layer<k>,ctc}.*
# Stage 7: train a vocabulary teacher on the embeddings of each Whisper
#          -> exp/vocab_teacher_{base,tiny_en}/pretrained.pt
# Stage 8: extract their distributions           -> data/shar/<set>/vocab_teacher_{base,tiny_en}_ctc.*,
#          data/shar/<set>/ensemble_path.* (mean of all three); compute their WERs
#
# Each stage writes only files that are missing or damaged.
stage=0              # first stage to run
stop_stage=2         # last stage to run
profile=quick        # quick: 40 minutes of unlabelled audio; full: 277 minutes
fetch="whisper_tiny_en whisper_base" # teachers of stage 0
conf=conf/teachers.yaml # teachers of stage 1 and their options
vocab_teacher_sets=  # training sets of the vocabulary teacher (default: train and the sets of stage 2)
vocab_teacher_epochs=12 # epochs of its training
vocab_teacher_avg=3  # number of last epochs to average
vocab_teacher_conf=conf/vocab_teacher_fields.yaml # fields of stage 4; conf/vocab_teacher_lm_fields.yaml: with a language model
target_sets=         # sets of stages 4, 6 and 8 (default: train, dev and the sets of stage 2)
student=             # checkpoint of stage 6 (default: exp/<profile>/unified/both_unlabelled/finetune/pretrained.pt)
numbers=spoken       # numbers in pseudo-labels: spoken (dialogue) or digits (prompts)
seed=42              # seed of the vocabulary teacher
codec=fp16           # codec of the embeddings; pq16 needs 1/60 of the disk, see bin.extract --help
sets=                # sets of stage 1 (default: train, dev and the unlabelled set)
from_dir=            # folder with a sub-folder for each teacher (default: download them)
num_threads=         # CPU threads (default: one per CPU)
max_batch_duration=60 # audio in one batch of a teacher in seconds
overwrite=false      # replace fields that were written with other options

set -euo pipefail
export CALLED_IN=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"
RENAMED_OPTIONS="--adapter-sets=--vocab-teacher-sets --adapter-avg=--vocab-teacher-avg
  --adapter-epochs=--vocab-teacher-epochs --judges=--vocab-teacher-conf --judged=--target-sets"
source ../../../local/env.sh
source ../../../local/parse_options.sh
paths_from_caller conf vocab_teacher_conf student from_dir
source ../../../local/recipe.sh
source ../../../local/teachers.sh

for folder in exp/adapter{,_base,_tiny_en}; do
  if [[ -e $folder && ! -e ${folder/adapter/vocab_teacher} ]]; then
    die "$folder is now ${folder/adapter/vocab_teacher}. Run: mv $folder ${folder/adapter/vocab_teacher}"
  fi
done
sets=${sets:-train dev $unlabelled}
vocab_teacher_sets=${vocab_teacher_sets:-train $pseudo_labelled}
target_sets=${target_sets:-train dev $pseudo_labelled}
student=${student:-exp/$profile/unified/both_unlabelled/finetune/pretrained.pt}

decode_vocab_teacher() {  # folder of its run
  local set
  python -m icefall_kd.bin.extract --shar-dir data/shar/test --teachers "$conf" \
    "${threads[@]}"
  for set in dev test; do
    python -m icefall_kd.bin.decode --method modified_beam_search \
      --shar-dir "data/shar/$set" --checkpoint "$1/pretrained.pt" --out-dir "$1/decode"
  done
}

if in_stage 0 "Fetch the teachers -> download/teachers"; then
  fetch_teachers
fi

if in_stage 1 "Extract embeddings -> data/shar/{${sets// /,}}/<teacher>.*"; then
  extract "$conf" "$sets" --codec "$codec" --max-batch-duration "$max_batch_duration"
fi

if in_stage 2 "Transcribe with Whisper base -> data/shar/{${pseudo_labelled// /,}}"; then
  pseudo_label download/teachers/whisper_base
fi

if in_stage 3 "Train the vocabulary teacher -> exp/vocab_teacher"; then
  train_vocab_teacher exp/vocab_teacher
fi

if in_stage 4 "Extract its distributions -> data/shar/{${target_sets// /,}}"; then
  extract "$vocab_teacher_conf" "$target_sets"
fi

if in_stage 5 "Decode with the vocabulary teacher -> exp/vocab_teacher/decode"; then
  decode_vocab_teacher exp/vocab_teacher
fi

if in_stage 6 "Extract a student's outputs -> data/shar/{${target_sets// /,}}"; then
  mkdir -p exp/student
  cp "$student" exp/student/pretrained.pt
  extract conf/student_teacher.yaml "$target_sets"
fi

if in_stage 7 "Train two more vocabulary teachers -> exp/vocab_teacher_{base,tiny_en}"; then
  for whisper in base tiny_en; do
    train_vocab_teacher "exp/vocab_teacher_$whisper" \
      --model.field_encoder.fields "[whisper_$whisper]"
  done
fi

if in_stage 8 "Extract their distributions -> data/shar/{${target_sets// /,}}"; then
  extract conf/ensemble_fields.yaml "$target_sets"
  for whisper in base tiny_en; do
    decode_vocab_teacher "exp/vocab_teacher_$whisper"
  done
fi
