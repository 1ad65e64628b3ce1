#!/usr/bin/env bash
# The measurements of a GPU, in at most eight minutes on one H100 or H200, without a network: results as JSON and as a dated record.
#   benchmarks/on_gpu.sh [FOLDER]          on a machine with a GPU, with the package and its dependencies installed
#   benchmarks/on_gpu.sh --rehearse        the same script on the CPU with a tiny model, so that it works the first time
set -euo pipefail
cd "$(dirname "$0")/.."
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
if [ "${1:-}" = --rehearse ]; then
  exec "${PYTHON:-python}" benchmarks/on_gpu.py --device cpu --shape tiny --seconds 60 --output "$(mktemp -d)"
fi
exec "${PYTHON:-python}" benchmarks/on_gpu.py --device cuda --shape 1b --seconds 440 --output "${1:-.}"
