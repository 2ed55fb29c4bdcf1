"""Whatever a value of a user's file is replaced by: the file is read, or an error names it.

The files and their readers are those that bench/fuzz.py fuzzes, which finds more and takes longer.
"""

import contextlib
import copy
import io
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "bench"))  # behind all else
from fuzz_targets import TARGETS

INSTEAD = (
    None,
    True,
    -1,
    1e308,
    float("nan"),
    10**400,
    "",
    "\ud800",
    "../x",
    [],
    [[]],
    {},
    {"": 0},
)
HELD = [name for name, target in TARGETS.items() if target.split]
SLOW = {
    "run": 13,
    "evaluated": 5,
    "model": 3,
    "tokenizer": 500,
}  # of their changes every so many is tried


def places(value, path=()):
    """Yield the path of every value in lists and objects of JSON."""
    yield path
    if isinstance(value, dict | list):
        for key, held in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(held, (*path, key))


def changed(rows: list, path: tuple, value) -> list:
    """Return rows with another value at a path of at least one key."""
    rows = copy.deepcopy(rows)
    holder = rows
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return rows


def inputs(name: str):
    """Yield what a target's whole files become, one value of one at a time."""
    target, count = TARGETS[name], 0
    for seed in target.seeds():
        rows, rest = target.split(seed)
        for path in list(places(rows))[1:]:
            for value in INSTEAD:
                count += 1
                if count % SLOW.get(name, 1) == 0:
                    yield path, value, target.join(changed(rows, path, value), rest)


@pytest.mark.parametrize("name", HELD)
def test_a_value_of_any_kind_is_read_or_named(name, tmp_path):
    target, answered = TARGETS[name], {"read": 0, "refused": 0}
    for path, value, data in inputs(name):
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                target.read(tmp_path, data)
            answered["read"] += 1
        except (ValueError, OSError) as error:
            assert str(error).strip() and target.called in str(error), (path, value, error)
            answered["refused"] += 1
        except Exception as error:
            raise AssertionError(f"{value!r:.20} at {path} gave {error!r}") from error
    assert answered["refused"] > 10 and answered["read"] > 0, answered
