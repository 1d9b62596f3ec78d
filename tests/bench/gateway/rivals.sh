#!/usr/bin/env bash
# What a request costs Mainstay's gateway, Dynamo's frontend and smg: installs the rivals, then runs run.py.
#
#   tests/bench/gateway/rivals.sh [OPTIONS OF run.py]     # --help tells them
#
# Needs Python 3.11 or newer, taskset, two cores, and a release build of `mainstay` ($MAINSTAY, or in the target
# folder). Rivals and the benchmark's own packages go to virtual environments in $MAINSTAY_CACHE, once.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
root=$(readlink -f "$here/../../..")
cache=${MAINSTAY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mainstay}
mainstay=${MAINSTAY:-${CARGO_TARGET_DIR:-$root/target}/release/mainstay}
python=${PYTHON:-python3}

# install NAME REQUIREMENTS...: a virtual environment, made anew when what it should hold has changed. A file of
# which pip should not follow the requirements is given as --no-deps FILE.
install() {
  local place="$cache/venv-gateway-$1" wanted
  shift
  wanted=$("$python" --version; for file in "$@"; do [ "$file" = --no-deps ] || cat "$here/$file"; done)
  [ "$(cat "$place/installed" 2>/dev/null)" = "$wanted" ] && return
  rm -rf "$place"
  mkdir -p "$cache"
  "$python" -m venv "$place"
  local flags=()
  for file in "$@"; do
    if [ "$file" = --no-deps ]; then flags=(--no-deps); continue; fi
    "$place/bin/pip" install --quiet --disable-pip-version-check "${flags[@]}" -r "$here/$file"
    flags=()
  done
  echo "$wanted" >"$place/installed"
}
install bench requirements.txt
install smg requirements-smg.txt
install dynamo requirements-dynamo-needs.txt --no-deps requirements-dynamo.txt

exec "$cache/venv-gateway-bench/bin/python" "$here/run.py" --mainstay "$mainstay" --smg "$cache/venv-gateway-smg" \
  --dynamo "$cache/venv-gateway-dynamo" --model "$root/plugins/native/demo-model" "$@"
