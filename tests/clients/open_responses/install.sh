#!/usr/bin/env bash
# Fetches the Open Responses compliance suite into FOLDER, at a fixed commit, with the runtime and the one library that
# it needs, at fixed versions; says nothing where it is there. Its text is its authors' (Apache-2.0) and not part of this
# project. MAINSTAY_OPEN_RESPONSES names another Git repository that has the commit. Ends with status 77 where it
# cannot be had.
set -euo pipefail
folder=${1:?give the folder to install into}
source=${MAINSTAY_OPEN_RESPONSES:-https://github.com/openresponses/openresponses}
commit=92c12d96d7b61d6d15e2214daa5e9c6000ab6e1c
bun=1.4.5
zod=3.25.76
case "$(uname -m)" in
  x86_64) machine=x64 ;;
  aarch64 | arm64) machine=aarch64 ;;
  *) echo "skipped: no runtime of the suite for $(uname -m)" && exit 77 ;;
esac
stamp="$commit $bun $zod"
[ "$(cat "$folder/done" 2>/dev/null || true)" = "$stamp" ] && exit 0
command -v npm >/dev/null || { echo "skipped: no npm to install the suite's runtime with" && exit 77; }
rm -rf "$folder"
mkdir -p "$folder"
git -C "$folder" init -q
if ! GIT_TERMINAL_PROMPT=0 timeout 120 git -C "$folder" fetch -q --depth 1 "$source" "$commit"; then
  echo "skipped: the Open Responses suite cannot be fetched from $source"
  exit 77
fi
git -C "$folder" checkout -q FETCH_HEAD
# Its own package file asks for the whole web site; the tests need two of these, kept beside it.
mkdir "$folder/runtime"
npm install --prefix "$folder/runtime" --ignore-scripts --no-audit --no-fund --silent "@oven/bun-linux-$machine@$bun" "zod@$zod"
ln -s runtime/node_modules "$folder/node_modules"
ln -s "node_modules/@oven/bun-linux-$machine/bin/bun" "$folder/bun"
echo "$stamp" >"$folder/done"
echo "installed the Open Responses suite $commit"
