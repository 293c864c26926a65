#!/usr/bin/env bash
# Decode the systems of this recipe: runs local/decode.sh of the repository, see --help.
set -euo pipefail
export CALLED_IN=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"
exec bash ../../../local/decode.sh "$@"
