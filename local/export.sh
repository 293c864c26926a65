#!/usr/bin/env bash
# Export to ONNX for sherpa-onnx, and transcribe the test sets with sherpa-onnx.
#
#   bash egs/<corpus>/KD/export.sh [--profile full] [--variants unified] \
#     [--systems "baseline both_pool"] [--head ctc]
#
# Stage 1: encoder, decoder, joiner (.onnx, .int8.onnx), tokens.txt, bpe.vocab
#                                     -> exp/<profile>/<variant>/<system>/export/
#          PyTorch, ONNX Runtime and sherpa-onnx are compared token for token on the
#          sets that local/profiles.sh names; int8 is refused, and float32 kept, when it
#          costs more than 0.3 % WER absolute there.  With --head ctc one model.onnx in
#          place of the three.
# Stage 2: sherpa-onnx on the test sets -> exp/<profile>/<variant>/<system>/sherpa/; the
#          real-time factor is that of one thread
stage=1              # first stage to run
stop_stage=2         # last stage to run
profile=             # of local/profiles.sh; empty: the first there
variants=            # unified, non_streaming, streaming; empty: those of the profile
systems=             # as in train.sh; empty: those of the profile
sets=                # of data/shar that sherpa-onnx transcribes; empty: the test sets
chunk_size=          # streaming: 20 ms frames; empty: the checkpoint's
left_context=        # streaming: 20 ms frames; empty: the checkpoint's
blank_penalty=0      # of stage 2, as in decode.sh; sherpa-onnx has none for CTC
head=transducer      # transducer or ctc
exp=                 # folder of the runs; empty: exp/<profile>

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
source "$REPO_ROOT/local/parse_options.sh"
source "$REPO_ROOT/local/systems.sh"
sets=${sets:-$test_sets}

case $head in
  transducer) method=greedy_search mark= ;;
  ctc) method=ctc_greedy_search mark=ctc- ;;
  *) die "--head is \"$head\"; it can be transducer or ctc" ;;
esac

export_one() {  # folder of a system, decoding
  local status=0 set folders=()
  for set in $check_sets; do
    folders+=("data/shar/$set")
  done
  # shellcheck disable=SC2046  # several options
  python -m icefall_kd.bin.export --checkpoint "$1/finetune/pretrained.pt" \
    --head "$head" --out-dir "$1/export" \
    --check --check-shar "${folders[@]}" \
    $(chunking "$2") || status=$?
  if ((status == 3)); then  # the figure has been told; float32 is complete
    log "no int8 files in $1/export for $2"
    return 0
  fi
  return "$status"
}

transcribe_one() {  # folder of a system, decoding, set
  local alignment=$exp/alignment/$3.ctm options=()
  if [[ -f $alignment ]]; then  # of decode.sh, stage 0
    options=(--alignment "$alignment")
  fi
  # shellcheck disable=SC2046  # several options
  python -m icefall_kd.bin.transcribe --model-dir "$1/export" \
    --shar-dir "data/shar/$3" --out-dir "$1/sherpa" --method "$method" \
    --blank-penalty "$blank_penalty" --threads 1 $(chunking "$2") "${options[@]}"
}

if in_stage 1 "Export and compare three engines -> $exp/*/*/export"; then
  for variant in $variants; do
    for system in $systems; do
      folder=$exp/$variant/$system
      for decoding in $(decodings "$variant"); do
        marker=$folder/export/.$mark$decoding
        if [[ $decoding == streaming ]]; then  # chunks of another size are other files
          marker+=-${chunk_size:-own}-${left_context:-own}
        fi
        reads=(--reads "$folder/finetune/pretrained.pt")
        for set in $check_sets; do
          reads+=(--reads "data/shar/$set/cuts.*" --reads "data/shar/$set/recording.*")
        done
        run_once "${reads[@]}" --code "export/*.py" "$marker.done" \
          export_one "$folder" "$decoding"
      done
    done
  done
fi

if in_stage 2 "Transcribe with sherpa-onnx -> $exp/*/*/sherpa"; then
  for variant in $variants; do
    for system in $systems; do
      for decoding in $(decodings "$variant"); do
        for set in $sets; do
          transcribe_one "$exp/$variant/$system" "$decoding" "$set"
        done
      done
    done
  done
fi
