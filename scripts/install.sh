#!/usr/bin/env bash
# Installs softserve and everything below it into .venv, from the lock file that fits the machine.
#   scripts/install.sh serve    what the server needs
#   scripts/install.sh loadtest the same, and what the load tests need
#   scripts/install.sh test     both, and what the tests and checks need
# The Makefile and the Dockerfile both call it. SOFTSERVE_DEVICE=cpu|cuda overrules the detection,
# PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."

purpose=${1:-serve}
python=${PYTHON:-python3}
pip_version=26.3
uv_version=0.13.9

fail() { echo "install: $*" >&2; exit 1; }

"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null ||
  fail "Python 3.11, 3.12 or 3.13 is needed; $python is not one: set PYTHON=/path/to/python3.11"

if [ -z "${SOFTSERVE_DEVICE:-}" ]; then
  if nvidia-smi --list-gpus 2>/dev/null | grep -q '^GPU'; then SOFTSERVE_DEVICE=cuda; else SOFTSERVE_DEVICE=cpu; fi
fi
locks=("requirements/$SOFTSERVE_DEVICE.lock")
[ -f "${locks[0]}" ] || fail "SOFTSERVE_DEVICE is cpu or cuda, not $SOFTSERVE_DEVICE"
[ "$purpose" = serve ] || locks+=(requirements/loadtest.lock)
[ "$purpose" != test ] || locks+=(requirements/test.lock)

# What is installed already is named after the files that it was installed from. It serves those who need less.
digest=$(cat "${locks[0]}" requirements/{loadtest,test}.lock pyproject.toml | sha256sum | cut -c1-16)
stamp_of() { echo ".venv/.installed-$1-$SOFTSERVE_DEVICE-$digest"; }
case "$purpose" in
  serve) enough=(serve loadtest test) ;;
  loadtest) enough=(loadtest test) ;;
  test) enough=(test) ;;
  *) fail "the purpose is serve, loadtest or test, not $purpose" ;;
esac

# Operators in C++: slower ones of PyTorch do the same where there is no compiler. They are named
# after all that they depend on as well. SOFTSERVE_COMPILE=all: for every CPU, as an image needs it.
compile_operators() {
  [ "$SOFTSERVE_DEVICE" = cpu ] || return 0
  local cpu compiler made_from compiled
  cpu=$(grep -m1 -E '^(flags|Features)' /proc/cpuinfo || uname -m)
  compiler=$(g++ --version 2>/dev/null || true)
  made_from=$(cat app/engine/plugin/native/*.{py,cpp,h} "${locks[0]}" - <<<"$cpu $compiler ${SOFTSERVE_COMPILE:-}" | sha256sum)
  compiled=".venv/.compiled-${made_from:0:16}"
  [ ! -f "$compiled" ] || return 0
  # What fails is told once, and tried again when something of this has changed.
  .venv/bin/python -m app.engine.plugin.native.library ${SOFTSERVE_COMPILE:-} || true
  rm -f .venv/.compiled-*
  touch "$compiled"
}

# The tests of the playground need a browser; without one they are skipped, and say so.
install_browser() {
  [ "$purpose" = test ] && [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null || return 0
  ! command -v chromium chromium-browser google-chrome google-chrome-stable > /dev/null || return 0
  echo "install: Chromium, for tests/browser" >&2
  { apt-get update && apt-get install --yes --no-install-recommends chromium; } > /dev/null ||
    echo "install: no Chromium could be installed: tests/browser will be skipped" >&2
}
install_browser

for each in "${enough[@]}"; do
  if [ -f "$(stamp_of "$each")" ]; then compile_operators; exit 0; fi
done

echo "install: $purpose on $SOFTSERVE_DEVICE, about two minutes and 4 GB" >&2
[ -x .venv/bin/python ] || "$python" -m venv .venv ||
  fail "no virtual environment could be made; on Debian and Ubuntu: apt install python3-venv"
pip=(.venv/bin/python -m pip --disable-pip-version-check)
# The default model is fetched with pip as well, and needs one that can report its progress.
"${pip[@]}" install --quiet "pip==$pip_version" "uv==$uv_version"

# uv does not read pip's configuration: hand over a mirror or a folder of wheels, where one is set.
configured() { "${pip[@]}" config get "global.$1" 2>/dev/null || true; }
index=${UV_DEFAULT_INDEX:-${PIP_INDEX_URL:-$(configured index-url)}}
links=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-$(configured find-links)}}
[ -z "$index" ] || export UV_DEFAULT_INDEX="$index"
torch_backend=()
if [ -n "$links" ]; then
  export UV_FIND_LINKS="${links// /,}"
elif [ "$SOFTSERVE_DEVICE" = cpu ]; then
  # The CPU build of torch is not on PyPI; uv knows PyTorch's own index.
  torch_backend=(--torch-backend cpu)
fi

# A lock file is complete: resolving again would bring back what it leaves out on purpose.
for lock in "${locks[@]}"; do
  # Bytecode is written now: not every machine may write it later, and without it a start takes twice as long.
  .venv/bin/uv pip install --python .venv/bin/python --no-deps --compile-bytecode "${torch_backend[@]}" -r "$lock"
done
.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --editable .
rm -f .venv/.installed-*
touch "$(stamp_of "$purpose")"
compile_operators
