#!/usr/bin/env bash
# Serve the MLLM judge with vLLM, whose OpenAI-compatible API the trainer speaks (docs/judge.md).
#   launch/judge.sh [MODEL] [PORT]         for other machines: JUDGE_HOST=0.0.0.0 launch/judge.sh
# then  --config.reward.judge=http://HOST:8200/v1 --config.reward.judge_model=MODEL
# Qwen3-VL-30B-A3B takes about 62 GB in bfloat16; needs `pip install vllm` on a GPU machine, in an
# environment of its own. CUDA_VISIBLE_DEVICES says on which GPU, where training has the others.
set -euo pipefail
# Without disable_any_whitespace a model may fill an answer with blanks, up to its longest length.
exec vllm serve "${1:-Qwen/Qwen3-VL-30B-A3B-Instruct}" --host "${JUDGE_HOST:-127.0.0.1}" --port "${2:-8200}" \
  --limit-mm-per-prompt '{"image":40,"video":0}' --max-model-len 32768 \
  --structured-outputs-config '{"backend":"xgrammar","disable_any_whitespace":true}'
