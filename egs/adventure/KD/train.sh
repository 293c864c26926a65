#!/usr/bin/env bash
# Train the systems of this recipe: runs local/train.sh of the repository, see --help.
set -euo pipefail
export CALLED_IN=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"
exec bash ../../../local/train.sh "$@"
