#!/usr/bin/env bash
# Train on several GPU nodes under Slurm, one process a node with all of its GPUs.
#   DATA=/shared/faces sbatch --nodes=4 launch/slurm.sh WORKDIR \
#     --config.reward.sidecars=http://HOST:8100 --config.reward.judge=http://HOST:8200/v1 [...]
# WORKDIR, DATA (photos and prompts.jsonl), the Hugging Face cache (HF_HOME), into which the model is
# fetched once, and this repository lie on a file system that all nodes share. CONFIG is the preset,
# configs/evoid.py:vace_14b. Reward sidecars and the judge run elsewhere (launch/sidecar.sh
# and launch/judge.sh, told to listen for other machines, or launch/compose.yaml's); with --config.reward.sidecars=local
# every node starts its own, of the set that --config.reward.preset names.
# With IMAGE, of launch/Dockerfile, it runs in that container (needs pyxis: srun --container-image);
# MOUNTS then says what it sees, such as /shared:/shared.
# EVOID_JAX_SIDECAR_TOKEN and OPENAI_API_KEY, which those ask for, are taken along from the environment.
# The processes find each other by themselves (JAX reads Slurm's variables). When one ends with an
# error all end, and a job that is submitted again goes on from the last checkpoint. A minute before
# the time is over, or where the job is preempted, they save what is done and end (docs/failures.md).
#SBATCH --job-name=evoid
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@60
set -euo pipefail
workdir=$1
shift
mkdir -p "$workdir"
# Of itself JAX would give a Slurm task one GPU; this task has all of its node's.
gpus=${SLURM_GPUS_ON_NODE:-8}
export JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((gpus - 1)))
container=()
if [[ -n "${IMAGE:-}" ]]; then
  container=(--container-image="$IMAGE" --container-mounts="${MOUNTS:?what the container sees, FROM:TO}"
    --container-workdir=/evoid_jax)
fi
# srun no longer inherits sbatch's number of cores
srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-64}" --output="$workdir/slurm_%j_%t.log" \
  "${container[@]}" python -m evoid_jax.train --config="${CONFIG:-configs/evoid.py:vace_14b}" \
  --config.data.dir="${DATA:?the folder with photos and prompts.jsonl}" --workdir="$workdir" "$@"
