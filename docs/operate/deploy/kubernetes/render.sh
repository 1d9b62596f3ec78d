#!/bin/sh
# Prints region.yaml for one datacenter. Needs nothing but sed.
set -eu
: "${REGION:?eu, us or ap}" "${NODE_ID:?1, 2 or 3}" "${DOMAIN:?the domain that the members have names in}"
sed -e "s/\${REGION}/$REGION/g" -e "s/\${NODE_ID}/$NODE_ID/g" -e "s/\${DOMAIN}/$DOMAIN/g" "$(dirname "$0")/region.yaml"
