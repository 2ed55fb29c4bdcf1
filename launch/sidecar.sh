#!/usr/bin/env bash
# Start reward sidecars: COUNT replicas on ports PORT, PORT + 1, .., each on a GPU of its own where
# there are any. One that ends is started again. Prints what to give to train.
#   launch/sidecar.sh [PRESET] [PORT] [COUNT]
# `open`, the default, is for real faces (docs/rewards_open.md), its weights are brought by
# python -m evoid_jax.sidecars.fetch; `tiny` knows the drawn world alone.
# Nothing asks for a password, so they listen on loopback; for trainers on other machines of a private
# network say SIDECAR_HOST=0.0.0.0. Its environment needs requirements-sidecars.txt; it never imports
# jax. On a Ray cluster: launch/ray_serve.py.
set -euo pipefail
preset="${1:-open}" port="${2:-8100}" count="${3:-1}" host="${SIDECAR_HOST:-127.0.0.1}"

# Keep one server running; its arguments are its port and its GPU.
keep() {
  local pid=""
  trap 'kill "$pid" 2>/dev/null; exit' TERM
  [ "$count" -eq 1 ] || export CUDA_VISIBLE_DEVICES="$2" # without GPUs it means nothing
  while true; do
    python -m evoid_jax.sidecars.serve --preset "$preset" --host "$host" --port "$1" &
    pid=$!
    wait "$pid" || true
    echo "the sidecar on port $1 ended; it is started again" >&2
    sleep 2
  done
}

trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
trap exit INT TERM
urls=()
for ((k = 0; k < count; k++)); do
  urls+=("http://${host/0.0.0.0/$(hostname)}:$((port + k))")
  keep $((port + k)) "$k" &
done
(IFS=, && echo "--config.reward.sidecars=${urls[*]}")
wait
