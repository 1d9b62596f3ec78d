#!/usr/bin/env bash
# Opens the console in a headless browser: tests/console/run.sh [FOLDER FOR PICTURES] [arguments of check.py]
# Needs python3 with venv and chromium; installs the rest into the cache at fixed versions. The program must be built.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=.ci/env
source .ci/env
venv="$MAINSTAY_CACHE/venv-console"
if ! cmp -s tests/console/requirements.txt "$venv/requirements.txt"; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install -q -r tests/console/requirements.txt
  cp tests/console/requirements.txt "$venv/"
fi
shots=${1:-$MAINSTAY_CACHE/console-shots}
exec "$venv/bin/python" tests/console/check.py --binary "$CARGO_TARGET_DIR/release/mainstay" --shots "$shots" "${@:2}"
