#!/usr/bin/env bash
# Write the teachers' outputs as fields of the sets.
#
#   bash egs/librispeech/KD/teachers.sh [--teachers FILE] [--codec int8]
#
# Stage 1: extract the embeddings of all teachers -> data/shar/<set>/<teacher>.*.tar
# Stage 2: transcribe the unlabelled audio        -> data/shar/<unlabelled>_whisper/
# Stage 3: extract the distributions of a trained Zipformer with the student's tokens
#          (--stop-stage 3)                       -> data/shar/<set>/zipformer_{ctc,path}.*.tar
#
# The three large teachers need 12 GB of disk with pq16 in the profile 100h, 700 GB with
# int8, 1,400 GB with fp16 (README.md).  Each stage writes only files that are missing or damaged.
stage=1              # first stage to run
stop_stage=2         # last stage to run
profile=             # 100h or 960h (default: 100h)
teachers=conf/teachers.yaml # teachers of stage 1 and their options
codec=pq16           # codec of the embeddings: fp16, int8, pq16 or another of bin.extract
sets=                # folders of data/shar (default: labelled, unlabelled and dev of the profile)
whisper=download/teachers/whisper_large_v3 # Whisper of stage 2, a CTranslate2 folder
compute_type=float16 # number format of stage 2; int8 on a CPU
zipformer=conf/zipformer_teacher.yaml # teacher of stage 3
numbers=spoken       # numbers in pseudo-labels: spoken or digits
device=cuda          # cuda or cpu
num_processes=1      # processes of each stage, each on its own GPU and with a part of the shards
num_threads=         # CPU threads per process (default: number of CPUs / processes)
max_batch_duration=240 # audio in one batch of a teacher in seconds
overwrite=false      # replace fields that were written with other options

set -euo pipefail
export CALLED_IN=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"
source ../../../local/env.sh
source ../../../local/parse_options.sh
source ../../../local/recipe.sh
source ../../../local/teachers.sh
paths_from_caller teachers whisper zipformer

sets=${sets:-$labelled $unlabelled $dev_set}
if in_stage 1 "Extract embeddings -> data/shar/{${sets// /,}}/<teacher>.*"; then
  # All sets share the codecs of the first labelled set, also if a later call adds sets.
  extract "$teachers" "$sets" --codec "$codec" --codec-from "data/shar/${labelled%% *}" \
    --max-batch-duration "$max_batch_duration"
fi

if in_stage 2 "Transcribe with Whisper -> data/shar/{${pseudo_labelled// /,}}"; then
  pseudo_label "$whisper" --compute-type "$compute_type" --batch-size 16
fi

if in_stage 3 "Extract a Zipformer's distributions -> data/shar/<set>/zipformer_*"; then
  target_sets=  # fine-tuning reads the unlabelled sets with pseudo-labels
  for set in $sets; do
    if [[ " $unlabelled " == *" $set "* ]]; then
      set+=$pseudo_suffix
    fi
    target_sets+="$set "
  done
  extract "$zipformer" "$target_sets" --max-batch-duration "$max_batch_duration"
fi
