#!/usr/bin/env bash
# Decode with PyTorch, in full context and streaming.
#
#   bash egs/<corpus>/KD/decode.sh [--profile full] [--variants unified] \
#     [--systems "baseline both_unlabelled"] [--sets "dev test"] [--head ctc]
#
# Stage 0: align the words of each set -> exp/<profile>/alignment/<set>.ctm
# Stage 1: greedy search               -> exp/<profile>/<variant>/<system>/decode/
# Stage 2: modified beam search, beam 4 -> exp/<profile>/<variant>/<system>/decode/
# With --head ctc, stage 1 is CTC greedy search and stage 2 is CTC prefix beam search.  If
# the profile has hlg, stage 2 is instead a search with a graph of words: exp/<profile>/HLG.fst.
#
# A result of the same checkpoint, set, options and code is reused.  Emission delays are
# relative to the alignment of stage 0.  By default the last system of the profile aligns,
# so that the delays of all systems are comparable; if it is not trained, the last system
# of --systems aligns.  Each result contains the path of the aligner.
# --chunk-size "16 32" decodes streaming with chunks of 320 ms and of 640 ms.
stage=0              # first stage to run
stop_stage=2         # last stage to run
profile=             # profile of conf/profiles.yaml (default: the first one)
variants=            # unified, non_streaming, streaming (default: those of the profile)
systems=             # as in train.sh (default: those of the profile)
sets=                # folders of data/shar (default: the test sets of the recipe)
head=                # transducer or ctc (default: that of the profile)
chunk_size=          # streaming chunks in frames of 20 ms (default: the checkpoint's)
left_context=        # streaming left context in frames of 20 ms (default: the checkpoint's)
blank_penalty=0      # subtracted from the blank's logit; tune it with --sets dev
hotwords=            # file of phrases that stage 2 prefers, one per line
hotwords_score=1.5   # bonus of each token of a hotword, in nats
aligner=             # checkpoint of stage 0 (default: see above)
exp=                 # folder of the runs (default: exp/<profile>)
dry_run=false        # print the commands, run nothing

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
source "$REPO_ROOT/local/parse_options.sh"
source "$REPO_ROOT/local/recipe.sh"
paths_from_caller hotwords aligner
sets=${sets:-$test_sets}

if [[ -n $hotwords && $head == ctc ]]; then
  die "--hotwords: only --head transducer supports hotwords. Leave out --hotwords or" \
    "--head ctc"
fi
decoding=(decode --sets "$sets" --chunk-size "$chunk_size"
  --left-context "$left_context" --blank-penalty "$blank_penalty")

if in_stage 0 "Align the words -> $exp/alignment/{${sets// /,}}.ctm"; then
  run_commands align --sets "$sets" --aligner "$aligner"
fi

if in_stage 1 "Greedy search -> $exp/*/*/decode"; then
  run_commands "${decoding[@]}"
fi

if in_stage 2 "Beam search -> $exp/*/*/decode"; then
  run_commands graph
  run_commands "${decoding[@]}" --search beam \
    ${hotwords:+-- --hotwords "$hotwords" --hotwords-score "$hotwords_score"}
fi
