"""Time one evolution update against a plain PyTorch one: same weights, same noise, same losses.

    python bench/step.py [--layers=8] [--heads=4] [--frames=6] [--size=32] [--videos=1] [--runs=5]

The PyTorch side is what one would write with diffusers and peft: one VACE model whose adapters are
switched for the stable, initial and evolving forwards, a T2V model as the teacher, the four-term
loss, backward, clipping, AdamW, EMA. Neither side recomputes activations; each has a process of its
own. Both must agree on every loss term and on the gradient's norm before anything is timed. Prints
medians in seconds, where PyTorch's time goes, and the ratio PyTorch / ours, the median over pairs
of neighbouring runs.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import made_up
import numpy as np
import timing
import torch
from peft import LoraConfig

from evoid_jax import config, evolve, sharding
from evoid_jax.models import adapters, lora, wan

MODULES = r"blocks\.\d+\.attn[12]\.(to_q|to_k|to_v|to_out\.0)"


def problem(args, c: wan.WanConfig, cfg: config.Config):
    """Return (base, state, scored) of our side: random weights, adapters apart, random videos."""
    base, inputs = made_up.base(c), made_up.latents(args, c)
    state = evolve.init(cfg, base, c)
    evolving, stable = (made_up.shaken(state.evolving, 1000 * i) for i in (1, 2))
    scored = evolve.Scored(
        clean_BTHWC=inputs.video_BTHWC,
        pair_B=jnp.arange(args.videos),
        reward_B=jax.random.uniform(jax.random.key(0), (args.videos,)),
        valid_B=jnp.ones(args.videos),
        text_PSE=inputs.text_BSE,
        null_1SE=inputs.text_BSE[:1],
        control_PTHWC=inputs.control_BTHWC,
    )
    state = state._replace(evolving=evolving, stable=stable)
    return jax.device_get((base, state, scored))


def draws(cfg: config.Config, scored: evolve.Scored):
    """Return the (time, noise) that our first update draws for every video; K is 1."""
    key = jax.random.fold_in(jax.random.key(cfg.seed), 0)
    t_B = evolve.times(jax.random.fold_in(key, evolve.TIMES), len(scored.pair_B), cfg)[:, 0]
    noise_key = jax.random.fold_in(key, evolve.NOISE)

    def noise(video):
        """Draw as `evolve.accumulate` does: by the video's place, and by the time's, here 0."""
        of_time = jax.random.fold_in(jax.random.fold_in(noise_key, video), 0)
        return jax.random.normal(of_time, scored.clean_BTHWC.shape[1:])

    return np.asarray(t_B), np.asarray(jax.vmap(noise)(jnp.arange(len(t_B))))


class Plain:
    """The update in PyTorch."""

    def __init__(self, c: wan.WanConfig, base, state, scored, drawn, cfg):
        self.model = made_up.torch_model(c, base)
        self.teacher = made_up.torch_model(c, base, vace=False)
        for part in (self.model, self.teacher):
            part.requires_grad_(False)
        self.adapters = {
            name: self._adapter(name, tree, cfg)
            for name, tree in (("stable", state.stable), ("evolving", state.evolving))
        }
        t, self.cfg = cfg.train, cfg
        self.adam = torch.optim.AdamW(
            self.adapters["evolving"].values(),
            lr=t.lr,
            betas=(t.b1, t.b2),
            eps=t.eps,
            weight_decay=t.weight_decay,
        )
        t_B, noise = drawn
        self.t_B = torch.from_numpy(t_B.copy())
        self.noise, self.x0, self.control = map(
            made_up.channels_first, (noise, scored.clean_BTHWC, scored.control_PTHWC)
        )
        self.text = made_up.all_rows(scored.text_PSE, c)
        self.reward = torch.from_numpy(scored.reward_B.copy())[:, None, None, None, None]

    def _adapter(self, name: str, tree, cfg) -> dict:
        rank = cfg.lora.rank
        shape = LoraConfig(r=rank, lora_alpha=rank, target_modules=MODULES)
        self.model.add_adapter(shape, name)
        held = {
            key.replace(f".{name}.weight", ".weight"): p
            for key, p in self.model.named_parameters()
            if f".{name}.weight" in key
        }
        adapter = lora.to_adapter(jax.device_get(tree), scale=1.0)
        for key, x in adapters.to_diffusers(adapter).items():
            held[key.removeprefix(adapters.PREFIX)].data.copy_(torch.from_numpy(x))
        return held

    def see(self, x_t, hints: bool = True):
        step, text = 1000 * self.t_B, self.text
        if not hints:  # the teacher sees no reference frame
            return self.teacher(x_t[:, :, 1:], step, text).sample
        seen = self.model(x_t, step, text, control_hidden_states=self.control)
        return seen.sample[:, :, 1:]

    def forwards(self):
        """Return the true velocity and those of the four roles."""
        t = self.t_B[:, None, None, None, None]
        x_t = (1 - t) * self.x0 + t * self.noise
        with torch.no_grad():  # one model, three roles: its adapters are switched
            self.model.set_adapter("stable")
            stable = self.see(x_t)
            self.model.disable_adapters()
            initial, teacher = self.see(x_t), self.see(x_t, hints=False)
            self.model.enable_adapters()
        self.model.set_adapter("evolving")
        return (self.noise - self.x0)[:, :, 1:], stable, initial, teacher, self.see(x_t)

    def update(self) -> dict[str, float]:
        v, stable, initial, teacher, evolving = self.forwards()
        loss, away = self.cfg.loss, self.cfg.loss.beta * (evolving - stable)
        # A good video pulls v_stb + beta (v_evo - v_stb) to the truth, a bad one its mirror image.
        good, bad = (stable + away - v) ** 2, (stable - away - v) ** 2
        terms = {
            "policy": (self.reward * good + (1 - self.reward) * bad).mean(),
            "t2v": ((evolving - teacher) ** 2).mean(),
            "self": ((evolving - initial) ** 2).mean(),
        }
        total = terms["policy"] + loss.lambda_t2v * terms["t2v"] + loss.lambda_self * terms["self"]
        self.adam.zero_grad(set_to_none=True)
        total.backward()
        learnt = self.adapters["evolving"]
        # The norm is computed and nothing is cut, as ours does while gradients are of usual length.
        norm = torch.nn.utils.clip_grad_norm_(learnt.values(), math.inf)
        self.adam.step()
        with torch.no_grad():  # stable <- decay stable + (1 - decay) evolving
            for key, p in self.adapters["stable"].items():
                p.lerp_(learnt[key], 1 - self.cfg.train.ema_decay)
        return {name: x.item() for name, x in terms.items()} | {"grad_norm": norm.item()}


class Ours:
    """The update as `train` makes it."""

    def __init__(self, model, base, state, scored, cfg):
        mesh = sharding.make_mesh(devices=jax.devices()[:1])
        # placed as `train` does; else the second call is compiled anew
        self.state, self.base, self.scored = sharding.replicate((state, base, scored), mesh)
        self.setup = evolve.Setup(cfg, model, mesh, references=1)

    def update(self) -> dict[str, float]:
        self.state, terms = evolve.train_step(
            self.state, self.base, self.scored, None, setup=self.setup
        )
        terms = jax.device_get(terms)
        named = terms["loss"] | {"grad_norm": terms["grad_norm"]}
        return {name: float(value) for name, value in named.items()}


def main():
    args = made_up.arguments(__doc__).parse_args()
    c = made_up.sizes(args)
    train = config.Train(timesteps=1, remat="none", videos_per_device=args.videos)
    cfg = config.Config(train=train)
    base, state, scored = problem(args, c, cfg)
    inputs = {"base": base, "state": state, "scored": scored, "cfg": cfg}
    plain = timing.Side(partial(Plain, c, drawn=draws(cfg, scored), **inputs))
    ours = timing.Side(partial(Ours, wan.Wan(c, remat="none"), **inputs))
    # Both make their first update, from one state with one noise, before anything is timed.
    a, b = ours.get("update"), plain.get("update")
    worst = max(abs(a[name] - b[name]) / abs(b[name]) for name in b)
    print(made_up.named(args, c))
    print(f"loss terms and gradient norm agree to {worst:.1e}")
    if worst > 1e-3:
        raise SystemExit(f"the two sides differ, nothing to compare: {a} {b}")
    forwards = plain.seconds("forwards")
    our, their, ratio = timing.in_turn(ours, plain, "update", args.runs)
    print(f"ours {our:.2f} s, PyTorch {their:.2f} s", end=" ")
    print(f"(its four forwards {forwards:.2f} s)")
    print(f"PyTorch / ours {ratio:.2f}")


if __name__ == "__main__":
    main()
