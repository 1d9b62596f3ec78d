#!/usr/bin/env bash
# Puts the traces of SHARED_DIR where the harnesses look for them: CACHE_DIR/traces. Sessions of Claude Code come packed
# with zstd. usage: traces.sh SHARED_DIR CACHE_DIR
set -euo pipefail
SHARED=$1 CACHE=$2
mkdir -p "$CACHE/traces"
unpack() { # archive folder
  if command -v zstd >/dev/null; then
    zstd -dqc "$1" | tar -xf - -C "$2"
  elif python3 -c 'import zstandard' 2>/dev/null; then
    python3 -c 'import sys, zstandard; zstandard.ZstdDecompressor().copy_stream(open(sys.argv[1], "rb"), sys.stdout.buffer)' "$1" | tar -xf - -C "$2"
  else
    echo "unpacking $1 needs zstd: apt-get install zstd, or python3 -m pip install zstandard" >&2
    exit 1
  fi
}
WEKA=$CACHE/traces/claude-code
if [ ! -d "$WEKA" ]; then
  rm -rf "$WEKA.part" && mkdir -p "$WEKA.part/all"
  unpack "$SHARED/traces/weka-dev.tar.zst" "$WEKA.part/all"
  # The harness reads every file of the folder as a session, so the licence must not lie among them.
  find "$WEKA.part/all" -name '*.json' -exec mv {} "$WEKA.part/" \;
  rm -rf "$WEKA.part/all" && mv "$WEKA.part" "$WEKA"
fi
CONVERSATION=$CACHE/traces/conversation_trace.jsonl
[ -f "$CONVERSATION" ] || cp "$SHARED/traces/mooncake/conversation_trace.jsonl" "$CONVERSATION"
