# What --profile quick and --profile full mean.  Sourced by local/systems.sh at the top of
# the repository, which says what is wanted here.

profile=${profile:-quick}
labelled=train
pseudo=_whisper_base
test_sets=test
check_sets="dev test"
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

teacher_weights() {  # system: Shar fields and their weights
  local name
  name=$(teachers_of "$1")
  if [[ $name == both ]]; then
    echo '{"whisper_tiny_en": 0.5, "whisper_base": 0.5}'
  elif has_field train "whisper_$name"; then
    echo "{\"whisper_$name\": 1.0}"
  else
    die "system \"$1\" is unknown: it is no baseline, not both or both_pool, and there is" \
      "no field whisper_$name in data/shar/train.fields (teachers.sh writes fields)"
  fi
}
