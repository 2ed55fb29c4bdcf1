"""Describe scenes of the tiny world in English. NumPy only."""

import numpy as np

from evoid_jax.world.people import BEARD_FROM, GLASSES_FROM, TINTS, Scene, trait, wording

HAIR_TONES = ("black", "brown", "auburn", "ginger", "blonde", "grey")
HAIR_LENGTHS = ("short", "shoulder-length", "long")
SHIRTS = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink")
SIDES = {-1: "left", 1: "right"}

# Each action's wordings; {how} is an amplitude word, {side} left or right.
DEEDS = {
    "nod": ("nods {how}", "nods the head up and down {how}"),
    "turn": ("turns the head {how} to the {side}", "looks {how} to the {side}"),
    "shake": ("shakes the head {how}", "shakes the head from side to side {how}"),
    "smile": ("smiles {how}", "starts to smile {how}"),
    "blink": ("blinks {how}", "blinks both eyes {how}"),
    "wave": ("waves a hand {how}", "raises a hand and waves {how}"),
    "walk": ("walks in {how} from the {side}", "comes walking in {how} from the {side}"),
    "lean": ("leans {how} to the {side}", "leans over {how} to the {side}"),
    "brows": ("raises the eyebrows {how}", "lifts both eyebrows {how}"),
    "talk": ("talks {how}", "talks {how} to the camera"),
}
AMOUNTS = (
    (0.5, ("slightly", "a little", "gently")),
    (0.75, ("clearly", "noticeably")),
    (np.inf, ("strongly", "a lot", "with great energy")),
)
PLACES = {
    "plain": ("in front of a plain {tint} wall", "before a {tint} wall"),
    "gradient": ("in front of a {tint} gradient", "before a soft {tint} gradient backdrop"),
    "stripes": ("in front of {tint} stripes", "before a wall with {tint} stripes"),
    "park": ("in a park", "outdoors in a green park"),
    "room": ("in a {tint} room", "inside a {tint} room with a window"),
    "sunset": ("at sunset", "outdoors at sunset"),
    "beach": ("at the beach", "on a sunny beach by the sea"),
    "night": ("at night", "outdoors at night under the moon"),
}
SHOTS = {
    "static": ("The camera is static.", "A static camera.", "The camera stays static."),
    "pan_left": ("The camera pans left.", "The camera slowly pans left."),
    "pan_right": ("The camera pans right.", "The camera slowly pans right."),
    "zoom_in": ("The camera zooms in.", "The camera slowly zooms in."),
    "zoom_out": ("The camera zooms out.", "The camera slowly zooms out."),
}
TEMPLATES = (
    "{who} {deed} {place}. {shot}",
    "A video of {who} who {deed} {place}. {shot}",
    "{place}, {who} {deed}. {shot}",
    "A portrait {place}: {who} {deed}. {shot}",
    "{shot} {who} {deed} {place}.",
)


def _names(value: float, names: tuple[str, ...], spans: bool = False) -> str:
    """Name a value in [0, 1]: by equal spans, or by the nearest of evenly spaced stops."""
    count = len(names)
    return names[min(count - 1, int(value * count) if spans else round(value * (count - 1)))]


def describe(identity: np.ndarray) -> dict[str, str]:
    """Name the visible traits of a person: hair, shirt, and glasses and beard if worn."""
    length = _names(trait(identity, "hair_length"), HAIR_LENGTHS, spans=True)
    shirt = _names(trait(identity, "shirt_hue"), SHIRTS)
    traits = {
        "hair": f"{length} {_names(trait(identity, 'hair_tone'), HAIR_TONES)} hair",
        "shirt": f"{'an' if shirt[0] in 'aeiou' else 'a'} {shirt} shirt",
    }
    if trait(identity, "glasses") > GLASSES_FROM:
        traits["glasses"] = "glasses"
    if trait(identity, "beard") > BEARD_FROM:
        traits["beard"] = "a beard"
    return traits


def _who(identity: np.ndarray, random: np.random.Generator) -> str:
    """Name the person: bare in a third of the prompts, else with one or two traits."""
    count = int(random.integers(3))
    # Sorted: the traits are named in one order, whichever are picked.
    traits = list(describe(identity).values())
    picked = [traits[i] for i in sorted(random.permutation(len(traits))[:count])]
    return " with ".join(["a person", " and ".join(picked)]) if picked else "a person"


def prompt(scene: Scene, seed: int | np.random.Generator | None = None) -> str:
    """Describe a scene in one or two English sentences.

    Args:
      scene: what is shown.
      seed: picks the words; an integer, a NumPy generator, or None for the scene's own seed.

    Returns:
      A prompt that names action, amount, background and camera move, and sometimes the person.
    """
    random = seed if isinstance(seed, np.random.Generator) else None
    if random is None:
        random = wording(scene.seed if seed is None else seed)

    # One draw per choice, always in this order: a seed gives one text.
    def pick(options):
        return options[random.integers(len(options))]

    amounts = next(words for limit, words in AMOUNTS if scene.amplitude < limit)
    side = SIDES[scene.side]
    text = pick(TEMPLATES).format(
        who=_who(scene.identity, random),
        deed=pick(DEEDS[scene.action]).format(how=pick(amounts), side=side),
        place=pick(PLACES[scene.background]).format(tint=list(TINTS)[scene.tint]),
        shot=pick(SHOTS[scene.camera]),
    )
    # Templates do not know what they start with: a place, a person or a camera.
    sentences = [part[:1].upper() + part[1:] for part in text.split(". ")]
    return ". ".join(sentences)
