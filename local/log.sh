# Shared by every recipe script: log lines, stages, done-markers.  Source it.
#
#   log MESSAGE...             to stderr: date, time, calling file and line, message
#   die MESSAGE...             log "ERROR: MESSAGE" and exit 1
#   in_stage N "DESCRIPTION"   true when stage <= N <= stop_stage; then logs the heading
#   run_once [--reads GLOB]... [--code GLOB] [--makes FOLDER] MARKER CMD...
#                              run CMD unless MARKER records the same command on the same
#                              contents of the files GLOB; write MARKER on success
#
# in_stage reads the variables stage and stop_stage.  A marker holds the command and a
# digest of each GLOB; --num-jobs and --num-threads may differ.  Markers are ignored, so
# that the step is repeated, when repeat=true: parse_options.sh sets this when the user
# gives --stage.  Without --stage, a script that is run again goes on after the last step
# that was done.
#
# CMD does not overwrite the folder of --makes: run_once deletes it before CMD makes it
# again, and fails where teachers' fields are in it or next to it.  --code names files of
# icefall_kd whose change repeats the step.  Steps that make data have none: they take
# hours, and checkpoints and fields are tied to their files.
#
#   stage=0        # first stage to run
#   stop_stage=9   # last stage to run
#   source "$(dirname "$0")/../../../local/log.sh"
#   source "$(dirname "$0")/../../../local/parse_options.sh"
#   if in_stage 0 "Obtain the corpus -> download/asterisk"; then
#     run_once download/.asterisk.done bash local/fetch_asterisk.sh en ...
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

_digest() {  # glob: SHA-256 of the names and contents of its files, .gz decompressed
  local IFS= file  # a path may hold spaces
  for file in $1; do
    printf '%s ' "${file##*/}"
    if [[ ! -f $file ]]; then
      echo absent
    elif [[ $file == *.gz ]]; then  # gzip stores the time of writing
      gzip -dc "$file" | sha256sum || echo damaged
    else
      sha256sum <"$file"
    fi
  done | sha256sum | cut -d ' ' -f 1
}

_command() {  # record: its command without the options that change no result
  sed -E -e 's/ --num-(jobs|threads) [0-9]+//g' -e 1q <<<"$1"
}

_why_again() {  # marker, record of this call, whether its code counts: what differs
  local record=$2 before
  before=$(<"$1")
  if [[ $(_command "$before") != "$(_command "$record")" ]]; then
    echo "another command made it: ${before%%$'\n'*}"
  elif [[ $before != *$'\n'* && $record == *$'\n'* ]]; then
    # A marker of an earlier version has no digests.  Data are taken over.
    [[ $3 == true ]] && echo "an earlier version made it"
  elif [[ ${before#*$'\n'} != "${record#*$'\n'}" && $record == *$'\n'* ]]; then
    echo "what it reads has changed"
  else
    return 1
  fi
}

run_once() {
  local globs=() code=false made= marker record why status=0 glob
  while [[ $1 == --* ]]; do
    case $1 in
      --reads) globs+=("$2") ;;
      --code) globs+=("$REPO_ROOT/icefall_kd/$2") code=true ;;
      --makes) made=$2 ;;
    esac
    shift 2
  done
  marker=$1
  shift
  record=$*
  for glob in "${globs[@]}"; do
    record+=$'\n'"$(_digest "$glob") ${glob##*/}"
  done
  if [[ ${repeat:-false} != true && -f $marker ]]; then
    if ! why=$(_why_again "$marker" "$record" "$code"); then
      _log_from 1 "done before: $marker"
      if [[ $(<"$marker") != "$record" ]]; then
        _mark "$marker" "$record"
      fi
      return 0
    fi
    _log_from 1 "done again, $why ($marker)"
    if [[ -n $made && -e $made ]]; then
      if compgen -G "$made/*.json" >/dev/null || compgen -G "$made.*/" >/dev/null; then
        _log_from 1 "ERROR: $made has teachers' fields, which would fit no new one." \
          "Remedy: call with the former options, or delete $made* to make it again"
        return 1
      fi
      rm -r "$made"
    fi
  fi
  rm -f "$marker"
  # The exit status is handed on by hand: a caller's set -e is off inside "if" and "||".
  "$@" || status=$?
  if ((status != 0)); then
    _log_from 1 "ERROR: exit status $status of: $*"
    return "$status"
  fi
  _mark "$marker" "$record"
}

_mark() {  # marker, record
  mkdir -p "$(dirname "$1")"
  printf '%s\n' "$2" >"$1.$$.partial"
  mv "$1.$$.partial" "$1"
}
