#!/usr/bin/env bash
# Export the systems of this recipe: runs local/export.sh of the repository, see --help.
set -euo pipefail
export CALLED_IN=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"
exec bash ../../../local/export.sh "$@"
