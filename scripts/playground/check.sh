#!/usr/bin/env bash
# Checks the playground: its vendored libraries are the published ones, its types hold, it is formatted.
#   scripts/playground/check.sh          check
#   scripts/playground/check.sh format   format
# Without npm it says so and does nothing: who works on the rest need not have it.
set -euo pipefail
cd "$(dirname "$0")"
pages=../../app/http/playground

if ! command -v npm > /dev/null; then
  echo "playground: not checked, since there is no npm" >&2
  exit 0
fi
[ node_modules/.package-lock.json -nt package-lock.json ] || npm ci --silent
# Not the HTML in template strings: line breaks in it mean something else than in HTML.
prettier=(node_modules/.bin/prettier --config prettier.json --log-level warn)
sources=("$pages/**/*.js" "$pages/*.css" "$pages/*.html" "!$pages/vendor/**")
if [ "${1:-}" = format ]; then
  exec "${prettier[@]}" --write "${sources[@]}"
fi
before=$(cat $pages/vendor/* | sha256sum)
./vendor.sh
[ "$before" = "$(cat $pages/vendor/* | sha256sum)" ] || {
  echo "playground: vendor/ was not what vendor.sh makes; it is now" >&2
  exit 1
}
node_modules/.bin/tsc --project tsconfig.json
"${prettier[@]}" --check "${sources[@]}"
