#!/usr/bin/env bash
# Train students: pre-train the encoder on embeddings, then fine-tune on transcripts.
#
#   bash egs/<corpus>/KD/train.sh [--profile full] [--variants unified] \
#     [--systems "baseline both_unlabelled"] [--dry-run] [-- options of bin.train]
#
# The name of a system is START[_random][_unlabelled][+PART...][@SEED]:
#   baseline                  random weights, no pre-training
#   both                      pre-trained on the teachers "both" of conf/profiles.yaml
#   both_random               each update draws one teacher for each utterance
#   both_unlabelled           pre-training also reads the unlabelled audio
#   baseline+one_best         fine-tuning also reads conf/kd/one_best.yaml; a later part
#                             overrides an earlier one: both+pseudo+one_best
#   both_unlabelled+pseudo    fine-tuning also reads unlabelled audio with pseudo-labels
#   student+hidden            starts from exp/student/pretrained.pt, the student that
#                             teachers.sh uses as a teacher
#   baseline@43               another run with seed 43; bin.report averages the runs
# All systems of a variant have the same parameters and the same fine-tuning.
# teachers.sh writes the fields and pseudo-labels that the systems read.
#
# Stage 1: pre-train the encoders -> exp/<profile>/<variant>/<system>/pretrain/
#          Systems that differ only in their parts share one pre-training.
# Stage 2: fine-tune              -> exp/<profile>/<variant>/<system>/finetune/
# Each stage averages its last epochs -> pretrained.pt.  A stopped run resumes, a finished
# run is skipped.  The log of a system is train.log in its folder.
stage=1              # first stage to run
stop_stage=2         # last stage to run
profile=             # profile of conf/profiles.yaml (default: the first one)
variants=            # unified, non_streaming, streaming (default: those of the profile)
systems=             # names, see above (default: those of the profile)
seed=42              # seed of the systems without @SEED
epochs=              # epochs of each stage (default: those of the profile)
avg=                 # number of last epochs to average (default: that of the profile)
jobs=                # systems trained at once (default: that of the profile, else 1 on a GPU or one per CPU)
num_processes=1      # processes of each training, each on its own GPU, run by torchrun
student=conf/student.yaml # model configuration of the student
exp=                 # folder of the runs (default: exp/<profile>)
dry_run=false        # print the commands, run nothing

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
source "$REPO_ROOT/local/parse_options.sh"
source "$REPO_ROOT/local/recipe.sh"
paths_from_caller student
further=("$@")  # options after "--"
training=(train --student "$student" --seed "$seed" --epochs "$epochs" --avg "$avg"
  --num-processes "$num_processes" --stage "$stage" --stop-stage "$stop_stage")

if [[ $dry_run == true ]]; then
  # awk: print a pre-training that systems share once.
  run_commands "${training[@]}" --dry-run -- "${further[@]}" | awk '!seen[$0]++'
  exit
fi
# Lines "folder of the system <TAB> folder of the stage <TAB> command", in their order.
commands=$(recipe_commands "${training[@]}" -- "${further[@]}")

uses_gpu() {  # return 0 if bin.train will use a GPU
  [[ ! " ${further[*]} " =~ " --device"[\ =]"cpu " ]] &&
    python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'
}
jobs=${jobs:-$profile_jobs}
if [[ -z $jobs ]]; then
  # Several trainings exceed the memory of one GPU.
  if uses_gpu; then jobs=1; else jobs=$OMP_NUM_THREADS; fi
fi
threads=$((OMP_NUM_THREADS / (jobs * num_processes)))
export OMP_NUM_THREADS=$((threads > 0 ? threads : 1))
export MKL_NUM_THREADS=$OMP_NUM_THREADS

run_command() {  # folder of the stage, command of bin.train or bin.average
  # bin.train skips a finished training, run_once skips a finished averaging.
  if [[ $* == *icefall_kd.bin.average* ]]; then
    run_once --reads "$1/done" --reads "$1/metrics.jsonl" \
      --code training/checkpoint.py "$1/.averaged" "${@:2}"
  else
    "${@:2}"
  fi
}

train_system() {  # folder of the system: run its commands
  set -e
  local system stage_dir command words
  while IFS=$'\t' read -r -u 3 system stage_dir command; do
    if [[ $system != "$1" ]]; then
      continue
    fi
    eval "words=($command)"
    mkdir -p "${stage_dir%/*}"
    (  # systems may share a pre-training: the first one runs it, the others wait
      flock 8
      run_command "$stage_dir" "${words[@]}"
    ) 8>"${stage_dir%/*}/.${stage_dir##*/}.lock"
  done 3<<<"$commands"
}

log_output() {  # name, log file: write all lines to the file, print progress and errors
  trap '' INT TERM  # log until the training has stopped
  tee -a "$2" |
    { grep --line-buffered -E ' ETA |epoch [0-9]+ dev: |done before|ERROR|WARNING|train: ' || true; } |
    sed -u "s|^|[$1] |"
}

log "Stages $stage to $stop_stage: $systems ($variants), $jobs at once -> $exp"
# Ctrl-C: the trainings finish their batch and write a checkpoint; wait for them.
trap 'trap "" INT TERM; kill 0; wait; exit 130' INT TERM
failed=     # folders of systems
running=()  # PID:FOLDER of each system that is trained
wait_for_oldest() {
  wait "${running[0]%%:*}" || failed+=" ${running[0]#*:}"
  running=("${running[@]:1}")
}
for variant in $variants; do
  for system in $systems; do
    folder=$exp/$variant/$system
    mkdir -p "$folder"
    # The subshell survives the TERM of Ctrl-C until its training has stopped.
    (trap '' INT; trap : TERM; set -o pipefail; (train_system "$folder") 2>&1 |
      log_output "$variant $system" "$folder/train.log") &
    running+=("$!:$folder")
    if ((${#running[@]} >= jobs)); then
      wait_for_oldest
    fi
  done
done
while ((${#running[@]} > 0)); do
  wait_for_oldest
done
for folder in $failed; do
  tail -n 5 "$folder/train.log" >&2
  log "ERROR: $folder failed. Read $folder/train.log"
done
if [[ -n $failed ]]; then
  die "failed:$failed. Run the same command again to resume"
fi
