# Command-line options for a script that sources this file.
#
# An option is a variable that the script assigns at the start of a line before it
# sources this file.  Its value is the default, the comment on the line is the help.
# Names are lower case; "_" becomes "-" on the command line:
#
#   #!/usr/bin/env bash
#   # Purpose of the script: --help prints this header.
#   stop_stage=9    # last stage to run
#   profile=quick   # quick or full
#   resume=true     # resume from the last checkpoint
#   source local/parse_options.sh
#
#   script.sh --stop-stage 5 --profile=full --resume false -- extra arguments
#
# A boolean option needs no value: --resume means --resume true.  Arguments after "--"
# stay in "$@".  An unknown option, a missing value or any other argument ends the script
# with status 2.  Sets repeat=true when --stage is given, else repeat=false (see run_once
# in log.sh).
#
# RENAMED_OPTIONS="--old=--new ..." lists former options; the error has the new name.
#
# paths_from_caller NAME...: make the paths in these options absolute, if the user gave
# them and they exist relative to the folder of the call.  A script that changes the folder
# before it sources this file exports the folder of the call as CALLED_IN.

paths_from_caller() {
  local name
  for name in "$@"; do
    if [[ $_po_given == *" $name "* && -n ${!name} && ${!name} != /* &&
      -e ${CALLED_IN:-$PWD}/${!name} ]]; then
      printf -v "$name" '%s' "$(realpath "${CALLED_IN:-$PWD}/${!name}")"
    fi
  done
}

_po_script=${BASH_SOURCE[1]}
if [[ ! -r $_po_script ]]; then
  _po_script=./${_po_script##*/}  # the script changed into its own folder
fi
repeat=false
_po_given=" "  # names of the given options

_po_assignments() {  # print the script's option lines
  sed -n -e '/^ *\(source\|\.\) .*parse_options\.sh/q' -e '/^[a-z][a-z0-9_]*=/p' \
    "$_po_script"
}

_po_names() {
  _po_assignments | sed 's/=.*//' | sort -u
}

_po_help() {
  # The header: the first block of comment lines, without the "#!" line.
  awk 'NR == 1 && /^#!/ {next} /^#/ {sub(/^# ?/, ""); print; next} {exit}' "$_po_script"
  printf '\nOptions:\n'
  local line name default help
  while IFS= read -r line; do
    name=${line%%=*}
    default=${line#*=}
    help=
    if [[ $default == *' #'* ]]; then
      help=${default#*' #'}
      default=${default%%' #'*}
    fi
    default=${default%"${default##*[![:space:]]}"}
    printf '  --%-20s %s\n' "${name//_/-}" "${help# }${default:+ (default: $default)}"
  done < <(_po_assignments)
}

_po_fail() {
  printf '%s: %s\n' "${_po_script##*/}" "$1" >&2
  printf 'Known options: %s (see --help)\n' \
    "$(_po_names | sed -e 's/_/-/g' -e 's/^/--/' | paste -sd ' ')" >&2
  exit 2
}

_po_check() {  # name, value: check numbers and booleans
  if [[ $1 == stage || $1 == stop_stage ]] && [[ ! $2 =~ ^-?[0-9]+$ ]]; then
    _po_fail "--${1//_/-}: \"$2\" is not a whole number"
  fi
  if [[ ${!1} == true || ${!1} == false ]] && [[ $2 != true && $2 != false ]]; then
    _po_fail "--${1//_/-}: \"$2\" is not true or false"
  fi
}

while (($# > 0)); do
  case $1 in
    -h | --help)
      _po_help
      exit 0
      ;;
    --)
      shift
      break
      ;;
    --*) ;;
    *) _po_fail "\"$1\" is not an option" ;;
  esac
  _po_name=${1%%=*}
  if [[ " ${RENAMED_OPTIONS:-}" =~ " $_po_name="([a-z-]+) ]]; then
    _po_fail "$_po_name is now ${BASH_REMATCH[1]}"
  fi
  _po_name=${_po_name#--}
  _po_name=${_po_name//-/_}
  if [[ ! $_po_name =~ ^[a-z][a-z0-9_]*$ ]] || ! _po_names | grep -qx "$_po_name"; then
    _po_fail "unknown option ${1%%=*}"
  fi
  if [[ $1 == *=* ]]; then
    _po_value=${1#*=}
  elif [[ ${!_po_name} =~ ^(true|false)$ && ( $# -eq 1 || $2 == -* ) ]]; then
    _po_value=true
  elif (($# > 1)) && [[ $2 != --* ]]; then
    _po_value=$2
    shift
  else
    _po_fail "$1: the value is missing"
  fi
  shift
  _po_check "$_po_name" "$_po_value"
  printf -v "$_po_name" '%s' "$_po_value"
  _po_given+="$_po_name "
  if [[ $_po_name == stage ]]; then
    repeat=true
  fi
done
unset _po_name _po_value
