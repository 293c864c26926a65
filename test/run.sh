#!/usr/bin/env bash
# Install what is needed, check the style, run the tests.
#
# Usage: test/run.sh [--slow] [pytest's arguments]
#
#   test/run.sh                every test without the mark slow or gpu
#   test/run.sh --slow         the slow ones: installations, kills in loops, whole recipes
#   test/run.sh -k doctor -x   options of pytest
set -euo pipefail
if [ "${1:-}" = --slow ]; then
  shift
  set -- -m slow "$@"
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash local/install.sh
# Many small matrices: two threads are no faster, and far slower on a busy machine.
# So the tests run in as many processes as there are cores instead, at most 4.
workers=$(nproc)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
source local/env.sh

status=0
log "checking the style"
ruff check . || status=$?
log "running the tests"
# -m pytest: the environment may have been moved since its scripts were written.
python -m pytest -n $((workers < 4 ? workers : 4)) --dist loadscope \
  --durations=15 --durations-min=2 "$@" || status=$?
exit "$status"
