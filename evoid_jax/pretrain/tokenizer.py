"""The tiny world's tokenizer: a Unigram one that spells every prompt, made from the prompts."""

from __future__ import annotations

import json
import math
import string
from collections import Counter
from pathlib import Path

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

PAD, EOS, UNK = "<pad>", "</s>", "<unk>"  # ids 0, 1, 2 as in T5


def train(texts: list[str], folder: str | Path, vocab_size: int) -> int:
    """Make a Unigram tokenizer from texts, save it for `AutoTokenizer`; return its true size.

    Ids 0, 1, 2 are pad, EOS and unknown; then come 256 byte pieces, so that any prompt encodes.
    Pieces are found by byte-pair merges and scored by their log frequency: Unigram's own trainer
    never proposes a word that lacks a longer relative, so it spells a small vocabulary letter by
    letter. In a model_index.json its class is ["transformers", "PreTrainedTokenizerFast"].

    Raises:
      ValueError: vocab_size leaves no room beside the bytes and the printable ASCII characters.
    """
    special = [PAD, EOS, UNK] + [f"<0x{b:02X}>" for b in range(256)]
    letters = [c for c in string.printable if not c.isspace()]
    if vocab_size <= len(special) + len(letters) + 1:
        raise ValueError(
            f"vocab_size is {vocab_size}; bytes and ASCII take {len(special) + len(letters) + 1}"
        )
    merges = Tokenizer(models.BPE())
    merges.normalizer, merges.pre_tokenizer = _text_rules()
    room = vocab_size - len(special)
    trainer = trainers.BpeTrainer(
        vocab_size=room, limit_alphabet=room, initial_alphabet=letters, show_progress=False
    )
    merges.train_from_iterator(texts, trainer)
    count = Counter(merges.get_vocab().keys())  # one each, so that no score is -inf
    for encoding in merges.encode_batch(texts):
        count.update(encoding.tokens)
    # A piece's cost is its negative log frequency; Unigram spells a text at the least total cost.
    total = math.log(sum(count.values()))
    pieces = sorted((total - math.log(n), piece) for piece, n in count.items())
    # A low score keeps the text "<0x41>" from being read as the byte it names.
    vocab = [(piece, -100.0 if i > 2 else 0.0) for i, piece in enumerate(special)]
    return _save_tokenizer(vocab + [(piece, -cost) for cost, piece in pieces], folder)


def _text_rules():
    """Return the normalizer and the split into words that training and use share."""
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    normalizer = normalizers.Sequence([normalizers.NFKC(), spaces, normalizers.Strip()])
    words = pre_tokenizers.Metaspace(prepend_scheme="always")
    return normalizer, pre_tokenizers.Sequence([words, pre_tokenizers.Punctuation("isolated")])


def _save_tokenizer(vocab: list[tuple[str, float]], folder: str | Path) -> int:
    """Write a Unigram tokenizer that falls back to bytes and ends each prompt in EOS."""
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=2, byte_fallback=True))
    tokenizer.normalizer, tokenizer.pre_tokenizer = _text_rules()
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")]
    )
    tokenizer.add_special_tokens([PAD, EOS, UNK])
    # As T5 does: EOS at the end, nothing at the start.
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", pair=f"$A {EOS} $B {EOS}", special_tokens=[(EOS, 1)]
    )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 512,
        "pad_token": PAD,
        "eos_token": EOS,
        "unk_token": UNK,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return tokenizer.get_vocab_size()
