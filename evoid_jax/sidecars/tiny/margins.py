"""The two margin losses that train the face encoders, as functions of cosines.

Letters: B faces, K identities.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def arcface(cos_BK, label_B, scale: float = 64.0, margin: float = 0.5) -> torch.Tensor:
    """Return the mean cross entropy over s cos(theta_y + m) and s cos(theta_j), a scalar.

    Deng et al., "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", CVPR 2019,
    eq. 3.

    Args:
      cos_BK: cosines of faces to the identities' directions.
      label_B: int64, who it is (y).
      scale: s; sharpens the softmax, whose logits would lie in [-1, 1] otherwise.
      margin: m, radians.
    """
    target_B1 = cos_BK.gather(1, label_B[:, None])
    margined_B1 = _add_margin(target_B1, margin)
    return F.cross_entropy(scale * cos_BK.scatter(1, label_B[:, None], margined_B1), label_B)


def curricularface(
    cos_BK, label_B, t: torch.Tensor, scale: float = 64.0, margin: float = 0.5
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a mean cross entropy whose hard negatives weigh ever more, and the new t.

    Huang et al., "CurricularFace: Adaptive Curriculum Learning Loss for Deep Face Recognition",
    CVPR 2020, eqs. 7-9.

    Args:
      cos_BK, label_B, scale, margin: as of `arcface`.
      t: scalar, of the step before; 0 at first.
    """
    # t follows the mean positive cosine, 1 % a step: near 0 while faces are still mixed up.
    target_B1 = cos_BK.gather(1, label_B[:, None])
    t = 0.99 * t + 0.01 * target_B1.detach().mean()
    margined_B1 = _add_margin(target_B1, margin)
    # Hard: cos(theta_j) > cos(theta_y + m). It becomes cos(theta_j) (t + cos(theta_j)).
    hard_BK = cos_BK > margined_B1
    logits_BK = torch.where(hard_BK, cos_BK * (t + cos_BK), cos_BK)
    logits_BK = logits_BK.scatter(1, label_B[:, None], margined_B1)
    return F.cross_entropy(scale * logits_BK, label_B), t


def _add_margin(cos_B1: torch.Tensor, margin: float) -> torch.Tensor:
    """Return cos(theta + margin) = cos theta cos m - sin theta sin m."""
    sin_B1 = torch.sqrt((1 - cos_B1.square()).clamp(min=1e-9))
    turned_B1 = cos_B1 * math.cos(margin) - sin_B1 * math.sin(margin)
    # Past theta = pi - m, cos(theta + m) would turn back up: go on falling instead.
    late_B1 = cos_B1 - margin * math.sin(margin)
    return torch.where(cos_B1 > math.cos(math.pi - margin), turned_B1, late_B1)
