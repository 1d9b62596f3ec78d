#!/usr/bin/env bash
# Mainstay's block index beside the indexes of Dynamo, SMG and a prototype, over one timeline of operations.
#
# The rivals' harness and the traces are not part of this repository: SHARED_DIR holds them (peers/indexbench,
# peers/index-prototype, traces/). They are copied into a cache folder, the index of this checkout is added to
# the copy (backend.rs, three changed lines), both binaries are built, and every measurement becomes one line of
# JSON in OUT_DIR. See README.md beside this file for what is measured and how to read it.
set -euo pipefail
# The braces make bash read the whole file first: a run of half an hour survives an edit of this script.
{

usage() {
  cat <<'TEXT'
usage: rivals.sh SHARED_DIR OUT_DIR [--quick] [--without-ours] [--only PATTERN] [--indexes PATTERN]
                 [--stages LIST] [--append] [--dry]
  --quick            three configurations instead of eighteen, less repetition (under 5 minutes)
  --without-ours     the rivals alone; needs nothing of this checkout but this script
  --only PATTERN     configurations whose name matches this extended regular expression, e.g. '^conv-64'
  --indexes PATTERN  indexes whose name matches, e.g. '^mainstay' (with --append: only ours anew)
  --stages LIST      of fast,again,slow,lanes,memory (default: all, --quick: all but again), comma separated
  --append           add to what OUT_DIR holds instead of starting afresh; figures are the least of all runs
  --dry              build, print the configurations, run nothing
BENCH_CACHE names the cache folder; it is ${XDG_CACHE_HOME:-$HOME/.cache}/mainstay/bench otherwise.
TEXT
}

die() { echo "rivals.sh: $*" >&2; exit 1; }

QUICK=0 OURS=1 ONLY=. INDEXES=. STAGES= APPEND=0 DRY=0
FOLDERS=()
while [ $# -gt 0 ]; do
  case $1 in
    --quick) QUICK=1 ;;
    --without-ours) OURS=0 ;;
    --only) ONLY=${2:?--only needs a pattern}; shift ;;
    --indexes) INDEXES=${2:?--indexes needs a pattern}; shift ;;
    --stages) STAGES=${2:?--stages needs a list}; shift ;;
    --append) APPEND=1 ;;
    --dry) DRY=1 ;;
    -h|--help) usage; exit 0 ;;
    -*) usage >&2; exit 2 ;;
    *) FOLDERS+=("$1") ;;
  esac
  shift
done
[ ${#FOLDERS[@]} -eq 2 ] || { usage >&2; exit 2; }
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CHECKOUT=$(cd "$HERE/../../.." && pwd)
SHARED=$(cd "${FOLDERS[0]}" && pwd)
mkdir -p "${FOLDERS[1]}"
OUT=$(cd "${FOLDERS[1]}" && pwd)
CACHE=${BENCH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mainstay/bench}
[ -d "$SHARED/peers/indexbench/src" ] || die "$SHARED has no peers/indexbench/src"
mkdir -p "$CACHE/rivals" "$CACHE/traces"
# The binaries of this run, so that another run may build while this one measures.
BIN=$(mktemp -d "$CACHE/bin.XXXXXX")
FRESH=$(mktemp -d)
trap 'rm -rf "$FRESH" "$BIN"' EXIT
exec 9>"$CACHE/lock"
if command -v flock >/dev/null; then flock 9; fi

# --- the traces: sessions of Claude Code come packed with zstd ---
unpack() { # archive folder
  if command -v zstd >/dev/null; then
    zstd -dqc "$1" | tar -xf - -C "$2"
  elif python3 -c 'import zstandard' 2>/dev/null; then
    python3 -c 'import sys, zstandard; zstandard.ZstdDecompressor().copy_stream(open(sys.argv[1], "rb"), sys.stdout.buffer)' "$1" | tar -xf - -C "$2"
  else
    die "unpacking $1 needs zstd: apt-get install zstd, or python3 -m pip install zstandard"
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

# --- the harness: copied, patched, built. Unchanged files keep their times, so that cargo builds nothing twice ---
install_tree() { # from to
  (cd "$1" && find . -type f) | while read -r file; do
    mkdir -p "$2/$(dirname "$file")"
    cmp -s "$1/$file" "$2/$file" || { rm -f "$2/$file"; cp "$1/$file" "$2/$file"; }
  done
}
cp -R "$SHARED/peers/indexbench" "$SHARED/peers/index-prototype" "$FRESH/"
chmod -R u+w "$FRESH"
FEATURES=proto
if [ $OURS = 1 ]; then
  FEATURES=proto,mainstay
  cp "$HERE/backend.rs" "$FRESH/indexbench/src/mainstay.rs"
  sed -i 's|^mod backends;$|mod backends;\n#[cfg(feature = "mainstay")]\nmod mainstay;|
s|^\( *\)o => panic!("unknown index {o}"),$|\1#[cfg(feature = "mainstay")]\n\1o if o.starts_with("mainstay") => mainstay::run_named(o, \&a2, \&c, cut),\n&|' "$FRESH/indexbench/src/main.rs"
  sed -i 's|^proto = \["dep:proto"\]$|&\nmainstay = ["dep:mainstay-index", "dep:mainstay-types"]|' "$FRESH/indexbench/Cargo.toml"
  sed -i "s|^\[dependencies\]\$|&\nmainstay-index = { path = \"$CHECKOUT/control/index\", optional = true }\nmainstay-types = { path = \"$CHECKOUT/proto/types\", optional = true }|" "$FRESH/indexbench/Cargo.toml"
  grep -q 'mainstay::run_named' "$FRESH/indexbench/src/main.rs" && grep -q '^mod mainstay;' "$FRESH/indexbench/src/main.rs" \
    && grep -q '^mainstay = ' "$FRESH/indexbench/Cargo.toml" || die "the harness is not the one that this script knows how to patch"
fi
install_tree "$FRESH/indexbench" "$CACHE/rivals/indexbench"
install_tree "$FRESH/index-prototype" "$CACHE/rivals/index-prototype"
# One target folder for the harness alone: its profile and its dependencies are not those of this workspace.
build() { # features binary-name
  (cd "$CACHE/rivals/indexbench" && env -u RUSTFLAGS CARGO_TARGET_DIR="$CACHE/target" cargo build --release --no-default-features --features "$1")
  cp "$CACHE/target/release/indexbench" "$BIN/$2"
}
build "$FEATURES" indexbench
build "$FEATURES,count" indexmem
exec 9>&-

# --- the matrix: three corpora, three fleet sizes, two ways to place requests ---
options() { # configuration -> options of the harness
  local corpus workers route
  IFS=- read -r corpus workers route <<<"$1"
  case $corpus in
    weka) echo "--trace weka:$WEKA --cap 16384 --max-requests 14000 --workers $workers --route $route" ;;
    conv) echo "--trace $CONVERSATION --factor 32 --workers $workers --route $route" ;;
    dyn) echo "--trace $CONVERSATION --factor 4 --dup 20 --preamble 0 --workers $workers --route $route" ;;
  esac
}
CONFIGS=()
for corpus in weka conv dyn; do for workers in 8 64 256; do for route in random kv; do
  CONFIGS+=("$corpus-$workers-$route")
done; done; done
if [ $QUICK = 1 ]; then
  CONFIGS=(weka-64-kv conv-64-random dyn-256-random)
  [ -n "$STAGES" ] || STAGES=fast,slow,lanes,memory
fi
STAGES=${STAGES:-fast,again,slow,lanes,memory}

LIST_OURS="" LANES_OURS="" HEAP_OURS="" AGAIN_OURS=""
if [ $OURS = 1 ]; then
  LIST_OURS=",mainstay,mainstay-groups,mainstay-128,mainstay-runs"
  AGAIN_OURS=",mainstay,mainstay-128,mainstay-runs"
  LANES_OURS=",mainstay,mainstay-128"
  HEAP_OURS=",mainstay,mainstay-128"
fi
run() { # stage configuration binary indexes options...
  local stage=$1 config=$2 binary=$3 indexes=$4; shift 4
  case ",$STAGES," in *",$stage,"*) ;; *) return 0 ;; esac
  indexes=$(tr , '\n' <<<"$indexes" | { grep -E -- "$INDEXES" || true; } | paste -sd,)
  [ -n "$indexes" ] || return 0
  local begin=$SECONDS
  # shellcheck disable=SC2046 # the options are words
  timeout 900 "$BIN/$binary" $(options "$config") --index "$indexes" "$@" 2>>"$OUT/errors.txt" \
    | sed "s/^{/{\"cfg\":\"$config\",\"stage\":\"$stage\",/" >>"$OUT/rivals.jsonl" \
    || echo "rivals.sh: $stage of $config ended early, see $OUT/errors.txt" >&2
  echo "$config $stage $((SECONDS - begin)) s" >>"$OUT/times.txt"
}
if [ $APPEND = 0 ]; then rm -f "$OUT/rivals.jsonl" "$OUT/errors.txt" "$OUT/times.txt"; fi
{
  date -u +'%Y-%m-%dT%H:%MZ'; uname -srm; (lscpu 2>/dev/null || true) | grep -E '^(Model name|CPU\(s\)|L[123]|Thread)' || true
  rustc --version; git -C "$CHECKOUT" rev-parse HEAD 2>/dev/null || true; grep -E '"?(dynamo-kv-router|kv-index)' "$CACHE/rivals/indexbench/Cargo.toml"
} >"$OUT/machine.txt"
SECS=0.15 SLOW_SECS=0.05 AGAIN_SECS=0.1
[ $QUICK = 1 ] && SECS=0.1 SLOW_SECS=0.05 AGAIN_SECS=0.1
BEGIN=$(date +%s)
for config in "${CONFIGS[@]}"; do
  [[ $config =~ $ONLY ]] || continue
  [ $DRY = 1 ] && { echo "$config: $(options "$config")"; continue; }
  run fast "$config" indexbench "crtc,radix,smg,proto,proto-groups$LIST_OURS,null" --phases events,verify,lookup --readers 1,2 --secs $SECS
  run slow "$config" indexbench positional,positional-binary,bsi --phases events,verify,lookup --readers 1,2 --secs $SLOW_SECS
  # Everyone twice, because one short run meets the first touch of fresh memory or does not.
  lanes=crtc,radix,smg$LANES_OURS
  run lanes "$config" indexbench "$lanes,$lanes" --phases events --lanes 2
  # The heavy ones once per corpus and placement; positional-binary searches the very structure of positional.
  heavy=""
  case $config in *-64-*) heavy=,bsi,positional ;; esac
  run memory "$config" indexmem "crtc,radix,smg$heavy,proto$HEAP_OURS" --phases memory
  # The second pass comes last, about a minute after the first, so that a neighbour's burst spoils one of them only.
  run again "$config" indexbench "smg,radix,crtc,proto$AGAIN_OURS" --phases events,lookup --readers 1,2 --secs $AGAIN_SECS
  # Claude Code's sessions placed by prefix store few blocks: the timed phase is some 30 ms of CPU, and the kernel's
  # first touch of huge pages can double it. Everyone gets four more tries.
  case $config in weka-*-kv)
    tries=smg,radix,crtc,proto$AGAIN_OURS
    run again "$config" indexbench "$tries,$tries,$tries,$tries" --phases events ;;
  esac
  echo "$config done after $(($(date +%s) - BEGIN)) s"
done
[ $DRY = 1 ] || ! command -v python3 >/dev/null || python3 "$HERE/report.py" "$OUT/rivals.jsonl" >"$OUT/report.md"
exit
}
