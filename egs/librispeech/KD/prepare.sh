#!/usr/bin/env bash
# Prepare LibriSpeech: download, manifests, BPE, Shar.
#
#   bash egs/librispeech/KD/prepare.sh [--corpus-dir FOLDER] [--profile 960h]
#
# Stages:
#   0  download the parts of the sets, 60 GB            -> download/LibriSpeech
#   1  write manifests, which refer to the original audio -> data/manifests
#   2  train the BPE model on train-clean-100           -> data/lang_bpe_<vocab size>
#   3  data gate and Shar; labelled sets at three speeds -> data/shar
#   4  bigram of tokens of the term lfmmi               -> data/lang_bpe_<vocab size>
#
# Sets: the labelled parts, unlabelled_<part> for parts without transcripts, dev and test.
# Corpus: Panayotov et al., 2015, CC BY 4.0, https://www.openslr.org/12.
# A second run resumes after the last finished step.
set -euo pipefail

stage=0           # first stage to run
stop_stage=4      # last stage to run
profile=          # 100h or 960h: hours with transcripts (default: 100h)
corpus_dir=       # folder that contains LibriSpeech/ (default: download it)
sets=             # sets of the profile to prepare (default: all)
vocab_size=500    # number of BPE tokens, with <blk>, <sos/eos> and <unk>
speeds="0.9 1.0 1.1"  # speeds of the labelled training audio
num_jobs=         # processes that convert audio (default: depends on CPUs and cuts)
max_duration=30   # maximum duration of a training cut in seconds; 30 is Whisper's window
source "$(dirname "${BASH_SOURCE[0]}")/../../../local/parse_options.sh"

corpus_dir=${corpus_dir:+$(realpath "$corpus_dir")}
cd "$(dirname "${BASH_SOURCE[0]}")"
source ../../../local/env.sh
source ../../../local/recipe.sh

corpus=${corpus_dir:-download}
evaluated="dev-clean dev-other $test_sets"  # with transcripts, not for training
sets=${sets:-$labelled $unlabelled $evaluated}
lang=data/lang_bpe_$vocab_size
text_set=${labelled%% *}  # BPE model and bigram are trained on its texts, in all profiles

is_among() {  # name, names
  [[ " $2 " == *" $1 "* ]]
}

for set in $sets; do
  if ! is_among "$set" "$labelled $unlabelled $evaluated"; then
    die "--sets: no $set in profile $profile. Available: $labelled $unlabelled $evaluated"
  fi
done
if ! is_among "$text_set" "$sets" && [[ ! -f data/manifests/$text_set.jsonl.gz ]]; then
  die "--sets: $text_set is missing; its texts train the BPE model. Add it to \"$sets\""
fi

if in_stage 0 "Download the corpus -> $corpus/LibriSpeech"; then
  if [[ -z $corpus_dir ]]; then
    parts=()
    for set in $sets; do
      parts+=("${set#unlabelled_}")
    done
    run_once "download/.librispeech.${parts[*]//[^a-z0-9]/_}.done" \
      python local/fetch_librispeech.py download "${parts[@]}" ||
      die "cannot download LibriSpeech from openslr.org. Run this command again to resume" \
        "the download, or give --corpus-dir FOLDER that contains LibriSpeech/"
  fi
  for set in $sets; do
    if [[ ! -d $corpus/LibriSpeech/${set#unlabelled_} ]]; then
      die "no folder $corpus/LibriSpeech/${set#unlabelled_}. Unpack" \
        "${set#unlabelled_}.tar.gz of https://www.openslr.org/12 in $corpus"
    fi
  done
fi

if in_stage 1 "Manifests -> data/manifests"; then
  for set in $sets; do
    options=(--labelled)
    if is_among "$set" "$unlabelled"; then
      options=()
    fi
    run_once "data/manifests/.$set.done" \
      python local/prepare_librispeech.py --source "$corpus" \
      --parts "${set#unlabelled_}" "${options[@]}" --name "$set" --output data/manifests
  done
fi

if in_stage 2 "Train the BPE model on $text_set -> $lang"; then
  run_once --reads "data/manifests/$text_set.jsonl.gz" "$lang/.done" \
    python -m icefall_kd.bin.train_bpe --vocab-size "$vocab_size" \
    --manifest "data/manifests/$text_set.jsonl.gz" --output "$lang"
fi

if in_stage 3 "Data gate and Shar -> data/shar"; then
  for set in $sets; do
    options=(--max-duration "$max_duration" ${num_jobs:+--num-jobs "$num_jobs"})
    options+=(--shard-size 1000)
    reads=(--reads "data/manifests/$set.jsonl.gz")
    if is_among "$set" "$evaluated"; then # keep every cut of the test sets
      options=(--max-duration 60)
    fi
    if ! is_among "$set" "$unlabelled"; then
      options+=(--bpe-model "$lang/bpe.model")
      reads+=(--reads "$lang/bpe.model")
    fi
    if is_among "$set" "$labelled"; then
      # shellcheck disable=SC2206  # several speeds
      options+=(--speeds $speeds)
    fi
    run_once "${reads[@]}" --makes "data/shar/$set" "data/shar/.$set.done" \
      python -m icefall_kd.bin.make_shar \
      --manifest "data/manifests/$set.jsonl.gz" --output "data/shar/$set" "${options[@]}"
  done
fi

if in_stage 4 "Bigram of tokens -> $lang/bigram.pt"; then
  run_once --reads "data/shar/$text_set/cuts.*" --reads "$lang/bpe.model" \
    "$lang/.bigram.done" python -m icefall_kd.bin.make_bigram \
    --shar-dir "data/shar/$text_set" --bpe-model "$lang/bpe.model" \
    --output "$lang/bigram.pt"
fi
