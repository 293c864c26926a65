#!/usr/bin/env bash
# Export the systems of this recipe: the stages and options are in local/export.sh at the
# top of the repository, and --help tells them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
exec bash ../../../local/export.sh "$@"
