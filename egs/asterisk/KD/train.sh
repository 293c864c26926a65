#!/usr/bin/env bash
# Train students: embedding pre-training, then fine-tuning with the transcripts.
#
#   bash egs/asterisk/KD/train.sh [--profile full] [--variants unified] \
#     [--systems "baseline both_pool"]
#
# A system is baseline (no pre-training) or the teachers it learns from, tiny_en, base
# or both, with _pool when pre-training also hears the unlabelled audio.  All systems
# of a variant have the same parameters and the same fine-tuning.
#
# Stage 1: pre-train the encoders  -> exp/<profile>/<variant>/<system>/pretrain/
# Stage 2: fine-tune               -> exp/<profile>/<variant>/<system>/finetune/
# A run that was stopped goes on; a run that is finished is left alone.
stage=1              # first stage to run
stop_stage=2         # last stage to run
profile=quick        # quick or full: how long, and how much of the pool
variants=            # unified, non_streaming, streaming; empty: those of the profile
systems=             # see above; empty: those of the profile
seed=42              # of weights, order of data and regularisers
num_threads=$(nproc) # CPU threads of a run

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source ../../../local/env.sh
source ../../../local/parse_options.sh
source local/profiles.sh

if in_stage 1 "Pre-train the encoders -> exp/$profile/*/*/pretrain"; then
  for variant in $variants; do
    for system in $systems; do
      [[ $system == baseline ]] && continue
      exp=exp/$profile/$variant/$system/pretrain
      python -m icefall_kd.bin.train --exp-dir "$exp" \
        --config conf/student.yaml --config "conf/$variant.yaml" \
        --config conf/pretrain.yaml --config "conf/$profile/pretrain.yaml" \
        --data.train "$(train_sets "$system")" \
        --terms.embedding.teachers "$(teacher_weights "$system")" \
        --num-epochs "$(pretrain_epochs "$system")" \
        --seed "$seed" --num-threads "$num_threads"
      run_once "$exp/.averaged" python -m icefall_kd.bin.average --exp-dir "$exp" \
        --avg "$pretrain_avg"
    done
  done
fi

if in_stage 2 "Fine-tune -> exp/$profile/*/*/finetune"; then
  for variant in $variants; do
    for system in $systems; do
      exp=exp/$profile/$variant/$system/finetune
      init=()
      if [[ $system != baseline ]]; then
        init=(--init-encoder "exp/$profile/$variant/$system/pretrain/pretrained.pt")
      fi
      python -m icefall_kd.bin.train --exp-dir "$exp" \
        --config conf/student.yaml --config "conf/$variant.yaml" \
        --config conf/finetune.yaml --config "conf/$profile/finetune.yaml" \
        --num-epochs "$finetune_epochs" "${init[@]}" \
        --seed "$seed" --num-threads "$num_threads"
      run_once "$exp/.averaged" python -m icefall_kd.bin.average --exp-dir "$exp" \
        --avg "$finetune_avg"
    done
  done
fi
