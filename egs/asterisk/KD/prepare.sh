#!/usr/bin/env bash
# Prepare the Asterisk prompts and the unlabelled audio: download, manifests, BPE, Shar.
#
# Stages:
#   0  download audio and transcripts                      -> download/
#   1  convert audio to 16 kHz flac, normalise texts, split -> data/audio, data/manifests
#   2  train the BPE model on the training texts           -> data/lang_bpe_<vocab size>
#   3  data gate and Shar; train at three speeds           -> data/shar
#   4  bigram of tokens of the term lfmmi                  -> data/lang_bpe_<vocab size>
#
# Corpus: Allison Smith and Digium/Sangoma, Asterisk core sounds, CC BY-SA 3.0.
# Unlabelled audio: README.md.  This repository redistributes neither.
# A second run resumes after the last finished step.
set -euo pipefail

stage=0           # first stage to run
stop_stage=4      # last stage to run
unlabelled=quick  # unlabelled audio: none, quick (part of the English one) or full
corpus_dir=       # folder with the English prompts and core-sounds-en.txt (default: download them)
unlabelled_dir=   # folder with the unpacked packages of the unlabelled audio (default: download them)
quick_minutes=40  # duration of unlabelled_en_quick in minutes
vocab_size=150    # number of BPE tokens, with <blk>, <sos/eos> and <unk>
speeds="0.9 1.0 1.1"  # speeds of the training audio
max_duration=30   # longest cut in seconds; 30 is Whisper's window
RENAMED_OPTIONS="--pool=--unlabelled --pool-dir=--unlabelled-dir"
source "$(dirname "${BASH_SOURCE[0]}")/../../../local/parse_options.sh"

corpus_dir=${corpus_dir:+$(realpath "$corpus_dir")}
unlabelled_dir=${unlabelled_dir:+$(realpath "$unlabelled_dir")}
cd "$(dirname "${BASH_SOURCE[0]}")"
source ../../../local/env.sh

if [[ ! $unlabelled =~ ^(none|quick|full)$ ]]; then
  die "--unlabelled: \"$unlabelled\" is not one of none, quick, full"
fi
prompts=${corpus_dir:-download/asterisk}
packages=${unlabelled_dir:-download/pool}
if [[ -n $corpus_dir ]]; then  # check the folder before any file is written
  python local/prepare_asterisk.py --source "$corpus_dir" --check
fi

fetch() {  # name of the corpus, Debian packages: download to $packages
  local name=$1
  shift
  if [[ -z $unlabelled_dir ]]; then
    run_once "download/.$name.done" \
      bash ../../../local/debian_packages.sh --into "$packages" "$@" ||
      die "cannot download the audio of $name. Give --unlabelled none, or" \
        "--unlabelled-dir FOLDER with the files of the Debian packages $*"
  fi
}

manifest() {  # set, corpus, options
  local name=$1 corpus=$2
  shift 2
  run_once "data/manifests/.$name.done" python "local/prepare_$corpus.py" \
    --name "$name" --audio "data/audio/$corpus" --output data/manifests "$@"
}

shar() {  # set, options
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
if in_stage 0 "Download the corpus and the unlabelled audio -> download"; then
  if [[ -z $corpus_dir ]]; then
    run_once download/.asterisk.done bash local/fetch_asterisk.sh en "$prompts"
  fi
  if [[ $unlabelled != none ]]; then
    fetch queen flight-of-the-amazon-queen
  fi
  if [[ $unlabelled == full ]]; then
    fetch tuxpaint tuxpaint-stamps-default
    fetch fillets fillets-ng-data-cs fillets-ng-data-nl
    for language in $languages; do
      run_once "download/.asterisk_$language.done" \
        bash local/fetch_asterisk.sh "$language" "download/asterisk_$language"
    done
  fi
fi

unlabelled_sets=
case $unlabelled in
  quick) unlabelled_sets="unlabelled_en_quick" ;;
  full)
    unlabelled_sets="unlabelled_en_quick unlabelled_en unlabelled_tuxpaint unlabelled_fillets"
    for language in $languages; do
      unlabelled_sets+=" unlabelled_asterisk_$language"
    done
    ;;
esac

if in_stage 1 "Convert audio, normalise texts, split -> data/audio, data/manifests"; then
  run_once --reads "$prompts/*.txt" --reads "splits/*" \
    data/manifests/.asterisk.done python local/prepare_asterisk.py \
    --source "$prompts" --audio data/audio/asterisk --splits splits \
    --output data/manifests
  for name in $unlabelled_sets; do
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
if in_stage 2 "Train the BPE model -> $lang"; then
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
  for name in $unlabelled_sets; do
    shar "$name"
  done
fi

if in_stage 4 "Bigram of tokens -> $lang/bigram.pt"; then
  run_once --reads "data/shar/train/cuts.*" --reads "$lang/bpe.model" \
    "$lang/.bigram.done" python -m icefall_kd.bin.make_bigram \
    --shar-dir data/shar/train --bpe-model "$lang/bpe.model" \
    --output "$lang/bigram.pt"
fi
