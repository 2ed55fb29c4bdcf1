#!/usr/bin/env bash
# Start reward sidecars: COUNT replicas on ports PORT, PORT + 1, .., each on a GPU of its own where
# there are any. One that ends is started again. Prints what to give to train.
#   launch/sidecar.sh [PRESET [PORT [COUNT [FLAGS ..]]]]     flags are the server's, such as --weights=
# `open`, the default, is for real faces (docs/rewards_open.md), its weights are brought by
# python -m evoid_jax.sidecars.fetch; `tiny` knows the drawn world alone.
# They listen on loopback. For trainers on other machines say SIDECAR_HOST=0.0.0.0, and give both sides
# the same token: export EVOID_JAX_SIDECAR_TOKEN=$(openssl rand -hex 32). Without one they do not start
# there, unless TRUSTED_NETWORK=1 says that whoever reaches them may use them. Its environment needs
# requirements-sidecars.txt; it never imports jax. On a Ray cluster: launch/ray_serve.py.
set -euo pipefail
preset="${1:-open}" port="${2:-8100}" count="${3:-1}" host="${SIDECAR_HOST:-127.0.0.1}"
flags=("${@:4}")
[ -z "${EVOID_JAX_SIDECAR_TOKEN:-}" ] || flags+=(--token-env EVOID_JAX_SIDECAR_TOKEN)
[ -z "${TRUSTED_NETWORK:-}" ] || flags+=(--trusted-network)
case "$host" in
  127.* | localhost | ::1) ;;
  *)
    if [ -z "${EVOID_JAX_SIDECAR_TOKEN:-}${TRUSTED_NETWORK:-}" ]; then
      echo "SIDECAR_HOST=$host is for other machines: export EVOID_JAX_SIDECAR_TOKEN=\$(openssl rand -hex 32)," \
        "here and for the trainer, or TRUSTED_NETWORK=1" >&2
      exit 2
    fi
    ;;
esac
IFS=, read -ra gpus <<<"${CUDA_VISIBLE_DEVICES:-}" # those that may be used; none named: all

# Keep one server running; its arguments are its port and its number.
keep() {
  local pid="" began failures=0
  trap 'kill "$pid" 2>/dev/null; exit' TERM
  [ "$count" -eq 1 ] || export CUDA_VISIBLE_DEVICES="${gpus[$2]:-$2}" # without GPUs it means nothing
  while [ "$failures" -lt 3 ]; do
    began=$SECONDS
    python -m evoid_jax.sidecars.serve --preset "$preset" --host "$host" --port "$1" "${flags[@]}" &
    pid=$!
    wait "$pid" || true
    # One that never lived for a minute has something wrong that another start will not mend.
    [ $((SECONDS - began)) -ge 60 ] && failures=0 || failures=$((failures + 1))
    echo "the sidecar on port $1 ended" >&2
    sleep 2
  done
  echo "the sidecar on port $1 ended three times within a minute; it is given up" >&2
}

trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
trap exit INT TERM
urls=()
for ((k = 0; k < count; k++)); do
  urls+=("http://${host/0.0.0.0/$(hostname)}:$((port + k))")
  keep $((port + k)) "$k" &
done
(IFS=, && echo "--config.reward.sidecars=${urls[*]}")
echo "each prints its address once its nets are loaded, and answers from then on" >&2
wait
