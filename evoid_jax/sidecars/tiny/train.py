"""Train the small nets of preset `tiny` on the portrait world: about 14 minutes of one CPU core.

    python -m evoid_jax.sidecars.tiny.train --out evoid_jax/assets/rewards --minutes 14

The number of steps follows from --minutes and nothing is timed, so that the same command gives the
same nets on the same machine. Training people are the first of the split `pretrain`; everything
printed, written to metrics.json and used to place scores in [0, 1] is measured on its last, so that
no person of the evolution and held-out splits ever touches a reward.
Letters: B videos, F frames, C H W, N videos of the pool, I people, A attributes, L landmarks x 2.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from evoid_jax.sidecars.tiny import corrupt, margins, nets, rewards
from evoid_jax.sidecars.tiny.measure import MEASURE
from evoid_jax.sidecars.tiny.pool import Pool, floats, make_pool, signed
from evoid_jax.world import portraits

PEOPLE, VIDEOS = 800, 2  # of the training pool
HELD_OUT = 160  # people, one video each: the last of the split, whom no net trains on
# Steps at --minutes 14, and clips or frames per step.
STEPS = {
    "arcface": (560, 96),
    "curricularface": (900, 96),
    "gme": (560, 40),
    "aesthetic": (420, 64),
    "qalign": (420, 24),
    "naturalness": (420, 24),
    "identity": (900, 64),
    "motion": (560, 40),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=rewards.FOLDER)
    parser.add_argument("--minutes", type=float, default=14)
    parser.add_argument("--only", default="", help="comma-separated nets; default all")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    first = portraits.SPLITS["pretrain"].start
    pool = make_pool(range(first, first + PEOPLE), VIDEOS)
    held = make_pool(list(portraits.SPLITS["pretrain"])[-HELD_OUT:], 1)
    print(f"pool: {len(pool.prompts)} videos, {PEOPLE} people", flush=True)
    for seed, name in enumerate(STEPS):
        if args.only and name not in args.only.split(","):
            continue
        start = time.perf_counter()
        steps, batch = STEPS[name]
        steps = max(2, round(steps * args.minutes / 14))
        # A seed per net, not per run: --only gives the net that the whole command gives.
        torch.manual_seed(seed)
        net = rewards.NETS[name]().to(memory_format=torch.channels_last)
        TRAIN[name](net, pool, steps, batch, torch.Generator().manual_seed(seed))
        net.eval()
        with torch.inference_mode():
            low, high, extra, numbers = MEASURE[name](net, held)
        rewards.write_net(args.out, name, net, low, high, extra)
        line = {"low": round(low, 4), "high": round(high, 4), "steps": steps} | numbers
        print(name, json.dumps(line), f"{time.perf_counter() - start:.0f}s", flush=True)
        note(args.out / "metrics.json", name, line)


def note(file: Path, name: str, line: dict) -> None:
    """Put one net's numbers among the others' in metrics.json."""
    report = json.loads(file.read_text()) if file.is_file() else {}
    report = {key: (report | {name: line})[key] for key in STEPS if key in {*report, name}}
    file.write_text(json.dumps(report, indent=1) + "\n")


def some_clips(pool: Pool, batch: int, g) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw clips without repetition: their rows in the pool, and float BFCHW in [0, 1]."""
    rows = torch.randperm(len(pool.prompts), generator=g)[:batch]
    return rows, floats(pool.video_NFHWC[rows])


def some_faces(pool: Pool, batch: int, g) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw softened frames that show the head, a fifth of them photos: BCHW, and whose they are."""
    frames = pool.seen_NF.nonzero()
    pick = frames[torch.randint(len(frames), (batch - batch // 5,), generator=g)]
    person_B = torch.randint(len(pool.reference_IHWC), (batch // 5,), generator=g)
    video_BHWC = pool.video_NFHWC[pick[:, 0], pick[:, 1]]
    x_BHWC = torch.cat([video_BHWC, pool.reference_IHWC[person_B]])
    who_B = torch.cat([pool.person_N[pick[:, 0]], person_B])
    return signed(corrupt.soften(floats(x_BHWC[:, None]), g))[:, 0], who_B


def fit(parts: list[nn.Module], steps: int, loss: Callable[[int], torch.Tensor], rate=3e-3):
    """Minimise `loss(step)` over the weights of all parts, with AdamW under a one-cycle rate."""
    weights = [p for part in parts for p in part.parameters()]
    adam = torch.optim.AdamW(weights, rate, weight_decay=0.01)
    cycle = torch.optim.lr_scheduler.OneCycleLR(adam, rate, total_steps=steps, pct_start=0.15)
    for part in parts:
        part.train()
    for step in range(steps):
        value = loss(step)
        adam.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(weights, 5.0)
        adam.step()
        cycle.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"  {step:5d}  loss {value.item():.4f}", flush=True)


class Classes(nn.Module):
    """One direction per training person; cosines to them."""

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, width) * 0.1)

    def forward(self, unit_BD):
        # clamp: rounding may pass 1, where the margins take a square root of 1 - cos^2.
        return (unit_BD @ F.normalize(self.weight).T).clamp(-1, 1)


def train_face(net, pool: Pool, steps: int, batch: int, g, curricular: bool):
    """Scale 32, margin growing to 0.35: fewer people and smaller nets than the papers'."""
    classes = Classes(len(pool.reference_IHWC), 64)  # thrown away after training
    t = torch.zeros(())

    def loss(step):
        nonlocal t
        x_BCHW, who_B = some_faces(pool, batch, g)
        cos_BK = classes(net(x_BCHW))
        margin = 0.35 * min(1.0, 2 * step / steps)  # from 0: a fresh net tells nobody apart
        if not curricular:
            return margins.arcface(cos_BK, who_B, 32.0, margin)
        value, t = margins.curricularface(cos_BK, who_B, t, 32.0, margin)
        return value

    fit([net, classes], steps, loss)


def train_text(net, pool: Pool, steps: int, batch: int, g):
    """Symmetric InfoNCE over the batch, plus naming action, place, camera, amount and side."""
    ids_NPS = torch.tensor([[nets.hash_tokens(p) for p in four] for four in pool.prompts])
    sizes = (len(portraits.ACTIONS), len(portraits.BACKGROUNDS), len(portraits.CAMERAS), 3, 2)
    namers = nn.ModuleList([nn.Linear(64, size) for size in sizes])

    def loss(step):
        rows, x_BFCHW = some_clips(pool, batch, g)
        wording = torch.randint(4, (batch,), generator=g)
        video_BD = net.video(signed(corrupt.soften(x_BFCHW, g, 0.7)))
        text_BD = net.text(ids_NPS[rows, wording])
        logits_BB = video_BD @ text_BD.T * net.log_scale.exp().clamp(max=40)
        # Every other prompt of the batch counts as wrong for a video, though two may say the same.
        here = torch.arange(batch)
        pair = (F.cross_entropy(logits_BB, here) + F.cross_entropy(logits_BB.T, here)) / 2
        # Both towers must also name what the prompt is made of, each by itself.
        named = sum(
            F.cross_entropy(10 * namer(unit_BD), pool.label_NK[rows, k])
            for k, namer in enumerate(namers)
            for unit_BD in (video_BD, text_BD)
        )
        return pair + 0.2 * named

    fit([net, namers], steps, loss)


def train_picture(net, pool: Pool, steps: int, batch: int, g):
    """One frame per clip; quality is 1 - severity of the picture damage."""

    def loss(step):
        rows = torch.randint(len(pool.prompts), (batch,), generator=g)
        frame = torch.randint(rewards.FRAMES, (batch,), generator=g)
        x = floats(pool.video_NFHWC[rows, frame][:, None])
        s_B = severities(batch, g)
        x = corrupt.damage(x, corrupt.PICTURE, s_B, g)
        return ranked(net(signed(x)[:, 0]), 1 - s_B)

    fit([net], steps, loss)


def train_clip(net, pool: Pool, steps: int, batch: int, g, kinds):
    """Quality is 1 - severity of one family of damage; faint picture damage carries no blame."""

    def loss(step):
        _, x = some_clips(pool, batch, g)
        s_B = severities(batch, g)
        x = corrupt.damage(x, kinds, s_B, g)
        x = corrupt.damage(x, corrupt.PICTURE[:5], severities(batch, g) * 0.3, g, most=1)
        return ranked(net(signed(x)), 1 - s_B)

    fit([net], steps, loss)


def train_attributes(net, pool: Pool, steps: int, batch: int, g):
    """Regression on the person's attributes, from one frame."""

    def loss(step):
        x_BCHW, who_B = some_faces(pool, batch, g)
        return F.smooth_l1_loss(net(x_BCHW), pool.attribute_IA[who_B], beta=0.1)

    fit([net], steps, loss, 4e-3)


def train_pose(net, pool: Pool, steps: int, batch: int, g):
    """Where the landmarks are, how they move between frames, and how far the fastest goes."""

    def loss(step):
        rows, x = some_clips(pool, batch, g)
        guess_BFL = net(signed(corrupt.soften(x, g, 0.4)))
        true_BFL = pool.landmark_NFL[rows]
        place = F.smooth_l1_loss(guess_BFL, true_BFL, beta=0.1)
        change = F.smooth_l1_loss(guess_BFL.diff(dim=1), true_BFL.diff(dim=1), beta=0.02)
        total = F.smooth_l1_loss(rewards.amplitude(guess_BFL), pool.motion_N[rows], beta=0.02)
        return place + 4 * change + total

    fit([net], steps, loss)


def severities(batch: int, g) -> torch.Tensor:
    """Uniform in [0, 1], a tenth of them 0: faultless."""
    return (torch.rand(batch, generator=g) * 1.1 - 0.1).clamp(min=0)


def ranked(guess_B, true_B) -> torch.Tensor:
    """Return the squared error, plus a hinge on pairs whose order is wrong or too close.

    Args:
      guess_B: what the net says.
      true_B: quality in [0, 1].

    Returns:
      A scalar.
    """
    # Pairs more than 0.1 apart should be guessed at least half as far apart.
    gap_BB = true_B[:, None] - true_B[None]
    order = F.relu(0.5 * gap_BB - (guess_B[:, None] - guess_B[None]))[gap_BB > 0.1]
    return F.mse_loss(guess_B, true_B) + 0.3 * order.mean()


# Name -> (net, pool, steps, batch, generator), what each net learns from.
TRAIN = {
    "arcface": partial(train_face, curricular=False),
    "curricularface": partial(train_face, curricular=True),
    "gme": train_text,
    "aesthetic": train_picture,
    "qalign": partial(train_clip, kinds=corrupt.TIME),
    "naturalness": partial(train_clip, kinds=corrupt.STRUCTURE),
    "identity": train_attributes,
    "motion": train_pose,
}


if __name__ == "__main__":
    main()
