#!/usr/bin/env bash
# Start a reward sidecar that trainers on other machines reach by URL; several go between commas.
#   launch/sidecar.sh [PRESET] [PORT]        then  --config.reward.sidecars=http://HOST:8100
# `tiny` is the one preset that ships: stand-ins that know the drawn world alone. Rewards for real
# faces are servers of your own, see docs/sidecar_protocol.md.
# Its environment needs requirements-sidecars.txt; it never imports jax.
set -euo pipefail
exec python -m evoid_jax.sidecars.serve --preset "${1:-tiny}" --host 0.0.0.0 --port "${2:-8100}"
