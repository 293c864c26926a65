# Shared by every recipe script: log lines, stages, done-markers.  Source it.
#
#   log MESSAGE...             to stderr: date, time, calling file and line, message
#   die MESSAGE...             log "ERROR: MESSAGE" and exit 1
#   in_stage N "DESCRIPTION"   true when stage <= N <= stop_stage; then logs the heading
#   run_once [--after FILE] MARKER CMD...
#                              run CMD unless MARKER exists, and is not older than FILE,
#                              which CMD reads; write MARKER on success
#
# in_stage reads the variables stage and stop_stage.  A marker records the command that
# earned it.  Markers are ignored, so that the step is repeated, when repeat=true:
# parse_options.sh sets this when the user gives --stage.  Without --stage, a script
# that is run again goes on after the last step that was done.
#
#   stage=0        # first stage to run
#   stop_stage=9   # last stage to run
#   source "$(dirname "$0")/../../../local/log.sh"
#   source "$(dirname "$0")/../../../local/parse_options.sh"
#   if in_stage 0 "Obtain the corpus -> download/asterisk"; then
#     run_once download/.asterisk.done python -m icefall_kd.bin.prepare_corpus ...
#   fi

_log_from() {  # depth of the frame to name, message
  local line=${BASH_LINENO[$1]} file=${BASH_SOURCE[$(($1 + 1))]:-shell}
  shift
  printf '%s [%s:%s] %s\n' "$(date '+%F %T')" "${file##*/}" "$line" "$*" >&2
}

log() {
  _log_from 1 "$@"
}

die() {
  _log_from 1 "ERROR: $*"
  exit 1
}

in_stage() {
  local number=$1
  shift
  if ((number < ${stage:-0} || number > ${stop_stage:-1000})); then
    return 1
  fi
  _log_from 1 "Stage $number: $*"
}

run_once() {
  local read_by_it= marker status=0
  if [[ $1 == --after ]]; then
    read_by_it=$2
    shift 2
  fi
  marker=$1
  shift
  if [[ -n $read_by_it && -f $marker && $read_by_it -nt $marker ]]; then
    _log_from 1 "$read_by_it is newer than $marker: it is done again"
    rm -f "$marker"
  fi
  if [[ ${repeat:-false} != true && -f $marker ]]; then
    if [[ $(<"$marker") == "$*" ]]; then
      _log_from 1 "done before: $marker"
    else
      _log_from 1 "done before by another command (--stage repeats it): $marker"
    fi
    return 0
  fi
  rm -f "$marker"
  # The exit status is handed on by hand: a caller's set -e is off inside "if" and "||".
  "$@" || status=$?
  if ((status != 0)); then
    _log_from 1 "ERROR: exit status $status of: $*"
    return "$status"
  fi
  mkdir -p "$(dirname "$marker")"
  printf '%s\n' "$*" >"$marker.partial"
  mv "$marker.partial" "$marker"
}
