#!/usr/bin/env bash
# Install the packages of the recipes and the tests.
#
# Usage: local/install.sh
#
# Creates a virtual environment with Python 3.10 in .venv of the repository (or in
# $ICEFALL_KD_VENV).  Installs the pins of requirements.txt, and this package in editable
# mode.  Returns at once if these pins are installed; resumes after an interruption.  pip
# uses your configuration (index, proxy, cache).
# Installs nothing into an environment that has another torch, see "Another torch, a GPU"
# in icefall_kd/README.md.
# Takes one to two minutes and 4.2 GB of disk (temporarily 2.5 GB more).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/log.sh"
source "$(dirname "${BASH_SOURCE[0]}")/find_python.sh"
source "$(dirname "${BASH_SOURCE[0]}")/parse_options.sh"

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${ICEFALL_KD_VENV:-$root/.venv}
case $venv in /*) ;; *) venv=$PWD/$venv ;; esac
# The name has a hash of the pins and of the folder of this checkout.
stamp=$venv/.installed-$(
  { cat "$root"/{requirements.txt,local/k2_wheel.txt,setup.py}; echo "$root"; } |
    sha256sum | cut -c1-16
)
pip_log=$venv/install.log

check_folder() {  # never write to a folder that is not a virtual environment
  if [[ -d $venv && ! -f $venv/pyvenv.cfg && -n $(ls -A "$venv") ]]; then
    die "$venv is not a virtual environment. Set ICEFALL_KD_VENV to another folder"
  fi
  if [[ -x $venv/bin/python ]] && ! _python310_works "$venv/bin/python" >/dev/null; then
    die "$venv has a broken Python or another version than 3.10." \
      "Run rm -r $venv, or set ICEFALL_KD_VENV to another folder"
  fi
}

has_module() {  # name: return 0 if the environment has this module
  "$venv/bin/python" -I -c \
    'import importlib.util as u, sys; sys.exit(u.find_spec(sys.argv[1]) is None)' "$1" \
    2>/dev/null
}

has_other_torch() {  # return 0 if this script did not install the torch
  if [[ ! -x $venv/bin/python || -f $pip_log ]] || ! has_module torch; then
    return 1
  fi
  has_module icefall_kd ||
    die "$venv has a torch from elsewhere, and no icefall_kd." \
      "Run $venv/bin/python -m pip install -e" \
      "'$root[teachers,transformers,hlg,export,cache,dev]', or set ICEFALL_KD_VENV to" \
      "another folder"
}

make_environment() {
  if [[ -x $venv/bin/python ]] && "$venv/bin/python" -m pip --version &>/dev/null; then
    return
  fi
  local python
  python=$(find_python310) ||
    die "no Python 3.10 on PATH, in ~/.pyenv/versions or by uv; the wheel of k2 needs" \
      "3.10. Run one of: apt-get install python3.10-venv; pyenv install 3.10; or install" \
      "uv (https://docs.astral.sh/uv), which downloads it"
  log "creating $venv with $python"
  "$python" -m venv "$venv" || die "$python cannot create an environment in $venv, see above"
}

remove_partial_packages() {  # pip would not repeat an interrupted installation
  local info
  for info in "$venv"/lib/python3.10/site-packages/*.dist-info; do
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

pip_install() {  # description, arguments of pip
  local what=$1
  shift
  # Compiling all packages takes half a minute; Python compiles modules on import.
  if ! "$venv/bin/python" -m pip --disable-pip-version-check --no-input install \
    --no-compile --progress-bar off "$@" 2>&1 | progress; then
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

main() {
  if [[ -f $stamp && -x $venv/bin/python ]]; then
    log "already installed in $venv"
    return
  fi
  if has_other_torch; then
    log "$venv has a torch from elsewhere and is used as it is. Check it with:" \
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
  log "installing the pins of requirements.txt into $venv"
  install_k2
  pip_install "the packages of requirements.txt" -r "$root/requirements.txt"
  # --no-build-isolation: build with the pinned setuptools, download nothing.
  pip_install "icefall_kd" --no-deps --no-build-isolation -e "$root"
  : >"$stamp"
  log "installed in $venv after $SECONDS s. Check it with:" \
    "$venv/bin/python -m icefall_kd.bin.doctor"
}

main
