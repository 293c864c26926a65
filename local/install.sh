#!/usr/bin/env bash
# Install everything that the recipes and the tests need.
#
# Usage: local/install.sh
#
# Makes a virtual environment with Python 3.10 in .venv at the root of the repository
# (or in $ICEFALL_KD_VENV), installs the pins of requirements.txt and this package in
# editable mode.  Returns at once when that was done before for the same pins; goes on
# where a killed call stopped.  pip uses your own configuration (index, proxy, cache).
# An environment with a torch that was not installed by this script is used as it is:
# README.md, "Another torch, a GPU".
# Takes one to two minutes and 4.2 GB (2.5 GB more while it works).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/log.sh"
source "$(dirname "${BASH_SOURCE[0]}")/find_python.sh"
source "$(dirname "${BASH_SOURCE[0]}")/parse_options.sh"

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${ICEFALL_KD_VENV:-$root/.venv}
case $venv in /*) ;; *) venv=$PWD/$venv ;; esac
# Of the pins and of the folder: an environment moved to another checkout is set up anew.
stamp=$venv/.installed-$(
  { cat "$root"/{requirements.txt,local/k2_wheel.txt,setup.py}; echo "$root"; } |
    sha256sum | cut -c1-16
)
pip_log=$venv/install.log

check_folder() {  # never write into a folder that is not an environment of ours
  if [[ -d $venv && ! -f $venv/pyvenv.cfg && -n $(ls -A "$venv") ]]; then
    die "$venv exists and is no virtual environment; set ICEFALL_KD_VENV to another folder"
  fi
  if [[ -x $venv/bin/python ]] && ! _python310_works "$venv/bin/python" >/dev/null; then
    die "$venv holds another Python than 3.10, or a broken one." \
      "Remedy: rm -r $venv, or set ICEFALL_KD_VENV to another folder"
  fi
}

has_module() {  # name: whether the environment has it, whatever folder this is
  "$venv/bin/python" -I -c \
    'import importlib.util as u, sys; sys.exit(u.find_spec(sys.argv[1]) is None)' "$1" \
    2>/dev/null
}

brings_its_own_stack() {
  if [[ ! -x $venv/bin/python || -f $pip_log ]] || ! has_module torch; then
    return 1
  fi
  has_module icefall_kd ||
    die "$venv has a torch that this script did not install, and no icefall_kd." \
      "Remedy: $venv/bin/python -m pip install -e" \
      "'$root[teachers,transformers,export,cache,dev]', or set ICEFALL_KD_VENV to" \
      "another folder"
}

make_environment() {
  if [[ -x $venv/bin/python ]] && "$venv/bin/python" -m pip --version &>/dev/null; then
    return
  fi
  local python
  python=$(find_python310) ||
    die "no Python 3.10 found (k2's wheel needs exactly 3.10). Looked on PATH, under" \
      "~/.pyenv/versions and for uv. Remedy, one of: apt-get install python3.10-venv;" \
      "pyenv install 3.10; or install uv (https://docs.astral.sh/uv), which fetches it"
  log "making $venv with $python"
  "$python" -m venv "$venv" || die "$python could not make an environment in $venv"
}

drop_half_installed() {  # pip takes a package for installed once its METADATA is there
  local info
  for info in "$venv"/lib/python3.10/site-packages/*.dist-info; do
    if [[ -d $info && ! -f $info/RECORD ]]; then
      log "was interrupted, is installed again: $(basename "$info" .dist-info)"
      rm -r "$info"
    fi
  done
}

progress() {  # pip's output: all of it to the log, the long steps to the terminal
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

pip_install() {  # what, pip's arguments
  local what=$1
  shift
  # No byte code now: it costs half a minute, and Python makes what it needs on import.
  if ! "$venv/bin/python" -m pip --disable-pip-version-check --no-input install \
    --no-compile --progress-bar off "$@" 2>&1 | progress; then
    die "could not install $what: $(pip_reason). $(remedy) The whole output is in" \
      "$pip_log. What was installed before is untouched; run this again and it goes on"
  fi
}

pip_reason() {  # pip's last error, which names the package
  grep -E '^ *ERROR:' "$pip_log" | tail -n 1 | sed 's/^ *ERROR: *//; s/[. ]*$//'
}

remedy() {
  if grep -q 'No space left' "$pip_log"; then
    printf 'Remedy: free 8 GB on the disks of %s and %s.' "$venv" "${TMPDIR:-/tmp}"
  else
    printf 'Remedy: the package index must be reachable; check the network and the %s' \
      'settings of pip (pip config list, the variables PIP_* and *_proxy).'
  fi
}

install_k2() {  # before the pins, which are content with any wheel of its version
  local wheel=$root/local/k2_wheel.txt version found
  version=$(sed -n 's/^k2==\([^ ]*\).*/\1/p' "$wheel")
  found='import sys, importlib.metadata as m, importlib.util as u
sys.exit(u.find_spec("_k2") is None or m.version("k2") != sys.argv[1])'
  if ! "$venv/bin/python" -c "$found" "$version" 2>/dev/null; then
    pip_install k2 --force-reinstall --no-deps -r "$wheel"
  fi
}

main() {
  if [[ -f $stamp && -x $venv/bin/python ]]; then
    log "already installed in $venv"
    return
  fi
  if brings_its_own_stack; then
    log "$venv was not made by this script and is used as it is; check it with:" \
      "$venv/bin/python -m icefall_kd.bin.doctor"
    return
  fi
  check_folder
  make_environment
  if command -v flock >/dev/null; then  # two scripts may find it missing at once
    exec 9>"$venv/.install.lock"
    flock 9
  fi
  if [[ -f $stamp ]]; then
    return
  fi
  : >"$pip_log"
  rm -f "$venv"/.installed-*
  drop_half_installed
  log "installing the pins of requirements.txt into $venv"
  install_k2
  pip_install "the packages of requirements.txt" -r "$root/requirements.txt"
  # --no-build-isolation: the pinned setuptools builds, nothing is downloaded for it.
  pip_install "icefall_kd itself" --no-deps --no-build-isolation -e "$root"
  : >"$stamp"
  log "installed in $venv after $SECONDS s; check it with:" \
    "$venv/bin/python -m icefall_kd.bin.doctor"
}

main
