# find_python VERSION...: print the path of a working Python of one of these versions.
# Source this file.
#
#   python=$(find_python 3.12 3.11 3.10)
#
# Searches for python3.12 and so on, on PATH, then below ~/.pyenv/versions (or
# $PYENV_ROOT/versions), then with uv, which may download the first version.  Runs each
# candidate, since a pyenv shim on PATH may fail and a Python without ensurepip cannot
# create an environment.
# Returns 1 if it finds none, and prints the failed candidates to stderr.

_python_works() {  # command, versions; prints the path of the interpreter
  "$1" -c '
import sys
assert "{}.{}".format(*sys.version_info) in sys.argv[1:], sys.version
import ensurepip, ssl, venv
print(sys.executable)' "${@:2}" 2>/dev/null
}

_pyenv_pythons() {  # version; newest first
  local root
  for root in "${PYENV_ROOT:-}" "${HOME:-}/.pyenv"; do
    if [[ -n $root ]]; then
      compgen -G "$root/versions/$1.*/bin/python$1" | sort -rV
    fi
  done
}

_list_pythons() {  # versions
  local version
  for version; do
    type -ap "python$version"  # all: a working Python may follow a failing shim
  done
  for version; do
    _pyenv_pythons "$version"
  done
}

find_python() {
  local candidate notes=
  while IFS= read -r candidate; do
    if _python_works "$candidate" "$@"; then
      return 0
    fi
    notes+="  $candidate: not a Python ${candidate##*python} with venv, ensurepip and ssl"
    notes+=$'\n'
  done < <(_list_pythons "$@")
  if command -v uv >/dev/null; then
    uv python find "$1" >/dev/null 2>&1 || uv python install "$1" >&2 || true
    candidate=$(uv python find "$1" 2>/dev/null) || candidate=
    if [[ -n $candidate ]] && _python_works "$candidate" "$@"; then
      return 0
    fi
    notes+="  uv found no Python $1 and could not install one"$'\n'
  fi
  printf '%s' "$notes" >&2
  return 1
}
