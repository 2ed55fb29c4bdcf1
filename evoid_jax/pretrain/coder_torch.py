"""The VAE by PyTorch: the gradient of its training, and latents of many clips.

On CPUs PyTorch's convolutions are faster than XLA's, the more so in bfloat16. The layers are those
of evoid_jax/models/vae.py, whose numbers follow diffusers' AutoencoderKLWan, by its names and with
channels first.

Letters: B videos, C channels, T H W frames (of pixels or features), height, width.
"""

from __future__ import annotations

import math

import jax
import numpy as np

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    raise ImportError(
        "pretraining needs PyTorch: pip install -r requirements-sidecars.txt"
    ) from None

from evoid_jax.models import vae, weights

FLOOR = 1e-12  # of a norm's length, as F.normalize has it

# Each shape of features has a program of its own, and a VAE has more of them than the default 8.
torch._dynamo.config.recompile_limit = 64
# Without a C++ compiler they run as they are, after a warning.
torch._dynamo.config.suppress_errors = True


def _length(x_BTHWC: torch.Tensor) -> torch.Tensor:
    return (x_BTHWC * x_BTHWC).sum(-1, keepdim=True).sqrt().clamp_min(FLOOR)


@torch.compile(dynamic=False)
def _norm_silu(x_BTHWC, gamma_C, before: int):
    x = x_BTHWC.float()
    y = F.silu(x * (math.sqrt(x.shape[-1]) / _length(x)) * gamma_C)
    return F.pad(y, (0, 0, 0, 0, 0, 0, before, 0)).to(x_BTHWC.dtype)


@torch.compile(dynamic=False)
def _norm_silu_gradient(grad_BTHWC, x_BTHWC, gamma_C):
    x, grad = x_BTHWC.float(), grad_BTHWC.float()
    scale = math.sqrt(x.shape[-1]) / _length(x)
    unit = x * scale
    before_silu = unit * gamma_C
    gate = torch.sigmoid(before_silu)
    grad = grad * gate * (1 + before_silu * (1 - gate))
    to_gamma_C = (grad * unit).sum((0, 1, 2, 3))
    grad = grad * gamma_C
    # No step along x changes its direction: that part of the gradient is taken away.
    along = (grad * unit).mean(-1, keepdim=True)
    return (scale * (grad - unit * along)).to(x_BTHWC.dtype), to_gamma_C


class NormSilu(torch.autograd.Function):
    """SiLU of the channels scaled to length sqrt(C), then by gamma, behind frames of zeros.

    One program each way: between thin convolutions the single operations would take most of the
    time.
    """

    @staticmethod
    def forward(ctx, x_BCTHW, gamma_C, before: int):
        ctx.before = before
        x_BTHWC = x_BCTHW.permute(0, 2, 3, 4, 1)
        ctx.save_for_backward(x_BTHWC, gamma_C)
        return _norm_silu(x_BTHWC, gamma_C, before).permute(0, 4, 1, 2, 3)

    @staticmethod
    def backward(ctx, grad_BCTHW):
        grad_BTHWC = grad_BCTHW.permute(0, 2, 3, 4, 1)[:, ctx.before :]
        to_x_BTHWC, to_gamma_C = _norm_silu_gradient(grad_BTHWC, *ctx.saved_tensors)
        return to_x_BTHWC.permute(0, 4, 1, 2, 3), to_gamma_C, None


class Net:
    """The VAE's layers over tensors by their diffusers names."""

    def __init__(self, tensors: dict[str, torch.Tensor]):
        self.tensors = tensors

    def has(self, name: str) -> bool:
        return f"{name}.weight" in self.tensors

    def conv(self, name: str, x: torch.Tensor, **how) -> torch.Tensor:
        weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
        return (F.conv3d if weight.ndim == 5 else F.conv2d)(x, weight, bias, **how)

    def causal(self, name: str, x_BCTHW: torch.Tensor, norm: str = "") -> torch.Tensor:
        """Convolve 3x3x3: a frame sees itself and the two before it.

        Args:
          norm: name of the norm, with a SiLU, that comes first; "" for none.
        """
        before = 2 if x_BCTHW.shape[2] > 1 else 0
        if norm:
            x = NormSilu.apply(x_BCTHW, self.tensors[f"{norm}.gamma"].reshape(-1), before)
        else:
            x = F.pad(x_BCTHW, (0, 0, 0, 0, before, 0))
        if before:
            return self.conv(name, x, padding=(0, 1, 1))
        # An image meets only the kernel's last tap; the others multiply zeros.
        kernel, bias = self.tensors[f"{name}.weight"][:, :, 2], self.tensors[f"{name}.bias"]
        return F.conv2d(x[:, :, 0], kernel, bias, padding=1)[:, :, None]

    def residual(self, name: str, x: torch.Tensor) -> torch.Tensor:
        skip = self.conv(f"{name}.conv_shortcut", x) if self.has(f"{name}.conv_shortcut") else x
        h = self.causal(f"{name}.conv1", x, norm=f"{name}.norm1")
        return skip + self.causal(f"{name}.conv2", h, norm=f"{name}.norm2")

    def attention(self, name: str, x_BCTHW: torch.Tensor) -> torch.Tensor:
        b, c, _, h, w = x_BCTHW.shape
        x = _frames(x_BCTHW)
        gamma = self.tensors[f"{name}.norm.gamma"].view(1, -1, 1, 1)
        qkv = self.conv(f"{name}.to_qkv", F.normalize(x, dim=1) * math.sqrt(c) * gamma)
        # (frames, one head, positions, channels)
        q, k, v = qkv.flatten(2).transpose(1, 2)[:, None].chunk(3, dim=-1)
        y = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2)
        return x_BCTHW + _videos(self.conv(f"{name}.proj", y.reshape(-1, c, h, w)), b)

    def middle(self, name: str, x: torch.Tensor) -> torch.Tensor:
        x = self.attention(f"{name}.attentions.0", self.residual(f"{name}.resnets.0", x))
        return self.residual(f"{name}.resnets.1", x)

    def down(self, name: str, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Halve space, and time where there is a time_conv, which the first frame passes by."""
        frames = F.pad(_frames(x_BCTHW), (0, 1, 0, 1))
        x = _videos(self.conv(f"{name}.resample.1", frames, stride=2), len(x_BCTHW))
        if not self.has(f"{name}.time_conv") or x.shape[2] == 1:
            return x
        halved = self.conv(f"{name}.time_conv", x, stride=(2, 1, 1))
        return torch.cat([x[:, :, :1], halved], dim=2)

    def up(self, name: str, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Double time where there is a time_conv, which never sees the first frame; then space."""
        b, c, t, h, w = x_BCTHW.shape
        if self.has(f"{name}.time_conv") and t > 1:
            rest = F.pad(x_BCTHW[:, :, 1:], (0, 0, 0, 0, 2, 0))
            pairs = self.conv(f"{name}.time_conv", rest).reshape(b, 2, c, t - 1, h, w)
            doubled = pairs.permute(0, 2, 3, 1, 4, 5).reshape(b, c, 2 * (t - 1), h, w)
            x_BCTHW = torch.cat([x_BCTHW[:, :, :1], doubled], dim=2)
        frames = F.interpolate(_frames(x_BCTHW), scale_factor=2.0)
        return _videos(self.conv(f"{name}.resample.1", frames, padding=1), b)

    def head(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return self.causal(f"{name}.conv_out", x, norm=f"{name}.norm_out")

    def encode(self, x_BCTHW: torch.Tensor, config: vae.VAEConfig):
        """Return mean and log variance of the latents, float32."""
        x = self.causal("encoder.conv_in", x_BCTHW)
        blocks = len(config.dim_mult) * (config.num_res_blocks + 1) - 1
        for i in range(blocks):
            name = f"encoder.down_blocks.{i}"
            x = (self.down if self.has(f"{name}.resample.1") else self.residual)(name, x)
        x = self.head("encoder", self.middle("encoder.mid_block", x))
        return self.conv("quant_conv", x).float().chunk(2, dim=1)

    def decode(self, z_BCTHW: torch.Tensor, config: vae.VAEConfig) -> torch.Tensor:
        """Return pixels, float32, not clipped."""
        x = self.causal("decoder.conv_in", self.conv("post_quant_conv", z_BCTHW))
        x = self.middle("decoder.mid_block", x)
        for i in range(len(config.dim_mult)):
            name = f"decoder.up_blocks.{i}"
            for j in range(config.num_res_blocks + 1):
                x = self.residual(f"{name}.resnets.{j}", x)
            if self.has(f"{name}.upsamplers.0.resample.1"):
                x = self.up(f"{name}.upsamplers.0", x)
        return self.head("decoder", x).float()


def _frames(x_BCTHW: torch.Tensor) -> torch.Tensor:
    """Take videos apart: (B T, C, H, W), channels last in memory."""
    x = x_BCTHW.transpose(1, 2).flatten(0, 1)
    return x.contiguous(memory_format=torch.channels_last)


def _videos(x_NCHW: torch.Tensor, count: int) -> torch.Tensor:
    """Join frames to `count` videos: BCTHW."""
    return x_NCHW.unflatten(0, (count, -1)).transpose(1, 2)


def _channels_first(video_BFHWC: np.ndarray) -> torch.Tensor:
    """Put the channels first, in memory still last: the layout that CPUs convolve fastest."""
    return torch.from_numpy(video_BFHWC).permute(0, 4, 1, 2, 3)


def encoder_of(params: dict, config: vae.VAEConfig):
    """Return video_BFHWC -> latents_BTHWC, both float32, as `vae.encode` computes them."""
    named = weights.to_tensors(jax.device_get(params), vae.rules(config))
    net = Net({name: torch.tensor(x) for name, x in named.items()})
    mean_C, std_C = (np.float32(x) for x in (config.latents_mean, config.latents_std))

    @torch.no_grad()
    def encode(video_BFHWC: np.ndarray) -> np.ndarray:
        mean_BCTHW, _ = net.encode(_channels_first(video_BFHWC), config)
        return (np.moveaxis(mean_BCTHW.numpy(), 1, -1) - mean_C) / std_C

    return encode


def noise_of(seed: int, step: int, shape: tuple[int, ...]) -> np.ndarray:
    """Draw what a step adds to its latents."""
    return np.random.default_rng((seed, step, 1)).standard_normal(shape, np.float32)


def gradient_of(
    config: vae.VAEConfig,
    weight: float,
    seed: int,
    dtype=torch.bfloat16,
    frozen: dict | None = None,
):
    """Return (params, step, video_BFHWC) -> (loss, gradient): of the pixels, and a small KL.

    The squared error is what PSNR measures; a tenth of the absolute keeps small errors in sight.

    Args:
      weight: of the KL. It sets how far latents may be off before it shows: the decoder is to draw
        what a transformer made.
      seed: of the noise, which differs at every step.
      dtype: of the convolutions; losses and sums are float32.
      frozen: the parts of the parameters that do not learn, such as {"encoder": ...}; `params` and
        the gradient are then of the others alone.
    """
    frozen = frozen or {}
    rules = vae.rules(config)
    learning = [rule for rule in rules if rule.path[0] not in frozen]
    names = {name for rule in learning for name in weights.keys(rule)}

    def gradient(params, step: int, video_BFHWC: np.ndarray):
        named = weights.to_tensors(jax.device_get(params | frozen), rules)
        tensors = {name: torch.tensor(x, requires_grad=name in names) for name, x in named.items()}
        x = _channels_first(video_BFHWC)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            net = Net(tensors)
            mean, logvar = net.encode(x, config)
            logvar = logvar.clamp(-30.0, 20.0)
            noise = noise_of(seed, step, tuple(mean.shape))
            # Drawn from the encoder's normal distribution; statistics are not measured yet.
            z = mean + torch.exp(0.5 * logvar) * torch.from_numpy(noise)
            error = net.decode(z, config) - x
        # KL(N(mean, var) || N(0, 1))
        kl = 0.5 * (mean**2 + torch.exp(logvar) - 1 - logvar)
        loss = (error**2).mean() + 0.1 * error.abs().mean() + weight * kl.mean()
        loss.backward()
        # Stills leave the time_convs out.
        grads = {
            name: np.zeros(named[name].shape, np.float32) if grad is None else grad.numpy()
            for name, grad in ((name, tensors[name].grad) for name in names)
        }
        return loss.item(), weights.to_params(grads, learning)

    return gradient
