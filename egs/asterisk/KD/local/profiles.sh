# What --profile quick and --profile full mean.  Sourced by train.sh, decode.sh,
# export.sh and run.sh after their options are parsed; fills those left empty.

case $profile in
  quick)
    # One causal student serves both decodings.  About 15 minutes of training.
    variants=${variants:-unified}
    systems=${systems:-baseline both_pool}
    pool=unlabelled_en_quick
    finetune_avg=3
    pretrain_avg=1
    ;;
  full)
    variants=${variants:-unified non_streaming streaming}
    systems=${systems:-baseline tiny_en base both both_pool}
    pool=unlabelled_en
    finetune_avg=3
    pretrain_avg=2
    ;;
  *) die "--profile is \"$profile\"; it can be quick or full" ;;
esac

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

pretrain_epochs() {  # system
  case $profile-${1%@*} in
    quick-*) echo 5 ;;
    full-*_pool) echo 6 ;;
    full-*) echo 15 ;;
  esac
}

pretrain_lr_epochs() {  # system: where the learning rate begins to fall, in its epochs
  case $profile-${1%@*} in
    quick-*) echo 4 ;;
    full-*_pool) echo 2.5 ;;
    full-*) echo 6 ;;
  esac
}

train_sets() {  # system: what its pre-training hears
  case ${1%@*} in
    *_pool) echo "[train, $pool]" ;;
    *) echo "[train]" ;;
  esac
}

finetune_sets() {  # system: what its fine-tuning hears
  case ${1%@*}+ in
    *+pseudo+*) echo "[train, ${pool}_whisper_base]" ;;
    *) echo "[train]" ;;
  esac
}

finetune_epochs() {  # system; a student that is trained already needs few
  case $profile-$1+ in
    quick-student*) echo 3 ;;
    full-student+*pseudo+*) echo 3 ;;
    full-student*) echo 4 ;;
    quick-*+pseudo+*) echo 4 ;;
    quick-*) echo 8 ;;
    full-*+pseudo+*) echo 6 ;;
    full-*) echo 12 ;;
  esac
}

kd_parts() {  # system: the files of conf/kd that its fine-tuning adds
  local name=${1%@*}
  if [[ $name == *+* ]]; then
    tr + ' ' <<<"${name#*+}"
  fi
}

teacher_weights() {  # system: Shar fields and their weights
  local name=${1%@*}
  name=${name%_pool}
  name=${name%_random}
  if [[ $name == both ]]; then
    echo '{"whisper_tiny_en": 0.5, "whisper_base": 0.5}'
  elif [[ -f data/shar/train/whisper_$name.json ]]; then
    echo "{\"whisper_$name\": 1.0}"
  else
    die "system \"$1\" is unknown: it is no baseline, not both or both_pool, and there is" \
      "no field data/shar/train/whisper_$name.json (teachers.sh writes fields)"
  fi
}

teacher_choice() {  # system: whether all teachers teach an utterance, or one of them
  case ${1%@*} in
    *_random | *_random_pool) echo random ;;
    *) echo all ;;
  esac
}

# How a variant is decoded: full (context) and/or streaming (in chunks).
decodings() {  # variant
  case $1 in
    unified) echo "full streaming" ;;
    non_streaming) echo full ;;
    streaming) echo streaming ;;
    *) die "variant \"$1\" is unknown; unified, non_streaming or streaming" ;;
  esac
}

# Options of a decoding; reads chunk_size and left_context of the calling script.
chunking() {  # decoding
  if [[ $1 == streaming ]]; then
    echo "--streaming --chunk-size $chunk_size --left-context $left_context"
  fi
}
