#!/usr/bin/env bash
# Checks and times the native engine on an NVIDIA GPU, beside PyTorch, in one run of under nine minutes.
#
#   tests/gpu/run.sh build FOLDER       on a machine with cargo: builds the program into FOLDER
#   tests/gpu/run.sh check FOLDER OUT   on a machine with a GPU, PyTorch and transformers, and no network: figures in OUT
set -euo pipefail
cd "$(dirname "$0")/../.."
case "${1:-}" in
  build)
    # shellcheck source=.ci/env
    source .ci/env
    cargo build --release --locked -p mainstay-native --example gpu
    mkdir -p "$2"
    install "$CARGO_TARGET_DIR/release/examples/gpu" "$2/gpu"
    ;;
  check)
    exec python3 tests/gpu/check.py --program "$2/gpu" --out "$3"
    ;;
  *)
    sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
