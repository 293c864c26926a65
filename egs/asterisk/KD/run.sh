#!/usr/bin/env bash
# From a fresh machine to a distilled student that sherpa-onnx runs, and one table.
#
#   bash egs/asterisk/KD/run.sh                  # about 25 minutes on 2 cores
#   bash egs/asterisk/KD/run.sh --profile full   # the schedules of RESULTS.md
#
# Stage 0: install into .venv                  Stage 4: decode.sh
# Stage 1: prepare.sh                          Stage 5: export.sh, sherpa-onnx
# Stage 2: teachers.sh                         Stage 6: a table and a page
# Stage 3: train.sh                                     -> exp/<profile>/<variant>/{summary.md,report.html}
# Run again, it goes on where it stopped and repeats nothing that is done.
stage=0              # first stage to run
stop_stage=6         # last stage to run
profile=quick        # quick: one causal student serves both decodings; full: see above
variants=            # unified, non_streaming, streaming; empty: those of the profile
systems=             # as in train.sh; empty: those of the profile
blank_penalty=0      # of decoding, see decode.sh
corpus_dir=          # folder with the English prompts; empty: fetched
pool_dir=            # folder with the pool's packages; empty: fetched
from_dir=            # folder with the teachers; empty: fetched

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../../local/parse_options.sh"
corpus_dir=${corpus_dir:+$(realpath "$corpus_dir")}
pool_dir=${pool_dir:+$(realpath "$pool_dir")}
from_dir=${from_dir:+$(realpath "$from_dir")}
cd "$(dirname "${BASH_SOURCE[0]}")"
source ../../../local/log.sh
source ../../../local/systems.sh
begin=$SECONDS
chosen=(--profile "$profile" --variants "$variants" --systems "$systems")

if in_stage 0 "Install -> .venv"; then
  bash ../../../local/install.sh
fi
source ../../../local/env.sh

if in_stage 1 "Prepare the corpus -> data/shar"; then
  bash prepare.sh --pool "$profile" \
    ${corpus_dir:+--corpus-dir "$corpus_dir"} ${pool_dir:+--pool-dir "$pool_dir"}
fi

if in_stage 2 "Let the teachers speak -> fields in data/shar"; then
  bash teachers.sh --profile "$profile" ${from_dir:+--from-dir "$from_dir"}
fi

if in_stage 3 "Train -> exp/$profile/*/*/{pretrain,finetune}"; then
  bash train.sh "${chosen[@]}"
fi

if in_stage 4 "Decode the test set -> exp/$profile/*/*/decode"; then
  bash decode.sh "${chosen[@]}" --blank-penalty "$blank_penalty"
fi

if in_stage 5 "Export and run sherpa-onnx -> exp/$profile/*/*/{export,sherpa}"; then
  bash export.sh "${chosen[@]}" --blank-penalty "$blank_penalty"
fi

if in_stage 6 "A table and a page -> exp/$profile/*/{summary.md,report.html}"; then
  for variant in $variants; do
    folder=exp/$profile/$variant
    results=()
    for system in $systems; do
      results+=(--system "$system=$folder/$system")
    done
    log "$variant student on the test set"
    python -m icefall_kd.bin.report --baseline baseline --set test \
      --out "$folder/summary.md" --html "$folder/report.html" \
      --shar-dir data/shar/test "${results[@]}"
  done
fi
log "run.sh took $(((SECONDS - begin + 30) / 60)) minutes"
