# What teachers.sh of every recipe shares.  Source it after recipe.sh.
#
#   fetch_teachers                  fetch the teachers in $fetch -> download/teachers
#   extract CONF SETS [OPTIONS]     write the fields of the teachers in CONF for SETS
#   pseudo_label WHISPER [OPTIONS]  transcribe the unlabelled sets with the folder WHISPER
#   train_vocab_teacher EXP [OPTIONS]  train a vocabulary teacher, average its last epochs
#
# Reads the options of teachers.sh and the values of the profile: num_threads, overwrite,
# fetch, from_dir, unlabelled, pseudo_suffix, numbers, vocab_teacher_sets,
# vocab_teacher_epochs, vocab_teacher_avg and seed; num_processes and device may be unset.
# Sets threads (options of a command) and run (python, or torchrun for several processes).

threads=(${num_threads:+--num-threads "$num_threads"})
run=(python -m)
if ((${num_processes:-1} > 1)); then
  run=(python -m torch.distributed.run --standalone
    --nproc_per_node "$num_processes" -m)
fi

fetch_teachers() {
  local teacher
  for teacher in $fetch; do
    python -m icefall_kd.bin.fetch_teacher --teacher "$teacher" \
      --out-dir "download/teachers/$teacher" \
      ${from_dir:+--from-dir "$from_dir/$teacher"}
  done
}

extract() {
  local set folders=() options=(${device:+--device "$device"} "${threads[@]}")
  for set in $2; do
    folders+=("data/shar/$set")
  done
  if [[ $overwrite == true ]]; then
    options+=(--overwrite)
  fi
  "${run[@]}" icefall_kd.bin.extract --shar-dir "${folders[@]}" --teachers "$1" \
    "${options[@]}" "${@:3}"
}

pseudo_label() {
  local set
  for set in $unlabelled; do
    "${run[@]}" icefall_kd.bin.pseudo_label --shar-dir "data/shar/$set" \
      --model-dir "$1" ${device:+--device "$device"} "${threads[@]}" "${@:2}" \
      --numbers "$numbers" --output "data/shar/$set$pseudo_suffix"
  done
}

train_vocab_teacher() {
  OMP_NUM_THREADS=${num_threads:-$OMP_NUM_THREADS} \
    MKL_NUM_THREADS=${num_threads:-$OMP_NUM_THREADS} \
    python -m icefall_kd.bin.train --exp-dir "$1" --config conf/vocab_teacher.yaml \
    --data.train "[${vocab_teacher_sets// /, }]" --num-epochs "$vocab_teacher_epochs" \
    --seed "$seed" "${@:2}"
  run_once --reads "$1/done" --reads "$1/metrics.jsonl" \
    --code training/checkpoint.py "$1/.averaged" \
    python -m icefall_kd.bin.average --exp-dir "$1" --avg "$vocab_teacher_avg"
}
