"""Load an exported adapter with diffusers on a VACE folder's transformer, for test_full_size.py.

python full_size_lora.py FOLDER ADAPTER
"""

import sys

import torch
from diffusers import WanVACEPipeline, WanVACETransformer3DModel


def main(folder: str, file: str) -> None:
    transformer = WanVACETransformer3DModel.from_pretrained(
        folder, subfolder="transformer", torch_dtype=torch.bfloat16
    )
    pipe = WanVACEPipeline.from_pretrained(
        folder, transformer=transformer, vae=None, text_encoder=None, torch_dtype=torch.bfloat16
    )
    pipe.load_lora_weights(file)
    layers = [m for m in transformer.modules() if hasattr(m, "lora_A") and len(m.lora_A)]
    assert len(layers) == 8 * 30, len(layers)
    print("loads in diffusers")


if __name__ == "__main__":
    folder, file = sys.argv[1:]
    main(folder, file)
