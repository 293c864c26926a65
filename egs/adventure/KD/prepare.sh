#!/usr/bin/env bash
# Prepare the dialogue of two adventure games: download, manifests, BPE, Shar.
#
#   bash egs/adventure/KD/prepare.sh [--corpus-dir FOLDER] [--profile 6h]
#
# Stages:
#   0  download two Debian packages                     -> download/packages
#   1  16 kHz flac, texts as words, the sets of splits/ -> data/audio, data/manifests
#   2  train the BPE model on the texts of train        -> data/lang_bpe_<vocab size>
#   3  data gate and Shar; labelled at three speeds     -> data/shar
#   4  bigram of tokens of the term lfmmi               -> data/lang_bpe_<vocab size>
#
# Corpus: Flight of the Amazon Queen and Beneath a Steel Sky, freeware; licences in
# README.md.  This repository redistributes neither.
# A second run resumes after the last finished step.
set -euo pipefail

stage=0           # first stage to run
stop_stage=4      # last stage to run
profile=          # 45min or 6h of audio with transcripts (default: 45min)
corpus_dir=       # folder with queen.1c, sky.dnr and sky.dsk, or the unpacked packages (default: download)
vocab_size=250    # BPE tokens, <blk>, <sos/eos> and <unk> included
speeds="0.9 1.0 1.1"  # speeds of the labelled training audio
source "$(dirname "${BASH_SOURCE[0]}")/../../../local/parse_options.sh"

corpus_dir=${corpus_dir:+$(realpath "$corpus_dir")}
cd "$(dirname "${BASH_SOURCE[0]}")"
source ../../../local/env.sh
source ../../../local/recipe.sh

packages=${corpus_dir:-download/packages}
lang=data/lang_bpe_$vocab_size

if in_stage 0 "Download the games -> $packages"; then
  if [[ -z $corpus_dir ]]; then
    bash ../../../local/debian_packages.sh --into "$packages" \
      flight-of-the-amazon-queen beneath-a-steel-sky ||
      die "cannot download the games. Give --corpus-dir FOLDER with queen.1c, sky.dnr" \
        "and sky.dsk"
  fi
fi

if in_stage 1 "Convert audio, normalise texts, split -> data/audio, data/manifests"; then
  manifests=()
  reads=()
  for game in queen sky; do
    run_once "data/manifests/.$game.done" python "local/prepare_$game.py" \
      --source "$packages" --audio "data/audio/$game" --name "$game" \
      --output data/manifests
    manifests+=("data/manifests/$game.jsonl.gz")
    reads+=(--reads "data/manifests/$game.jsonl.gz")
  done
  run_once "${reads[@]}" --reads "splits/*" data/manifests/.splits.done \
    python local/split_manifests.py --manifests "${manifests[@]}" --splits splits \
    --output data/manifests
fi

if in_stage 2 "Train the BPE model on train -> $lang"; then
  run_once --reads data/manifests/train.jsonl.gz "$lang/.done" \
    python -m icefall_kd.bin.train_bpe --vocab-size "$vocab_size" \
    --manifest data/manifests/train.jsonl.gz --output "$lang"
fi

if in_stage 3 "Data gate and Shar -> data/shar"; then
  for set in $labelled $unlabelled $dev_set $test_sets; do
    reads=(--reads "data/manifests/$set.jsonl.gz")
    options=()
    if [[ " $unlabelled " != *" $set "* ]]; then
      reads+=(--reads "$lang/bpe.model")
      options+=(--bpe-model "$lang/bpe.model")
    fi
    if [[ " $labelled " == *" $set "* ]]; then
      # shellcheck disable=SC2206  # several speeds
      options+=(--speeds $speeds)
    fi
    run_once "${reads[@]}" --makes "data/shar/$set" "data/shar/.$set.done" \
      python -m icefall_kd.bin.make_shar --manifest "data/manifests/$set.jsonl.gz" \
      --output "data/shar/$set" "${options[@]}"
  done
fi

if in_stage 4 "Bigram of tokens -> $lang/bigram.pt"; then
  run_once --reads "data/shar/train/cuts.*" --reads "$lang/bpe.model" \
    "$lang/.bigram.done" python -m icefall_kd.bin.make_bigram \
    --shar-dir data/shar/train --bpe-model "$lang/bpe.model" \
    --output "$lang/bigram.pt"
fi
