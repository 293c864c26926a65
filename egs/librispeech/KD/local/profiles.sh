# What --profile 100h and --profile 960h mean.  Sourced by local/systems.sh at the top of
# the repository, which says what is wanted here.

profile=${profile:-100h}
variants=${variants:-unified}
jobs=${jobs:-1}  # one GPU is full with one training
all="hubert_large wavlm_large whisper_large_v3"  # fields of the systems all*
pseudo=_whisper
dev_set=dev-other  # that of conf/*.yaml
test_sets="test-clean test-other"
check_sets=dev-clean
case $profile in
  100h)
    # That of the papers: labels of 100 hours, and 860 hours without.
    systems=${systems:-baseline all all_pool all_pool+pseudo}
    labelled=train-clean-100
    pool="unlabelled_train-clean-360 unlabelled_train-other-500"
    pretrain_avg=3
    finetune_avg=9
    ;;
  960h)
    # Labels of everything: what teachers add where there is no lack of them.
    systems=${systems:-baseline all}
    labelled="train-clean-100 train-clean-360 train-other-500"
    pool=
    pretrain_avg=3
    finetune_avg=9
    ;;
  *) die "--profile is \"$profile\"; it can be 100h or 960h" ;;
esac

pretrain_epochs() {  # system; with the pool an epoch is four times as long
  case $profile-${1%@*} in
    100h-*_pool | 960h-*) echo 10 ;;
    100h-*) echo 30 ;;
  esac
}

pretrain_lr_epochs() {  # system: where the learning rate begins to fall, in its epochs
  echo 3.5
}

finetune_epochs() {  # system
  case ${1%@*}+ in
    *+pseudo+*) echo 10 ;;
    *) echo 30 ;;
  esac
}

teacher_weights() {  # system: Shar fields and their weights
  local name fields field weight weights=
  name=$(teachers_of "$1")
  if [[ $name == all ]]; then
    name=$all
  fi
  read -ra fields <<<"$name"
  weight=$(awk -v count=${#fields[@]} 'BEGIN {printf "%.3g", 1 / count}')
  for field in "${fields[@]}"; do
    if ! has_field "${labelled%% *}" "$field"; then
      die "system \"$1\": there is no field $field in" \
        "data/shar/${labelled%% *}.fields (teachers.sh writes fields)"
    fi
    weights+="${weights:+, }\"$field\": $weight"
  done
  echo "{$weights}"
}
