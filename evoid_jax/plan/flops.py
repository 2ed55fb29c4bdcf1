"""How much arithmetic the method needs, by formula; `count.py` counts what a program does.

A multiply-add is 2. Widths: d = heads x head size, f = ffn; L tokens, S text tokens, per sample.

    linear of a block    L (12 d^2 + 4 d f) + 4 d^2 S     q k v o, q o of the text, ffn; text's k v
    scores of a block    4 L^2 d  and  4 L S d            self- and cross-attention
    VACE                 its blocks, 2 d^2 L for each hint and for proj_in

Backward of a frozen linear layer costs once its forward (no gradient of the kernel), of attention
twice, or 2.5 times with a flash kernel, which computes the scores again.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from evoid_jax.config import Config
from evoid_jax.models.wan import WanConfig

PETA = 1e15


class Work(NamedTuple):
    """FLOPs of one forward pass, in parts that a backward pass treats differently."""

    linear: float = 0.0  # of tokens: the backward pass needs the gradient of their input
    text: float = 0.0  # of text and other constants: nothing to differentiate
    score: float = 0.0
    adapter: float = 0.0

    @property
    def forward(self) -> float:
        return self.linear + self.text + self.score + self.adapter

    @property
    def backward(self) -> float:
        """Without recomputation: adapters get gradients of input, a and b."""
        return self.linear + 2 * self.score + 2 * self.adapter

    @property
    def flash_backward(self) -> float:
        """As executed by a flash kernel: five matmuls for the two of the forward pass."""
        return self.linear + 2.5 * self.score + 2 * self.adapter


def add(*works: Work) -> Work:
    """Add works part by part."""
    return Work(
        linear=sum(work.linear for work in works),
        text=sum(work.text for work in works),
        score=sum(work.score for work in works),
        adapter=sum(work.adapter for work in works),
    )


def blocks(c: WanConfig, count: int, tokens: int, text: int) -> Work:
    """Return the work of `count` blocks, VACE or main, without adapters."""
    d, f = c.dim, c.ffn_dim
    # Six d x d layers see the video's tokens: q k v o of self-attention, q o of cross-attention.
    linear = tokens * (12 * d**2 + 4 * d * f)
    # The text's k and v are constants of the prompt: no gradient passes through them.
    constant = 4 * d**2 * text
    # q k^T and its product with v, for self- and for cross-attention
    score = 4 * tokens**2 * d + 4 * tokens * text * d
    return Work(linear=count * linear, text=count * constant, score=count * score)


def adapter(c: WanConfig, cfg: Config, tokens: int, text: int) -> Work:
    """Return the work of the adapter on the main blocks.

    A pair of halves costs 2 r (in + out) for each row. Self- and cross-attention have layers of the
    same names, so `rows` counts both; the text is what cross-attention's k and v see.
    """
    r, d, f = cfg.lora.rank, c.dim, c.ffn_dim
    rows = {"to_k": tokens + text, "to_v": tokens + text, "to_q": 2 * tokens, "to_out": 2 * tokens}
    wide = {name: 2 * d for name in rows}  # in + out
    rows |= dict.fromkeys(("ffn_up", "ffn_down"), tokens)
    wide |= dict.fromkeys(("ffn_up", "ffn_down"), d + f)
    each = sum(2 * r * rows[name] * wide[name] for name in cfg.lora.modules)
    return Work(adapter=c.num_layers * each)


def ends(c: WanConfig, tokens: int, text: int) -> Work:
    """Return the work around the blocks: patches, timestep, text, output."""
    patch = math.prod(c.patch_size)
    # Only the output projection lies between the adapters and the loss.
    linear = 2 * tokens * c.dim * patch * c.out_channels
    constant = 2 * tokens * c.dim * patch * c.in_channels
    constant += 2 * text * c.dim * (c.text_dim + c.dim)
    constant += 2 * c.dim * (c.freq_dim + c.dim + 6 * c.dim)  # of the timestep, once a sample
    return Work(linear=linear, text=constant)


def main(c: WanConfig, tokens: int, text: int) -> Work:
    """Return the work of `wan.velocity` without an adapter: the T2V model."""
    return add(blocks(c, c.num_layers, tokens, text), ends(c, tokens, text))


def vace(c: WanConfig, tokens: int, text: int) -> Work:
    """Return the work of `wan.hints`, its own embeddings included."""
    count, d = len(c.vace_layers), c.dim
    projections = Work(text=2 * d**2 * tokens * (count + 1))  # one a hint, and proj_in
    patches = Work(text=2 * tokens * d * math.prod(c.patch_size) * c.vace_in_channels)
    embeddings = ends(c, tokens, text)._replace(linear=0.0)  # hints have no output projection
    return add(blocks(c, count, tokens, text), projections, patches, embeddings)


class Sizes(NamedTuple):
    """Tokens of one sample."""

    tokens: int  # reference frames included
    video: int  # without them: what the teacher sees
    text: int


def sizes(c: WanConfig, latent_THW: tuple[int, int, int], references: int) -> Sizes:
    """Return how many tokens one sample has.

    Args:
      latent_THW: (T, H, W) of its latents, reference frames included; H and W are an eighth of the
        pixels'.
      references: R, how many of the T frames are references.

    Returns:
      Sizes in tokens, one for each patch of the transformer (1 x 2 x 2 in Wan2.1).
    """
    frames, height, width = (n // p for n, p in zip(latent_THW, c.patch_size, strict=True))
    plane = height * width
    return Sizes(tokens=frames * plane, video=(frames - references) * plane, text=c.text_len)


# The roles that an algorithm's loss asks beside the evolving one.
ASKED = {
    "evoid": ("stable", "initial", "teacher"),
    "imitation": (),
    "rwr": (),
    "nft": ("stable", "initial"),
    "grpo": ("stable", "initial"),
}


def objective(c: WanConfig, cfg: Config, sample: Sizes) -> dict[str, float]:
    """Return the FLOPs of one video at one trained time: what is needed, what remat adds.

    model: hints once; the evolving role and those of ASKED; one backward pass.
    executed: and what is recomputed (config.train.remat), a flash kernel's fifth matmul, and the
      initial role where it is asked for the record's drift alone.
    """
    tokens, text = sample.tokens, sample.text
    thin = adapter(c, cfg, tokens, text)
    initial, teacher = main(c, tokens, text), main(c, sample.video, text)
    evolving = add(initial, thin)
    if cfg.lora.init:
        initial = evolving
    # Evolving and stable see the video each through an adapter of its own.
    once = lambda pupil: pupil.forward + negative(cfg, pupil)
    asked = {
        "stable": once(evolving),
        "initial": once(initial),
        "teacher": teacher.forward * (2 if cfg.guidance.train > 1 else 1),
    }
    hints, bare = vace(c, tokens, text), main(c, tokens, text)
    forward = hints.forward + once(evolving) + negative_once(cfg, bare, hints)
    forward += sum(asked[role] for role in ASKED[cfg.algorithm])
    unasked = 0.0 if "initial" in ASKED[cfg.algorithm] else once(initial)
    # What is recomputed is the evolving role's blocks; saved attention spares self-attention's.
    again = add(blocks(c, c.num_layers, tokens, text), thin)
    kept = c.num_layers * 4 * tokens**2 * c.dim
    recomputed = {"full": again.forward, "attention": again.forward - kept, "none": 0.0}
    # A guided prediction with the adapter on both prompts goes backward through both.
    times = 2 if cfg.guidance.train > 1 and cfg.guidance.null == "adapter" else 1
    backward = evolving.flash_backward + recomputed[cfg.train.remat]
    executed = forward + unasked + times * backward
    return {"model": forward + times * evolving.backward, "executed": executed}


def negative(cfg: Config, pupil: Work) -> float:
    """Return the FLOPs of what one pupil sees of the negative prompt through its own adapter."""
    own = cfg.guidance.train > 1 and cfg.guidance.null == "adapter"
    return pupil.forward if own else 0.0


def negative_once(cfg: Config, bare: Work, hints: Work) -> float:
    """Return the FLOPs of what all pupils share of the negative prompt. bare: of the base alone."""
    if cfg.guidance.train <= 1:
        return 0.0
    return hints.forward + (bare.forward if cfg.guidance.null == "base" else 0.0)


def step(c: WanConfig, cfg: Config, sample: Sizes) -> float:
    """Return the FLOPs that one step of a run needs of the transformer.

    All its videos are generated and updated on; scoring and the VAE are left out.
    """
    videos, times = cfg.data.pairs * cfg.data.seeds, cfg.train.timesteps
    clips = cfg.algorithm == "imitation" and cfg.imitation.target == "clips"
    generated = 0.0 if clips else cfg.rollout.steps * solver_step(c, cfg, sample)
    return videos * (generated + times * objective(c, cfg, sample)["model"])


def solver_step(c: WanConfig, cfg: Config, sample: Sizes) -> float:
    """Return the FLOPs of one solver step for one video, both prompts of the guidance."""
    tokens, text = sample.tokens, sample.text
    once = add(vace(c, tokens, text), main(c, tokens, text), adapter(c, cfg, tokens, text))
    return once.forward * (2 if cfg.guidance.rollout > 1 else 1)
