#!/usr/bin/env bash
# Copies the libraries of the playground into app/http/playground/vendor: at the versions of
# package.json, by the checksums of package-lock.json. Needs npm. The result is committed, so that
# nobody else does.
set -euo pipefail
cd "$(dirname "$0")"
vendor=../../app/http/playground/vendor

npm ci --silent
mkdir -p $vendor
# Without a build step nothing resolves bare names; and there are no source maps.
plain() { sed -e 's|from"preact"|from"./preact.js"|g' -e '/^\/\/# sourceMappingURL=/d' "node_modules/$1"; }
plain preact/dist/preact.mjs > $vendor/preact.js
plain preact/hooks/dist/hooks.mjs > $vendor/hooks.js
plain htm/dist/htm.mjs > $vendor/htm.js
for package in preact htm; do
  cp node_modules/$package/LICENSE $vendor/$package.LICENSE
done
# Types, for check.sh.
echo 'export * from "preact";' > $vendor/preact.d.ts
echo 'export * from "preact/hooks";' > $vendor/hooks.d.ts
echo 'export { default } from "htm";' > $vendor/htm.d.ts
