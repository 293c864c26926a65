#!/usr/bin/env bash
# Install what is needed, check the style, run the tests.
#
# Usage: test/run.sh [--stack current] [--slow] [pytest's arguments]
#
#   test/run.sh                  every test without the mark slow or gpu
#   test/run.sh --stack current  the same with the newest packages, without k2
#   test/run.sh --slow           the slow ones: installations, kills, whole recipes
#   test/run.sh -k doctor -x     options of pytest
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
stack=pinned
if [ "${1:-}" = --stack ]; then
  stack=$2
  shift 2
fi
if [ "$stack" = current ]; then
  export ICEFALL_KD_VENV=${ICEFALL_KD_VENV:-$PWD/.venv-current}
  set -- -rs "$@"  # list the tests of k2 that are skipped
fi
if [ "${1:-}" = --slow ]; then
  shift
  set -- -m slow "$@"
fi
bash local/install.sh --stack "$stack"
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
