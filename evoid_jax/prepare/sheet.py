"""The contact sheet: one page to look at, with who was found, in which split, and what was refused.

It holds its pictures and loads nothing. Everything that comes from a file's name is escaped.
"""

from __future__ import annotations

import base64
import html
from importlib import resources
from pathlib import Path

from evoid_jax import files
from evoid_jax.data.rows import SPLITS
from evoid_jax.prepare import crop, people, photos, refuse, write
from evoid_jax.prepare.people import Person
from evoid_jax.prepare.photos import Photo
from evoid_jax.prepare.refuse import Refused

TEMPLATE = "assets/contact_sheet.html"
TITLES = {
    "evolution": "evolution: trained on",
    "validation": "validation: watched while training",
    "heldout": "heldout: kept for the proof",
}


def write_sheet(
    out: Path,
    found: list[Person],
    refused: list[Refused],
    cuts: dict[str, crop.Cut],
    alike: float,
) -> Path:
    """Write contact_sheet.html; return its path.

    Args:
      out: the folder, whose cache has the small pictures.
      found, refused: what is shown.
      cuts: what is cut out of a photo, by its name.
      alike: cosine from which two people are shown as look-alikes.
    """
    cache = out / write.CACHE
    strange = {photo.name for person in found for photo in people.strangers(person, alike)}

    def card(photo: Photo) -> str:
        note = "unlike the others of this person" if photo.name in strange else ""
        side, sharp = refuse.side(photo.look.boxes[0]), photo.look.sharpness
        return _card(cache, photo, f"{side:.0f} px, sharpness {sharp:.2f}", note, cuts[photo.name])

    parts = [_pairs(people.look_alikes(found, alike))]
    for split in SPLITS:
        of_split = [person for person in found if person.split == split]
        body = "".join(_person(person, "".join(map(card, person.photos))) for person in of_split)
        parts.append(_section(f"{TITLES[split]}: {len(of_split)}", body))
    for kind in refuse.KINDS:
        cards = [_card(cache, one.photo, "", one.why) for one in refused if one.kind == kind]
        if cards:
            parts.append(_section(f"refused: {kind} ({len(cards)})", _grid("".join(cards))))
    template = resources.files("evoid_jax").joinpath(TEMPLATE).read_text("utf-8")
    with files.replacing(out / write.SHEET) as part:
        page = template.replace("@@BODY@@", "\n".join(parts))
        part.write_text(page, encoding="utf-8", errors="backslashreplace")  # names that are no text
    return out / write.SHEET


def _section(title: str, body: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>{body or '<p>nobody</p>'}</section>"


def _grid(cards: str) -> str:
    return f"<div class='grid'>{cards}</div>"


def _person(person: Person, cards: str) -> str:
    count = f"{len(person.photos)} photo{'s' * (len(person.photos) > 1)}"
    return f"<h3>{html.escape(person.name)} <small>{count}</small></h3>{_grid(cards)}"


def _pairs(pairs: list[people.Pair]) -> str:
    if not pairs:
        return ""
    lines = "".join(
        f"<li>{html.escape(pair.one)} and {html.escape(pair.other)} ({pair.cosine:.2f})</li>"
        for pair in pairs
    )
    note = "Are two of them one person? Then give both one name with --people."
    return _section("people who look alike", f"<p>{note}</p><ul>{lines}</ul>")


def _card(cache: Path, photo: Photo, facts: str, note: str, cut: crop.Cut | None = None) -> str:
    """Return one photo with its faces, what is cut out of it, and what to know."""
    look, name = photo.look, html.escape(photo.name)
    jpeg = photos.thumbnail(cache, look)
    picture = "<div class='hole'>no picture</div>"
    if jpeg is not None:
        data = base64.b64encode(jpeg).decode()
        frames = [_frame("face", box, look) for box in look.boxes]
        frames += [_frame("cut", cut.box, look)] if cut else []
        image = f"<img src='data:image/jpeg;base64,{data}' alt='{name}'>"
        picture = f"<div class='photo'>{image}{''.join(frames)}</div>"
    lines = [f"<b>{name}</b>", html.escape(facts)]
    lines += [f"<mark>{html.escape(note)}</mark>"] if note else []
    caption = "<br>".join(line for line in lines if line)
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"


def _frame(kind: str, box: photos.Box, look: photos.Look) -> str:
    """Return a frame over a picture, placed in percent of it, inside its edges."""
    x0, x1 = (min(max(x / look.width, 0), 1) for x in (box[0], box[2]))
    y0, y1 = (min(max(y / look.height, 0), 1) for y in (box[1], box[3]))
    place = f"left:{x0:.2%};top:{y0:.2%};width:{x1 - x0:.2%};height:{y1 - y0:.2%}"
    return f"<i class='{kind}' style='{place}'></i>"
