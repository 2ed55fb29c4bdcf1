#!/usr/bin/env bash
# Start a reward sidecar that trainers reach by URL; several go between commas.
#   launch/sidecar.sh [PRESET] [PORT]        then  --config.reward.sidecars=http://HOST:8100
# It listens on loopback. For trainers on other machines of a private network: HOST=0.0.0.0. PRESET is
# open by default; tiny are stand-ins that know the drawn world alone.
# Its environment needs requirements-sidecars.txt; it never imports jax.
set -euo pipefail
exec python -m evoid_jax.sidecars.serve --preset "${1:-open}" --host "${HOST:-127.0.0.1}" --port "${2:-8100}"
