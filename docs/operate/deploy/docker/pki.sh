#!/bin/sh
# An authority and a certificate for each process of compose.yaml, once.
set -eu
cd /pki
[ -e ca/ca.pem ] && exit 0
mainstay control init --out ca
for id in 1 2 3; do
  mainstay control cert --ca ca --role control --name "m$id" --host "control-$id" --sign --out "control-$id"
done
for id in 1 2; do
  mainstay control cert --ca ca --role worker --name "w$id" --host "worker-$id" --out "worker-$id"
done
mainstay control cert --ca ca --role gateway --name g1 --out gateway
mainstay control cert --ca ca --role admin --name admin --out admin
