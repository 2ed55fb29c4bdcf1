"""Serve a folder of tests/tiny_gguf.py by llama.cpp's own server, in a process of its own.

python llama_judge.py FOLDER

Prints the address, and ends when its input does, with whoever started it.
"""

import sys
from pathlib import Path

import xllamacpp


def main(folder):
    wanted = xllamacpp.CommonParams()
    wanted.model.path, wanted.mmproj.path = str(folder / "text.gguf"), str(folder / "mmproj.gguf")
    wanted.model_alias = {"tiny"}
    wanted.hostnames = ["127.0.0.1"] if isinstance(wanted.hostnames, list) else "127.0.0.1"
    wanted.port = 0
    wanted.n_ctx, wanted.n_parallel, wanted.n_gpu_layers = 16384, 2, 0
    wanted.cpuparams.n_threads = wanted.cpuparams_batch.n_threads = 1
    wanted.use_jinja, wanted.warmup, wanted.fit_params = True, False, False
    server = xllamacpp.Server(wanted)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
