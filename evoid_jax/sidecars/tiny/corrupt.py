"""Graded damage to clips, from which the quality nets learn what worse means.

Clips are float BFCHW in [0, 1]; a severity is float B in [0, 1], 0 leaving the clip as it is. Every
function takes a torch.Generator, so that training is reproducible. Blur, shift, zoom and blocks are
separable, hence two small matrices each: rows_NHH @ x_NCHW @ cols_NWW^T.
Letters: B videos, N = B*F frames, C H W channels and space, P patches.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

# (x_BFCHW, s_B, generator) -> x_BFCHW, which may leave [0, 1]: `damage` clips once at the end.
Damage = Callable[[torch.Tensor, torch.Tensor, torch.Generator], torch.Tensor]


def separable(x_BFCHW, rows_NHH, cols_NWW):
    """Apply one matrix along the height of each frame and one along its width.

    Args:
      x_BFCHW: clips.
      rows_NHH, cols_NWW: N is B*F for a matrix per frame, or B for one that a clip's frames share.

    Returns:
      BFCHW.
    """
    if len(rows_NHH) == len(x_BFCHW):
        # Shared: all frames and colours of a clip in one matmul, rows of pixels one after another.
        x_BRW = x_BFCHW.flatten(1, 3) @ cols_NWW.transpose(1, 2)
        x_BRH = x_BRW.view(x_BFCHW.shape).transpose(3, 4).flatten(1, 3) @ rows_NHH.transpose(1, 2)
        return x_BRH.view(x_BFCHW.transpose(3, 4).shape).transpose(3, 4)
    x_NCHW = x_BFCHW.flatten(0, 1)
    return (rows_NHH[:, None] @ x_NCHW @ cols_NWW.transpose(1, 2)[:, None]).view(x_BFCHW.shape)


def gaussian(sigma_B, size: int):
    """Return (B, size, size) matrices that blur a line by sigma_B pixels; 0 is the identity."""
    # 1e-3 keeps sigma 0 from dividing by zero: a weight of e^-500 beside the pixel itself.
    d_HH = torch.arange(size)[:, None] - torch.arange(size)[None]
    w_BHH = torch.exp(-d_HH[None].square() / (2 * sigma_B[:, None, None].square() + 1e-3))
    return w_BHH / w_BHH.sum(2, keepdim=True)


def resample(coords_NH):
    """Make matrices that read a line at fractional places, clamped to its ends.

    Args:
      coords_NH: for each of H pixels, where it reads, in pixels.

    Returns:
      (N, H, H), to be multiplied with a line from the left.
    """
    # Linear interpolation: a pixel's weight falls to 0 at the distance of one pixel.
    size = coords_NH.shape[1]
    d_NHH = coords_NH.clamp(0, size - 1)[:, :, None] - torch.arange(size)[None, None]
    return (1 - d_NHH.abs()).clamp(min=0)


def affine(x_BFCHW, shift_N2, scale_N):
    """Shift and zoom (around the centre) each frame, or each clip.

    Args:
      x_BFCHW: clips of square frames.
      shift_N2: pixels down and right; N is B*F or B, as of `separable`.
      scale_N: above 1 enlarges.
    """
    size = x_BFCHW.shape[-1]
    middle = (size - 1) / 2
    # Where each pixel of the result comes from: the inverse of the move.
    centred = (torch.arange(size) - middle)[None] / scale_N[:, None] + middle
    rows, cols = (resample(centred - shift_N2[:, i : i + 1]) for i in (0, 1))
    return separable(x_BFCHW, rows, cols)


def elastic(x_BFCHW, pixels_B, g, cells: int = 4, still: bool = True):
    """Bend space smoothly.

    Args:
      x_BFCHW: clips.
      pixels_B: by how much, about.
      g: generator of the field.
      cells: nodes of the field along a side; between them it is smooth.
      still: one field for a whole clip, else one per frame.
    """
    B, n_frames, _, H, W = x_BFCHW.shape
    n = B if still else B * n_frames
    coarse = torch.randn(n, 2, cells, cells, generator=g)
    field = F.interpolate(coarse, (H, W), mode="bicubic", align_corners=True)
    if still:
        field = field[:, None].expand(B, n_frames, 2, H, W).flatten(0, 1)
    pixels_N = pixels_B.repeat_interleave(n_frames)
    # grid_sample counts from -1 to 1 over a side: one pixel is 2 / W.
    move_NHW2 = (field * pixels_N[:, None, None, None] * (2 / W)).permute(0, 2, 3, 1)
    line = (torch.arange(H) + 0.5) * (2 / H) - 1
    grid_HW2 = torch.stack(torch.meshgrid(line, line, indexing="ij")[::-1], -1)
    grid = grid_HW2[None] + move_NHW2
    out = F.grid_sample(x_BFCHW.flatten(0, 1), grid, padding_mode="border", align_corners=False)
    return out.view(x_BFCHW.shape)


def other(x_BFCHW):
    """Return the same clips in another order, none in its own place (for two or more)."""
    return x_BFCHW.roll(1, 0)


def wide(v_B):
    """Reshape (B,) to (B,1,1,1,1)."""
    return v_B[:, None, None, None, None]


def uniform(shape, low: float, high: float, g):
    """Draw uniformly from [low, high)."""
    return torch.rand(shape, generator=g) * (high - low) + low


# Pictures: the same damage in every frame.


def blur(x, s_B, g):
    """Blur all frames alike."""
    m_BHH = gaussian(3.0 * s_B, x.shape[-1])
    return separable(x, m_BHH, m_BHH)


def noise(x, s_B, g):
    """Add grain, new in every frame."""
    return x + wide(0.22 * s_B) * torch.randn(x.shape, generator=g)


def cast(x, s_B, g):
    """Shift all colours by one cast."""
    tint = torch.randn((len(x), 1, 3, 1, 1), generator=g)
    tint = tint - tint.mean(2, keepdim=True)  # a colour of its own, the brightness as it was
    return x + wide(0.35 * s_B) * tint / (tint.norm(dim=2, keepdim=True) + 1e-6)


def wash(x, s_B, g):
    """Fade towards one grey."""
    return torch.lerp(x, uniform((len(x), 1, 1, 1, 1), 0.1, 0.9, g).expand_as(x), wide(0.8 * s_B))


def blocks(x, s_B, g):
    """Coarsen into square cells, as strong compression does."""
    size = x.shape[-1]
    cell_B = torch.randint(2, 5, (len(x),), generator=g) * 2  # 4, 6 or 8 pixels wide
    # A matrix that replaces each pixel of a line by the mean of its cell.
    group_BH = torch.arange(size)[None] // cell_B[:, None]
    same_BHH = (group_BH[:, :, None] == group_BH[:, None]).float()
    m_BHH = same_BHH / same_BHH.sum(2, keepdim=True)
    return torch.lerp(x, separable(x, m_BHH, m_BHH), wide(s_B))


def ghost(x, s_B, g):
    """Lay a shifted copy over the picture."""
    angle = uniform((len(x),), 0, 6.2832, g)
    shift = torch.stack([angle.sin(), angle.cos()], 1) * uniform((len(x), 1), 2, 7, g)
    # At severity 1 half of the light is the shifted copy's: two pictures, neither the ghost.
    return torch.lerp(x, affine(x, shift, torch.ones(len(x))), wide(0.5 * s_B))


PICTURE: tuple[Damage, ...] = (blur, blur, noise, cast, wash, blocks, ghost)


# Time: each frame may be fine, the sequence is not.


def shuffle(x, s_B, g):
    """Show frames out of order."""
    # Sort the frames by their own time plus noise: a little swaps neighbours, much mixes all.
    n = x.shape[1]
    key = torch.arange(n)[None] + s_B[:, None] * 0.8 * n * torch.randn((len(x), n), generator=g)
    return take_frames(x, key.argsort(1))


def freeze(x, s_B, g):
    """Hold frames: motion stops and jumps."""
    held = torch.rand((len(x), x.shape[1]), generator=g) < 0.85 * s_B[:, None]
    held[:, 0] = False
    # cummax: a frame that is held shows the last one before it that is not.
    return take_frames(x, torch.where(held, 0, torch.arange(x.shape[1])[None]).cummax(1).values)


def jitter(x, s_B, g):
    """Shake the camera, each frame by itself."""
    pixels = (4.0 * s_B).repeat_interleave(x.shape[1])
    shift = torch.randn((len(pixels), 2), generator=g) * pixels[:, None]
    return affine(x, shift, torch.ones(len(pixels)))


def flicker(x, s_B, g):
    """Change brightness and colour from frame to frame."""
    B, n_frames, colours = x.shape[:3]
    gain = torch.randn((B, n_frames, 1, 1, 1), generator=g)
    tint = 0.4 * torch.randn((B, n_frames, colours, 1, 1), generator=g)
    return x + wide(0.2 * s_B) * (gain + tint)


def boil(x, s_B, g):
    """Let texture creep and flicker."""
    # What diffusion models do to texture: it creeps and flickers in soft spots, frame by frame.
    x = elastic(x, 2.5 * s_B, g, cells=6, still=False)
    coarse = torch.randn((len(x) * x.shape[1], 3, 8, 8), generator=g)
    cloud = F.interpolate(coarse, x.shape[-2:], mode="bilinear").view(x.shape)
    return x + wide(0.12 * s_B) * cloud


def morph(x, s_B, g):
    """Turn the clip into another one on its way."""
    # Within about one frame the person becomes, in part, another one.
    n = x.shape[1]
    middle = uniform((len(x), 1), 0.25 * n, 0.75 * n, g)
    ramp = torch.sigmoid((torch.arange(n)[None] - middle) / 0.7)
    return torch.lerp(x, other(x), (0.8 * s_B[:, None] * ramp)[:, :, None, None, None])


TIME: tuple[Damage, ...] = (shuffle, freeze, jitter, flicker, boil, boil, morph)


# Structure: sharp and smooth, but no person looks so.


def bend(x, s_B, g):
    """Bend the whole clip by one field."""
    return elastic(x, 5.0 * s_B, g, cells=5)


def wobble(x, s_B, g):
    """Bend each frame by a field of its own."""
    return elastic(x, 3.0 * s_B, g, cells=5, still=False)


def displace(x, s_B, g):
    """Copy a soft patch to where it does not belong: features doubled or out of place."""
    mask, shift = patch(x, g), torch.randn((len(x), 2), generator=g)
    shift = shift / (shift.norm(dim=1, keepdim=True) + 1e-6) * uniform((len(x), 1), 7, 18, g)
    moved = affine(x, shift, torch.ones(len(x)))
    return torch.lerp(x, moved, mask * wide((1.5 * s_B).clamp(max=1)))


def melt(x, s_B, g):
    """Wipe a soft patch to its blurred self: missing features."""
    sigma = torch.full((len(x),), 5.0)
    m = gaussian(sigma, x.shape[-1])
    return torch.lerp(x, separable(x, m, m), patch(x, g) * wide((1.5 * s_B).clamp(max=1)))


def turn(x, s_B, g):
    """Turn the middle upside down inside a soft patch: wrong anatomy."""
    return torch.lerp(x, x.flip(3), patch(x, g) * wide((1.5 * s_B).clamp(max=1)))


def double(x, s_B, g):
    """Blend with another clip: two people in one place."""
    return torch.lerp(x, other(x), wide(0.5 * s_B))


STRUCTURE: tuple[Damage, ...] = (bend, bend, wobble, displace, melt, turn, double)


def patch(x, g):
    """Return (B, 1, 1, H, W) soft discs of random size near the middle, where the person is."""
    size = x.shape[-1]
    centre = uniform((len(x), 2), 0.25 * size, 0.75 * size, g)
    radius = uniform((len(x), 1), 0.10 * size, 0.24 * size, g)
    line = torch.arange(size)[None]
    dy, dx = (line - centre[:, 0:1]) / radius, (line - centre[:, 1:2]) / radius
    # The distance in radii: 1 is the edge, over which the disc fades.
    distance = (dy.square()[:, :, None] + dx.square()[:, None]).sqrt()
    return torch.sigmoid((1 - distance) * 4)[:, None, None]


def take_frames(x_BFCHW, index_BF):
    """Reorder each clip's frames.

    Args:
      x_BFCHW: clips.
      index_BF: which frame stands at each place.

    Returns:
      BFCHW.
    """
    return x_BFCHW[torch.arange(len(x_BFCHW))[:, None], index_BF]


def damage(x_BFCHW, kinds: tuple[Damage, ...], s_B, g, most: int = 2):
    """Damage each clip by one kind in full and by up to most - 1 others in part.

    Args:
      x_BFCHW: clips in [0, 1].
      kinds: to choose from; one that stands twice is chosen twice as often.
      s_B: severities in [0, 1].
      g: generator of what is chosen and of the damage.
      most: kinds at once.

    Returns:
      BFCHW in [0, 1].
    """
    # order[b, k]: the rank of kind k in a random order of clip b's; rank 0 strikes in full.
    order = torch.rand((len(x_BFCHW), len(kinds)), generator=g).argsort(1)
    count = torch.randint(1, most + 1, (len(x_BFCHW), 1), generator=g)
    share = torch.where(order == 0, 1.0, torch.rand(order.shape, generator=g))
    share = torch.where(order < count, share, torch.zeros(()))
    x = x_BFCHW.clone()
    for k, kind in enumerate(kinds):
        # Only the clips that it strikes: most kinds are slow.
        rows = share[:, k].nonzero()[:, 0]
        if len(rows):
            x[rows] = kind(x[rows], (share[:, k] * s_B)[rows], g)
    return x.clamp(0, 1)


def soften(x_BFCHW, g, strength: float = 1.0):
    """Do to clips what a small generator does: blur, drift of colour and place, faint noise.

    The nets that look for content (faces, actions, poses) see it in training, so that their scores
    fall smoothly on generated frames and not off a cliff.

    Args:
      x_BFCHW: clips in [0, 1].
      g: generator.
      strength: of all but the drift of colour; 0 leaves place and focus.

    Returns:
      BFCHW in [0, 1].
    """
    B = len(x_BFCHW)
    x = affine(x_BFCHW, uniform((B, 2), -3, 3, g) * strength, 1 + uniform((B,), -0.1, 0.1, g))
    x = elastic(x, uniform((B,), 0, 0.8, g) * strength, g)
    sigma = uniform((B,), -0.5, 1.8, g).clamp(min=0) * strength
    m = gaussian(sigma, x.shape[-1])
    x = separable(x, m, m)
    gain, lift = uniform((B,), 0.88, 1.12, g), uniform((B,), -0.06, 0.06, g)
    x = x * wide(gain) + wide(lift)
    x = x + wide(uniform((B,), -0.03, 0.06, g).clamp(min=0) * strength) * torch.randn(
        x.shape, generator=g
    )
    return x.clamp(0, 1)
