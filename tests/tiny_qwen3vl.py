"""Write a tiny random Qwen3-VL, as a folder of transformers, to be served by vLLM.

python tiny_qwen3vl.py FOLDER

Runs in vLLM's own environment. Its tokens are single bytes, and what it says is random.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

WIDTH, LAYERS, HEADS, CONTEXT = 64, 2, 2, 32768
PATCH, MERGE = 16, 2
MARKS = {
    "pad": "<|endoftext|>",
    "turn": "<|im_start|>",
    "end": "<|im_end|>",
    "first": "<|vision_start|>",
    "last": "<|vision_end|>",
    "image": "<|image_pad|>",
    "video": "<|video_pad|>",
}
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
    "{% if part.type == 'text' %}{{ part.text }}"
    "{% else %}<|vision_start|><|image_pad|><|vision_end|>{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer():
    """Return a tokenizer of bytes, and the number of each mark."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    numbers = {letter: number for number, letter in enumerate(letters)}
    bare = Tokenizer(models.BPE(vocab=numbers, merges=[]))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bare.decoder = decoders.ByteLevel()
    bare.add_special_tokens(list(MARKS.values()))
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bare,
        eos_token=MARKS["end"],
        pad_token=MARKS["pad"],
        model_max_length=CONTEXT,
    )
    made.chat_template = TEMPLATE
    return made, {name: made.convert_tokens_to_ids(mark) for name, mark in MARKS.items()}


def settings(tokens, mark):
    """Return the model's sizes."""
    text = {
        "vocab_size": tokens,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": True,
        "bos_token_id": mark["pad"],
        "eos_token_id": mark["end"],
        # How the 16 pairs of a head's numbers are shared by time, height and width.
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5e6,
            "mrope_section": [6, 5, 5],
            "mrope_interleaved": True,
        },
    }
    vision = {
        "depth": LAYERS,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_heads": HEADS,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 2,
        "out_hidden_size": WIDTH,
        "num_position_embeddings": 256,
        "deepstack_visual_indexes": [0, 1],
    }
    return transformers.Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=mark["image"],
        video_token_id=mark["video"],
        vision_start_token_id=mark["first"],
        vision_end_token_id=mark["last"],
        tie_word_embeddings=True,
    )


def write(folder):
    """Write model, tokenizer and the preprocessing of pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    words, mark = tokenizer()
    words.save_pretrained(folder)
    torch.manual_seed(0)
    config = settings(len(words), mark)
    model = transformers.Qwen3VLForConditionalGeneration(config).to(torch.float32)
    model.generation_config.eos_token_id = [mark["end"], mark["pad"]]
    model.save_pretrained(folder)
    picture = {
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "merge_size": MERGE,
        "size": {"shortest_edge": 64**2, "longest_edge": 512**2},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "processor_class": "Qwen3VLProcessor",
    }
    kinds = {"preprocessor_config.json": {"image_processor_type": "Qwen2VLImageProcessor"}}
    kinds["video_preprocessor_config.json"] = {"video_processor_type": "Qwen3VLVideoProcessor"}
    for name, kind in kinds.items():
        (folder / name).write_text(json.dumps(picture | kind))
    file = folder / "tokenizer_config.json"
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"processor_class": "Qwen3VLProcessor"})
    )


if __name__ == "__main__":
    write(Path(sys.argv[1]))
