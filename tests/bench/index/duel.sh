#!/usr/bin/env bash
# The block index of this checkout beside that of an earlier commit and the prototype, in alternation in one process.
# What rivals.sh measures minutes apart, this tells apart to a per cent or two on a machine with other work.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: duel.sh SHARED_DIR BASE_REVISION [--rounds N] [--seconds S] [--who proto,base,fresh] [--readers 1|2] CONFIGURATION...
  a configuration is corpus-workers-route: weka|conv|dyn, 8|64|256, random|kv; "all" for the eighteen
prints ns: configuration, measure, proto, base, fresh, base/proto, fresh/proto, fresh/base
TEXT
}

ROUNDS=24 SECONDS_EACH=0.03 WHO=proto,base,fresh READERS=2 WORDS=()
while [ $# -gt 0 ]; do
  case $1 in
    --rounds) ROUNDS=${2:?--rounds needs a number}; shift ;;
    --seconds) SECONDS_EACH=${2:?--seconds needs a number}; shift ;;
    --readers) READERS=${2:?--readers needs a number}; shift ;;
    --who) WHO=${2:?--who needs a list}; shift ;;
    -*) usage >&2; exit 2 ;;
    *) WORDS+=("$1") ;;
  esac
  shift
done
[ ${#WORDS[@]} -ge 3 ] || { usage >&2; exit 2; }
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CHECKOUT=$(cd "$HERE/../../.." && pwd)
SHARED=$(cd "${WORDS[0]}" && pwd)
CACHE=${BENCH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mainstay/bench}
NAMES=("${WORDS[@]:2}")
if [ "${NAMES[0]}" = all ]; then
  NAMES=()
  for corpus in weka conv dyn; do for workers in 8 64 256; do for route in random kv; do
    NAMES+=("$corpus-$workers-$route")
  done; done; done
fi

"$HERE/traces.sh" "$SHARED" "$CACHE"
DUEL=$CACHE/duel BASE=$CACHE/duel-base
rm -rf "$BASE" && mkdir -p "$BASE" "$DUEL/src" "$CACHE/index-prototype/src"
git -C "$CHECKOUT" archive "${WORDS[1]}" Cargo.toml control/index proto/types | tar -x -C "$BASE"
# The rest of the workspace is not there.
python3 - "$BASE/Cargo.toml" <<'PY'
import re, sys
text = open(sys.argv[1]).read()
text = re.sub(r"members = \[.*?\n\]", 'members = ["proto/types", "control/index"]', text, count=1, flags=re.S)
# Two packages of one name need two versions.
text = re.sub(r'(\[workspace.package\]\nversion = ")[^"]*', r"\g<1>0.0.1", text)
open(sys.argv[1], "w").write(text)
PY
install -m 644 "$SHARED/peers/index-prototype/Cargo.toml" "$CACHE/index-prototype/"
install -m 644 "$SHARED/peers/index-prototype/src/lib.rs" "$CACHE/index-prototype/src/"
cp "$HERE/duel.rs" "$DUEL/src/main.rs"
sed 's|^use dynamo_tokens::compute_next_sequence_hash;$|use crate::plain::compute_next_sequence_hash;|
s|^use dynamo_kv_router::LocalBlockHash;$|use crate::plain::LocalBlockHash;|
1i #![allow(dead_code)]' "$SHARED/peers/indexbench/src/corpus.rs" >"$DUEL/src/corpus.rs"
cat >"$DUEL/src/plain.rs" <<'RS'
//! What the corpus takes from Dynamo's crates: any chained hash will do.
#[derive(Clone, Copy)]
pub struct LocalBlockHash(#[allow(dead_code)] pub u64);
pub fn compute_next_sequence_hash(parent: u64, local: u64) -> u64 {
    let local = crate::corpus::mix(local);
    crate::corpus::mix(parent.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23) ^ local)
}
RS
cat >"$DUEL/Cargo.toml" <<TOML
[package]
name = "duel"
version = "0.1.0"
edition = "2024"
[workspace]
[dependencies]
proto = { path = "$CACHE/index-prototype" }
base = { path = "$BASE/control/index", package = "mainstay-index" }
base_types = { path = "$BASE/proto/types", package = "mainstay-types" }
fresh = { path = "$CHECKOUT/control/index", package = "mainstay-index" }
fresh_types = { path = "$CHECKOUT/proto/types", package = "mainstay-types" }
serde_json = "1"
rustc-hash = "2"
mimalloc = { version = "0.1", default-features = false }
libc = "0.2"
# The profile of the rivals' harness.
[profile.release]
lto = "thin"
codegen-units = 4
debug = 1
panic = "abort"
TOML
(cd "$DUEL" && env -u RUSTFLAGS CARGO_TARGET_DIR="$CACHE/target" cargo build --release)
BENCH_TRACES=$CACHE/traces "$CACHE/target/release/duel" "$ROUNDS" "$SECONDS_EACH" "$WHO" "$READERS" "${NAMES[@]}"
