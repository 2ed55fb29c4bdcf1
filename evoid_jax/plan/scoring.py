"""How much arithmetic the rewards of preset `paper` need, by formula, and how many GPUs that takes.

A multiply-add is 2. Shapes are the published ones of each model; the frames that a reward looks at
and the sizes that it sees are OpenS2V-Eval v1.1's. Nothing is measured: seconds are FLOPs over an
assumed share of a GPU's peak.

    linear of a block     L (2 (d q + q d + 2 d k) + 2 n d f)     n = 3 where the ffn is gated
    scores of a block     4 L^2 q

L tokens; d width, q queries' width (all heads), k keys' width, f hidden width.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from evoid_jax.config import Config
from evoid_jax.plan.chips import CHIPS, Target
from evoid_jax.plan.flops import PETA
from evoid_jax.reward_groups import EVOSCORE

FRAMES = 32  # that faces, text and looks are measured on; motion takes all
WINDOW = 3  # frames of a window of qalign, of which there is one for every frame
JUDGED = 8  # frames that the judge sees of a video; its default
NATURAL = 16  # frames that the judge sees for naturalness
ASSUMED = 0.2  # share of the peak: nets of other people, in small batches
EXPOSED = 0.05  # of a step, that scoring may add


class Net(NamedTuple):
    """A stack of transformer blocks."""

    layers: int
    width: int
    hidden: int
    queries: int  # width of all heads together
    keys: int
    gated: bool

    def flops(self, tokens: int) -> float:
        """Return the FLOPs of one forward pass over one sequence."""
        d, q, k = self.width, self.queries, self.keys
        feed_forward = (3 if self.gated else 2) * d * self.hidden
        linear = 2 * tokens * (2 * d * q + 2 * d * k + feed_forward)
        return self.layers * (linear + 4 * tokens**2 * q)


def vit(layers: int, width: int, hidden: int) -> Net:
    """Return a plain vision transformer's blocks."""
    return Net(layers, width, hidden, queries=width, keys=width, gated=False)


CLIP_L = vit(24, 1024, 4096)  # openai/clip-vit-large-patch14, and the eyes of one-align
LLAMA_7B = Net(32, 4096, 11008, queries=4096, keys=4096, gated=True)  # q-future/one-align
QWEN2_VL_EYES = vit(32, 1280, 5120)
QWEN2_7B = Net(28, 3584, 18944, queries=3584, keys=512, gated=True)  # gme-Qwen2-VL-7B-Instruct
QWEN3_VL_EYES = vit(27, 1152, 4304)
# Qwen3-VL-30B-A3B: 8 of 128 experts of 768 see each token, which is one ffn of 6144.
QWEN3_A3B = Net(48, 2048, 8 * 768, queries=4096, keys=512, gated=True)

IR_101 = 3, 13, 30, 3  # units of each stage
SCRFD_10G = 2 * 9.98e9  # its authors' number for 640 x 480, which counts a multiply-add as 1


def patches(net: Net, count: int, size: int) -> float:
    """Return the FLOPs of embedding `count` patches of size x size pixels."""
    return 2 * count * 3 * size**2 * net.width


def face_net(units: tuple[int, ...]) -> float:
    """Return the FLOPs of an improved residual net for one face of 112 x 112 pixels.

    A unit has two 3 x 3 convolutions. The first unit of a stage halves the size in its second one
    and widens in its first; its shortcut is a 1 x 1 convolution.
    """
    convolution = lambda size, kernel, into, out: 2 * size**2 * kernel**2 * into * out
    total, size, width = convolution(112, 3, 3, 64), 112, 64
    for count, out in zip(units, (64, 128, 256, 512), strict=True):
        total += convolution(size, 3, width, out)
        size //= 2
        total += convolution(size, 1, width, out)
        total += (2 * count - 1) * convolution(size, 3, out, out)
        width = out
    return total + 2 * 7 * 7 * 512 * 512  # to the embedding


def aesthetic() -> float:
    """Return the FLOPs of CLIP-L/14 on one frame of 224 x 224 pixels; the head is nothing."""
    return CLIP_L.flops(16**2 + 1) + patches(CLIP_L, 16**2, 14)


def qalign(frames: int) -> float:
    """Return the FLOPs of one-align on a video: each frame seen once, one window per frame."""
    count, queries, text = 32**2, 64, 30  # patches of 448 x 448 pixels; words around the frames
    eyes = CLIP_L.flops(count + 1) + patches(CLIP_L, count, 14)
    # The abstractor: six layers in which 64 queries look at the patches and at themselves.
    d = CLIP_L.width
    seen = count + 1 + queries
    look = 4 * d**2 * queries + 4 * d**2 * seen + 4 * queries * seen * d + 6 * queries * d * 2816
    window = LLAMA_7B.flops(WINDOW * (queries + 1) + text)
    return frames * (eyes + 6 * look + 2 * queries * d * 4096 + window)


def gme(height: int, width: int) -> float:
    """Return the FLOPs of GME-Qwen2-VL-7B on one frame."""
    rows, columns = (round(side / 28) for side in (height, width))
    tokens, template = rows * columns, 25
    eyes = QWEN2_VL_EYES.flops(4 * tokens) + 2 * patches(QWEN2_VL_EYES, 4 * tokens, 14)
    merged = 4 * QWEN2_VL_EYES.width  # four patches become a token
    merger = 2 * tokens * (merged**2 + merged * QWEN2_7B.width)
    return eyes + merger + QWEN2_7B.flops(tokens + template)


def judged(height: int, width: int, frames: int) -> float:
    """Return the FLOPs of one question about a video to Qwen3-VL-30B-A3B, with one photo."""
    longer = max(height, width)
    rows, columns = (round(512 * side / longer / 32) for side in (height, width))
    photo, text = 16**2, 600  # tokens of a photo of 512 x 512; of rubric, prompt and answer
    see = lambda tokens: QWEN3_VL_EYES.flops(4 * tokens) + patches(QWEN3_VL_EYES, 4 * tokens, 16)
    tokens = rows * columns
    return frames * see(tokens) + see(photo) + QWEN3_A3B.flops(frames * tokens + photo + text)


def of_video(cfg: Config) -> dict[str, float]:
    """Return the FLOPs of each reward of preset `paper` for one video, without the judge's."""
    v = cfg.video
    count = min(FRAMES, v.frames)
    find = SCRFD_10G * (320 * 320) / (640 * 480)  # once for both face encoders
    return {
        "arcface": count * (find + face_net(IR_101)),  # antelopev2; buffalo_l has IR-50
        "curricularface": count * face_net(IR_101),
        "gme": count * gme(v.height, v.width),
        "aesthetic": count * aesthetic(),
        "qalign": qalign(v.frames),
    }


class Step(NamedTuple):
    """What a step does besides scoring."""

    generation: float  # PFLOP of the rollout, decoding included
    update: float  # PFLOP of the training
    parts: int  # in which the videos are generated; each is scored while the next is generated


def plan(cfg: Config, target: Target, step: Step, mfu: float) -> dict | None:
    """Return what scoring takes beside a step; None for a preset that has no formulas here.

    Args:
      cfg: of the run.
      target: the chips that generate and train. Rewards run on GPUs of that kind, beside TPUs on
        H100.
      step: what these do.
      mfu: the share of their peak that is assumed.

    Returns:
      pflop: of a step's videos by reward, and judge_pflop those of naturalness and, where they
      count, VQScore and EvoScore, which run on the judge's own GPUs. gpu: the kind that scores.
      busy: how many GPUs have work for as long as generation takes. keep_up: whole GPUs that score
      as fast as videos are generated.
      hidden: whole GPUs with which scoring adds at most EXPOSED to a step; the last part is scored
      when nothing is generated any more.
    """
    if cfg.reward.preset != "paper":
        return None
    v, videos = cfg.video, cfg.data.pairs * cfg.data.seeds
    pflop = {name: videos * each / PETA for name, each in of_video(cfg).items()}
    evoscore = any(row.name == EVOSCORE and row.prior > 0 for row in cfg.reward.table)
    questions = judged(v.height, v.width, JUDGED) * (cfg.reward.preference + evoscore)
    questions += judged(v.height, v.width, NATURAL)
    gpu = target.kind if target.chip.platform == "cuda" else "h100"
    alone = sum(pflop.values()) / (ASSUMED * CHIPS[gpu].peak_flops / PETA)  # seconds of one GPU
    speed = mfu * target.count * target.chip.peak_flops / PETA
    generating, whole = step.generation / speed, (step.generation + step.update) / speed
    keep_up = math.ceil(alone / generating)
    return {
        "pflop": pflop,
        "judge_pflop": videos * questions / PETA,
        "gpu": gpu,
        "busy": alone / generating,
        "keep_up": keep_up,
        "hidden": max(keep_up, math.ceil(alone / step.parts / (EXPOSED * whole))),
    }


def table(planned: dict | None, preset: str, mfu: float) -> list[str]:
    """Format a plan for people, in lines. planned: as `plan` returns it."""
    if planned is None:
        return [f"scoring: the reward preset {preset} has no formulas; paper has"]
    pflop = planned["pflop"]
    each = ", ".join(f"{name} {value:.2f}" for name, value in pflop.items())
    return [
        f"scoring takes {sum(pflop.values()):.1f} PFLOP a step: {each}; "
        f"{planned['judge_pflop']:.2f} more on the judge's GPUs; flow runs on CPUs",
        f"{planned['gpu']} that keep up with generation: {planned['keep_up']}, "
        f"{planned['busy']:.2f} of them busy; with which scoring adds at most {EXPOSED:.0%} to a "
        f"step: {planned['hidden']}; assumed: {ASSUMED:.0%} of the peak there, {mfu:.0%} here",
    ]
