# Command-line options for a script that sources this file.
#
# Every variable that the script assigns at the start of a line before sourcing this
# file is an option; its value is the default, the comment on its line the help.  Such
# names are lower case; an underscore is written as a dash on the command line:
#
#   #!/usr/bin/env bash
#   # Purpose of the script: this header is what --help prints.
#   stop_stage=9    # last stage to run
#   profile=quick   # quick or full
#   resume=true     # go on from the last checkpoint
#   source local/parse_options.sh
#
#   script.sh --stop-stage 5 --profile=full --resume false -- extra arguments
#
# An option whose value is true or false may stand alone (--resume): it is then true.
# as_called NAME... makes the values of options paths from the folder that the script was
# called in: absolute where the user gave them and they exist there, else as they are.  A
# script that changes the folder before it sources this file exports the former one as
# CALLED_IN.
#
# What follows -- stays in "$@".  An unknown option, a missing value and an argument
# that is no option end the script with status 2 and a message.  Sets repeat=true when
# --stage is among the options, else repeat=false (see log.sh: run_once).

as_called() {
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
  _po_script=./${_po_script##*/}  # the script has changed into its own folder
fi
repeat=false
_po_given=" "  # names of the options that the user gave

_po_assignments() {  # the script's option lines, as written
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
    printf '  --%-20s %s (default: %s)\n' "${name//_/-}" "${help# }" "${default:-empty}"
  done < <(_po_assignments)
}

_po_fail() {
  printf '%s: %s\n' "${_po_script##*/}" "$1" >&2
  printf 'Known options: %s (--help explains them)\n' \
    "$(_po_names | sed -e 's/_/-/g' -e 's/^/--/' | paste -sd ' ')" >&2
  exit 2
}

_po_check() {  # name, value: refuse what would fail obscurely later
  if [[ $1 == stage || $1 == stop_stage ]] && [[ ! $2 =~ ^-?[0-9]+$ ]]; then
    _po_fail "--${1//_/-} wants a whole number, not \"$2\""
  fi
  if [[ ${!1} == true || ${!1} == false ]] && [[ $2 != true && $2 != false ]]; then
    _po_fail "--${1//_/-} wants true or false, not \"$2\""
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
    _po_fail "${1} wants a value"
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
