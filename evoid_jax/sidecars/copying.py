"""Is a face in a video a person's, or a copy of one photo? A monitor for any reward set.

Whatever rewards likeness to a photo also rewards its lighting, its angle and its smile. Embeddings
of faces are all that is needed. numpy only. Letters: F faces, P photos, D features.
"""

from __future__ import annotations

import numpy as np

UNCOPIED = (
    "1 - how much nearer the face is to one photo of the person than to the others, of which it "
    "needs one"
)
SAME = 1e-3  # radians: photos closer than this are one photo, and no copy can be told


def copy_paste(face_FD: np.ndarray, photo_PD: np.ndarray) -> float:
    """Tell how much nearer a video's face is to one photo than to others of the same person.

    For each photo r of the person and another o, and angles a between embeddings:

        c = (a(face, o) - a(face, r)) / a(r, o)

    1 is a face that is the photo itself, 0 one that is as near to the other; on a sphere c never
    leaves [-1, 1]. Returned is the mean over faces and other photos, of the photo for which it is
    the largest: a face may be like its person without being a copy of a picture. After the
    copy-paste measure of MultiID-Bench (WithAnyone, 2025), whose o is the true picture.

    Args:
      face_FD: embeddings of the face in some frames of a video, any norm but zero.
      photo_PD: of the person's photos.

    Returns:
      From 0 to 1; NaN with fewer than two different photos, or without a face.
    """
    if len(face_FD) == 0 or len(photo_PD) < 2:
        return float("nan")
    angle_FP, angle_PP = _angles(face_FD, photo_PD), _angles(photo_PD, photo_PD)
    copied = [_nearer_to(r, angle_FP, angle_PP[r]) for r in range(len(photo_PD))]
    known = [value for value in copied if np.isfinite(value)]
    # With three photos or more a face may be nearer to the others' middle than to any of them.
    return max(0.0, *known) if known else float("nan")


def uncopied(face_FD: np.ndarray, photo_PD: np.ndarray) -> float:
    """Return 1 - `copy_paste`, the monitor: it falls where a photo is pasted into the video.

    As all monitors it is oriented like a reward, since the watch calls a reward gamed when it rises
    while a monitor falls.
    """
    return 1 - copy_paste(face_FD, photo_PD)


def _nearer_to(r: int, angle_FP: np.ndarray, angle_P: np.ndarray) -> float:
    """Return the mean of c for one photo; NaN where all others are the same photo.

    angle_P: from this photo to each.
    """
    others = [o for o in range(len(angle_P)) if o != r and angle_P[o] > SAME]
    if not others:
        return float("nan")
    nearer_FO = angle_FP[:, others] - angle_FP[:, [r]]
    return float((nearer_FO / angle_P[others][None]).mean())


def _angles(x_ND: np.ndarray, y_MD: np.ndarray) -> np.ndarray:
    """Return the angles (N, M) in radians between vectors of any norm but zero."""
    x_ND, y_MD = (np.asarray(v, np.float64) for v in (x_ND, y_MD))
    x_ND, y_MD = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x_ND, y_MD))
    return np.arccos(np.clip(x_ND @ y_MD.T, -1, 1))
