#!/usr/bin/env bash
# Serve the MLLM judge with vLLM, whose OpenAI-compatible API the trainer speaks (docs/judge.md).
#   launch/judge.sh [MODEL] [PORT]         for other machines: JUDGE_HOST=0.0.0.0 launch/judge.sh
# and then with a key, export VLLM_API_KEY=$(openssl rand -hex 32), which the trainer has as
# OPENAI_API_KEY (docs/judge.md), or with TRUSTED_NETWORK=1 where whoever reaches it may use it;
# then  --config.reward.judge=http://HOST:8200/v1 --config.reward.judge_model=MODEL
# Qwen3-VL-30B-A3B takes about 62 GB in bfloat16; needs `pip install vllm` on a GPU machine, in an
# environment of its own. CUDA_VISIBLE_DEVICES says on which GPU, where training has the others.
set -euo pipefail
host="${JUDGE_HOST:-127.0.0.1}"
case "$host" in
  127.* | localhost | ::1) ;;
  *)
    if [ -z "${VLLM_API_KEY:-}${TRUSTED_NETWORK:-}" ]; then # vLLM reads the key from the environment
      echo "JUDGE_HOST=$host is for other machines: export VLLM_API_KEY=\$(openssl rand -hex 32), or TRUSTED_NETWORK=1" >&2
      exit 2
    fi
    ;;
esac
# Without disable_any_whitespace a model may fill an answer with blanks, up to its longest length.
exec vllm serve "${1:-Qwen/Qwen3-VL-30B-A3B-Instruct}" --host "$host" --port "${2:-8200}" \
  --limit-mm-per-prompt '{"image":40,"video":0}' --max-model-len 32768 \
  --structured-outputs-config '{"backend":"xgrammar","disable_any_whitespace":true}'
