#!/usr/bin/env bash
# Train on a Cloud TPU slice, one process a TPU VM.
#   DATA=/shared/faces launch/tpu-vm.sh NAME ZONE WORKDIR \
#     --config.reward.sidecars=http://HOST:8100 --config.reward.judge=http://HOST:8200/v1 [...]
# from a machine with gcloud. WORKDIR and DATA (photos and prompts.jsonl) lie under SHARED, /shared by
# itself, which all VMs see (Filestore, or a bucket mounted with gcsfuse); the model is fetched into
# SHARED/hub once. CONFIG is the preset, configs/evoid.py:vace_14b. Reward sidecars and the judge need
# GPUs: start them elsewhere (launch/sidecar.sh and launch/judge.sh, told to listen for other machines).
# What they ask for stands in SHARED/evoid.env, a file that you alone may read (chmod 600), in lines such
# as EVOID_JAX_SIDECAR_TOKEN=... and OPENAI_API_KEY=...: on a command line everybody would see it.
# With IMAGE, of launch/Dockerfile and ACCELERATOR=tpu, every VM runs that container; without, the
# repository that is installed on every VM as ~/evoid_jax.
set -euo pipefail
name=$1 zone=$2 workdir=$3 shared=${SHARED:-/shared}
shift 3
train=(python3 -m evoid_jax.train --config="${CONFIG:-configs/evoid.py:vace_14b}" --workdir="$workdir"
  --config.data.dir="${DATA:?the folder with photos and prompts.jsonl}"
  --coordinator=auto "$@") # auto: JAX asks the slice's metadata who is there
if [[ -n "${IMAGE:-}" ]]; then
  # privileged and on the host's network: JAX needs the TPU's devices and the other VMs
  train=(sudo --preserve-env=EVOID_JAX_SIDECAR_TOKEN,OPENAI_API_KEY docker run --rm --privileged
    --network=host -v "$shared:$shared" -e EVOID_JAX_SIDECAR_TOKEN -e OPENAI_API_KEY
    -e "HF_HOME=$shared/hub" "$IMAGE" "${train[@]}")
else
  train=(env "HF_HOME=$shared/hub" "${train[@]}")
fi
secrets=$(printf '%q' "$shared/evoid.env")
gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="cd ~/evoid_jax 2>/dev/null
  if [ -f $secrets ]; then set -a; . $secrets; set +a; fi; $(printf '%q ' "${train[@]}")"
