"""Tell what the tiny world's clips score: as drawn, through the model's VAE, and as it makes them.

    python bench/world.py [--model=evoid_jax/assets/tiny] [--people=32] [--split=validation]

The clips are those that the split's prompts describe, one of each person, so that the numbers stand
beside `base` and `evolved` of a run's summary.json. The rows: the true clips; the same through the
VAE; clips as found beside photos (evoid_jax/world/found.py), posed or moving; the base's own clips,
without guidance; and the T2V teacher's. With each row goes the correlation of likeness and motion
over its clips, and in the end the PSNR. Settings are tuned on the split `validation`; those of
`pretrain` are people that the T2V blocks learned from.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from evoid_jax import flow, rollout
from evoid_jax.models import vae, wan
from evoid_jax.sidecars import preset, wire
from evoid_jax.sidecars.tiny import rewards as tiny
from evoid_jax.world import found, portraits

FRAMES, SIZE = 9, 64
SHIFT, STEPS = 3.0, 20  # of the preset `tiny`
AT_ONCE = 16  # videos


def reconstruct(frozen, video_BFHWC: np.ndarray) -> np.ndarray:
    """Encode and decode uint8 videos."""
    x = jnp.asarray(video_BFHWC, jnp.float32) / 127.5 - 1
    return np.asarray(rollout.decode(frozen, vae.encode(frozen.vae_params, frozen.vae_config, x)))


def generate(frozen, scenes, of_teacher: bool) -> np.ndarray:
    """Make the scenes' clips from photo and prompt, or by the teacher from the prompt alone."""
    table = flow.schedule("unipc", STEPS, SHIFT)
    text_BSE = rollout.encode_text(frozen, [portraits.prompt(scene) for scene in scenes])
    shape = rollout.latent_shape(frozen, FRAMES, SIZE, SIZE, references=int(not of_teacher))
    noise_BTHWC = rollout.noise(np.arange(len(scenes)), shape)
    if of_teacher:

        def velocity(x, timestep):
            t_B = jnp.full(x.shape[:1], timestep)
            return wan.velocity(frozen.wan, frozen.wan_params, None, x, t_B, text_BSE)

        latents = jax.jit(lambda noise: flow.solve(table, velocity, noise))(noise_BTHWC)
        return np.asarray(rollout.decode(frozen, latents))
    photos = [[portraits.reference(scene.identity)] for scene in scenes]
    control = rollout.control(frozen, photos, FRAMES, SIZE, SIZE)
    latents = rollout.sample(
        frozen.wan, frozen.wan_params, None, text_BSE, None, control, noise_BTHWC, table, 0.0
    )
    return np.asarray(rollout.decode(frozen, latents[:, 1:]))


def columns(scorers, scenes, video_BFHWC: np.ndarray) -> dict[str, np.ndarray]:
    """Return each clip's score by each reward and monitor."""
    request = wire.ScoreRequest(
        videos=list(video_BFHWC),
        reasons=[None] * len(scenes),
        references=[[portraits.reference(scene.identity)] for scene in scenes],
        prompts=[portraits.prompt(scene) for scene in scenes],
        attributes=[scene.identity for scene in scenes],
        fps=8.0,
        rewards=None,  # all of them
        monitors=True,
    )
    reply = preset.answer(scorers, request)
    made = {name: entry["score"] for name, entry in reply["scores"].items()} | reply["monitor"]
    return {name: np.array(column, float) for name, column in made.items()}


def report(name: str, column: dict[str, np.ndarray]) -> None:
    """Print the mean scores, and how likeness and motion go together over the clips."""
    likeness_B = (column["arcface"] + column["curricularface"]) / 2
    together = np.corrcoef(likeness_B, column["motion"])[0, 1]
    means = {key: round(float(value.mean()), 3) for key, value in column.items()}
    print(f"{name}: {means}, likeness with motion {together:+.2f}", flush=True)


def pairs_of(scenes, posed: float) -> list[portraits.Scene]:
    """Return what clips found beside the scenes' photos show."""
    return [found.found(s, posed, 0.1, np.random.default_rng(i)) for i, s in enumerate(scenes)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="evoid_jax/assets/tiny")
    parser.add_argument("--people", type=int, default=32)
    parser.add_argument("--split", default="heldout", choices=("validation", "heldout", "pretrain"))
    args = parser.parse_args()
    scenes = [portraits.scene(i, 0) for i in portraits.SPLITS[args.split][: args.people]]
    some = [scenes[i : i + AT_ONCE] for i in range(0, len(scenes), AT_ONCE)]
    frozen, scorers = rollout.load(args.model), tiny.load()
    draw = lambda drawn: np.stack([portraits.render(scene) for scene in drawn])
    true = draw(scenes)
    back = np.concatenate([reconstruct(frozen, draw(part)) for part in some])
    report("true", columns(scorers, scenes, true))
    report("through the VAE", columns(scorers, scenes, back))
    report("found, posed", columns(scorers, scenes, draw(pairs_of(scenes, posed=1.0))))
    report("found, moving", columns(scorers, scenes, draw(pairs_of(scenes, posed=0.0))))
    for name, of_teacher in (("base", False), ("teacher", True)):
        made = np.concatenate([generate(frozen, part, of_teacher) for part in some])
        report(name, columns(scorers, scenes, made))
    mse_B = np.square((true / 255.0) - (back / 255.0)).mean((1, 2, 3, 4))
    # PSNR = 10 log10(peak^2 / mse), the peak being 1
    print(f"PSNR {np.mean(-10 * np.log10(mse_B)):.2f} dB")


if __name__ == "__main__":
    main()
