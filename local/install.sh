#!/usr/bin/env bash
# Install the packages of the recipes and the tests.
#
# Usage: local/install.sh [--stack pinned|current]
#
#   pinned    the versions of requirements.txt and Python 3.10, in .venv of the repository
#   current   the newest versions without k2 and Python 3.10 to 3.13, in .venv-current.
#             torch is the build for CPUs if there is no NVIDIA GPU.  To update, run
#             rm -r .venv-current and install again
#
# $ICEFALL_KD_VENV replaces the folder.  Installs this package in editable mode.  Returns
# at once if all is installed; resumes after an interruption.  pip uses your configuration
# (index, proxy, cache).
# Installs nothing into an environment that has another torch, see "Another torch, a GPU"
# in icefall_kd/README.md.
# Takes one to two minutes and 4.2 GB of disk (temporarily 2.5 GB more).
set -euo pipefail
stack=pinned  # pinned or current
source "$(dirname "${BASH_SOURCE[0]}")/log.sh"
source "$(dirname "${BASH_SOURCE[0]}")/find_python.sh"
source "$(dirname "${BASH_SOURCE[0]}")/parse_options.sh"

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
case $stack in
  pinned)
    name=.venv log_name=install.log
    versions=(3.10)  # of Python
    inputs=("$root"/{requirements.txt,local/k2_wheel.txt,setup.py})
    ;;
  current)
    name=.venv-current log_name=install-current.log
    versions=(3.13 3.12 3.11 3.10)
    inputs=("$root/setup.py")
    ;;
  *) die "--stack: unknown '$stack'. Available: pinned, current" ;;
esac
venv=${ICEFALL_KD_VENV:-$root/$name}
case $venv in /*) ;; *) venv=$PWD/$venv ;; esac
# The name has a hash of the pins and of the folder of this checkout.
stamp=$venv/.installed-$({ cat "${inputs[@]}"; echo "$root"; } | sha256sum | cut -c1-16)
pip_log=$venv/$log_name
extras=teachers,transformers,hlg,export,cache,dev
cpu_torch=https://download.pytorch.org/whl/cpu/torch/

check_folder() {  # never write to a folder that is not a virtual environment
  if [[ -d $venv && ! -f $venv/pyvenv.cfg && -n $(ls -A "$venv") ]]; then
    die "$venv is not a virtual environment. Set ICEFALL_KD_VENV to another folder"
  fi
  if [[ -x $venv/bin/python ]] && ! _python_works "$venv/bin/python" "${versions[@]}" >/dev/null; then
    die "$venv has a broken Python or another version than ${versions[*]}." \
      "Run rm -r $venv, or set ICEFALL_KD_VENV to another folder"
  fi
}

has_module() {  # name: return 0 if the environment has this module
  "$venv/bin/python" -I -c \
    'import importlib.util as u, sys; sys.exit(u.find_spec(sys.argv[1]) is None)' "$1" \
    2>/dev/null
}

has_other_torch() {  # return 0 if this script with this stack did not install the torch
  if [[ ! -x $venv/bin/python || -f $pip_log ]] || ! has_module torch; then
    return 1
  fi
  has_module icefall_kd ||
    die "$venv has a torch from elsewhere, and no icefall_kd." \
      "Run $venv/bin/python -m pip install -e" \
      "'$root[$extras]', or set ICEFALL_KD_VENV to" \
      "another folder"
}

make_environment() {
  if [[ -x $venv/bin/python ]] && "$venv/bin/python" -m pip --version &>/dev/null; then
    return
  fi
  local python
  python=$(find_python "${versions[@]}") ||
    die "no Python ${versions[*]} on PATH, in ~/.pyenv/versions or by uv (the wheel of k2" \
      "needs 3.10). Run one of: apt-get install python$versions-venv; pyenv install" \
      "$versions; or install uv (https://docs.astral.sh/uv), which downloads it"
  log "creating $venv with $python"
  "$python" -m venv "$venv" || die "$python cannot create an environment in $venv, see above"
}

remove_partial_packages() {  # pip would not repeat an interrupted installation
  local info
  for info in "$venv"/lib/python3.*/site-packages/*.dist-info; do
    if [[ -d $info && ! -f $info/RECORD ]]; then
      log "install again after an interruption: $(basename "$info" .dist-info)"
      rm -r "$info"
    fi
  done
}

progress() {  # write pip's output to the log, print the long steps
  local line
  while IFS= read -r line; do
    printf '%s\n' "$line" >>"$pip_log"
    case $line in
      *Downloading*' MB)' | *'Using cached'*' MB)')
        printf '  [%3d s] %s\n' "$SECONDS" "${line#"${line%%[! ]*}"}"
        ;;
      'Installing collected'*,*)
        printf '  [%3d s] unpacking %d packages, about a minute\n' "$SECONDS" \
          "$(wc -w <<<"${line#*:}")"
        ;;
    esac
  done >&2
}

run_pip() {  # arguments of pip install
  # Compiling all packages takes half a minute; Python compiles modules on import.
  "$venv/bin/python" -m pip --disable-pip-version-check --no-input install \
    --no-compile --progress-bar off "$@" 2>&1 | progress
}

pip_install() {  # description, arguments of pip install
  local what=$1
  shift
  if ! run_pip "$@"; then
    die "cannot install $what: $(pip_reason). $(remedy) Run the command again to resume." \
      "pip's output: $pip_log"
  fi
}

pip_reason() {  # print pip's last error
  grep -E '^ *ERROR:' "$pip_log" | tail -n 1 | sed 's/^ *ERROR: *//; s/[. ]*$//'
}

remedy() {
  if grep -q 'No space left' "$pip_log"; then
    printf 'Free 8 GB on the disks of %s and %s.' "$venv" "${TMPDIR:-/tmp}"
  else
    printf 'Check the network and the settings of pip (pip config list, the variables %s' \
      'PIP_* and *_proxy).'
  fi
}

install_k2() {  # requirements.txt would accept a wheel for another Python
  local wheel=$root/local/k2_wheel.txt version found
  version=$(sed -n 's/^k2==\([^ ]*\).*/\1/p' "$wheel")
  found='import sys, importlib.metadata as m, importlib.util as u
sys.exit(u.find_spec("_k2") is None or m.version("k2") != sys.argv[1])'
  if ! "$venv/bin/python" -c "$found" "$version" 2>/dev/null; then
    pip_install k2 --force-reinstall --no-deps -r "$wheel"
  fi
}

install_cpu_torch() {  # the default build for Linux has 4 GB of libraries for CUDA
  # --no-index: an index with a newer build for CUDA would win.
  if ! run_pip --no-index --no-deps --find-links "$cpu_torch" --retries 1 torch; then
    log "no torch for CPUs at $cpu_torch or in pip's find-links: installing the default"
  fi
}

install_pinned() {
  log "installing the pins of requirements.txt into $venv"
  install_k2
  pip_install "the packages of requirements.txt" -r "$root/requirements.txt"
  # --no-build-isolation: build with the pinned setuptools, download nothing.
  pip_install "icefall_kd" --no-deps --no-build-isolation -e "$root"
}

install_current() {
  log "installing the newest versions of the packages of setup.py into $venv"
  if ! has_module torch && ! nvidia-smi &>/dev/null; then
    install_cpu_torch
  fi
  pip_install "icefall_kd and its packages" --prefer-binary -e "$root[$extras]"
}

main() {
  if [[ -f $stamp && -x $venv/bin/python ]]; then
    log "already installed in $venv"
    return
  fi
  if has_other_torch; then
    log "$venv is not of stack $stack and is used as it is. Check it with:" \
      "$venv/bin/python -m icefall_kd.bin.doctor"
    return
  fi
  check_folder
  make_environment
  if command -v flock >/dev/null; then  # two scripts may install at the same time
    exec 9>"$venv/.install.lock"
    flock 9
  fi
  if [[ -f $stamp ]]; then
    return
  fi
  : >"$pip_log"
  rm -f "$venv"/.installed-*
  remove_partial_packages
  "install_$stack"
  : >"$stamp"
  log "installed in $venv after $SECONDS s. Check it with:" \
    "$venv/bin/python -m icefall_kd.bin.doctor"
}

main
