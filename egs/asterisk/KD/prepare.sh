#!/usr/bin/env bash
# Prepare the Asterisk prompts and the unlabelled pool: download, manifests, BPE, Shar.
#
# Stages:
#   0  obtain the audio and the transcripts            -> download/
#   1  audio to 16 kHz flac, text normalised, split    -> data/audio, data/manifests
#   2  BPE tokens of the training texts                -> data/lang_bpe_<vocab size>
#   3  data gate, then Shar; train at three speeds     -> data/shar
#   4  denominator graph of lfmmi, and its bigram      -> data/lang_bpe_<vocab size>
#
# The corpus: Allison Smith and Digium/Sangoma, Asterisk core sounds, CC BY-SA 3.0.
# local/prepare_*.py describe the unlabelled corpora; none is redistributed here.
# Run again, it goes on after the last step that was done.
set -euo pipefail

stage=0           # first stage to run
stop_stage=4      # last stage to run
pool=quick        # unlabelled audio: none, quick (a slice of the English), full
corpus_dir=       # folder with the English prompts and core-sounds-en.txt; else fetched
pool_dir=         # folder with what the pool's packages hold; else fetched
quick_minutes=40  # of the English pool in the quick slice
vocab_size=150    # BPE tokens, <blk>, <sos/eos> and <unk> included
speeds="0.9 1.0 1.1"  # of the training audio
max_duration=30   # longest cut in seconds; Whisper hears no more
source "$(dirname "${BASH_SOURCE[0]}")/../../../local/parse_options.sh"

corpus_dir=${corpus_dir:+$(realpath "$corpus_dir")}
pool_dir=${pool_dir:+$(realpath "$pool_dir")}
cd "$(dirname "${BASH_SOURCE[0]}")"
source ../../../local/env.sh

if [[ ! $pool =~ ^(none|quick|full)$ ]]; then
  die "--pool wants none, quick or full, not \"$pool\""
fi
prompts=${corpus_dir:-download/asterisk}
packages=${pool_dir:-download/pool}
if [[ -n $corpus_dir ]]; then # nothing is touched before this is known
  python local/prepare_asterisk.py --source "$corpus_dir" --check
fi

fetch() { # name of the corpus, Debian packages
  local name=$1
  shift
  if [[ -z $pool_dir ]]; then
    run_once "download/.$name.done" \
      bash ../../../local/debian_packages.sh --into "$packages" "$@" ||
      die "no audio of $name. Remedy: --pool none, or --pool-dir FOLDER with the" \
        "files of the Debian packages $*"
  fi
}

manifest() { # set, corpus, options
  local name=$1 corpus=$2
  shift 2
  run_once "data/manifests/.$name.done" python "local/prepare_$corpus.py" \
    --name "$name" --audio "data/audio/$corpus" --output data/manifests "$@"
}

shar() { # set, options
  local name=$1 reads=(--reads "data/manifests/$1.jsonl.gz")
  shift
  if [[ ${1:-} == --bpe-model ]]; then
    reads+=(--reads "$2")
  fi
  run_once "${reads[@]}" --makes "data/shar/$name" "data/shar/.$name.done" \
    python -m icefall_kd.bin.make_shar \
    --manifest "data/manifests/$name.jsonl.gz" --output "data/shar/$name" \
    --max-duration "$max_duration" "$@"
}

languages="es fr it ru"
if in_stage 0 "Obtain the corpus and the pool -> download"; then
  if [[ -z $corpus_dir ]]; then
    run_once download/.asterisk.done bash local/fetch_asterisk.sh en "$prompts"
  fi
  if [[ $pool != none ]]; then
    fetch queen flight-of-the-amazon-queen
  fi
  if [[ $pool == full ]]; then
    fetch tuxpaint tuxpaint-stamps-default
    fetch fillets fillets-ng-data-cs fillets-ng-data-nl
    for language in $languages; do
      run_once "download/.asterisk_$language.done" \
        bash local/fetch_asterisk.sh "$language" "download/asterisk_$language"
    done
  fi
fi

unlabelled=
case $pool in
  quick) unlabelled="unlabelled_en_quick" ;;
  full)
    unlabelled="unlabelled_en_quick unlabelled_en unlabelled_tuxpaint unlabelled_fillets"
    for language in $languages; do
      unlabelled+=" unlabelled_asterisk_$language"
    done
    ;;
esac

if in_stage 1 "Audio to flac, text normalised, train/dev/test -> data/manifests"; then
  run_once --reads "$prompts/*.txt" --reads "splits/*" \
    data/manifests/.asterisk.done python local/prepare_asterisk.py \
    --source "$prompts" --audio data/audio/asterisk --splits splits \
    --output data/manifests
  for name in $unlabelled; do
    case $name in
      unlabelled_en_quick)
        manifest "$name" queen --source "$packages" --max-minutes "$quick_minutes" ;;
      unlabelled_en) manifest "$name" queen --source "$packages" ;;
      unlabelled_tuxpaint) manifest "$name" tuxpaint --source "$packages" ;;
      unlabelled_fillets) manifest "$name" fillets --source "$packages" ;;
      unlabelled_asterisk_*)
        language=${name##*_}
        manifest "$name" asterisk --language "$language" \
          --source "download/asterisk_$language" ;;
    esac
  done
fi

lang=data/lang_bpe_$vocab_size
if in_stage 2 "BPE tokens of the training texts -> $lang"; then
  run_once --reads data/manifests/train.jsonl.gz "$lang/.done" \
    python -m icefall_kd.bin.train_bpe --vocab-size "$vocab_size" \
    --manifest data/manifests/train.jsonl.gz --output "$lang"
fi

if in_stage 3 "Data gate and Shar -> data/shar"; then
  # shellcheck disable=SC2086  # several speeds
  shar train --bpe-model "$lang/bpe.model" --speeds $speeds
  for name in dev test; do
    shar "$name" --bpe-model "$lang/bpe.model"
  done
  for name in $unlabelled; do
    shar "$name"
  done
fi

if in_stage 4 "Denominator graph and its bigram -> $lang/{denominator,bigram}.pt"; then
  run_once --reads "data/shar/train/cuts.*" --reads "$lang/bpe.model" \
    "$lang/.denominator.done" python -m icefall_kd.bin.make_denominator \
    --shar-dir data/shar/train --bpe-model "$lang/bpe.model" \
    --output "$lang/denominator.pt" --bigram "$lang/bigram.pt"
fi
