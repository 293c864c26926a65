# find_python310: prints the path of a Python 3.10 that works.  Source it.
#
# Looks for python3.10 on PATH, then under ~/.pyenv/versions (or $PYENV_ROOT/versions),
# then asks uv, which may download one.  Each candidate is run: a pyenv shim can lie on
# PATH and still fail, and a Python without ensurepip cannot make an environment.
# Returns 1 when there is none; says on stderr which candidates failed.

_python310_works() {  # command; prints the interpreter's own path
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
  # type -a: behind a shim that fails there may be one that works.
  while IFS= read -r candidate; do
    [[ -n $candidate ]] || continue
    if _python310_works "$candidate"; then
      return 0
    fi
    notes+="  $candidate is no Python 3.10 with venv, ensurepip and ssl"$'\n'
  done < <(type -ap python3.10; _pyenv_pythons)
  if command -v uv >/dev/null; then
    # Output of the download goes to stderr; uv says itself what goes wrong.
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
