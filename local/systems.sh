# What the name of a system says, and how a variant is decoded.  Sourced by local/train.sh,
# decode.sh, export.sh and a recipe's run.sh after their options are parsed.  Sources
# local/profiles.sh of the recipe, whose folder is the current one.
#
# That file fills in what the options left empty, and says what is the recipe's own:
#   profile variants systems    those of a call without options
#   labelled                    sets with transcripts, of data/shar
#   pool                        sets without, heard by systems in _pool; may be empty
#   pseudo                      ending of a pool's name where a teacher's transcripts are
#   test_sets check_sets        decoded; held against each other by three engines
#   pretrain_avg finetune_avg   last epochs that are averaged
#   pretrain_epochs, pretrain_lr_epochs, finetune_epochs, teacher_weights   functions of
#                               a system; the last prints Shar fields and their weights
#
# A system's name is what it begins with, then parts of conf/kd, then a seed:
# both_pool+pseudo+one_best@43.

begins_as() {  # system: the one whose pre-training it begins with, of the same seed
  local name=${1%@*}
  echo "${name%%+*}${1#"$name"}"
}

seed_of() {  # system: its seed; reads seed of the calling script where it names none
  if [[ $1 != *@* ]]; then
    echo "$seed"
  elif [[ ${1##*@} =~ ^[0-9]+$ ]]; then
    echo "${1##*@}"
  else
    die "system \"$1\": behind @ stands a seed, a whole number, not \"${1##*@}\""
  fi
}

pretrains() {  # system: whether its encoder is pre-trained first
  case $(begins_as "${1%@*}") in
    baseline | student) return 1 ;;
  esac
}

kd_parts() {  # system: the files of conf/kd that its fine-tuning adds
  local name=${1%@*}
  if [[ $name == *+* ]]; then
    tr + ' ' <<<"${name#*+}"
  fi
}

teachers_of() {  # system: whom it learns from, the name without its endings
  local name
  name=$(begins_as "${1%@*}")
  name=${name%_pool}
  echo "${name%_random}"
}

teacher_choice() {  # system: whether all teachers teach an utterance, or one of them
  case ${1%@*} in
    *_random | *_random_pool) echo random ;;
    *) echo all ;;
  esac
}

has_field() {  # set of data/shar, field: whether it is finished
  local shar=data/shar/$1
  if [[ -f $shar/$2.json ]]; then  # of an earlier version, which this moves
    python -m icefall_kd.bin.fields ls "$shar" >/dev/null
  fi
  [[ -f $shar.fields/$2/$2.json ]]
}

_need_pool() {  # system
  if [[ -z $pool ]]; then
    die "system \"$1\": the profile $profile has no unlabelled audio for _pool and +pseudo"
  fi
}

_list() {  # names: a list as bin.train reads one
  local IFS=,
  local joined="$*"
  echo "[${joined//,/, }]"
}

# shellcheck disable=SC2086  # several sets
train_sets() {  # system: what its pre-training hears
  case ${1%@*} in
    *_pool) _need_pool "$1" && _list $labelled $pool ;;
    *) _list $labelled ;;
  esac
}

# shellcheck disable=SC2086
finetune_sets() {  # system: what its fine-tuning hears
  case ${1%@*}+ in
    *+pseudo+*) _need_pool "$1" && _list $labelled $(printf "%s$pseudo " $pool) ;;
    *) _list $labelled ;;
  esac
}

decodings() {  # variant: how it is decoded, full (context), streaming (in chunks) or both
  case $1 in
    unified) echo "full streaming" ;;
    non_streaming) echo full ;;
    streaming) echo streaming ;;
    *) die "variant \"$1\" is unknown; unified, non_streaming or streaming" ;;
  esac
}

chunking() {  # decoding: its options; reads chunk_size, left_context of the calling script
  if [[ $1 == streaming ]]; then
    echo "--streaming${chunk_size:+ --chunk-size $chunk_size}" \
      "${left_context:+--left-context $left_context}"
  fi
}

if [[ ! -f local/profiles.sh ]]; then
  die "there is no recipe in $PWD; run the script of this name in egs/<corpus>/KD"
fi
_asked_variants=${variants:-} _asked_systems=${systems:-}
variants= systems=
source local/profiles.sh
profile_variants=$variants profile_systems=$systems  # of a call without options
variants=${_asked_variants:-$variants} systems=${_asked_systems:-$systems}
for _variant in $variants; do
  decodings "$_variant" >/dev/null  # refuses an unknown one
done
exp=${exp:-exp/$profile}  # folder of the runs
