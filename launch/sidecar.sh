#!/usr/bin/env bash
# Start a reward sidecar that trainers on other machines reach by URL; several go between commas.
#   launch/sidecar.sh [PRESET] [PORT]        then  --config.reward.sidecars=http://HOST:8100
# `tiny` knows the drawn world alone; `open` is for real faces (docs/rewards_open.md), its weights are
# brought by python -m evoid_jax.sidecars.fetch. Servers of your own: docs/sidecar_protocol.md.
# Its environment needs requirements-sidecars.txt; it never imports jax.
set -euo pipefail
exec python -m evoid_jax.sidecars.serve --preset "${1:-tiny}" --host 0.0.0.0 --port "${2:-8100}"
