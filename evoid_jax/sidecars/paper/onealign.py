"""one-align, the scorer of Q-Align, as a plain forward pass on its checkpoint's own names.

It is mPLUG-Owl2: a vision transformer sees each frame (448 x 448), an abstractor turns what it saw
into 64 queries, and these stand among the words that a LLaMA reads. LLaMA's norms, keys and values
have two sets of weights ("multiway"): 0 for words, 1 for what was seen. The original code runs on
transformers 4.36 alone; this one needs torch and equals it (tests/test_paper_onealign.py).
Letters: N frames or windows, C H W pixels, P patches + 1, Q queries, L tokens, D width, K heads.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from evoid_jax import files
from evoid_jax.sidecars.paper import checkpoints


class Tower(NamedTuple):
    """Sizes of a transformer."""

    width: int
    inner: int
    layers: int
    heads: int
    eps: float


class Config(NamedTuple):
    """Sizes of the whole; the defaults are the published checkpoint's."""

    llama: Tower = Tower(4096, 11008, 32, 32, 1e-5)
    vision: Tower = Tower(1024, 4096, 24, 16, 1e-6)
    abstractor: Tower = Tower(1024, 2816, 6, 16, 1e-6)
    vocabulary: int = 32000
    theta: float = 10000.0
    image: int = 448
    patch: int = 14
    queries: int = 64


def read_config(folder: Path) -> Config:
    """Read the checkpoint's config.json; what it does not say has the published value.

    Raises:
      FileNotFoundError, ValueError: no such file, or a feature that one-align does not have.
    """
    values = files.read_json(folder / "config.json", hint="expected the folder of one-align")
    heads = values.get("num_attention_heads", Config().llama.heads)
    same = values.get("num_key_value_heads") in (None, heads)
    if not same or values.get("rope_scaling") or values.get("attention_bias"):
        raise ValueError(
            f"{folder}/config.json is of another model: one-align has as many key heads as heads, "
            "no rope_scaling and no attention_bias"
        )
    visual = values.get("visual_config") or {}
    vision, abstractor = (visual.get(k) or {} for k in ("visual_model", "visual_abstractor"))
    usual = Config()
    return Config(
        llama=_tower(values, usual.llama, "rms_norm_eps"),
        vision=_tower(vision, usual.vision, "layer_norm_eps"),
        abstractor=_tower(abstractor, usual.abstractor, "layer_norm_eps"),
        vocabulary=values.get("vocab_size", usual.vocabulary),
        theta=float(values.get("rope_theta", usual.theta)),
        image=vision.get("image_size", usual.image),
        patch=vision.get("patch_size", usual.patch),
        queries=abstractor.get("num_learnable_queries", usual.queries),
    )


def _tower(values: dict, usual: Tower, eps: str) -> Tower:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", eps)
    return Tower._make(values.get(name, old) for name, old in zip(names, usual, strict=True))


def load(folder: Path, device: torch.device, dtype: torch.dtype) -> OneAlign:
    """Load the checkpoint of a folder: config.json and one or more weight files.

    Raises:
      FileNotFoundError, ValueError: a file or a tensor is missing, too many, or of another shape.
    """
    with torch.device("meta"):
        net = OneAlign(read_config(folder))
    # Older transformers wrote the rotary tables too; they follow from the config.
    rotary = lambda name: name.endswith("rotary_emb.inv_freq")
    return checkpoints.fill(net, checkpoints.weight_files(folder), device, dtype, rotary)


class VisionLayer(nn.Module):
    """A layer of the vision transformer, x_NPD -> x_NPD."""

    def __init__(self, c: Tower):
        super().__init__()
        self.heads = c.heads
        self.input_layernorm = nn.LayerNorm(c.width, c.eps)
        self.self_attn = nn.ModuleDict(
            {
                "query_key_value": nn.Linear(c.width, 3 * c.width),
                "dense": nn.Linear(c.width, c.width),
            }
        )
        self.post_attention_layernorm = nn.LayerNorm(c.width, c.eps)
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(c.width, c.inner), "fc2": nn.Linear(c.inner, c.width)}
        )

    def forward(self, x_NPD: torch.Tensor) -> torch.Tensor:
        # q, k and v of a head lie side by side, head by head.
        mixed_NPD = self.self_attn["query_key_value"](self.input_layernorm(x_NPD))
        q, k, v = mixed_NPD.unflatten(2, (self.heads, 3, -1)).permute(3, 0, 2, 1, 4)
        seen_NPD = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x_NPD = x_NPD + self.self_attn["dense"](seen_NPD)
        h_NPD = self.mlp["fc1"](self.post_attention_layernorm(x_NPD))
        return x_NPD + self.mlp["fc2"](h_NPD * torch.sigmoid(1.702 * h_NPD))  # quick GELU


class Embeddings(nn.Module):
    """Pixels (N, 3, image, image) -> patches behind one token for the whole, (N, P, width)."""

    def __init__(self, c: Config):
        super().__init__()
        width, places = c.vision.width, (c.image // c.patch) ** 2 + 1
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.patch_embed = nn.Conv2d(3, width, c.patch, c.patch, bias=False)
        self.position_embedding = nn.Parameter(torch.zeros(1, places, width))
        self.pre_layernorm = nn.LayerNorm(width, c.vision.eps)

    def forward(self, pixels_NCHW: torch.Tensor) -> torch.Tensor:
        patch_NPD = self.patch_embed(pixels_NCHW).flatten(2).transpose(1, 2)
        first_NPD = self.cls_token.expand(len(patch_NPD), -1, -1)
        x_NPD = torch.cat([first_NPD, patch_NPD], 1) + self.position_embedding
        return self.pre_layernorm(x_NPD)


class Vision(nn.Module):
    """Normalised pixels (N, 3, image, image) -> (N, patches + 1, width)."""

    def __init__(self, c: Config):
        super().__init__()
        v = c.vision
        self.embeddings = Embeddings(c)
        layers = nn.ModuleList([VisionLayer(v) for _ in range(v.layers)])
        self.encoder = nn.ModuleDict({"layers": layers})
        self.post_layernorm = nn.LayerNorm(v.width, v.eps)

    def forward(self, pixels_NCHW: torch.Tensor) -> torch.Tensor:
        x_NPD = self.embeddings(pixels_NCHW)
        for layer in self.encoder["layers"]:
            x_NPD = layer(x_NPD)
        return self.post_layernorm(x_NPD)


class CrossAttention(nn.Module):
    """A layer of the abstractor: the queries look at themselves and at what the eye saw."""

    def __init__(self, c: Config):
        super().__init__()
        a, places = c.abstractor, (c.image // c.patch) ** 2 + 1
        self.heads = a.heads
        self.norm1, self.normk = nn.LayerNorm(a.width), nn.LayerNorm(a.width)
        self.attention = nn.ModuleDict(
            {
                "query": nn.Linear(a.width, a.width),
                "key": nn.Linear(c.vision.width, a.width),
                "value": nn.Linear(c.vision.width, a.width),
            }
        )
        self.attention.register_buffer("q_pos_embed", torch.zeros(c.queries, a.width))
        self.attention.register_buffer("k_pos_embed", torch.zeros(places, a.width))
        mlp = nn.ModuleDict(
            {
                "w1": nn.Linear(a.width, a.inner),
                "w2": nn.Linear(a.inner, a.width),
                "w3": nn.Linear(a.width, a.inner),
                "ffn_ln": nn.LayerNorm(a.inner, a.eps),
            }
        )
        norm2, out = nn.LayerNorm(a.width), nn.Linear(a.width, a.width)
        self.output = nn.ModuleDict({"out_proj": out, "norm2": norm2, "mlp": mlp})

    def forward(self, query_NQD: torch.Tensor, seen_NPD: torch.Tensor) -> torch.Tensor:
        query_NQD = self.norm1(query_NQD)  # the residual too starts behind the norm
        all_NLD = torch.cat([query_NQD, self.normk(seen_NPD)], 1)
        at, split = self.attention, lambda x_NLD: x_NLD.unflatten(2, (self.heads, -1))
        place_LD = torch.cat([at.q_pos_embed, at.k_pos_embed])
        q_NLKD = split(at["query"](query_NQD + at.q_pos_embed[None]))
        k_NLKD = split(at["key"](all_NLD + place_LD[None]))
        v_NLKD = split(at["value"](all_NLD))
        q, k, v = (x_NLKD.transpose(1, 2) for x_NLKD in (q_NLKD, k_NLKD, v_NLKD))
        looked_NQD = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        query_NQD = query_NQD + self.output["out_proj"](looked_NQD)
        mlp, h_NQD = self.output["mlp"], self.output["norm2"](query_NQD)
        gated_NQD = mlp["ffn_ln"](F.silu(mlp["w1"](h_NQD)) * mlp["w3"](h_NQD))
        return query_NQD + mlp["w2"](gated_NQD)


class Abstractor(nn.Module):
    """What the eye saw (N, patches + 1, width) -> tokens for LLaMA (N, queries + 1, width)."""

    def __init__(self, c: Config):
        super().__init__()
        a = c.abstractor
        layers = [nn.ModuleDict({"crossattention": CrossAttention(c)}) for _ in range(a.layers)]
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(layers)})
        self.visual_fc = nn.Linear(a.width, c.llama.width)
        self.query_embeds = nn.Parameter(torch.zeros(1, c.queries, a.width))
        self.vit_eos = nn.Parameter(torch.zeros(1, 1, c.llama.width))

    def forward(self, seen_NPD: torch.Tensor) -> torch.Tensor:
        x_NQD = self.query_embeds.expand(len(seen_NPD), -1, -1)
        for layer in self.encoder["layers"]:
            x_NQD = layer["crossattention"](x_NQD, seen_NPD)
        end_NQD = self.vit_eos.expand(len(seen_NPD), -1, -1)
        return torch.cat([self.visual_fc(x_NQD), end_NQD], 1)


class Multiway(nn.Module):
    """Two sets of weights: words (tokens before start and from stop on) and what was seen."""

    def __init__(self, make):
        super().__init__()
        self.multiway = nn.ModuleList([make(), make()])

    def forward(self, x_NLD: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        words, seen = self.multiway
        parts = [words(x_NLD[:, :start]), seen(x_NLD[:, start:stop]), words(x_NLD[:, stop:])]
        return torch.cat(parts, 1)


class LlamaLayer(nn.Module):
    """A layer of LLaMA with multiway norms, keys and values."""

    def __init__(self, c: Tower):
        super().__init__()
        self.heads = c.heads
        norm = lambda: nn.RMSNorm(c.width, c.eps)
        square = lambda: nn.Linear(c.width, c.width, bias=False)
        self.input_layernorm, self.post_attention_layernorm = Multiway(norm), Multiway(norm)
        self.self_attn = nn.ModuleDict(
            {
                "q_proj": square(),
                "k_proj": Multiway(square),
                "v_proj": Multiway(square),
                "o_proj": square(),
            }
        )
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": nn.Linear(c.width, c.inner, bias=False),
                "up_proj": nn.Linear(c.width, c.inner, bias=False),
                "down_proj": nn.Linear(c.inner, c.width, bias=False),
            }
        )

    def forward(self, x_NLD, start: int, stop: int, turn) -> torch.Tensor:
        at, h_NLD = self.self_attn, self.input_layernorm(x_NLD, start, stop)
        k_NLD, v_NLD = (at[name](h_NLD, start, stop) for name in ("k_proj", "v_proj"))
        q, k, v = (
            y_NLD.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for y_NLD in (at["q_proj"](h_NLD), k_NLD, v_NLD)
        )
        out = F.scaled_dot_product_attention(turn(q), turn(k), v, is_causal=True)
        x_NLD = x_NLD + at["o_proj"](out.transpose(1, 2).flatten(2))
        mlp, h_NLD = self.mlp, self.post_attention_layernorm(x_NLD, start, stop)
        gated_NLD = F.silu(mlp["gate_proj"](h_NLD)) * mlp["up_proj"](h_NLD)
        return x_NLD + mlp["down_proj"](gated_NLD)


class OneAlign(nn.Module):
    """The whole: `see` frames, then `read` windows of them."""

    def __init__(self, c: Config):
        super().__init__()
        self.config = c
        layers = nn.ModuleList([LlamaLayer(c.llama) for _ in range(c.llama.layers)])
        self.model = nn.ModuleDict(
            {
                "embed_tokens": nn.Embedding(c.vocabulary, c.llama.width),
                "vision_model": Vision(c),
                "visual_abstractor": Abstractor(c),
                "layers": layers,
                "norm": nn.RMSNorm(c.llama.width, c.llama.eps),
            }
        )
        self.lm_head = nn.Linear(c.llama.width, c.vocabulary, bias=False)

    def see(self, pixels_NCHW: torch.Tensor) -> torch.Tensor:
        """Return each frame's tokens, (N, queries + 1, width of LLaMA).

        pixels_NCHW: RGB with CLIP's mean and deviation, image x image.
        """
        return self.model["visual_abstractor"](self.model["vision_model"](pixels_NCHW))

    def read(
        self, before: list[int], seen_NLD: torch.Tensor, after: list[int], words: list[int]
    ) -> torch.Tensor:
        """Return how likely each word comes next, as logits (N, words) in float32.

        Args:
          before, after: tokens of the prompt on either side of what was seen.
          seen_NLD: of the window's frames, one after the other.
          words: tokens whose logits are wanted.
        """
        embed, device, count = self.model["embed_tokens"], seen_NLD.device, len(seen_NLD)
        head, tail = (
            embed(torch.tensor(ids, device=device))[None].expand(count, -1, -1)
            for ids in (before, after)
        )
        x_NLD = torch.cat([head, seen_NLD, tail], 1)
        start, stop = len(before), len(before) + seen_NLD.shape[1]
        turn = rotary(x_NLD.shape[1], self.config, x_NLD)
        for layer in self.model["layers"]:
            x_NLD = layer(x_NLD, start, stop, turn)
        last_ND = self.model["norm"](x_NLD[:, -1])
        return F.linear(last_ND, self.lm_head.weight[words]).float()


def rotary(length: int, c: Config, like: torch.Tensor):
    """Return the function that turns queries and keys (N, heads, length, size) by their places."""
    size = c.llama.width // c.llama.heads
    power = torch.arange(0, size, 2, device=like.device, dtype=torch.float32) / size
    place = torch.arange(length, device=like.device, dtype=torch.float32)
    angle = torch.outer(place, c.theta**-power).repeat(1, 2)[None, None]
    cos, sin = angle.cos().to(like.dtype), angle.sin().to(like.dtype)

    def turn(x: torch.Tensor) -> torch.Tensor:
        left, right = x.chunk(2, -1)
        return x * cos + torch.cat([-right, left], -1) * sin

    return turn
