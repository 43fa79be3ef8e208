#!/usr/bin/env bash
# Installs softserve and everything below it into .venv, from the lock file that fits the machine.
#   scripts/install.sh serve    what the server needs
#   scripts/install.sh test     the same, and what the tests and checks need
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
[ "$purpose" = serve ] || locks+=(requirements/test.lock)

# What is installed already is named after the files that it was installed from.
digest=$(cat "${locks[@]}" pyproject.toml | sha256sum | cut -c1-16)
stamp=".venv/.installed-$purpose-$SOFTSERVE_DEVICE-$digest"
[ -f "$stamp" ] && exit 0

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
  .venv/bin/uv pip install --python .venv/bin/python --no-deps "${torch_backend[@]}" -r "$lock"
done
.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --editable .
rm -f .venv/.installed-*
touch "$stamp"
