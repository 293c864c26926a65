# find_python310: print the path of a working Python 3.10.  Source this file.
#
# Searches python3.10 on PATH, then below ~/.pyenv/versions (or $PYENV_ROOT/versions), then
# with uv, which may download it.  Runs each candidate, since a pyenv shim on PATH may fail
# and a Python without ensurepip cannot create an environment.
# Returns 1 if it finds none, and prints the failed candidates to stderr.

_python310_works() {  # command; prints the path of the interpreter
  "$1" -c '
import sys
assert sys.version_info[:2] == (3, 10), sys.version
import ensurepip, ssl, venv
print(sys.executable)' 2>/dev/null
}

_pyenv_pythons() {  # newest first
  local root
  for root in "${PYENV_ROOT:-}" "${HOME:-}/.pyenv"; do
    if [[ -n $root ]]; then
      compgen -G "$root/versions/3.10.*/bin/python3.10" | sort -rV
    fi
  done
}

find_python310() {
  local candidate notes=
  # type -a: a working Python may follow a failing shim on PATH.
  while IFS= read -r candidate; do
    [[ -n $candidate ]] || continue
    if _python310_works "$candidate"; then
      return 0
    fi
    notes+="  $candidate: not a Python 3.10 with venv, ensurepip and ssl"$'\n'
  done < <(type -ap python3.10; _pyenv_pythons)
  if command -v uv >/dev/null; then
    uv python find 3.10 >/dev/null 2>&1 || uv python install 3.10 >&2 || true
    candidate=$(uv python find 3.10 2>/dev/null) || candidate=
    if [[ -n $candidate ]] && _python310_works "$candidate"; then
      return 0
    fi
    notes+="  uv found no Python 3.10 and could not install one"$'\n'
  fi
  printf '%s' "$notes" >&2
  return 1
}
