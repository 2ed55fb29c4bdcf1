"""The two margin losses that train the face encoders, as functions of cosines.

Letters: B faces, K identities.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def arcface(cos_BK, label_B, scale: float = 64.0, margin: float = 0.5) -> torch.Tensor:
    """Mean cross entropy over s*cos(theta_y + m) and s*cos(theta_j).

    Deng et al., "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", CVPR 2019,
    eq. 3. Past theta_y = pi - m, where cos(theta + m) turns back up, it goes on as
    cos(theta) - m sin(m).
    """
    target_B1 = cos_BK.gather(1, label_B[:, None])
    margined_B1 = _add_margin(target_B1, margin)
    return F.cross_entropy(scale * cos_BK.scatter(1, label_B[:, None], margined_B1), label_B)


def curricularface(
    cos_BK, label_B, t: torch.Tensor, scale: float = 64.0, margin: float = 0.5
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cross entropy whose hard negatives weigh more as training goes on; also the new t.

    Huang et al., "CurricularFace: Adaptive Curriculum Learning Loss for Deep Face Recognition",
    CVPR 2020, eqs. 7-9: a negative with cos(theta_j) > cos(theta_y + m) becomes
    cos(theta_j) * (t + cos(theta_j)); t follows the mean positive cosine, 1% a step.
    """
    target_B1 = cos_BK.gather(1, label_B[:, None])
    t = 0.99 * t + 0.01 * target_B1.detach().mean()
    margined_B1 = _add_margin(target_B1, margin)
    hard_BK = cos_BK > margined_B1
    logits_BK = torch.where(hard_BK, cos_BK * (t + cos_BK), cos_BK)
    logits_BK = logits_BK.scatter(1, label_B[:, None], margined_B1)
    return F.cross_entropy(scale * logits_BK, label_B), t


def _add_margin(cos_B1: torch.Tensor, margin: float) -> torch.Tensor:
    sin_B1 = torch.sqrt((1 - cos_B1.square()).clamp(min=1e-9))
    turned_B1 = cos_B1 * math.cos(margin) - sin_B1 * math.sin(margin)
    late_B1 = cos_B1 - margin * math.sin(margin)
    return torch.where(cos_B1 > math.cos(math.pi - margin), turned_B1, late_B1)
