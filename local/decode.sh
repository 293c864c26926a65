#!/usr/bin/env bash
# Decode with PyTorch: full context, and chunk by chunk as a stream.
#
#   bash egs/<corpus>/KD/decode.sh [--profile full] [--variants unified] \
#     [--systems "baseline both_pool"] [--sets "dev test"] [--head ctc]
#
# Stage 0: when each word was said      -> exp/<profile>/alignment/<set>.ctm
# Stage 1: greedy search               -> exp/<profile>/<variant>/<system>/decode/
# Stage 2: modified beam search, beam 4 -> the same folder
# With --head ctc both are over the CTC head: greedy search, prefix beam search.
# A result of the same checkpoint, set, options and code is kept.  How late words are
# recognised is measured against stage 0's times, which one model finds for all systems:
# the last one of the profile, or, where that is not trained, of --systems.  Another
# --aligner aligns again, and the delays are measured again; results name it.
# --chunk-size "16 32" decodes streams at 320 and at 640 ms.
stage=0              # first stage to run
stop_stage=2         # last stage to run
profile=             # of local/profiles.sh; empty: the first there
variants=            # unified, non_streaming, streaming; empty: those of the profile
systems=             # as in train.sh; empty: those of the profile
sets=                # folders of data/shar; empty: the test sets of the recipe
head=transducer      # transducer or ctc
chunk_size=          # streaming: 20 ms frames, or several; empty: the checkpoint's
left_context=        # streaming: 20 ms frames; empty: the checkpoint's
blank_penalty=0      # taken from the blank's logit; choose it with --sets dev
hotwords=            # file of phrases that stage 2 shall rather find than miss, one a line
hotwords_score=1.5   # bonus of each of their tokens
aligner=             # checkpoint of stage 0; empty: the last of the profile's systems
exp=                 # folder of the runs; empty: exp/<profile>

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
source "$REPO_ROOT/local/parse_options.sh"
source "$REPO_ROOT/local/systems.sh"
sets=${sets:-$test_sets}
as_called hotwords aligner

case $head in
  transducer) methods=(greedy_search modified_beam_search) ;;
  ctc) methods=(ctc_greedy_search ctc_prefix_beam_search) ;;
  *) die "--head is \"$head\"; it can be transducer or ctc" ;;
esac

if [[ -n $hotwords && $head == ctc ]]; then
  die "--hotwords are for the transducer's beam search, not for --head ctc"
fi

decode_all() {  # method, further options
  local variant system set decoding size
  for variant in $variants; do
    for system in $systems; do
      for set in $sets; do
        for decoding in $(decodings "$variant"); do
          for size in ${chunk_size:-own}; do
            # shellcheck disable=SC2046  # several options
            python -m icefall_kd.bin.decode --method "$1" --shar-dir "data/shar/$set" \
              --blank-penalty "$blank_penalty" \
              --checkpoint "$exp/$variant/$system/finetune/pretrained.pt" \
              --out-dir "$exp/$variant/$system/decode" \
              $(chunk_size=${size#own} chunking "$decoding") \
              --alignment "$exp/alignment/$set.ctm" "${@:2}"
            if [[ $decoding == full ]]; then
              break
            fi
          done
        done
      done
    done
  done
}

if in_stage 0 "When each word was said -> $exp/alignment"; then
  if [[ -z $aligner ]]; then
    # The same one whichever systems a call names, so that delays can be compared.
    aligner=$exp/${profile_variants%% *}/${profile_systems##* }/finetune/pretrained.pt
    if [[ ! -f $aligner ]]; then
      aligner=$exp/${variants%% *}/${systems##* }/finetune/pretrained.pt
    fi
  fi
  log "$aligner aligns"
  for set in $sets; do
    python -m icefall_kd.bin.align --checkpoint "$aligner" \
      --shar-dir "data/shar/$set" --output "$exp/alignment/$set.ctm"
  done
fi

if in_stage 1 "Greedy search -> $exp/*/*/decode"; then
  decode_all "${methods[0]}"
fi

if in_stage 2 "Beam search -> $exp/*/*/decode"; then
  decode_all "${methods[1]}" \
    ${hotwords:+--hotwords "$hotwords" --hotwords-score "$hotwords_score"}
fi
