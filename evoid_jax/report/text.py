"""Format the numbers and texts of a report. A value that does not exist is a dash."""

import html
import math
import re
from collections.abc import Sequence

NONE, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
# What Python makes of a byte of a file's name that is no UTF-8, and no UTF-8 text can hold.
HALVES = re.compile("[\ud800-\udfff]")


def number(value, digits=3) -> str:
    """Format with `digits` significant digits, without exponent between 1e-3 and 1e6."""
    if value is None:
        return NONE
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        # digits after the point: all that are asked for, less those before it
        exponent = math.floor(math.log10(abs(value))) if value else 0
        text = f"{value:.{max(0, digits - 1 - exponent)}f}"
        return _trim(text) if "." in text else text
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{_trim(mantissa)}e{int(exponent)}"


def score(value) -> str:
    """Format a score with 3 decimals."""
    return NONE if value is None else f"{value:.3f}"


def share(value) -> str:
    """Format a share from 0 to 1 as a percentage."""
    return NONE if value is None else f"{value:.0%}"


def signed(value) -> str:
    """Format a change with its sign and 3 decimals."""
    return NONE if value is None else f"{value:+.3f}".replace("-", MINUS)


def interval(low, high) -> str:
    """Format the two ends of an interval of changes."""
    return NONE if low is None or high is None else f"{signed(low)} to {signed(high)}"


def duration(seconds) -> str:
    """Format seconds, as minutes from 100 seconds on and as hours from 100 minutes on."""
    if seconds < 100:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.1f} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"


def escape(text) -> str:
    """Make any text safe inside an element or a quoted attribute."""
    return html.escape(whole(text), quote=True)


def whole(text) -> str:
    """Return a text that can be written: a name's byte that is no UTF-8 becomes as \\xff."""
    return HALVES.sub(lambda half: f"\\x{ord(half[0]) & 0xFF:02x}", str(text))


def rows(table) -> str:
    """Put a table on a card; on a phone each row is a block, its cells named by their data-head."""
    return f"<div class='scroll rows'>{table}</div>"


def table(first: str, heads: Sequence[str], lines: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Return a table on a card; every argument is HTML already.

    first: what stands over the first column. lines: the head of each line, and its cells.
    """
    head = "".join(f"<th scope='col'>{name}</th>" for name in (first, *heads))
    body = ""
    for name, cells in lines:
        named = zip(heads, cells, strict=True)
        row = "".join(f"<td data-head='{title}'>{cell}</td>" for title, cell in named)
        body += f"<tr><th scope='row'>{name}</th>{row}</tr>"
    return rows(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")


def section(name, title, body, note="", extra="") -> str:
    """Return a section of the page; every argument is HTML already. extra stands by the title."""
    note = f"<p class='note'>{note}</p>" if note else ""
    head = f"<div class='head'><h2>{title}</h2>{extra}</div>{note}"
    return f"<section id='{name}' aria-label='{title}'>{head}{body}</section>"


def _trim(text):
    return text.rstrip("0").rstrip(".")
