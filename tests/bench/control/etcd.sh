#!/usr/bin/env bash
# Pins beside etcd's puts: three members of each on this machine, each durable on a majority before it answers.
#
#   tests/bench/control/etcd.sh [ROUNDS] [PINS]
#
# Needs `etcd` (Debian: etcd-server) and a release build of `mainstay`. Both keep their logs in one folder under
# $TMPDIR, which is removed at the end; choose one on a disk, since a tmpfs would make fsync free for both.
set -euo pipefail
cd "$(dirname "$0")/../../.."
rounds=${1:-3} pins=${2:-20000}
target=${CARGO_TARGET_DIR:-target}
mainstay=${MAINSTAY:-$target/release/mainstay}
folder=$(mktemp -d)
members=()
stop() {
  for pid in "${members[@]}"; do kill "$pid" 2>/dev/null || true; done
  wait 2>/dev/null || true
  rm -rf "$folder"
}
trap stop EXIT

cluster=e1=http://127.0.0.1:23801,e2=http://127.0.0.1:23802,e3=http://127.0.0.1:23803
for n in 1 2 3; do
  etcd --name "e$n" --data-dir "$folder/e$n" --log-level error \
    --listen-client-urls "http://127.0.0.1:2379$n" --advertise-client-urls "http://127.0.0.1:2379$n" \
    --listen-peer-urls "http://127.0.0.1:2380$n" --initial-advertise-peer-urls "http://127.0.0.1:2380$n" \
    --initial-cluster "$cluster" >"$folder/e$n.log" 2>&1 &
  members+=($!)
done
addresses=127.0.0.1:23901,127.0.0.1:23902,127.0.0.1:23903
for n in 1 2 3; do
  "$mainstay" control --insecure --node-id "$n" --listen "127.0.0.1:2390$n" --members \
    "1=127.0.0.1:23901,2=127.0.0.1:23902,3=127.0.0.1:23903" --data-dir "$folder/m$n" >"$folder/m$n.log" 2>&1 &
  members+=($!)
done
sleep 5
"$mainstay" bench control --only pins --rounds "$rounds" --pins "$pins" --control "$addresses" \
  --etcd 127.0.0.1:23791,127.0.0.1:23792,127.0.0.1:23793 -o "${OUTPUT:-table}"
