"""Build the table of how runs were made and in which settings they differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from evoid_jax import metrics
from evoid_jax.report import origin
from evoid_jax.report import text as fmt
from evoid_jax.report.folder import RunFolder

ABSENT = "not there"


def section(runs: Sequence[RunFolder], names: Sequence[str]) -> str:
    """Return the section: what each run was made with, and the settings that are not the same."""
    heads = [fmt.escape(name) for name in names]
    made = fmt.table("", heads, _facts(runs))
    apart = differing([run.config or {} for run in runs])
    if apart:
        lines = [
            (f"<code>{fmt.escape(key)}</code>", [f"<code>{fmt.escape(v)}</code>" for v in values])
            for key, values in apart.items()
        ]
        made += fmt.table("setting", heads, lines)
    else:
        made += "<p class='empty'>The runs have the same settings.</p>"
    note = "Settings that are the same in all runs are left out."
    return fmt.section("made", "How the runs were made", f"<div class='wrapped'>{made}</div>", note)


def differing(configs: Sequence[Mapping]) -> dict[str, list[str]]:
    """Return the settings that differ, dotted, each with its value in every run."""
    flat = [dict(dotted(metrics.without_secrets(values))) for values in configs]
    keys = dict.fromkeys(key for values in flat for key in values if key != "digest")
    rows = {key: [values.get(key, ABSENT) for values in flat] for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def dotted(values: Mapping, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield ("a.b", JSON of the value) for every value of a nested config."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value, ensure_ascii=False)


def _facts(runs: Sequence[RunFolder]) -> list[tuple[str, list[str]]]:
    """Return what each run was made with, a line for each fact."""
    starts = [run.starts[-1] if run.starts else {} for run in runs]
    words = lambda values: [fmt.escape(value) for value in values]
    command = [f"<code>{fmt.escape(s.get('command') or origin.UNKNOWN)}</code>" for s in starts]
    code = [origin.git(s.get("git")) if s else origin.UNKNOWN for s in starts]
    return [
        ("steps", words(_steps(run) for run in runs)),
        ("command", command),
        ("code", words(code)),
        ("versions", words(origin.versions(s) for s in starts)),
        ("devices", words(origin.devices(s) for s in starts)),
        ("time", words(origin.times(run) for run in runs)),
        ("config digest", words(run.digest or origin.UNKNOWN for run in runs)),
    ]


def _steps(run: RunFolder) -> str:
    planned = (run.config or {}).get("steps")
    done = (run.summary or {}).get("steps") or len(run.steps)
    return str(done) if planned in (None, done) else f"{done} of {planned}"
