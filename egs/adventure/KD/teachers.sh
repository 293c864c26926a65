#!/usr/bin/env bash
# Fetch the teachers, and write their outputs on the audio as fields.
#
#   bash egs/adventure/KD/teachers.sh [--stop-stage 5] [--profile 6h]
#
# Stage 0: fetch OpenAI Whisper tiny.en and base -> download/teachers/<teacher>/
# Stage 1: extract their embeddings, 50 Hz       -> data/shar/<set>/<teacher>.*.tar
# Stage 2: transcribe the unlabelled audio       -> data/shar/<unlabelled>_whisper_base/
#
# For the parts one_best, inter_ctc, lfmmi and essence (--stop-stage 5):
# Stage 3: train the vocabulary teacher, a recogniser with the student's tokens whose
#          input are the embeddings              -> exp/vocab_teacher/pretrained.pt
# Stage 4: extract its distributions, 25 Hz      -> data/shar/<set>/vocab_teacher_{ctc,path}.*
# Stage 5: decode with it                        -> exp/vocab_teacher/decode/
#
# For the part hidden:
# Stage 6: extract a trained student's outputs   -> exp/student/pretrained.pt,
#          data/shar/<set>/student_{layer<k>,ctc}.*
#
# Each stage writes only files that are missing or damaged.
stage=0              # first stage to run
stop_stage=2         # last stage to run
profile=             # 45min or 6h of audio with transcripts (default: 45min)
fetch="whisper_tiny_en whisper_base" # teachers of stage 0
conf=conf/teachers.yaml # teachers of stage 1 and their options
codec=pq16           # codec of the embeddings; fp16 takes 60 times the space, see bin.extract --help
sets=                # sets of stage 1 (default: labelled, unlabelled and dev of the profile)
numbers=spoken       # numbers in pseudo-labels: spoken or digits
vocab_teacher_sets=train # training sets of the vocabulary teacher
vocab_teacher_epochs=12 # epochs of its training
vocab_teacher_avg=3  # number of last epochs to average
target_sets=         # sets of stages 4 and 6 (default: labelled, dev, those of stage 2)
student=             # checkpoint of stage 6 (default: exp/<profile>/unified/both_unlabelled+pseudo/finetune/pretrained.pt)
seed=42              # seed of the vocabulary teacher
from_dir=            # folder with a sub-folder for each teacher (default: download)
num_threads=         # CPU threads (default: one a CPU)
max_batch_duration=60 # audio in one batch of a teacher in seconds
overwrite=false      # replace fields that were written with other options

set -euo pipefail
export CALLED_IN=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"
source ../../../local/env.sh
source ../../../local/parse_options.sh
paths_from_caller conf student from_dir
source ../../../local/recipe.sh
source ../../../local/teachers.sh

sets=${sets:-$labelled $unlabelled $dev_set}
target_sets=${target_sets:-$labelled $dev_set $pseudo_labelled}
student=${student:-exp/$profile/unified/both_unlabelled+pseudo/finetune/pretrained.pt}
vocab_teacher=exp/vocab_teacher

extract_embeddings() {  # sets; all sets share the codecs of train
  extract "$conf" "$1" --codec "$codec" --codec-from data/shar/train \
    --max-batch-duration "$max_batch_duration"
}

if in_stage 0 "Fetch the teachers -> download/teachers"; then
  fetch_teachers
fi

if in_stage 1 "Extract embeddings -> data/shar/{${sets// /,}}/<teacher>.*"; then
  extract_embeddings "$sets"
fi

if in_stage 2 "Transcribe with Whisper base -> data/shar/{${pseudo_labelled// /,}}"; then
  pseudo_label download/teachers/whisper_base
fi

if in_stage 3 "Train the vocabulary teacher -> $vocab_teacher"; then
  train_vocab_teacher "$vocab_teacher"
fi

if in_stage 4 "Extract its distributions -> data/shar/{${target_sets// /,}}"; then
  extract conf/vocab_teacher_fields.yaml "$target_sets"
fi

if in_stage 5 "Decode with the vocabulary teacher -> $vocab_teacher/decode"; then
  extract_embeddings "$test_sets"
  for set in $dev_set $test_sets; do
    python -m icefall_kd.bin.decode --method modified_beam_search \
      --shar-dir "data/shar/$set" --checkpoint "$vocab_teacher/pretrained.pt" \
      --out-dir "$vocab_teacher/decode"
  done
fi

if in_stage 6 "Extract a student's outputs -> data/shar/{${target_sets// /,}}"; then
  mkdir -p exp/student
  cp "$student" exp/student/pretrained.pt
  extract conf/student_teacher.yaml "$target_sets"
fi
