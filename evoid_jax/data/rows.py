"""What is known about pairs before a picture is decoded: who is who, and who is held out."""

from __future__ import annotations

import hashlib
import unicodedata
from typing import NamedTuple

SPLITS = ("evolution", "validation", "heldout")


class Picture(NamedTuple):
    """A picture's name in the folder, its file, its size upright, the digest of its bytes."""

    name: str
    file: str
    height: int  # pixels
    width: int
    digest: str


class Row(NamedTuple):
    """A pair without its pixels."""

    prompt: str
    origin: str  # what a message calls it, such as "prompts.jsonl, line 3"
    pictures: tuple[Picture, ...]
    identity: str = ""  # the person; "" until `identified`, where a line names nobody
    split: str = ""  # one of SPLITS; "" where none is named
    key: str = ""  # what an identity is drawn by when some are set apart


def identified(rows: list[Row]) -> list[Row]:
    """Fill in every row's identity and key.

    An identity that is named stays. Rows without a name show one person where they share a picture,
    be it through another row or under another file name; they take the name that a named row gives
    to such a picture, and are called by their first picture where none does.

    Raises:
      ValueError: one person has two names; the message tells both rows.
    """
    _refuse_two_names(rows)
    named = [row for row in rows if row.identity]
    unnamed = [row for row in rows if not row.identity]
    leader_of = _leaders(unnamed)
    groups: dict[str, list[Row]] = {}
    for row in unnamed:
        groups.setdefault(leader_of[row.pictures[0].digest], []).append(row)
    names = _names(named)
    filled = {row.origin: row._replace(key=row.identity) for row in named}
    for leader, group in groups.items():
        owner = _owner(group, names)
        identity = owner or f"picture {group[0].pictures[0].name}"
        key = owner or leader  # the bytes of a picture: its file may be renamed
        filled |= {row.origin: row._replace(identity=identity, key=key) for row in group}
    return [filled[row.origin] for row in rows]


def _names(rows: list[Row]) -> dict[str, dict[str, Row]]:
    """Map every picture's digest to the identities that rows give it, each with its first row."""
    names: dict[str, dict[str, Row]] = {}
    for row in rows:
        for picture in row.pictures:
            names.setdefault(picture.digest, {}).setdefault(row.identity, row)
    return names


def _leaders(rows: list[Row]) -> dict[str, str]:
    """Map every picture's digest to the least digest of those it is connected with by rows."""
    parent = {picture.digest: picture.digest for row in rows for picture in row.pictures}

    def leader(digest: str) -> str:
        while parent[digest] != digest:
            parent[digest] = parent[parent[digest]]  # a shorter way for the next one
            digest = parent[digest]
        return digest

    for row in rows:
        leaders = {leader(picture.digest) for picture in row.pictures}
        parent |= dict.fromkeys(leaders, min(leaders))
    return {digest: leader(digest) for digest in parent}


def _owner(group: list[Row], names: dict[str, dict[str, Row]]) -> str | None:
    """Return the identity that other rows give to pictures of a group's, if any."""
    owners: dict[str, Row] = {}
    for row in group:
        for picture in row.pictures:
            owners |= names.get(picture.digest, {})
    if len(owners) > 1:
        one, other = list(owners.values())[:2]
        raise ValueError(
            f'{group[0].origin}: its pictures belong to "{one.identity}" ({one.origin}) and to '
            f'"{other.identity}" ({other.origin}); give the line an "identity"'
        )
    return next(iter(owners), None)


def _refuse_two_names(rows: list[Row]) -> None:
    """Raise a ValueError where one name is written in two ways, or one picture has two names."""
    spelled: dict[str, Row] = {}
    shown: dict[frozenset[str], Row] = {}
    for row in rows:
        if not row.identity:
            continue
        seen = "".join(c for c in row.identity if unicodedata.category(c) != "Cf")  # zero-width
        plain = " ".join(unicodedata.normalize("NFKC", seen).casefold().split())
        first = spelled.setdefault(plain, row)
        if first.identity != row.identity:
            raise ValueError(
                f'{row.origin}: identity "{row.identity}" is written "{first.identity}" in '
                f"{first.origin}; write both alike"
            )
        first = shown.setdefault(frozenset(picture.digest for picture in row.pictures), row)
        if first.identity != row.identity:
            raise ValueError(
                f'{row.origin}: this picture of "{row.identity}" is one of "{first.identity}" in '
                f"{first.origin}; a person needs one identity"
            )


def split(rows: list[Row], validation: float, heldout: float) -> dict[str, list[Row]]:
    """Divide rows of known identity into SPLITS; no person is in two of them.

    Where a row names its split, that counts, and rows of the same person without one follow it;
    all others evolve. Otherwise about these shares of the people are set apart, drawn by their name
    alone, or by their picture where they have none. So more rows, another order or another seed
    move nobody across; only a row that gives somebody a name, or shows that two are one, may. Nor
    does the share of one split move anybody out of the other.

    Args:
      validation, heldout: shares of the people, each at least 0, and together below 1.

    Returns:
      The rows by split; those that nothing is asked for are empty.

    Raises:
      ValueError: a person or a picture in two splits, nobody in one of them, or both ways at once.
    """
    shares = {"validation": validation, "heldout": heldout}
    _check_shares(shares)
    first = next((row for row in rows if row.split), None)
    for name, share in shares.items():
        if first and share:
            raise ValueError(
                f'{first.origin} names its "split", and config.data.{name} is {share}: use only one'
            )
    if first:
        side = _named_sides(rows)
    else:
        side = {row.identity: drawn_side(row.key, shares) for row in rows}
    split_rows = {name: [row for row in rows if side[row.identity] == name] for name in SPLITS}
    people = len(side)
    if not split_rows["evolution"]:
        raise ValueError(f"all {people} identities are held out; leave some to train on")
    for name, share in shares.items():
        if share and not split_rows[name]:
            raise ValueError(
                f"config.data.{name}={share} holds out none of {people} identities; raise it, or "
                f'write "split": "{name}" in the lines of some'
            )
    _refuse_shared_pictures(split_rows)
    return split_rows


def _check_shares(shares: dict[str, float]) -> None:
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise ValueError(f"config.data.{name} must be at least 0 and below 1, got {share}")
    if not sum(shares.values()) < 1:
        each = " and ".join(f"config.data.{name}={share}" for name, share in shares.items())
        raise ValueError(f"{each} leave nobody to train on; together they must be below 1")


def drawn_side(key: str, shares: dict[str, float]) -> str:
    """Return the split of a person: held out from the low end of the draw, validation from the top.

    So neither share moves the border of the other.
    """
    place = _draw(key)
    if place < shares["heldout"]:
        return "heldout"
    return "validation" if place >= 1 - shares["validation"] else "evolution"


def _draw(key: str) -> float:
    """Return a number in [0, 1) that depends on the key alone."""
    digest = hashlib.sha256(f"held out? {key}".encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48


def _named_sides(rows: list[Row]) -> dict[str, str]:
    """Map every identity to its split: the one that its rows name, else evolution."""
    named: dict[str, Row] = {}
    for row in rows:
        first = named.setdefault(row.identity, row) if row.split else row
        if first.split != row.split:
            raise ValueError(
                f'{row.origin}: identity "{row.identity}" is in "{row.split}", but {first.origin} '
                f'puts the same person in "{first.split}"; a person belongs to one split'
            )
    return {row.identity: named.get(row.identity, row).split or SPLITS[0] for row in rows}


def _refuse_shared_pictures(split_rows: dict[str, list[Row]]) -> None:
    """Raise a ValueError for a picture in two splits, which two named people may share."""
    seen: dict[str, tuple[str, Row]] = {}
    for name, rows in split_rows.items():
        for row in rows:
            for picture in row.pictures:
                first_name, first = seen.setdefault(picture.digest, (name, row))
                if first_name != name:
                    raise ValueError(
                        f'{row.origin} is in "{name}", but its picture {picture.name} is in '
                        f'"{first_name}" in {first.origin}; a picture belongs to one split'
                    )


def beside(rows: list[Row], most: int) -> list[list[Picture]]:
    """Return for each row pictures of its person that are not its own.

    Args:
      rows: of one split, of known identity.
      most: how many pictures a row gets at most: those of the rows after it, from the first again.
    """
    of_person: dict[str, dict[str, Picture]] = {}
    for row in rows:
        shown = of_person.setdefault(row.identity, {})
        for picture in row.pictures:
            shown.setdefault(picture.digest, picture)
    return [_next(list(of_person[row.identity].values()), row, most) for row in rows]


def _next(shown: list[Picture], row: Row, most: int) -> list[Picture]:
    """Return the pictures of a person that follow a row's own, as in a ring."""
    own = {picture.digest for picture in row.pictures}
    place = next(k for k, picture in enumerate(shown) if picture.digest in own)
    ring = shown[place:] + shown[:place]
    return [picture for picture in ring if picture.digest not in own][:most]
