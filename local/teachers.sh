# What teachers.sh of every recipe shares.  Source it after recipe.sh.
#
#   extract CONF SETS [OPTIONS]     write the fields of the teachers in CONF for SETS
#   train_vocab_teacher EXP [OPTIONS]  train a vocabulary teacher, average its last epochs
#
# Reads num_threads and overwrite, and if they are set num_processes and device; for the
# vocabulary teacher also vocab_teacher_sets, vocab_teacher_epochs, vocab_teacher_avg and
# seed.  Sets threads (options of a command) and run (python, or torchrun for several
# processes).

threads=(${num_threads:+--num-threads "$num_threads"})
run=(python -m)
if ((${num_processes:-1} > 1)); then
  run=(python -m torch.distributed.run --standalone
    --nproc_per_node "$num_processes" -m)
fi

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
