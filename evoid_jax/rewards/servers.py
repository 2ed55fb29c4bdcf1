"""The servers of a run before it starts: are they there, and do they offer what is weighed?"""

from __future__ import annotations

from pathlib import Path

from evoid_jax.reward_groups import EVOSCORE, JUDGE, Reward
from evoid_jax.rewards import client
from evoid_jax.rewards.judge import open_judge


def check_offered(cfg: Reward, infos: list[dict]) -> None:
    """Raise a ValueError where a reward with weight is offered by no sidecar.

    Such a reward would be missing from every video, and the proof could give no verdict.

    infos: what `client.info` returned of each sidecar.
    """
    offered = {name for info in infos for name in info["names"]}
    judged = (JUDGE, EVOSCORE)
    counting = [row.name for row in cfg.table if row.prior > 0 and row.name not in judged]
    if absent := [name for name in counting if name not in offered]:
        zero = " ".join(f"--config.reward.table.{name}.prior=0" for name in absent)
        raise ValueError(
            f"config.reward.table has {', '.join(absent)}, which no sidecar offers (they offer "
            f"{', '.join(sorted(offered)) or 'nothing'}); add one to config.reward.sidecars, or do "
            f"without: {zero}"
        )


def reach(cfg: Reward, fps: float, log_dir: str | Path) -> None:
    """See that the servers which a run does not start itself are there.

    Raises:
      ConnectionError: one is not, or is not what it should be.
    """
    for url in cfg.sidecars:
        if url != "local":
            info(url, options(cfg, fps))
    if cfg.judge not in ("", "local"):
        open_judge(cfg, cfg.judge, fps, log_dir).chat.close()


def options(cfg: Reward, fps: float) -> client.Options:
    """Return how patient a run is with its sidecars. fps: of the videos."""
    away = min(cfg.patience, cfg.timeout, client.DEFAULTS.patience)
    return client.Options(timeout=cfg.timeout, fps=fps, encoding=cfg.encoding, patience=away)


def info(url: str, options: client.Options) -> dict:
    """Return a sidecar's /info; raises a ConnectionError that names the setting."""
    try:
        return client.info(url, options)
    except client.SidecarError as error:
        raise ConnectionError(
            f"config.reward.sidecars: {error}; start a reward sidecar there, or correct the address"
        ) from None
