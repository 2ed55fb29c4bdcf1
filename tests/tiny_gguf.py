"""Write a tiny random vision-language model for llama.cpp, to be served by tests/llama_judge.py.

python tiny_gguf.py FOLDER

It makes FOLDER/text.gguf, a llama of two layers, and FOLDER/mmproj.gguf, a CLIP of two layers with
a projector, as LLaVA has them. What the model says is random, so that only what holds its answers
to the form, the server's grammar, can make them usable.
"""

import sys
from pathlib import Path

import gguf
import numpy as np

WIDTH, HIDDEN, HEADS, LAYERS = 64, 128, 2, 2
SIDE, PATCH = 56, 14  # of a picture, in pixels: 16 tokens
CONTEXT = 16384
CONTROL = ("<|pad|>", "<|turn|>", "<|end|>")
# A message is a string here: llama.cpp puts its own mark where a picture stands.
TEMPLATE = (
    "{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)


def byte_letters():
    """Return the letter that stands for each byte, as GPT-2's tokenizer has them."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in plain]
    return [chr(b if b in plain else 256 + others.index(b)) for b in range(256)]


class Weights:
    """Adds random weights of the shapes that a layer needs."""

    def __init__(self, writer):
        self.writer, self.random = writer, np.random.default_rng(0)

    def matrix(self, name, *shape):
        values = self.random.normal(0, 0.05, shape).astype(np.float32)
        self.writer.add_tensor(name, values)

    def linear(self, name, inward, outward):
        self.matrix(f"{name}.weight", outward, inward)
        self.writer.add_tensor(f"{name}.bias", np.zeros(outward, np.float32))

    def norm(self, name, bias):
        self.writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
        if bias:
            self.writer.add_tensor(f"{name}.bias", np.zeros(WIDTH, np.float32))


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def text(file):
    """Write the language model, whose tokens are single bytes."""
    tokens = [*byte_letters(), "Ġa", *CONTROL]  # llama.cpp wants one merge at least
    kinds = [gguf.TokenType.NORMAL] * 257 + [gguf.TokenType.CONTROL] * len(CONTROL)
    pad, _, end = range(257, 260)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(["Ġ a"])
    writer.add_bos_token_id(pad)
    writer.add_pad_token_id(pad)
    writer.add_eos_token_id(end)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    weights = Weights(writer)
    weights.matrix("token_embd.weight", len(tokens), WIDTH)
    weights.matrix("output.weight", len(tokens), WIDTH)
    weights.norm("output_norm", bias=False)
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            weights.matrix(f"{block}.{name}.weight", WIDTH, WIDTH)
        for name in ("ffn_gate", "ffn_up"):
            weights.matrix(f"{block}.{name}.weight", HIDDEN, WIDTH)
        weights.matrix(f"{block}.ffn_down.weight", WIDTH, HIDDEN)
        for name in ("attn_norm", "ffn_norm"):
            weights.norm(f"{block}.{name}", bias=False)
    finish(writer)


def vision(file):
    """Write the picture encoder and the projector."""
    writer = gguf.GGUFWriter(file, "clip")
    writer.add_string("general.type", "mmproj")
    writer.add_string("clip.projector_type", "mlp")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_bool("clip.use_gelu", False)
    numbers = {"image_size": SIDE, "patch_size": PATCH, "embedding_length": WIDTH}
    numbers |= {"feed_forward_length": HIDDEN, "projection_dim": WIDTH, "block_count": LAYERS}
    numbers |= {"attention.head_count": HEADS}
    for name, number in numbers.items():
        writer.add_uint32(f"clip.vision.{name}", number)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    writer.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
    writer.add_array("clip.vision.image_std", [0.5, 0.5, 0.5])
    weights = Weights(writer)
    weights.matrix("v.patch_embd.weight", WIDTH, 3, PATCH, PATCH)
    weights.matrix("v.class_embd", WIDTH)
    weights.matrix("v.position_embd.weight", (SIDE // PATCH) ** 2 + 1, WIDTH)
    weights.norm("v.pre_ln", bias=True)
    for layer in range(LAYERS):
        block = f"v.blk.{layer}"
        for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
            weights.linear(f"{block}.{name}", WIDTH, WIDTH)
        weights.linear(f"{block}.ffn_up", WIDTH, HIDDEN)
        weights.linear(f"{block}.ffn_down", HIDDEN, WIDTH)
        for name in ("ln1", "ln2"):
            weights.norm(f"{block}.{name}", bias=True)
    weights.linear("mm.0", WIDTH, WIDTH)
    weights.linear("mm.2", WIDTH, WIDTH)
    finish(writer)


def write(folder):
    """Write both files."""
    folder.mkdir(parents=True, exist_ok=True)
    text(folder / "text.gguf")
    vision(folder / "mmproj.gguf")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
