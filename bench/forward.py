"""Time VACE forward, and forward with backward, against diffusers: same weights, same inputs.

    python bench/forward.py [--layers=8] [--heads=4] [--frames=6] [--size=32] [--runs=9]

The two in turn, each in a process of its own, float32; nothing is recomputed. The gradient is that
of the mean square of the velocity, with respect to every weight. Both sides must agree (relative L2
below 1e-5, gradients 1e-4) before anything is timed. Prints medians in milliseconds and the ratio
diffusers / ours, the median over pairs of neighbouring runs.
"""

from functools import partial

import jax
import jax.numpy as jnp
import made_up
import numpy as np
import timing
import torch

from evoid_jax.models import wan, weights


class Ours:
    """Hints and velocity, as a step computes them."""

    def __init__(self, c: wan.WanConfig, base, inputs: made_up.Latents, t_B: np.ndarray):
        model = wan.Wan(c, remat="none")

        def forward(base, inputs, t_B):
            x, text = inputs.video_BTHWC, inputs.text_BSE
            hints = wan.hints(model, base, None, x, t_B, text, inputs.control_BTHWC)
            return wan.velocity(model, base, None, x, t_B, text, hints)

        def loss(base, inputs, t_B):
            return jnp.square(forward(base, inputs, t_B)).mean()

        self.config = c
        self.base, self.inputs, self.t_B = jax.device_put((base, inputs, t_B))
        # The gradient's program computes no value that is not needed for it.
        self.run, self.grad = jax.jit(forward), jax.jit(jax.grad(loss))

    def forward(self) -> np.ndarray:  # a copy to the host: JAX returns before it has computed
        return np.asarray(self.run(self.base, self.inputs, self.t_B))

    def backward(self) -> None:
        jax.block_until_ready(self.grad(self.base, self.inputs, self.t_B))

    def gradients(self) -> dict[str, np.ndarray]:
        gradient = jax.device_get(self.grad(self.base, self.inputs, self.t_B))
        return weights.to_tensors(gradient, wan.rules(self.config))


class Theirs:
    """diffusers' model."""

    def __init__(self, c: wan.WanConfig, base, inputs: made_up.Latents, t_B: np.ndarray):
        self.model = made_up.torch_model(c, base)
        self.inputs = {
            "hidden_states": made_up.channels_first(inputs.video_BTHWC),
            "timestep": torch.from_numpy(t_B),
            "encoder_hidden_states": made_up.all_rows(inputs.text_BSE, c),
            "control_hidden_states": made_up.channels_first(inputs.control_BTHWC),
        }

    def see(self) -> torch.Tensor:
        return self.model(**self.inputs).sample

    @torch.inference_mode()
    def forward(self) -> np.ndarray:
        return np.moveaxis(self.see().numpy(), 1, -1)

    def backward(self) -> None:
        self.model.zero_grad(set_to_none=True)
        self.see().square().mean().backward()

    def gradients(self) -> dict[str, np.ndarray]:
        self.backward()
        return {name: p.grad.numpy() for name, p in self.model.named_parameters()}


def check(ours: timing.Side, theirs: timing.Side) -> None:
    """Print how far the two sides are apart; stop where that is too far."""
    # Named and laid out as diffusers' weights, so both are one vector in one order.
    a, b = ours.get("gradients"), theirs.get("gradients")
    flat = lambda tensors: np.concatenate([tensors[name].ravel() for name in b])
    error = made_up.apart(ours.get("forward"), theirs.get("forward"))
    slope = made_up.apart(flat(a), flat(b))
    print(f"relative L2: forward {error:.1e}, gradient {slope:.1e}")
    if error > 1e-5 or slope > 1e-4:
        raise SystemExit("the two sides differ, nothing to compare")


def main():
    args = made_up.arguments(__doc__, runs=9).parse_args()
    c = made_up.sizes(args)
    problem = {
        "c": c,
        "base": jax.device_get(made_up.base(c)),
        "inputs": made_up.latents(args, c),
        "t_B": np.linspace(900, 100, args.videos, dtype=np.float32),
    }
    ours, theirs = timing.Side(partial(Ours, **problem)), timing.Side(partial(Theirs, **problem))
    print(made_up.named(args, c))
    check(ours, theirs)
    for name, method in (("forward", "forward"), ("forward and backward", "backward")):
        our, their, ratio = timing.in_turn(ours, theirs, method, args.runs)
        print(f"{name}: ours {1e3 * our:.0f} ms, diffusers {1e3 * their:.0f} ms", end=" ")
        print(f"diffusers / ours {ratio:.2f}")


if __name__ == "__main__":
    main()
