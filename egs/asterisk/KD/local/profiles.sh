# What --profile quick and --profile full mean.  Sourced by train.sh, decode.sh,
# export.sh and run.sh after their options are parsed; fills those left empty.

case $profile in
  quick)
    # One causal student serves both decodings.  About 15 minutes of training.
    variants=${variants:-unified}
    systems=${systems:-baseline both_pool}
    pool=unlabelled_en_quick
    finetune_epochs=8
    finetune_avg=3
    pretrain_avg=1
    ;;
  full)
    variants=${variants:-unified non_streaming streaming}
    systems=${systems:-baseline tiny_en base both both_pool}
    pool=unlabelled_en
    finetune_epochs=12
    finetune_avg=3
    pretrain_avg=2
    ;;
  *) die "--profile is \"$profile\"; it can be quick or full" ;;
esac

pretrains() {  # system: whether its encoder is pre-trained first
  [[ $1 != baseline && $1 != student ]]
}

pretrain_epochs() {  # system
  case $profile-$1 in
    quick-*) echo 5 ;;
    full-*_pool) echo 6 ;;
    full-*) echo 15 ;;
  esac
}

pretrain_lr_epochs() {  # system: where the learning rate begins to fall, in its epochs
  case $profile-$1 in
    quick-*) echo 4 ;;
    full-*_pool) echo 2.5 ;;
    full-*) echo 6 ;;
  esac
}

train_sets() {  # system: what its pre-training hears
  case $1 in
    *_pool) echo "[train, $pool]" ;;
    *) echo "[train]" ;;
  esac
}

teacher_weights() {  # system: Shar fields and their weights
  case ${1%_pool} in
    tiny_en) echo '{"whisper_tiny_en": 1.0}' ;;
    base) echo '{"whisper_base": 1.0}' ;;
    both) echo '{"whisper_tiny_en": 0.5, "whisper_base": 0.5}' ;;
    *) die "system \"$1\" is unknown; baseline, student, or tiny_en, base, both, or these with _pool" ;;
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
