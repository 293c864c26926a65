#!/usr/bin/env bash
# Run all scripts of this recipe: from a fresh machine to a table of WERs.
#
#   bash egs/asterisk/KD/run.sh                  # about 40 minutes on 2 cores with AVX2
#   bash egs/asterisk/KD/run.sh --profile full   # the schedules of RESULTS.md
#
# Stage 0: install into .venv                  Stage 4: decode.sh
# Stage 1: prepare.sh                          Stage 5: export.sh
# Stage 2: teachers.sh                         Stage 6: table and page of the results
# Stage 3: train.sh                                     -> exp/<profile>/<variant>/{summary.md,report.html}
# A second run resumes after the last finished step.
stage=0              # first stage to run
stop_stage=6         # last stage to run
profile=quick        # quick (one unified student) or full
variants=            # unified, non_streaming, streaming (default: those of the profile)
systems=             # as in train.sh (default: those of the profile)
head=                # transducer or ctc (default: that of the profile)
blank_penalty=0      # as in decode.sh
corpus_dir=          # folder with the English prompts (default: download them)
unlabelled_dir=      # folder with the unpacked packages of the unlabelled audio (default: download them)
from_dir=            # folder with a sub-folder for each teacher (default: download them)

set -euo pipefail
RENAMED_OPTIONS="--pool-dir=--unlabelled-dir"
source "$(dirname "${BASH_SOURCE[0]}")/../../../local/parse_options.sh"
corpus_dir=${corpus_dir:+$(realpath "$corpus_dir")}
unlabelled_dir=${unlabelled_dir:+$(realpath "$unlabelled_dir")}
from_dir=${from_dir:+$(realpath "$from_dir")}
cd "$(dirname "${BASH_SOURCE[0]}")"
source ../../../local/log.sh
case $profile in  # of each stage on 2 cores, with the systems of the profile
  quick) stage_minutes=(2 1 5 24 2 5 1) ;;
  full) stage_minutes=(2 6 9 350 20 30 1) ;;
esac

if in_stage 0 "Install -> .venv"; then
  bash ../../../local/install.sh
fi
source ../../../local/env.sh
source ../../../local/recipe.sh
chosen=(--profile "$profile" --variants "$variants" --systems "$systems")
decoding=("${chosen[@]}" --head "$head" --blank-penalty "$blank_penalty")

if in_stage 1 "Prepare the corpus -> data/shar"; then
  bash prepare.sh --unlabelled "$profile" ${corpus_dir:+--corpus-dir "$corpus_dir"} \
    ${unlabelled_dir:+--unlabelled-dir "$unlabelled_dir"}
fi

if in_stage 2 "Extract the teachers' embeddings -> data/shar"; then
  bash teachers.sh --profile "$profile" ${from_dir:+--from-dir "$from_dir"}
fi

if in_stage 3 "Train -> exp/$profile/*/*/{pretrain,finetune}"; then
  bash train.sh "${chosen[@]}"
fi

if in_stage 4 "Decode the test set -> exp/$profile/*/*/decode"; then
  bash decode.sh "${decoding[@]}"
fi

if in_stage 5 "Export, decode with sherpa-onnx -> exp/$profile/*/*/{export,sherpa}"; then
  bash export.sh "${decoding[@]}"
fi

if in_stage 6 "Report -> exp/$profile/*/{summary.md,report.html}"; then
  for variant in $variants; do
    folder=exp/$profile/$variant
    results=()
    for system in $systems; do
      results+=(--system "$system=$folder/$system")
    done
    log "$variant student, complete table in $folder/summary.md"
    python -m icefall_kd.bin.report --baseline baseline --set test --head "$head" \
      --out "$folder/summary.md" --html "$folder/report.html" \
      --shar-dir data/shar/test "${results[@]}"
  done
fi
log_stages
