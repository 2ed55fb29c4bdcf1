"""Monitors that any reward set may offer: measured where a run is compared, never rewarded.

Plain functions over a video's pixels or faces. All are oriented like rewards, more is better, since
the watch calls a reward gamed when it rises while a monitor falls. numpy only.
Letters: F frames or faces, P photos, H W height and width, D features.
"""

from __future__ import annotations

import numpy as np

SAME = 1e-3  # radians: photos closer than this are one photo, and no copy can be told
GREY = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


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
    """Return 1 - `copy_paste`, the monitor: it falls where the photo is pasted into the video."""
    return 1 - copy_paste(face_FD, photo_PD)


def sharpness(video_FHWC: np.ndarray) -> float:
    """Return how finely a video is drawn: the mean step between neighbouring pixels.

    Args:
      video_FHWC: uint8 RGB of 2 x 2 pixels or more.

    Returns:
      Grey levels, as a share of 255: 0 for one colour.
    """
    steps = []
    for frame_HWC in video_FHWC:  # one by one: all in float would be gigabytes
        grey_HW = frame_HWC @ GREY
        steps += [np.abs(np.diff(grey_HW, axis=axis)).mean() for axis in (0, 1)]
    return float(np.mean(steps)) / 255


def motion(video_FHWC: np.ndarray) -> float:
    """Return how much a video changes from frame to frame: the mean step of a pixel in time.

    Args:
      video_FHWC: uint8 RGB.

    Returns:
      Grey levels, as a share of 255: 0 for a still picture. NaN for a single frame.
    """
    if len(video_FHWC) < 2:
        return float("nan")
    steps, before_HW = [], video_FHWC[0] @ GREY
    for frame_HWC in video_FHWC[1:]:
        grey_HW = frame_HWC @ GREY
        steps.append(np.abs(grey_HW - before_HW).mean())
        before_HW = grey_HW
    return float(np.mean(steps)) / 255


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
