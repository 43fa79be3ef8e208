#!/usr/bin/env bash
# Prints the path of a promtool: the one on PATH, else Debian's, which is unpacked into .venv without root.
# Its exit code is 3 where there is neither it nor apt.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "promtool: $1" >&2; exit "${2:-1}"; }

command -v promtool && exit
promtool=$PWD/.venv/promtool
if [ ! -x "$promtool" ]; then
  command -v apt-get dpkg-deb > /dev/null || fail "it is not here, and neither is apt: install Prometheus" 3
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
  download() { (cd "$folder" && apt-get download prometheus) >&2; }
  # On a fresh machine or in a container, there are no lists of packages yet.
  download || { apt-get update >&2 && download; } || fail "apt cannot download prometheus: apt install prometheus"
  dpkg-deb --extract "$folder"/prometheus_*.deb "$folder"
  mkdir -p .venv
  mv "$folder/usr/bin/promtool" "$promtool"
fi
echo "$promtool"
