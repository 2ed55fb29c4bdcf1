#!/usr/bin/env bash
# Train on a Cloud TPU slice, one process a TPU VM.
#   CONFIG=configs/evoid.py:vace_14b launch/tpu-vm.sh NAME ZONE WORKDIR [--config.model=... ...]
# from a machine with gcloud. The repository is installed on every VM as ~/evoid_jax; WORKDIR and the
# model lie where all VMs see them (Filestore, or a bucket mounted with gcsfuse). Reward sidecars and
# the judge need GPUs: start them elsewhere (launch/sidecar.sh, launch/judge.sh) and give their
# addresses as --config.reward.sidecars and --config.reward.judge.
set -euo pipefail
name=$1 zone=$2 workdir=$3
shift 3
train=(python3 -m evoid_jax.train --config="${CONFIG:-configs/evoid.py:vace_1_3b}" --workdir="$workdir"
  --coordinator=auto "$@") # auto: JAX asks the slice's metadata who is there
gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
  --command="cd ~/evoid_jax && $(printf '%q ' "${train[@]}")"
