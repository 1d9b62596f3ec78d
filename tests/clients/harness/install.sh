#!/usr/bin/env bash
# Installs the three harnesses into FOLDER, at the versions of versions.txt, and says nothing where they are there.
# Afterwards nothing is fetched any more: the runs happen in network namespaces without a way out.
set -euo pipefail
folder=${1:?give the folder to install into}
versions=$(dirname "$(readlink -f "$0")")/versions.txt
mkdir -p "$folder"
while read -r name version; do
  case "$name" in '' | '#'*) continue ;; esac
  place="$folder/$(basename "$name")-$version"
  [ -e "$place/done" ] && continue
  rm -rf "$place"
  mkdir -p "$place"
  # Their scripts download again what the packages hold already, and we run the programs inside directly.
  npm install --prefix "$place" --ignore-scripts --no-audit --no-fund --silent "$name@$version"
  touch "$place/done"
  echo "installed $name $version"
done <"$versions"
