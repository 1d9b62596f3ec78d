#!/usr/bin/env bash
# Schemathesis against the served OpenAPI description: no answer of 500 or above that is not a deliberate one, no
# connection dropped. BASE_URL, then for how many seconds, then the program of schemathesis.
set -euo pipefail
url=${1:?give the base URL}
seconds=${2:-600}
program=$(command -v "${3:-schemathesis}")
program=$(realpath -s "$program")
# It keeps what it tried in the folder that it runs in.
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"
until_s=$(($(date +%s) + seconds))
round=0
# It ends when it has nothing new to try, so it is started again with another seed until the time is over.
while left=$((until_s - $(date +%s))) && [ "$left" -gt 0 ]; do
  round=$((round + 1))
  status=0
  timeout --signal=INT "$left" "$program" run "$url/openapi.json" --url "$url" --phases fuzzing --checks not_a_server_error \
    --max-examples 200 --request-timeout 30 --seed "$round" || status=$?
  # 124 is the end of the time.
  if [ "$status" -ne 0 ] && [ "$status" -ne 124 ]; then
    echo "round $round found something (status $status)"
    exit 1
  fi
done
curl --silent --fail --max-time 10 "$url/livez" >/dev/null
echo "$round rounds in $seconds s, no fault"
