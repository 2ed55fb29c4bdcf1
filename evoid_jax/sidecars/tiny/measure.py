"""Held-out numbers of the small nets of preset `tiny`, and the raw values at score 0 and 1.

Every function takes a net and a pool of people in no training set, and returns
(raw at 0, raw at 1, numbers that the scorer needs, numbers for metrics.json).
"""

from __future__ import annotations

from functools import partial

import torch

from evoid_jax.sidecars.tiny import corrupt, nets, rewards
from evoid_jax.sidecars.tiny.pool import Pool, floats, signed
from evoid_jax.world import portraits


def measure_face(net, held: Pool):
    """A video against its person's photo and against all others'; clean and softened."""
    g = torch.Generator().manual_seed(1)
    reference_ID = net(signed(floats(held.reference_IHWC[:, None]))[:, 0])
    clean = floats(held.video_NFHWC)
    numbers, raws = {}, {}
    for kind, x in (("clean", clean), ("soft", corrupt.soften(clean, g, 0.7))):
        cos_NFI = nets.over_frames(net, signed(x)) @ reference_ID.T
        raw_NI = cos_NFI.clamp(min=0).mean(1)
        # One video of each person, in order: the diagonal is everyone against their own photo.
        same = raw_NI.diagonal()
        strange = raw_NI[~torch.eye(len(raw_NI), dtype=bool)]
        raws[kind] = (same, strange)
        numbers |= {f"auc_{kind}": auc(same, strange), f"same_{kind}": mean(same)}
        numbers |= {f"stranger_{kind}": mean(strange)}
    # Score 0 is a stranger on a generated-looking video, score 1 the person on a true one.
    low, high = raws["soft"][1].mean(), raws["clean"][0].quantile(0.9)
    return low.item(), high.item(), {}, numbers


def measure_text(net, held: Pool):
    """A video's prompt against all other videos' prompts; recall of the video by its prompt."""
    g = torch.Generator().manual_seed(1)
    video_BD = net.video(signed(corrupt.soften(floats(held.video_NFHWC), g, 0.5)))
    text_BD = net.text(torch.tensor([nets.hash_tokens(four[0]) for four in held.prompts]))
    cos_BB = text_BD @ video_BD.T
    same, strange = cos_BB.diagonal(), cos_BB[~torch.eye(len(cos_BB), dtype=bool)]
    numbers = {"auc": auc(same, strange), "matched": mean(same), "mismatched": mean(strange)}
    for k in (1, 5):
        own_B1 = torch.arange(len(cos_BB))[:, None]
        hit_B = (cos_BB.topk(k, 1).indices == own_B1).any(1)
        numbers[f"text_to_video_r{k}_of_{len(cos_BB)}"] = mean(hit_B.float())
    return strange.mean().item(), same.quantile(0.9).item(), {}, numbers


def measure_quality(net, held: Pool, kinds, frame: bool):
    """Rank correlation with severity, over all kinds and for each."""
    g = torch.Generator().manual_seed(1)
    clean = floats(held.video_NFHWC)

    def score(x):
        return nets.over_frames(net, signed(x)).mean(1) if frame else net(signed(x))

    # Severities evenly from 0 to 1: a rank correlation of 1 orders the clips by their damage.
    s_B = torch.linspace(0, 1, len(clean))
    guess_B = score(corrupt.damage(clean, kinds, s_B, g))
    numbers = {"rank_correlation": spearman(guess_B, 1 - s_B)}
    for kind in dict.fromkeys(kinds):
        numbers[kind.__name__] = spearman(score(kind(clean, s_B, g).clamp(0, 1)), 1 - s_B)
    worst = score(corrupt.damage(clean, kinds, torch.ones(len(clean)), g))
    best = score(clean)
    low, high = worst.quantile(0.25).item(), best.quantile(0.9).item()
    half = score(corrupt.damage(clean, kinds, torch.full((len(clean),), 0.5), g))
    for name, raw_B in (("clean", best), ("worst", worst), ("half", half)):
        numbers[f"score_{name}"] = mean(((raw_B - low) / (high - low)).clamp(0, 1))
    return low, high, {}, numbers


def measure_attributes(net, held: Pool):
    """Median over frames, as the monitor reads it. Weights: how well each attribute is seen."""
    g = torch.Generator().manual_seed(1)
    guess_NA = nets.over_frames(net, signed(corrupt.soften(floats(held.video_NFHWC), g, 0.5)))
    guess_NA, true_NA = guess_NA.median(1).values, held.attribute_IA[held.person_N]
    error_A = (guess_NA - true_NA).abs().mean(0)
    # All against all: the error of a net that took any person for any other.
    stranger_A = (guess_NA[:, None] - true_NA[None]).abs().mean((0, 1))
    weight_A = (1 - error_A / stranger_A).clamp(min=0)
    extra = {"weights": weight_A.tolist(), "stranger": stranger_A.tolist()}
    numbers = dict(zip(portraits.ATTRIBUTES, [round(e, 3) for e in error_A.tolist()], strict=True))
    return 0.0, 1.0, extra, {"mean_error": mean(error_A), "stranger": mean(stranger_A)} | numbers


def measure_pose(net, held: Pool):
    """How far off the landmarks are, and the motion amplitude that follows from them."""
    guess_BFL = net(signed(floats(held.video_NFHWC)))
    guess_B = rewards.amplitude(guess_BFL)
    numbers = {
        "landmark_error": mean((guess_BFL - held.landmark_NFL).abs()),
        "amplitude_rank_correlation": spearman(guess_B, held.motion_N),
        "amplitude_error": mean((guess_B - held.motion_N).abs()),
        "amplitude_mean": mean(guess_B),
        "amplitude_true_mean": mean(held.motion_N),
    }
    return 0.0, 1.0, {}, numbers


def mean(x: torch.Tensor) -> float:
    """Return the mean as metrics.json holds it, four digits after the point."""
    return round(x.float().mean().item(), 4)


def auc(same: torch.Tensor, strange: torch.Tensor) -> float:
    """Return the probability that a matched pair scores above a mismatched one, (n,) and (m,)."""
    # Mann and Whitney: the sum of ranks of the n matched, less the least that it can be.
    ranks = torch.cat([same, strange]).argsort().argsort().float() + 1
    n, m = len(same), len(strange)
    return round(((ranks[:n].sum() - n * (n + 1) / 2) / (n * m)).item(), 4)


def spearman(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the rank correlation of two (n,) vectors, from -1 to 1."""
    ranks = torch.stack([v.argsort().argsort().float() for v in (a, b)])
    return round(torch.corrcoef(ranks)[0, 1].item(), 4)


MEASURE = {
    "arcface": measure_face,
    "curricularface": measure_face,
    "gme": measure_text,
    "aesthetic": partial(measure_quality, kinds=corrupt.PICTURE, frame=True),
    "qalign": partial(measure_quality, kinds=corrupt.TIME, frame=False),
    "naturalness": partial(measure_quality, kinds=corrupt.STRUCTURE, frame=False),
    "identity": measure_attributes,
    "motion": measure_pose,
}
