"""The command line of every entry point: one line for a mistake, every setting for `--help`.

`run` stands where absl's `app.run` would. It reads `--config=FILE[:NAME]` and its overrides, such
as `--config.train.lr=1e-3`, itself: absl and ml_collections meet a mistake in them with 50 lines of
traceback. What they say is left in `flags.FLAGS.config`, an ml_collections ConfigDict.
"""

from __future__ import annotations

import ast
import dataclasses
import math
import re
import runpy
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import ml_collections
from absl import app, flags
from ml_collections import config_flags

from evoid_jax import fields, files

HELP = {"--help", "-help", "-h", "-?", "--helpshort", "--helpfull"}
FLAG = re.compile(r"--?(?P<no>no)?config(?:\.(?P<name>[^=]*))?(?:=(?P<value>.*))?", re.DOTALL)
TRUTH = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
LISTS = "write it as first,second, without brackets, quotes and spaces"
MISSING = re.compile(r"Flag --(\w+) must have a value other than None")
EXAMPLE = "--config=configs/evoid.py:tiny"
WIDTH = 100  # of --help


class Words(NamedTuple):
    """A command line, taken apart."""

    file: str  # of --config; "" where it is not given
    # (name, value), names without the leading `config.`; a value is True for a bare --config.NAME
    # and False for --noconfig.NAME
    overrides: list[tuple[str, str | bool]]
    rest: list[str]  # all other arguments


def run(
    main: Callable[[list[str]], None],
    settings: type | None = None,
    default: str = "",
    expected: tuple[type[Exception], ...] = (ValueError, OSError),
) -> None:
    """Parse the command line and call `main(argv)` with what is left of it: the program, arguments.

    Exits with 2 for a mistake on the command line, with 1 for an error of `main` that its user can
    mend, and with 130 after Ctrl-C or the `code` of what was raised for another signal, each after
    one line.

    Args:
      main: the program; it may raise app.UsageError.
      settings: what --config gives: a dataclass of settings, which `--help` lists, or ConfigDict
        for settings that only their file describes. None: the program has no --config.
      default: what --config is where it is not given; "" requires it.
      expected: errors of `main` whose text tells the user what to do.
    """
    if HELP & set(sys.argv[1:]):
        print(describe(settings, default))
        return
    read = partial(parse, settings=settings, default=default)
    try:
        app.run(partial(_main, main, expected), flags_parser=read)
    except KeyboardInterrupt as stop:  # its text says what is saved, where there is one
        print(f"\n{str(stop) or 'stopped'}", file=sys.stderr)
        raise SystemExit(getattr(stop, "code", 130)) from None


def parse(argv: list[str], settings: type | None, default: str = "") -> list[str]:
    """Parse all flags into `flags.FLAGS`; returns the program and its other arguments.

    Raises:
      SystemExit: 2, for a mistake, after a line that says which.
    """
    try:
        if settings is not None:
            argv = flags.FLAGS.read_flags_from_files(argv, force_gnu=False)
            values, rest = configure(argv[1:], default)
            config_flags.DEFINE_config_dict("config", values.lock(), sys_argv=[])
            argv = [argv[0], *rest]
        rest = flags.FLAGS(argv)
        check_finite(flags.FLAGS)
        return rest
    except (flags.Error, ValueError, OSError) as error:
        _fail(str(error))


def check_finite(values: flags.FlagValues) -> None:
    """Raise a ValueError for a flag that is NaN, which lies in absl's bounds, or infinite."""
    for name in values:
        value = values[name].value
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"--{name} must be a finite number, got {value}")


def configure(args: list[str], default: str = "") -> tuple[ml_collections.ConfigDict, list[str]]:
    """Return what --config and its overrides among `args` give, and all other arguments.

    Raises:
      ValueError, OSError: no --config, no such file, a file that fails, no such setting (names the
        nearest), or a value of another type.
    """
    words = _split(args)
    spec = words.file or default
    if not spec:
        raise ValueError(f"--config is missing; give a file of settings, such as {EXAMPLE}")
    values = load(spec)
    known = [f"config.{name}" for name, _ in _settings(values)]
    for name in {name: None for name, _ in words.overrides}:
        texts = [text for other, text in words.overrides if other == name]
        group, key = _holder(values, name, known)
        group[key] = _value(group[key], texts, f"config.{name}")
    return values, words.rest


def config_file(path: str) -> Path:
    """Return a file of settings: the user's, or the one of `configs/` that ships with the package.

    Raises:
      FileNotFoundError: there is neither.
    """
    file = files.user_path(path)
    if file.is_file():
        return file
    # Beside the package in a checkout, in it where it is installed (see setup.py).
    shipped = fields.PACKAGE / "configs"
    shipped = shipped if shipped.is_dir() else fields.PACKAGE.parent / "configs"
    if file.parent == Path("configs") and (shipped / file.name).is_file():
        return shipped / file.name
    names = ", ".join(f"configs/{file.name}" for file in sorted(shipped.glob("[a-z]*.py")))
    raise FileNotFoundError(
        f"--config: there is no file {file.absolute()}; those that come with evoid_jax are {names}"
    )


def load(spec: str) -> ml_collections.ConfigDict:
    """Run a file of settings, FILE or FILE:NAME; returns what its `get_config()` does.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file fails; says in which line.
    """
    path, colon, name = spec.partition(":")
    file = config_file(path)
    try:
        held = runpy.run_path(str(file))
        if "get_config" not in held:
            raise ValueError(f"{file} must define get_config(), which returns a ConfigDict")
        values = held["get_config"](name) if colon else held["get_config"]()
    except ValueError as error:
        raise ValueError(f"--config={spec}: {error}") from None
    except Exception as error:  # it is the user's program
        line = _line(error, str(file))
        words = " ".join(str(error).split())
        raise ValueError(f"{file}, line {line}: {type(error).__name__}: {words}") from None
    if not isinstance(values, ml_collections.ConfigDict):
        raise ValueError(f"{file}: get_config() must return a ConfigDict, got {values!r}")
    return values


def _line(error: Exception, file: str) -> int | None:
    """Return the line of a file that an error came from, the innermost one."""
    if isinstance(error, SyntaxError):
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    return next((at.lineno for at in reversed(frames) if at.filename == file), None)


def _split(args: list[str]) -> Words:
    """Take `--config`, `--config.NAME`, `--noconfig.NAME` and their values out of the arguments."""
    words, left = Words("", [], []), list(args)
    while left:
        match = FLAG.fullmatch(arg := left.pop(0))
        if arg == "--":
            return words._replace(rest=[*words.rest, arg, *left])
        if not match or (match["no"] and not match["name"]):
            words.rest.append(arg)
            continue
        value = match["value"]
        if match["no"]:
            if value is not None:
                raise ValueError(f"{arg}: what begins with --no takes no value")
            value = False
        elif value is None and left and not left[0].startswith("--"):
            value = left.pop(0)  # --config.steps 5
        elif value is None:
            value = True if match["name"] else ""
        if match["name"] is None:
            words = words._replace(file=value)
        else:
            words.overrides.append((match["name"], value))
    return words


def change(values: ml_collections.ConfigDict, name: str, value: Any) -> None:
    """Set one of a file's settings by its dotted name, such as train.lr.

    Of what type it must be is left to whoever reads all of them.

    Raises:
      ValueError: there is no such setting; names the nearest.
    """
    known = [f"config.{name}" for name, _ in _settings(values)]
    group, key = _holder(values, name, known)
    with group.ignore_type():
        group[key] = value


def _holder(values: ml_collections.ConfigDict, name: str, known: list[str]) -> tuple[Any, str]:
    """Return the group that a dotted name is in and its last word; raise where there is no such."""
    *groups, key = name.split(".")
    group = values
    for word in groups:
        if not isinstance(group, ml_collections.ConfigDict) or word not in group:
            raise fields.unknown(f"config.{name}", known)
        group = group[word]
    if not isinstance(group, ml_collections.ConfigDict) or key not in group:
        raise fields.unknown(f"config.{name}", known)
    return group, key


def _settings(values: ml_collections.ConfigDict, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and the value of all settings and groups in a ConfigDict."""
    for key, value in values.items():
        yield path + key, value
        if isinstance(value, ml_collections.ConfigDict):
            yield from _settings(value, f"{path}{key}.")


def _value(old: Any, texts: list[str | bool], name: str) -> Any:
    """Read a setting's value in the type of its old one; the last of `texts`, or all for a list."""
    text = texts[-1]
    if isinstance(old, bool) and isinstance(text, bool):
        return text
    if bare := [text for text in texts if isinstance(text, bool)]:
        # A text would take it: the project of --config.wandb would be called "true".
        form = f"--{name}" if bare[0] else f"--no{name}"
        raise ValueError(f"{form} needs a value, as --{name}=VALUE; alone it is for True or False")
    if isinstance(old, ml_collections.ConfigDict):
        raise ValueError(f"{name} is a group of settings: {', '.join(old)}; set one of these")
    if isinstance(old, tuple | list):
        return type(old)(item for text in texts for item in _items(old, text, name))
    if isinstance(old, bool):
        if text.lower() not in TRUTH:
            raise ValueError(f"{name} must be True or False, got {text!r}")
        return TRUTH[text.lower()]
    for kind in (int, float):
        if isinstance(old, kind):
            return _number(kind, text, name)
    return text


def _number(kind: type, text: str, name: str) -> int | float:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{name} must be {fields.KINDS[kind]}, got {text!r}") from None


def _items(old: tuple | list, text: str, name: str) -> tuple:
    """Read a list: items between commas, in the type of the old ones, or as Python writes it."""
    if text.strip()[:1] in ("(", "["):
        try:
            held = ast.literal_eval(text.strip())
        except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
            raise ValueError(f"{name} must be a list, got {text!r}; {LISTS}") from None
        return tuple(held) if isinstance(held, tuple | list) else (held,)
    items = [item.strip() for item in text.split(",")]
    if old and isinstance(old[0], int):
        return tuple(_number(int, item, name) for item in items)
    return tuple(item for item in items if item)


def _main(main: Callable, expected: tuple[type[Exception], ...], argv: list[str]) -> None:
    try:
        main(argv)
    except app.UsageError as error:
        _fail(str(error))
    except expected as error:
        raise SystemExit(f"error: {error}") from error


def _fail(text: str) -> NoReturn:
    if missing := MISSING.findall(text):  # absl's words for a required flag
        text = "; ".join(f"--{name} is missing: {flags.FLAGS[name].help}" for name in missing)
    print(f"error: {text}", file=sys.stderr)
    raise SystemExit(2) from None


# --- help

SETTINGS = (
    "Settings. --config changes some of these defaults, and each can be set by itself, such as "
    "--config.train.lr=3e-4. Lists are written first,second. What is free may change when a run "
    "goes on in its --workdir."
)


def describe(settings: type | None, default: str = "") -> str:
    """Return the text of --help: what the program does, its flags, and every setting."""
    lines = [(sys.modules["__main__"].__doc__ or "").strip(), "", "Flags:"]
    if settings is not None:
        usual = f"default {default}" if default else f"such as {EXAMPLE.partition('=')[2]}"
        lines += _entry("--config=FILE[:NAME]", f"The settings; {usual}.")
    for flag in _own_flags():
        usual = f"  (default {flag.default_as_str})" if flag.default_as_str else ""
        lines += _entry(f"--{flag.name}{usual}", flag.help)
    if settings is ml_collections.ConfigDict:
        lines += ["", f"Settings, and what they are in {default}:"]
        values = load(default)
        group = ml_collections.ConfigDict
        held = [(name, value) for name, value in _settings(values) if not isinstance(value, group)]
        lines += [f"  --config.{name}={value}" for name, value in held]
    elif settings is not None:
        lines += ["", textwrap.fill(SETTINGS, WIDTH)]
        for name, leaf in fields.leaves(settings, "config").items():
            lines += _setting_lines(name, leaf)
    return "\n".join(lines)


def _own_flags() -> list[flags.Flag]:
    """Return the flags of this program and this package, not those of libraries."""
    modules = flags.FLAGS.flags_by_module_dict()
    return [
        flag
        for module, members in modules.items()
        if module in (sys.argv[0], "__main__") or module.startswith("evoid_jax")
        for flag in members
    ]


def _entry(head: str, text: str) -> list[str]:
    body = textwrap.wrap(text, WIDTH, initial_indent="      ", subsequent_indent="      ")
    return [f"  {head}", *body]


def _setting_lines(name: str, leaf: fields.Leaf) -> list[str]:
    """Describe one setting; of a table its rows, and then its columns."""
    kind, notes, default = leaf.kind, leaf.entry.metadata, leaf.entry.default
    if row := fields.row_of(kind):
        rows = ", ".join(known.name for known in default)
        text = f"{notes['words']}. ROW is one of {rows}, or of those that a file of settings adds"
        lines = _entry(f"--{name}.ROW", text)
        for column, inner in fields.leaves(row, f"{name}.ROW").items():
            lines += [] if column.endswith(".name") else _setting_lines(column, inner)
        return lines
    head = f"--{name}"
    if default is not dataclasses.MISSING:
        shown = ",".join(default) if isinstance(default, tuple) else default
        head += f"  (default {shown if shown != '' else repr('')})"
    free = "; free" if notes["free"] else ""
    return _entry(head, f"{notes['words']} [{fields.expected(kind, notes['bounds'])}{free}]")
