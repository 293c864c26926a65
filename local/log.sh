# Log lines, stages and finished steps of recipe scripts.  Source it.
#
#   log MESSAGE...             log to stderr with date, time, calling file and line
#   die MESSAGE...             log "ERROR: MESSAGE", exit with status 1
#   in_stage N "DESCRIPTION"   true when stage <= N <= stop_stage; logs the description
#                              and the minutes in the array stage_minutes, if it is set
#   log_stages                 log the minutes that each stage took
#   run_once [--reads GLOB]... [--code GLOB] [--makes FOLDER] MARKER CMD...
#                              run CMD and write the file MARKER; skip CMD when MARKER
#                              records the same command and the same input files
#
# A marker records the command and a digest of the files of each GLOB.  --num-jobs and
# --num-threads may differ.  repeat=true ignores markers: parse_options.sh sets it when
# the user gives --stage.  Without --stage, a second run resumes after the last finished
# step.
#
# --reads names the input files.  --code names files of icefall_kd, relative to the
# package.  When one of them changes, CMD runs again.  Steps that write data have no
# --code: they take hours, and fields and checkpoints depend on the data.  --makes names
# the folder that CMD writes: run_once deletes it before CMD runs again, and fails if it
# has teachers' fields.
#
#   stage=0        # first stage to run
#   stop_stage=9   # last stage to run
#   source "$(dirname "$0")/../../../local/log.sh"
#   source "$(dirname "$0")/../../../local/parse_options.sh"
#   if in_stage 0 "Download the corpus -> download/asterisk"; then
#     run_once download/.asterisk.done bash local/fetch_asterisk.sh en ...
#   fi

_log_from() {  # depth of the calling frame, message
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
  local expected=${stage_minutes[number]:-}
  _log_from 1 "Stage $number: $*${expected:+, about $expected min}"
  _stage_begin[number]=$SECONDS
  _stage_name[number]=$*
}

log_stages() {
  local number times=("${_stage_begin[@]}" "$SECONDS") took
  _log_from 1 "minutes  stage"
  for number in "${!_stage_begin[@]}"; do
    took=$((times[1] - times[0]))
    times=("${times[@]:1}")
    _log_from 1 "$(printf '%4d:%02d  %d %s' $((took / 60)) $((took % 60)) "$number" \
      "${_stage_name[number]}")"
  done
}

_digest() {  # glob: print the SHA-256 of its file names and contents, .gz decompressed
  local IFS= file  # a path may hold spaces
  for file in $1; do
    printf '%s ' "${file##*/}"
    if [[ ! -f $file ]]; then
      echo absent
    elif [[ $file == *.gz ]]; then  # gzip stores the time
      gzip -dc "$file" | sha256sum || echo damaged
    else
      sha256sum <"$file"
    fi
  done | sha256sum | cut -d ' ' -f 1
}

_command() {  # record: print its command without options that change no result
  sed -E -e 's/ --num-(jobs|threads) [0-9]+//g' -e 1q <<<"$1"
}

_difference() {  # marker, record, has --code: print why the step runs again
  local record=$2 before
  before=$(<"$1")
  if [[ $(_command "$before") != "$(_command "$record")" ]]; then
    echo "the last command was: ${before%%$'\n'*}"
  elif [[ $before != *$'\n'* && $record == *$'\n'* ]]; then
    # Markers of earlier versions have no digests: reuse data, repeat steps with --code.
    [[ $3 == true ]] && echo "an earlier version wrote the marker"
  elif [[ ${before#*$'\n'} != "${record#*$'\n'}" && $record == *$'\n'* ]]; then
    echo "its input has changed"
  else
    return 1
  fi
}

run_once() {
  local globs=() code=false made= marker record why status=0 glob
  while [[ $1 == --* ]]; do
    case $1 in
      --reads) globs+=("$2") ;;
      --code)
        compgen -G "$REPO_ROOT/icefall_kd/$2" >/dev/null ||
          { _log_from 1 "ERROR: --code: no file icefall_kd/$2"; return 1; }
        globs+=("$REPO_ROOT/icefall_kd/$2") code=true
        ;;
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
    if ! why=$(_difference "$marker" "$record" "$code"); then
      _log_from 1 "skip, done before: $marker"
      if [[ $(<"$marker") != "$record" ]]; then
        _mark "$marker" "$record"
      fi
      return 0
    fi
    _log_from 1 "run again, $why ($marker)"
    if [[ -n $made && -e $made ]]; then
      if compgen -G "$made/*.json" >/dev/null || compgen -G "$made.*/" >/dev/null; then
        _log_from 1 "ERROR: $made must be written again, but has teachers' fields, which" \
          "would no longer match. Repeat the former options, or delete $made*"
        return 1
      fi
      rm -r "$made"
    fi
  fi
  rm -f "$marker"
  # Return the status explicitly: set -e of the caller is off inside "if" and "||".
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
