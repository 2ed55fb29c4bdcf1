"""Who is in the photos: one identity a person, and one split an identity.

Letters: N photos, D entries of an embedding.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from typing import NamedTuple

import numpy as np
from scipy.cluster import hierarchy

from evoid_jax.data.folder import visible
from evoid_jax.data.rows import drawn_side
from evoid_jax.prepare.photos import Photo

# Cosine from which two faces are one person's: what OpenCV's tutorial on DNN-based face recognition
# gives for its SFace weights, from LFW, at 99.6 % right.
ALIKE = 0.363


NEEDED = ("evolution", "heldout", "validation")  # whom a lone person goes to first


class Person(NamedTuple):
    """One identity."""

    name: str
    split: str  # one of data.rows.SPLITS
    photos: list[Photo]


class Known(NamedTuple):
    """What an earlier call has fixed."""

    digests: dict[str, set[str]]  # of every person's photos
    splits: dict[str, str]  # of every person; none where the shares are others now
    were: dict[str, str]  # the splits as they were, whatever the shares


NOBODY = Known({}, {}, {})


def gather(
    photos: list[Photo],
    given: dict[str, str],
    known: Known,
    shares: dict[str, float],
    alike: float = ALIKE,
) -> list[Person]:
    """Tell who is who and who is in which split.

    Args:
      photos: of one face each.
      given: a person's name by the name of a photo, for those that the user has named.
      known: what an earlier call has fixed; it stays.
      shares: of the people in "validation" and in "heldout".
      alike: mean cosine from which two groups of photos are one person's.

    Returns:
      The people in order of name.
    """
    held: dict[str, list[Photo]] = {}
    for photo, name in zip(photos, identities(photos, given, known, alike), strict=True):
        held.setdefault(name, []).append(photo)
    split_of = splits(sorted(held), known.splits, shares)
    return [Person(name, split_of[name], held[name]) for name in sorted(held)]


def identities(photos: list[Photo], given: dict[str, str], known: Known, alike: float) -> list[str]:
    """Return the name of the person in each photo.

    A given name counts. Among the photos that look like one person, those without a name take that
    of the named photo that is most alike; where none has a name, the name that an earlier call gave
    to most of them, or a new one, made of the digests of their files.
    """
    embedding_ND = np.array([photo.look.embedding for photo in photos])
    names = [given.get(photo.name, "") for photo in photos]
    unnamed = []
    for members in groups(embedding_ND, alike):
        named = [i for i in members if names[i]]
        free = [i for i in members if not names[i]]
        if named:
            cosine_FN = embedding_ND[free] @ embedding_ND[named].T
            for i, nearest in zip(free, cosine_FN.argmax(1) if free else (), strict=True):
                names[i] = names[named[nearest]]
        else:
            unnamed.append(members)
    for members, name in _called(photos, unnamed, known, taken=set(names)):
        for i in members:
            names[i] = name
    return names


def groups(embedding_ND: np.ndarray, alike: float) -> list[list[int]]:
    """Group faces by average linkage: two groups are one while their mean cosine is `alike`.

    Returns:
      The indices of each group, in order of the first.
    """
    if len(embedding_ND) < 2:
        return [[i] for i in range(len(embedding_ND))]
    tree = hierarchy.linkage(embedding_ND, method="average", metric="cosine")
    label_N = hierarchy.fcluster(tree, t=1 - alike, criterion="distance")
    found: dict[int, list[int]] = {}
    for i, label in enumerate(label_N.tolist()):
        found.setdefault(label, []).append(i)
    return list(found.values())


def _called(
    photos: list[Photo], unnamed: list[list[int]], known: Known, taken: set[str]
) -> list[tuple[list[int], str]]:
    """Give every group a name; each known name goes to the group that has most of its photos."""
    digests = [{photos[i].look.digest for i in members} for members in unnamed]
    claims = [
        (-len(own & of_person), name, g)
        for g, own in enumerate(digests)
        for name, of_person in known.digests.items()
        if own & of_person and name not in taken
    ]
    names: dict[int, str] = {}
    for _, name, g in sorted(claims):
        if g not in names and name not in taken:
            names[g] = name
            taken = taken | {name}
    for g, own in enumerate(digests):
        if g not in names:
            names[g] = _fresh(min(own), taken)
            taken = taken | {names[g]}
    return [(members, names[g]) for g, members in enumerate(unnamed)]


def _fresh(digest: str, taken: set[str]) -> str:
    """Return a name of a digest's first digits, more where they are taken."""
    lengths = range(8, len(digest) + 1)
    return next(name for n in lengths if (name := f"person-{digest[:n]}") not in taken)


def splits(names: list[str], fixed: dict[str, str], shares: dict[str, float]) -> dict[str, str]:
    """Return the split of each person, drawn by the name alone as `config.data.heldout` does.

    A split that stays as an earlier call fixed it. A share above 0 sets at least one person apart
    where there are enough, and at least one evolves.
    """
    side = {name: fixed.get(name) or drawn_side(name, shares) for name in names}
    # Only those move who were not in an earlier call, in an order that nobody can choose.
    movable = sorted((name for name in names if name not in fixed), key=_lot)
    for rank, split in enumerate(NEEDED):
        if split in side.values() or not shares.get(split, 1):
            continue
        count = Counter(side.values())
        behind = NEEDED[rank:]  # these may lose their last one to it
        spare = [name for name in movable if count[side[name]] > 1 or side[name] in behind]
        if spare:
            side[max(spare, key=lambda name: count[side[name]])] = split
    return side


def _lot(name: str) -> str:
    return hashlib.sha256(f"set apart? {name}".encode()).hexdigest()


def cleaned(name: object, origin: str) -> str:
    """Return a person's name as prompts.jsonl takes it.

    Raises ValueError, which begins with `origin`, for what is no name.
    """
    if not isinstance(name, str) or not visible(name) or not name.isprintable():
        raise ValueError(f"{origin}: {name!r} is no name of a person; write letters")
    return unicodedata.normalize("NFC", name).strip()


class Pair(NamedTuple):
    """Two people who look alike."""

    one: str
    other: str
    cosine: float  # of their two most similar photos


def look_alikes(people: list[Person], alike: float = ALIKE) -> list[Pair]:
    """Return the people who have photos as alike as one person's, the most alike first."""
    arrays = [np.array([photo.look.embedding for photo in person.photos]) for person in people]
    found = []
    for i, one in enumerate(people):
        for j in range(i + 1, len(people)):
            cosine = float((arrays[i] @ arrays[j].T).max())
            if cosine >= alike:
                found.append(Pair(one.name, people[j].name, cosine))
    return sorted(found, key=lambda pair: -pair.cosine)


def strangers(person: Person, alike: float = ALIKE) -> list[Photo]:
    """Return the photos of a person that look like another one than the rest of them do."""
    embedding_ND = np.array([photo.look.embedding for photo in person.photos])
    if len(embedding_ND) < 2:
        return []
    others_N = ((embedding_ND @ embedding_ND.T).sum(1) - 1) / (len(embedding_ND) - 1)
    return [photo for photo, cosine in zip(person.photos, others_N, strict=True) if cosine < alike]
