"""Time VACE forward, and forward with backward, against diffusers: same weights, same inputs.

    python bench/forward.py [--layers=8] [--heads=4] [--frames=6] [--size=32] [--runs=9]

The two in turn, each in a process of its own, float32; nothing is recomputed. The gradient is that
of the mean square of the velocity, with respect to every weight. Both sides must agree (relative L2
below 1e-5, gradients 1e-4) before anything is timed. Prints medians in milliseconds and the ratio
diffusers / ours, the median over pairs of neighbouring runs.
"""

import jax
import jax.numpy as jnp
import made_up
import numpy as np
import timing
import torch

from evoid_jax.models import wan, weights


class Ours:
    """Hints and velocity, as a step computes them."""

    def __init__(self, c, base, given):
        model = wan.Wan(c, remat="none")

        def forward(base, x, t, text, control):
            hints = wan.hints(model, base, None, x, t, text, control)
            return wan.velocity(model, base, None, x, t, text, hints)

        self.config, self.given = c, jax.device_put((base, *given))
        self.run = jax.jit(forward)
        self.grad = jax.jit(jax.grad(lambda *given: jnp.square(forward(*given)).mean()))

    def forward(self) -> np.ndarray:
        return np.asarray(self.run(*self.given))

    def backward(self) -> None:
        jax.block_until_ready(self.grad(*self.given))

    def gradients(self) -> dict[str, np.ndarray]:
        gradient = jax.device_get(self.grad(*self.given))
        return weights.to_tensors(gradient, wan.rules(self.config))


class Theirs:
    """diffusers' model."""

    def __init__(self, c, base, given):
        self.model = made_up.torch_model(c, base)
        x, t, text, control = given
        self.args = made_up.channels_first(x), torch.from_numpy(t), made_up.all_rows(text, c)
        self.control = made_up.channels_first(control)

    def see(self) -> torch.Tensor:
        return self.model(*self.args, control_hidden_states=self.control).sample

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
    base, (x, control, text) = jax.device_get(made_up.base(c)), made_up.latents(args, c)
    given = x, np.linspace(900, 100, args.videos, dtype=np.float32), text, control
    ours, theirs = (timing.Side(side, c, base, given) for side in (Ours, Theirs))
    print(made_up.about(args, c))
    check(ours, theirs)
    for name, method in (("forward", "forward"), ("forward and backward", "backward")):
        our, their, ratio = timing.in_turn(ours, theirs, method, args.runs)
        print(f"{name}: ours {1e3 * our:.0f} ms, diffusers {1e3 * their:.0f} ms", end=" ")
        print(f"diffusers / ours {ratio:.2f}")


if __name__ == "__main__":
    main()
