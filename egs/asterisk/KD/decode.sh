#!/usr/bin/env bash
# Decode with PyTorch: full context, and chunk by chunk as a stream.
#
#   bash egs/asterisk/KD/decode.sh [--profile full] [--variants unified] \
#     [--systems "baseline both_pool"] [--sets "dev test"]
#
# Stage 1: greedy search               -> exp/<profile>/<variant>/<system>/decode/
# Stage 2: modified beam search, beam 4 -> the same folder
# A result of the same checkpoint is kept.
stage=1              # first stage to run
stop_stage=2         # last stage to run
profile=quick        # quick or full
variants=            # unified, non_streaming, streaming; empty: those of the profile
systems=             # as in train.sh; empty: those of the profile
sets=test            # folders of data/shar
chunk_size=16        # streaming: frames of 20 ms
left_context=128     # streaming: frames of 20 ms
blank_penalty=0      # taken from the blank's logit; choose it with --sets dev

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source ../../../local/env.sh
source ../../../local/parse_options.sh
source local/profiles.sh

decode_all() {  # method
  local variant system set decoding
  for variant in $variants; do
    for system in $systems; do
      for set in $sets; do
        for decoding in $(decodings "$variant"); do
          # shellcheck disable=SC2046  # several options
          python -m icefall_kd.bin.decode --method "$1" --shar-dir "data/shar/$set" \
            --blank-penalty "$blank_penalty" \
            --checkpoint "exp/$profile/$variant/$system/finetune/pretrained.pt" \
            --out-dir "exp/$profile/$variant/$system/decode" $(chunking "$decoding")
        done
      done
    done
  done
}

if in_stage 1 "Greedy search -> exp/$profile/*/*/decode"; then
  decode_all greedy_search
fi

if in_stage 2 "Modified beam search -> exp/$profile/*/*/decode"; then
  decode_all modified_beam_search
fi
