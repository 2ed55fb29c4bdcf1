"""What must hold of replicas of preset tiny, however they are deployed; for slow tests.

Videos differ by their pixels, photos and prompts, so that a score of another video is seen.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import httpx2
import numpy as np
import torch

from evoid_jax.rewards import client
from evoid_jax.sidecars import preset, wire
from evoid_jax.sidecars.tiny import rewards
from evoid_jax.world import portraits

NAMES = ("arcface", "curricularface", "gme", "aesthetic", "qalign", "naturalness", "flow")
PATIENT = client.Options(timeout=300.0, backoff=0.2, probe=2.0)


class Clips(NamedTuple):
    """Videos with their photos and prompts, and the scores that they must get."""

    video_BFHWC: np.ndarray
    references: list
    prompts: list[str]
    score_BM: np.ndarray


def clips(count: int = 12) -> Clips:
    """Draw people, and score them in this process."""
    scenes = [portraits.scene(i, 0) for i in list(portraits.SPLITS["validation"])[200:][:count]]
    video_BFHWC = np.stack([portraits.render(scene) for scene in scenes])
    references = [[portraits.reference(scene.identity)] for scene in scenes]
    prompts = [portraits.prompt(scene, 0) for scene in scenes]
    torch.set_num_threads(1)
    request = wire.decode(wire.encode(video_BFHWC, references, prompts))
    columns = preset.answer(rewards.load(), request)["scores"]
    score_BM = np.array([columns[name]["score"] for name in NAMES]).T
    return Clips(video_BFHWC, references, prompts, score_BM)


def ask(urls: list[str], made: Clips, rows: list[int], first: int = 0) -> client.Scores:
    """Score some of the clips, each as often as it stands in `rows`."""
    return client.score(
        urls,
        NAMES,
        made.video_BFHWC[rows],
        [made.references[row] for row in rows],
        [made.prompts[row] for row in rows],
        options=PATIENT._replace(batch=2),
        first=first,
    )


def check(scores: client.Scores, made: Clips, rows: list[int]) -> None:
    """Every video has a score, and it is its own."""
    assert scores.table.valid_BM.all(), [reasons for reasons in scores.reasons if reasons][:3]
    np.testing.assert_allclose(scores.table.score_BM, made.score_BM[rows], atol=1e-4)


def check_scores(urls: list[str], made: Clips) -> None:
    """Together, one by one, and from several threads at once."""
    everyone = list(range(len(made.prompts)))
    check(ask(urls, made, everyone), made, everyone)
    with ThreadPoolExecutor(4) as pool:
        for row, scores in enumerate(pool.map(lambda r: ask(urls, made, [r], r), everyone)):
            check(scores, made, [row])


def check_refusal(url: str) -> None:
    """A request that cannot be read is 400 with words, and a reply is bound to its request."""
    refused = httpx2.post(f"{url}/score", content=b"nonsense", timeout=60, trust_env=False)
    assert refused.status_code == 400 and "header" in refused.json()["detail"]
    photo = np.zeros((8, 8, 3), np.uint8)
    body = wire.encode(np.zeros((1, 3, 16, 16, 3), np.uint8), [[photo]], ["a"], ids=["x"])
    reply = httpx2.post(f"{url}/score", content=body, timeout=60, trust_env=False).json()
    assert (reply["ids"], reply["digest"]) == (["x"], wire.digest(body))


def check_loss(urls: list[str], made: Clips, hurt, rounds: int = 8) -> None:
    """Nothing is lost or wrong when `hurt` is called while videos are under way."""
    rows = list(range(len(made.prompts)))
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask, urls, made, rows, k * len(rows)) for k in range(rounds)]
        asked[0].result()
        hurt()
        for one in asked:
            check(one.result(), made, rows)
