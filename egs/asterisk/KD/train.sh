#!/usr/bin/env bash
# Train the systems of this recipe: the stages and options are in local/train.sh at the
# top of the repository, and --help tells them.
set -euo pipefail
export CALLED_IN=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"
exec bash ../../../local/train.sh "$@"
