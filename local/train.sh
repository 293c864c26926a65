#!/usr/bin/env bash
# Train students: embedding pre-training, then fine-tuning with the transcripts.
#
#   bash egs/<corpus>/KD/train.sh [--profile full] [--variants unified] \
#     [--systems "baseline both_pool"] [-- options of bin.train]
#
# A system is baseline (no pre-training) or the teachers it learns from, by a name of the
# recipe's README, with _random when each utterance is taught by one of them, drawn anew
# in every update, and with _pool when pre-training also hears the unlabelled audio
# (both_random_pool).  All systems of a variant have the same parameters and the same
# fine-tuning.  Behind each "+" stands what fine-tuning learns from beside the transcripts,
# files of conf/kd laid one over the other, for example baseline+one_best,
# both_pool+inter_ctc or both_pool+pseudo+one_best; "pseudo" is Whisper's transcripts of
# the pool.  What they need is written by teachers.sh.
# A name may end in @ and a seed: baseline@43 is another run of the baseline, in a folder
# of its own, and bin.report counts the runs of a system together.
# The system student begins as a whole student that is trained, exp/student/pretrained.pt,
# which teachers.sh took for a teacher: student+hidden, with --variants streaming, is the
# second stage of system C, and student alone its control.
#
# Stage 1: pre-train the encoders  -> exp/<profile>/<variant>/<system>/pretrain/, the
#          same one for all that follows the "+"
# Stage 2: fine-tune               -> exp/<profile>/<variant>/<system>/finetune/
# A run that was stopped goes on; a run that is finished is left alone.  Systems are
# trained one after the other on a GPU, on CPUs side by side with one thread each.  Each writes to train.log in its
# folder.
stage=1              # first stage to run
stop_stage=2         # last stage to run
profile=             # of local/profiles.sh; empty: the first there
variants=            # unified, non_streaming, streaming; empty: those of the profile
systems=             # see above; empty: those of the profile
seed=42              # of weights, order of data and regularisers, where no name has one
epochs=              # of each stage; empty: the recipe's
avg=                 # last epochs of each stage that are averaged; empty: the recipe's
jobs=                # systems trained side by side; empty: the recipe's, else 1 on a GPU, one a CPU
num_processes=1      # of each training; several, on a GPU each, are started by torchrun
student=conf/student.yaml # shape of the student
exp=                 # folder of the runs; empty: exp/<profile>

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
source "$REPO_ROOT/local/parse_options.sh"
source "$REPO_ROOT/local/systems.sh"
as_called student
further=("$@")  # behind "--"

uses_gpu() {  # as bin.train finds one, unless the options behind "--" say cpu
  [[ ! " ${further[*]} " =~ " --device"[\ =]"cpu " ]] &&
    python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'
}
if [[ -z $jobs ]]; then
  # Trainings on one GPU side by side run out of its memory.
  if uses_gpu; then jobs=1; else jobs=$OMP_NUM_THREADS; fi
fi
trainer=(python -m icefall_kd.bin.train)
if ((num_processes > 1)); then
  trainer=(python -m torch.distributed.run --standalone
    --nproc_per_node "$num_processes" -m icefall_kd.bin.train)
fi

threads=$((OMP_NUM_THREADS / (jobs * num_processes)))
export OMP_NUM_THREADS=$((threads > 0 ? threads : 1))
export MKL_NUM_THREADS=$OMP_NUM_THREADS

pretrain() {  # variant, system
  local folder=$exp/$1/$2/pretrain
  "${trainer[@]}" --exp-dir "$folder" \
    --config "$student" --config "conf/$1.yaml" \
    --config conf/pretrain.yaml --config "conf/$profile/pretrain.yaml" \
    --data.train "$(train_sets "$2")" \
    --terms.embedding.teachers "$(teacher_weights "$2")" \
    --terms.embedding.choose "$(teacher_choice "$2")" \
    --num-epochs "${epochs:-$(pretrain_epochs "$2")}" \
    --optim.lr-epochs "$(pretrain_lr_epochs "$2")" --seed "$(seed_of "$2")" \
    "${further[@]}"
  run_once --reads "$folder/done" --reads "$folder/metrics.jsonl" \
    --code training/averaging.py "$folder/.averaged" \
    python -m icefall_kd.bin.average --exp-dir "$folder" --avg "${avg:-$pretrain_avg}"
}

finetune() {  # variant, system
  local folder=$exp/$1/$2/finetune init=() kd=() part first
  first=$(begins_as "$2")
  if pretrains "$2"; then
    init=(--init-encoder "$exp/$1/$first/pretrain/pretrained.pt")
  elif [[ ${first%@*} == student ]]; then
    init=(--config conf/from_student.yaml)
  fi
  for part in $(kd_parts "$2"); do
    kd+=(--config "conf/kd/$part.yaml")
  done
  "${trainer[@]}" --exp-dir "$folder" \
    --config "$student" --config "conf/$1.yaml" \
    --config conf/finetune.yaml --config "conf/$profile/finetune.yaml" "${kd[@]}" \
    --data.train "$(finetune_sets "$2")" \
    --num-epochs "${epochs:-$(finetune_epochs "$2")}" "${init[@]}" \
    --seed "$(seed_of "$2")" "${further[@]}"
  run_once --reads "$folder/done" --reads "$folder/metrics.jsonl" \
    --code training/averaging.py "$folder/.averaged" \
    python -m icefall_kd.bin.average --exp-dir "$folder" --avg "${avg:-$finetune_avg}"
}

train_system() {  # variant, system
  set -e
  local first
  first=$(begins_as "$2")
  if ((stage <= 1 && stop_stage >= 1)) && pretrains "$2"; then
    mkdir -p "$exp/$1/$first"
    (  # one of several systems that begin with the same encoder trains it
      flock 8
      pretrain "$1" "$first"
    ) 8>"$exp/$1/$first/.pretrain.lock"
  fi
  if ((stage <= 2 && stop_stage >= 2)); then
    finetune "$1" "$2"
  fi
}

show() {  # name, log file: keep all, let progress through with the name before it
  trap '' INT TERM  # up to the last line of a training that is asked to stop
  tee -a "$2" |
    { grep --line-buffered -E ' ETA | dev: |done before|ERROR|WARNING|train: ' || true; } |
    sed -u "s|^|[$1] |"
}

log "Stages $stage to $stop_stage: $systems ($variants), $jobs side by side -> $exp"
# The trainings stop after their present batch, with a checkpoint, and are waited for.
trap 'trap "" INT TERM; kill 0; wait; exit 130' INT TERM
failed=
running=()
wait_for_one() {  # the oldest; what fails is told at the end
  wait "${running[0]%%:*}" || failed+=" ${running[0]#*:}"
  running=("${running[@]:1}")
}
for variant in $variants; do
  for system in $systems; do
    folder=$exp/$variant/$system
    seed_of "$system" >/dev/null
    finetune_sets "$system" >/dev/null
    first=$(begins_as "$system")
    if pretrains "$system"; then
      teacher_weights "$first" >/dev/null
      train_sets "$first" >/dev/null
    elif [[ ${first%@*} == student && ! -f exp/student/pretrained.pt ]]; then
      die "system \"$system\": there is no exp/student/pretrained.pt, the student that is" \
        "taken for a teacher; a stage of teachers.sh writes it (teachers.sh --help)"
    fi
    for part in $(kd_parts "$system"); do
      if [[ ! -f conf/kd/$part.yaml ]]; then
        die "system \"$system\": there is no conf/kd/$part.yaml"
      fi
    done
    mkdir -p "$folder"
    (trap '' INT; trap : TERM; set -o pipefail; (train_system "$variant" "$system") 2>&1 |
      show "$variant $system" "$folder/train.log") &
    running+=("$!:$folder")
    if ((${#running[@]} >= jobs)); then
      wait_for_one
    fi
  done
done
while ((${#running[@]} > 0)); do
  wait_for_one
done
for folder in $failed; do
  tail -n 5 "$folder/train.log" >&2
  die "$folder failed; what it said is in $folder/train.log"
done
