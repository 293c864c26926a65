#!/usr/bin/env bash
# Prepare LibriSpeech: download, manifests, BPE, Shar.
#
#   bash egs/librispeech/KD/prepare.sh [--corpus-dir FOLDER] [--profile 960h]
#
# Stages:
#   0  obtain the parts of the sets, 60 GB in all       -> download/LibriSpeech
#   1  manifests; the audio stays where it is           -> data/manifests
#   2  BPE tokens of train-clean-100                    -> data/lang_bpe_<vocab size>
#   3  data gate, then Shar; labelled at three speeds   -> data/shar
#   4  denominator graph of lfmmi, and its bigram       -> data/lang_bpe_<vocab size>
#
# Sets: the labelled parts, unlabelled_<part> for those whose transcripts are left out,
# dev and test.  The corpus: Panayotov et al., 2015, CC BY 4.0, https://www.openslr.org/12.
# Run again, it goes on after the last step that was done.
set -euo pipefail

stage=0           # first stage to run
stop_stage=4      # last stage to run
profile=          # 100h or 960h: which parts have transcripts; empty: 100h
corpus_dir=       # folder with LibriSpeech/ unpacked; else downloaded
sets=             # of those of the profile; empty: all
vocab_size=500    # BPE tokens, <blk>, <sos/eos> and <unk> included
speeds="0.9 1.0 1.1"  # of the labelled training audio
num_jobs=         # processes that read and write audio; empty: by CPUs and cuts
max_duration=30   # longest cut in seconds; Whisper hears no more; dev and test keep all
source "$(dirname "${BASH_SOURCE[0]}")/../../../local/parse_options.sh"

corpus_dir=${corpus_dir:+$(realpath "$corpus_dir")}
cd "$(dirname "${BASH_SOURCE[0]}")"
source ../../../local/env.sh
source ../../../local/systems.sh

corpus=${corpus_dir:-download}
heard="dev-clean dev-other $test_sets"  # with transcripts, not trained on
sets=${sets:-$labelled $pool $heard}
lang=data/lang_bpe_$vocab_size
text=${labelled%% *}  # its words become tokens and graph: the same for all profiles

is_among() { # name, names
  [[ " $2 " == *" $1 "* ]]
}

for set in $sets; do
  if ! is_among "$set" "$labelled $pool $heard"; then
    die "--sets: there is no $set in profile $profile; there are $labelled $pool $heard"
  fi
done
if ! is_among "$text" "$sets" && [[ ! -f data/manifests/$text.jsonl.gz ]]; then
  die "--sets: the BPE tokens are those of $text, which is neither among \"$sets\" nor" \
    "prepared; name it too"
fi

if in_stage 0 "Obtain the corpus -> $corpus/LibriSpeech"; then
  if [[ -z $corpus_dir ]]; then
    parts=()
    for set in $sets; do
      parts+=("${set#unlabelled_}")
    done
    run_once "download/.librispeech.${parts[*]//[^a-z0-9]/_}.done" \
      python local/fetch_librispeech.py download "${parts[@]}" ||
      die "cannot download LibriSpeech. Remedy: network access to openslr.org and this" \
        "command again, which goes on with what is there, or --corpus-dir FOLDER with" \
        "LibriSpeech/ unpacked in it"
  fi
  for set in $sets; do
    if [[ ! -d $corpus/LibriSpeech/${set#unlabelled_} ]]; then
      die "there is no $corpus/LibriSpeech/${set#unlabelled_}. Remedy: unpack" \
        "${set#unlabelled_}.tar.gz of https://www.openslr.org/12 in $corpus"
    fi
  done
fi

if in_stage 1 "Manifests -> data/manifests"; then
  for set in $sets; do
    options=(--labelled)
    if is_among "$set" "$pool"; then
      options=()
    fi
    run_once "data/manifests/.$set.done" \
      python local/prepare_librispeech.py --source "$corpus" \
      --parts "${set#unlabelled_}" "${options[@]}" --name "$set" --output data/manifests
  done
fi

if in_stage 2 "BPE tokens of $text -> $lang"; then
  run_once --reads "data/manifests/$text.jsonl.gz" "$lang/.done" \
    python -m icefall_kd.bin.train_bpe --vocab-size "$vocab_size" \
    --manifest "data/manifests/$text.jsonl.gz" --output "$lang"
fi

if in_stage 3 "Data gate and Shar -> data/shar"; then
  for set in $sets; do
    options=(--max-duration "$max_duration" ${num_jobs:+--num-jobs "$num_jobs"})
    options+=(--shard-size 1000)
    reads=(--reads "data/manifests/$set.jsonl.gz")
    if is_among "$set" "$heard"; then # of other lengths it would be another test
      options=(--max-duration 60)
    fi
    if ! is_among "$set" "$pool"; then
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

if in_stage 4 "Denominator graph and its bigram -> $lang/{denominator,bigram}.pt"; then
  run_once --reads "data/shar/$text/cuts.*" --reads "$lang/bpe.model" \
    "$lang/.denominator.done" python -m icefall_kd.bin.make_denominator \
    --shar-dir "data/shar/$text" --bpe-model "$lang/bpe.model" \
    --output "$lang/denominator.pt" --bigram "$lang/bigram.pt"
fi
