#!/usr/bin/env bash
# Resolves pyproject.toml into requirements/*.lock, for Linux and Python 3.11. Needs .venv (make test).
set -euo pipefail
cd "$(dirname "$0")/.."

compile() { # compile LOCK ARGUMENTS...
  .venv/bin/uv pip compile pyproject.toml --quiet --no-annotate --no-header --python-version 3.11 \
    --output-file "requirements/$1" "${@:2}"
}

# With the CPU build of torch the first three, built for CUDA, break `import transformers`; vLLM
# serves text models without them. triton (1 GB) has nothing to run on.
without=()
for package in torchvision torchaudio torchcodec triton; do without+=(--no-emit-package "$package"); done

compile cpu.lock --extra cpu "${without[@]}"
# Not from a folder of wheels that holds the CPU build of torch.
UV_FIND_LINKS= compile cuda.lock --extra cuda --python-platform x86_64-manylinux_2_31
compile all.lock --extra cpu --extra test "${without[@]}" --constraint requirements/cpu.lock
# Only what the tests add, so that it goes on top of either.
comm -13 <(sort requirements/cpu.lock) <(sort requirements/all.lock) > requirements/test.lock
rm requirements/all.lock
