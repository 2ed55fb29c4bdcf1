"""MiniLM-L6 (Wang et al. 2020) in plain torch: sentences as vectors.

The sentence-transformers model all-MiniLM-L6-v2: six layers of BERT, the mean over tokens.
Letters: B sentences, S tokens, D = 384 features, N = 12 heads.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import nn

from evoid_jax.sidecars.open import catalogue

WIDTH, HEADS, LAYERS, HIDDEN, WORDS, PLACES = 384, 12, 6, 1536, 30522, 512
TOKENS = 256  # longer prompts are cut, as the model's own settings say
AT_ONCE = 64  # sentences


def norm() -> nn.LayerNorm:
    """Make a layer norm with BERT's epsilon."""
    return nn.LayerNorm(WIDTH, eps=1e-12)


class Embeddings(nn.Module):
    """Words, their places and BERT's first segment."""

    def __init__(self):
        super().__init__()
        self.word_embeddings = nn.Embedding(WORDS, WIDTH)
        self.position_embeddings = nn.Embedding(PLACES, WIDTH)
        self.token_type_embeddings = nn.Embedding(2, WIDTH)
        self.LayerNorm = norm()

    def forward(self, ids_BS):
        place_SD = self.position_embeddings.weight[: ids_BS.shape[1]]
        segment_D = self.token_type_embeddings.weight[0]
        return self.LayerNorm(self.word_embeddings(ids_BS) + (place_SD + segment_D[None])[None])


class Layer(nn.Module):
    """Attention and a dense net, each followed by a norm."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value, self.attended = (nn.Linear(WIDTH, WIDTH) for _ in "qkvo")
        self.attended_norm, self.output_norm = norm(), norm()
        self.wide, self.narrow = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x_BSD, mask_B11S):
        heads = lambda y_BSD: y_BSD.unflatten(2, (HEADS, -1)).transpose(1, 2)
        q, k, v = (heads(linear(x_BSD)) for linear in (self.query, self.key, self.value))
        seen_BNSK = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_B11S)
        seen_BSD = self.attended(seen_BNSK.transpose(1, 2).flatten(2))
        x_BSD = self.attended_norm(x_BSD + seen_BSD)
        return self.output_norm(x_BSD + self.narrow(F.gelu(self.wide(x_BSD))))


class MiniLM(nn.Module):
    """The net. Token ids and mask (B, S) -> (B, 384) of unit length."""

    def __init__(self):
        super().__init__()
        self.embeddings = Embeddings()
        self.layers = nn.ModuleList([Layer() for _ in range(LAYERS)])

    def forward(self, ids_BS, mask_BS):
        x_BSD = self.embeddings(ids_BS)
        for layer in self.layers:
            x_BSD = layer(x_BSD, mask_BS[:, None, None, :].bool())
        weight_BS1 = mask_BS[..., None].to(x_BSD.dtype)
        return F.normalize((x_BSD * weight_BS1).sum(1) / weight_BS1.sum(1))


# Names in BERT's files -> names here, within a layer.
NAMES = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "attended",
    "attention.output.LayerNorm": "attended_norm",
    "intermediate.dense": "wide",
    "output.dense": "narrow",
    "output.LayerNorm": "output_norm",
}


class Sentences:
    """Embeds sentences, each only once.

    folder: of the weights; None is `catalogue.folder()`.

    Raises:
      FileNotFoundError, ValueError: the weights are not there, or are not the right ones.
    """

    def __init__(self, folder: Path | None = None, device: str = "cpu"):
        tokenizer = Tokenizer.from_file(str(catalogue.find(catalogue.TOKENIZER, folder)))
        net = build(load_file(catalogue.find(catalogue.MINILM, folder)))
        self._known: dict[str, np.ndarray] = {}
        self._open(net.to(device), tokenizer)

    def _open(self, net: MiniLM, tokenizer: Tokenizer) -> None:
        self._net, self._tokenizer = net, tokenizer
        tokenizer.enable_truncation(TOKENS)
        tokenizer.enable_padding()

    def embed(self, sentences: list[str]) -> np.ndarray:
        """Return (B, 384) float32 of unit length."""
        unknown = [text for text in dict.fromkeys(sentences) if text not in self._known]
        for start in range(0, len(unknown), AT_ONCE):
            part = unknown[start : start + AT_ONCE]
            self._known |= dict(zip(part, self._embed(part), strict=True))
        return np.stack([self._known[text] for text in sentences])

    @torch.inference_mode()
    def _embed(self, sentences: list[str]) -> np.ndarray:
        encoded = self._tokenizer.encode_batch(sentences)
        device = self._net.embeddings.LayerNorm.weight.device
        ids_BS = torch.tensor([e.ids for e in encoded], device=device)
        mask_BS = torch.tensor([e.attention_mask for e in encoded], device=device)
        return self._net(ids_BS, mask_BS).cpu().numpy()


def build(tensors: dict[str, torch.Tensor]) -> MiniLM:
    """Put tensors by BERT's names into the net.

    Raises:
      ValueError: they do not fit it.
    """
    ours = {}
    for name, tensor in tensors.items():
        if name.startswith("pooler.") or name.endswith("position_ids"):
            continue  # of other uses of BERT
        for theirs, own in NAMES.items():
            name = name.replace(f".{theirs}.", f".{own}.")
        ours[name.replace("encoder.layer.", "layers.")] = tensor
    net = MiniLM().eval()
    try:
        net.load_state_dict(ours)
    except RuntimeError as error:
        raise ValueError(f"these are not the weights of all-MiniLM-L6-v2: {error}") from None
    return net
