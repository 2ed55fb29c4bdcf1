"""Time one evolution update against a plain PyTorch one: same weights, same noise, same losses.

    python bench/step.py [--layers=8] [--heads=4] [--frames=6] [--size=32] [--videos=1] [--runs=5]

The PyTorch side is what one would write with diffusers and peft: one VACE model whose adapters are
switched for the stable, initial and evolving forwards, a T2V model as the teacher, the four-term
loss, backward, clipping, AdamW, EMA. Neither side recomputes activations. Both must agree on every
loss term and on the gradient's norm before anything is timed. Prints medians in seconds, where
PyTorch's time goes, and the ratio PyTorch / ours, the median over pairs of neighbouring runs.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import timing
import torch
from diffusers import WanTransformer3DModel, WanVACETransformer3DModel
from peft import LoraConfig

from evoid_jax import config, evolve, sharding
from evoid_jax.models import lora, wan, weights

MODULES = r"blocks\.\d+\.attn[12]\.(to_q|to_k|to_v|to_out\.0)"
TERMS = ("policy", "t2v", "self")


def sizes(args) -> wan.WanConfig:
    layers = tuple(range(0, args.layers, 2))  # every other block has a hint, as in VACE-1.3B
    return wan.WanConfig(
        args.heads, 128, args.layers, 4 * 128 * args.heads, text_dim=512, vace_layers=layers
    )


def problem(args, c: wan.WanConfig, cfg: config.Config):
    """Return (params, state, scored) of our side: random weights, adapters apart, random videos."""
    shake = lambda x, key: x + 0.02 * jax.random.normal(key, x.shape)
    model = wan.Wan(c, lora_scale=1.0, remat="none")
    base = shake_tree(wan.init(jax.random.key(0), model), shake, 1)
    state = evolve.init(cfg, base, c)
    evolving, stable = (shake_tree(state.evolving, shake, i) for i in (2, 3))
    keys = jax.random.split(jax.random.key(4), 4)
    shape = (args.videos, args.frames, args.size, args.size)
    scored = evolve.Scored(
        jax.random.normal(keys[0], (*shape, 16)),
        jnp.arange(args.videos),
        jax.random.uniform(keys[1], (args.videos,)),
        jnp.ones(args.videos),
        jax.random.normal(keys[2], (args.videos, args.words, c.text_dim)),
        jax.random.normal(keys[3], (*shape, 96)),
    )
    return model, base, state._replace(evolving=evolving, stable=stable), scored


def shake_tree(tree, shake, seed: int):
    leaves, kind = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return jax.tree.unflatten(kind, [shake(x, k) for x, k in zip(leaves, keys, strict=True)])


def draws(cfg: config.Config, scored: evolve.Scored):
    """Return the (time, noise) that our first update draws for every video; K is 1."""
    key = jax.random.fold_in(jax.random.key(cfg.seed), 0)
    t_B = evolve.times(jax.random.fold_in(key, evolve.TIMES), len(scored.pair_B), cfg)[:, 0]
    noise = jax.random.fold_in(key, evolve.NOISE)
    one = lambda i: jax.random.normal(
        jax.random.fold_in(jax.random.fold_in(noise, i), 0), scored.clean_BTHWC.shape[1:]
    )
    return np.asarray(t_B), np.asarray(jax.vmap(one)(jnp.arange(len(t_B))))


class Plain:
    """The update in PyTorch."""

    def __init__(self, c: wan.WanConfig, base, state, scored, cfg: config.Config):
        tensors = weights.to_tensors(jax.device_get(base), wan.rules(c))
        state_dict = {key: torch.from_numpy(x.copy()) for key, x in tensors.items()}
        self.model = WanVACETransformer3DModel.from_config(c.to_json())
        self.model.load_state_dict(state_dict)
        t2v = {k: v for k, v in c.to_json().items() if "vace" not in k}
        self.teacher = WanTransformer3DModel.from_config(t2v)
        main = {key: x for key, x in state_dict.items() if "vace" not in key}
        self.teacher.load_state_dict(main)
        for part in (self.model, self.teacher):
            part.eval().requires_grad_(False)
        self.adapters = {
            name: self._adapter(name, tree, cfg)
            for name, tree in (("stable", state.stable), ("evolving", state.evolving))
        }
        t, self.cfg = cfg.train, cfg
        self.adam = torch.optim.AdamW(
            self.adapters["evolving"].values(), t.lr, (t.b1, t.b2), t.eps, t.weight_decay
        )
        first = lambda x: torch.from_numpy(np.moveaxis(np.asarray(x), -1, 1).copy())
        t_B, noise = draws(cfg, scored)
        self.t_B, self.noise, self.x0 = (
            torch.from_numpy(t_B),
            first(noise),
            first(scored.clean_BTHWC),
        )
        rows = ((0, 0), (0, c.text_len - scored.text_PSE.shape[1]), (0, 0))  # as the pipeline does
        self.text = torch.from_numpy(np.pad(np.asarray(scored.text_PSE), rows))
        self.control = first(scored.control_PTHWC)
        self.reward = torch.from_numpy(np.asarray(scored.reward_B))[:, None, None, None, None]

    def _adapter(self, name: str, tree, cfg) -> dict:
        rank = cfg.lora.rank
        about = LoraConfig(r=rank, lora_alpha=rank, target_modules=MODULES)
        self.model.add_adapter(about, name)
        held = {
            key.replace(f".{name}.weight", ".weight"): p
            for key, p in self.model.named_parameters()
            if f".{name}.weight" in key
        }
        for key, x in lora.to_peft(jax.device_get(tree), rank, rank).items():
            held[key.removeprefix(lora.PREFIX)].data.copy_(torch.from_numpy(x))
        return held

    def see(self, x_t, hints: bool = True):
        if not hints:
            return self.teacher(x_t[:, :, 1:], 1000 * self.t_B, self.text).sample
        given = x_t, 1000 * self.t_B, self.text
        return self.model(*given, control_hidden_states=self.control).sample[:, :, 1:]

    def forwards(self):
        """Return the true velocity and those of the four roles."""
        t = self.t_B[:, None, None, None, None]
        x_t = (1 - t) * self.x0 + t * self.noise
        with torch.no_grad():
            self.model.set_adapter("stable")
            stable = self.see(x_t)
            self.model.disable_adapters()
            initial, teacher = self.see(x_t), self.see(x_t, hints=False)
            self.model.enable_adapters()
        self.model.set_adapter("evolving")
        return (self.noise - self.x0)[:, :, 1:], stable, initial, teacher, self.see(x_t)

    def __call__(self) -> dict[str, float]:
        v, stable, initial, teacher, evolving = self.forwards()
        loss, away = self.cfg.loss, self.cfg.loss.beta * (evolving - stable)
        toward = (
            self.reward * (stable + away - v) ** 2 + (1 - self.reward) * (stable - away - v) ** 2
        )
        anchors = (evolving - teacher) ** 2, (evolving - initial) ** 2
        terms = {n: x.mean() for n, x in zip(TERMS, (toward, *anchors), strict=True)}
        total = terms["policy"] + loss.lambda_t2v * terms["t2v"] + loss.lambda_self * terms["self"]
        self.adam.zero_grad(set_to_none=True)
        total.backward()
        learnt = self.adapters["evolving"]
        norm = torch.nn.utils.clip_grad_norm_(learnt.values(), self.cfg.train.clip_norm)
        self.adam.step()
        with torch.no_grad():
            for key, p in self.adapters["stable"].items():
                p.lerp_(learnt[key], 1 - self.cfg.train.ema_decay)
        return {name: x.item() for name, x in terms.items()} | {"grad_norm": norm.item()}


class Ours:
    """The update as `train` makes it."""

    def __init__(self, model, base, state, scored, cfg):
        mesh = sharding.make_mesh(devices=jax.devices()[:1])
        # placed as `train` does; else the second call is compiled anew
        self.state, self.base, self.scored = sharding.replicate((state, base, scored), mesh)
        self.static = dict(cfg=cfg, wan=model, mesh=mesh, references=1)

    def __call__(self) -> dict[str, float]:
        self.state, terms = evolve.train_step(self.state, self.base, self.scored, **self.static)
        return {name: float(x) for name, x in jax.device_get(terms).items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in dict(
        layers=8, heads=4, frames=6, size=32, words=24, videos=1, runs=5
    ).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    c = sizes(args)
    train = config.Train(timesteps=1, remat="none", videos_per_device=args.videos)
    cfg = config.Config(train=train)
    model, base, state, scored = problem(args, c, cfg)
    plain, ours = Plain(c, base, state, scored, cfg), Ours(model, base, state, scored, cfg)
    a, b = ours(), plain()
    worst = max(abs(a[name] - b[name]) / abs(b[name]) for name in b)
    if worst > 1e-3:
        raise SystemExit(f"the two sides differ by {worst:.1e}: {a} {b}")
    forwards = timing.seconds(plain.forwards)
    our, their, ratio = timing.in_turn(ours, plain, args.runs)
    tokens = args.frames * (args.size // 2) ** 2
    print(
        f"{args.videos} x {tokens} tokens, width {c.dim}, {args.layers} + {args.layers // 2} blocks"
    )
    print(f"loss terms and gradient norm agree to {worst:.1e}")
    print(f"ours {our:.2f} s, PyTorch {their:.2f} s", end=" ")
    print(f"(its four forwards {forwards:.2f} s)")
    print(f"PyTorch / ours {ratio:.2f}")


if __name__ == "__main__":
    main()
