#!/usr/bin/env bash
# Export to ONNX for sherpa-onnx, and decode the test sets with sherpa-onnx.
#
#   bash egs/<corpus>/KD/export.sh [--profile full] [--variants unified] \
#     [--systems "baseline both_unlabelled"] [--head ctc]
#
# Stage 1: export encoder, decoder and joiner (.onnx, .int8.onnx), tokens.txt and
#          bpe.vocab -> exp/<profile>/<variant>/<system>/export/
#          With --head ctc: one model.onnx instead of the three, and HLG.fst if the
#          profile has hlg.
#          Compares PyTorch, ONNX Runtime and sherpa-onnx token for token on the
#          check_sets of the profile.  Omits the int8 files if they raise the WER on these
#          sets by more than 0.3 % absolute.
# Stage 2: decode the test sets with sherpa-onnx, measure the real-time factor of one
#          thread -> exp/<profile>/<variant>/<system>/sherpa/
stage=1              # first stage to run
stop_stage=2         # last stage to run
profile=             # profile of conf/profiles.yaml (default: the first one)
variants=            # unified, non_streaming, streaming (default: those of the profile)
systems=             # as in train.sh (default: those of the profile)
sets=                # folders of data/shar for stage 2 (default: the test sets)
chunk_size=          # streaming chunk in frames of 20 ms (default: the checkpoint's)
left_context=        # streaming left context in frames of 20 ms (default: the checkpoint's)
blank_penalty=0      # of stage 2, as in decode.sh; not with --head ctc
head=                # transducer or ctc (default: that of the profile)
exp=                 # folder of the runs (default: exp/<profile>)
dry_run=false        # print the commands, run nothing

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
source "$REPO_ROOT/local/parse_options.sh"
source "$REPO_ROOT/local/recipe.sh"
sets=${sets:-$test_sets}
exporting=(--chunk-size "$chunk_size" --left-context "$left_context")

export_model() {  # command of bin.export
  local status=0
  "$@" || status=$?
  if ((status == 3)); then  # int8 raises the WER too much; the float32 files are complete
    log "omitted the int8 files, see the WER above"
    return 0
  fi
  return "$status"
}

export_all() {  # skip exports whose checkpoint, check_sets, code and options are the same
  local lines system marker command reads set words
  lines=$(recipe_commands export "${exporting[@]}")
  while IFS=$'\t' read -r -u 3 system marker command; do
    reads=(--reads "$system/finetune/pretrained.pt")
    if [[ $head == ctc ]]; then
      reads+=(--reads "$exp/HLG.fst")
    fi
    for set in $check_sets; do
      reads+=(--reads "data/shar/$set/cuts.*" --reads "data/shar/$set/recording.*")
    done
    eval "words=($command)"
    run_once "${reads[@]}" --code "export/*.py" "$marker" export_model "${words[@]}"
  done 3<<<"$lines"
}

if in_stage 1 "Export, compare three engines -> $exp/*/*/export"; then
  run_commands graph
  if [[ $dry_run == true ]]; then
    run_commands export "${exporting[@]}"
  else
    export_all
  fi
fi

if in_stage 2 "Decode with sherpa-onnx -> $exp/*/*/sherpa"; then
  run_commands transcribe --sets "$sets" "${exporting[@]}" \
    --blank-penalty "$blank_penalty"
fi
