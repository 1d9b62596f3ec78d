#!/bin/sh
# Makes a demo model from nothing: environment, training, evaluation, golden answers.
#   ./make_model.sh OUT_DIR [MINUTES]      # 90 minutes on two free cores is a sensible figure
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:?usage: make_model.sh OUT_DIR [MINUTES]}
minutes=${2:-90}
mkdir -p "$out"
[ -x "$out/.venv/bin/python" ] || python3 -m venv "$out/.venv"
"$out/.venv/bin/pip" install --quiet -r "$here/requirements.txt"
"$out/.venv/bin/python" "$here/train.py" --out "$out/model" --minutes "$minutes"
"$out/.venv/bin/python" "$here/evaluate.py" "$out/model" "$here"
"$out/.venv/bin/python" "$here/make_golden.py" "$out/model"
sha256sum "$out/model/model.safetensors"
