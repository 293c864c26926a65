# The Python environment of every recipe script.  Source it.
#
#   source "$(dirname "$0")/../../../local/env.sh"
#
# Exports REPO_ROOT (absolute path of the repository) and ICEFALL_KD_VENV (virtual
# environment, default $REPO_ROOT/.venv), puts the environment's bin/ first on PATH, sets
# OMP_NUM_THREADS and MKL_NUM_THREADS to the number of CPUs unless they are set, and adds
# kaldifeat's libraries to LD_LIBRARY_PATH.  Sources log.sh.

REPO_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export REPO_ROOT
export ICEFALL_KD_VENV=${ICEFALL_KD_VENV:-$REPO_ROOT/.venv}
source "$REPO_ROOT/local/log.sh"

if [[ ! -x $ICEFALL_KD_VENV/bin/python ]]; then
  die "no Python environment in $ICEFALL_KD_VENV. Run: bash $REPO_ROOT/local/install.sh"
fi

export VIRTUAL_ENV=$ICEFALL_KD_VENV
export PATH=$ICEFALL_KD_VENV/bin:$PATH
export PYTHONUNBUFFERED=1
OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(cd "$REPO_ROOT" && python -m icefall_kd.core.cpu)}
export OMP_NUM_THREADS
export MKL_NUM_THREADS=${MKL_NUM_THREADS:-$OMP_NUM_THREADS}

for _env_lib in "$ICEFALL_KD_VENV"/lib/python3*/site-packages/kaldifeat/lib{,64}; do
  if [[ -d $_env_lib ]]; then
    export LD_LIBRARY_PATH=$_env_lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  fi
done
unset _env_lib
