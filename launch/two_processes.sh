#!/usr/bin/env bash
# Train in two processes of two CPU devices each on this machine: the path of many hosts, in small.
#   launch/two_processes.sh WORKDIR [--config.steps=3 ...]
# Process 0 speaks here, process 1 in WORKDIR/process_1.log. Ends with 0 only if both do.
set -euo pipefail
workdir=$1
shift
mkdir -p "$workdir"
port=$(python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=2
export JAX_COORDINATOR_ADDRESS=127.0.0.1:$port JAX_NUM_PROCESSES=2
train=(python -m evoid_jax.train --config="${CONFIG:-configs/evoid.py:tiny}" --workdir="$workdir" "$@")
JAX_PROCESS_ID=1 "${train[@]}" >"$workdir/process_1.log" 2>&1 &
other=$!
trap 'kill $other 2>/dev/null || true' INT TERM
status=0
JAX_PROCESS_ID=0 "${train[@]}" || status=$?
wait $other || { status=$?; tail -n 5 "$workdir/process_1.log" >&2; }
exit $status
