"""Build the parts of a report that say what a run's numbers rest on: its rewards, how it was made.

`notes` are the sentences at the top of the page that nobody should miss; `rewards` and `made` are
sections. What is not recorded is called unknown, never left out.
"""

import shlex
from datetime import UTC, datetime
from pathlib import Path

from evoid_jax import proof, provenance
from evoid_jax.metrics import get
from evoid_jax.report import folder
from evoid_jax.report import text as fmt
from evoid_jax.report.folder import RewardRow, RunFolder
from evoid_jax.reward_groups import EVOSCORE, JUDGE
from evoid_jax.rewards import judge_record

UNKNOWN = "unknown"
JUDGED = {  # the rewards that no sidecar gives but the judge
    JUDGE: "the mean grade that the judge gives a video",
    EVOSCORE: "the harmonic mean of the worst grades in identity, prompt and technique",
}
PICKED = (
    "the first pairs of the list in its own order, each with its first seed; they were chosen "
    "before anything was generated, and no score had a say"
)


def notes(run: RunFolder) -> list[str]:
    """Return, in plain words, what keeps this run's numbers from meaning what they seem to."""
    words = []
    small = stand_ins(run)
    if small:
        others = {reward.name for reward in run.rewards if reward.sources} - set(small)
        of_all = "Some rewards" if others else "The rewards"
        words.append(
            f"{of_all} are small stand-ins, not the published models whose roles they have: "
            f"{', '.join(small)}. {_reach(run, small)}"
        )
    if judge_is_heuristic(run):
        words.append("The judge is a heuristic of plain measurements, no language model.")
    init = get(run.config or {}, "lora", "init")
    if init:
        words.append(
            f"The run started from the adapter {init}. Base is the model with it, so that the "
            "change from base to evolved is what this run added."
        )
    return words


def stand_ins(run: RunFolder) -> list[str]:
    """Return the rewards that call themselves stand-ins in /info, or are of preset `tiny`."""
    # What a sidecar said of itself goes before what a config's words suggest.
    known = [reward for reward in run.rewards if reward.sources]
    if known:
        return [reward.name for reward in known if any(map(_is_stand_in, reward.sources))]
    # An older run without run.json: its config tells, if all rewards came from that preset.
    config = run.config or {}
    local = get(config, "reward", "sidecars") == ["local"]
    tiny = get(config, "reward", "preset") == "tiny"
    return [row.name for row in run.rewards if local and tiny and row.name not in JUDGED]


def _reach(run: RunFolder, names: list[str]) -> str:
    """Say in a sentence what the numbers of these stand-ins do not compare with."""
    sources = [one for reward in run.rewards if reward.name in names for one in reward.sources]
    if all(one.get("preset") == "tiny" for one in sources):
        return "Their numbers mean little outside of drawn portraits, which they were trained on."
    return "None of their numbers compares with the paper's or the benchmark's."


def judge_is_heuristic(run: RunFolder) -> bool:
    """Tell whether the judge is the project's own heuristic, which only speaks like a model."""
    return judge_model(run) == provenance.HEURISTIC


def rewards(run: RunFolder, hues) -> str:
    """Return the table of the run's rewards: group, prior, and which model gave the scores."""
    if not run.rewards:
        return ""
    mass = sum(reward.prior or 0.0 for reward in run.rewards)
    rows = "".join(_reward_row(reward, mass, hues, run) for reward in run.rewards)
    heads = ("reward", "group", "prior", "model and version", "what it is")
    head = "".join(f"<th scope='col'>{name}</th>" for name in heads)
    note = (
        "Each sidecar says of itself what its rewards are. The prior is a reward's share of the "
        f"total before the judge moves the weights. Judge: {fmt.escape(_judge(run))}"
        f"{fmt.escape(_asked(run))}."
    )
    body = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return fmt.section("scorers", "What the rewards are", fmt.rows(body), note)


def made(run: RunFolder) -> str:
    """Return how the run was made and how its adapter is used."""
    start = run.starts[-1] if run.starts else {}
    facts = [
        ("Command", f"<code>{fmt.escape(start.get('command') or UNKNOWN)}</code>"),
        ("Code", fmt.escape(git(start.get("git")) if start else UNKNOWN)),
        ("Versions", fmt.escape(versions(start))),
        ("Devices", fmt.escape(devices(start))),
        ("Time", fmt.escape(times(run))),
        ("Videos shown", fmt.escape((run.summary or {}).get("shown") or PICKED)),
        ("Adapter", _adapter(run)),
    ]
    if len(run.starts) > 1:
        facts.insert(1, ("Starts", fmt.escape(_resumed(run.starts))))
    body = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)
    return fmt.section("made", "How this run was made", f"<dl class='made'>{body}</dl>")


def _is_stand_in(source) -> bool:
    if source.get("about"):  # in preset tiny, optical flow is no stand-in
        return str(source["about"]).startswith("stand-in")
    return source.get("preset") == "tiny"


def _reward_row(reward: RewardRow, mass: float, hues, run) -> str:
    share = UNKNOWN if reward.prior is None or not mass else f"{reward.prior / mass:.0%}"
    if reward.sources:
        models = "; ".join(_source(source) for source in reward.sources)
        words = "; ".join(str(source.get("about") or UNKNOWN) for source in reward.sources)
        if len(reward.sources) > 1:
            words += " (replicas that answer differently: their scores do not compare)"
    elif reward.name in JUDGED:
        models, words = _judge(run), JUDGED[reward.name]
    else:
        models, words = UNKNOWN, UNKNOWN
    cells = (reward.group or UNKNOWN, share, models, words)
    heads = ("group", "prior", "model and version", "what it is")
    return (
        f"<tr><th scope='row'><i style='--c:{hues[reward.name]}'></i>"
        f"{fmt.escape(reward.name)}</th>"
        + "".join(
            f"<td data-head='{head}'>{fmt.escape(cell)}</td>"
            for head, cell in zip(heads, cells, strict=True)
        )
        + "</tr>"
    )


def _source(source) -> str:
    digest = f", sha256 {str(source['sha256'])[:12]}" if source.get("sha256") else ""
    preset = f"preset {source.get('preset') or UNKNOWN}"
    return f"{preset}, version {source.get('version') or UNKNOWN}{digest}"


def judge_model(run: RunFolder) -> str | None:
    """Return the judge's model; None where there was none, or where it is not recorded."""
    if run.starts:
        judge = run.starts[-1].get("judge")
        return judge.get("model") if isinstance(judge, dict) else None
    config = run.config or {}
    return get(config, "reward", "judge_model") if get(config, "reward", "judge") else None


def _judge(run) -> str:
    model = judge_model(run)
    if model is None:
        return "none" if run.starts or get(run.config or {}, "reward", "judge") == "" else UNKNOWN
    return f"{model}, no language model" if model == provenance.HEURISTIC else str(model)


def _asked(run) -> str:
    """Say what asking the judge took in all steps; "" where nothing is recorded."""
    usages = [step["judge"] for step in run.steps if step.get("judge")]
    if not usages:
        return ""
    total = judge_record.total(usages)
    told = {name: UNKNOWN if count is None else f"{count:,.0f}" for name, count in total.items()}
    return (
        f"; in {len(usages)} steps {told['calls']} requests with {told['prompt_tokens']} tokens "
        f"and {told['answer_tokens']} answered, {told['cached']} answers kept from before, "
        f"{told['failures']} questions without an answer"
    )


def git(git) -> str:
    """Say which commit the code was."""
    if not isinstance(git, dict):
        return "in no git repository"
    return f"commit {git.get('commit')}" + (", with changes" if git.get("changed") else "")


def versions(start) -> str:
    """Say which versions of the libraries a start had."""
    known = start.get("versions")
    if not isinstance(known, dict):
        return UNKNOWN
    return ", ".join(f"{name} {value or 'not installed'}" for name, value in known.items())


def devices(start) -> str:
    """Say on what a start ran."""
    rows, processes = start.get("devices"), start.get("processes")
    if not rows:
        return UNKNOWN
    kinds = ", ".join(f"{row.get('count')} x {row.get('kind')}" for row in rows)
    return f"{kinds}, {processes} process" + ("" if processes == 1 else "es")


def times(run) -> str:
    """Say when a run was made, and how many hours it took."""
    if not run.starts:
        return UNKNOWN
    first, last = run.starts[0].get("start"), run.starts[-1].get("end")
    hours = [_hours(start) for start in run.starts]
    known = [each for each in hours if each is not None]
    spent = f", {sum(known):.2f} hours" if known else ""
    if known and (cut := len(hours) - len(known)):
        spent += f" and those of {cut} start{'s' * (cut != 1)} whose end is not recorded"
    return f"{first or UNKNOWN} to {last or 'now, or it was stopped'}{spent}"


def _hours(start) -> float | None:
    try:
        ends = [datetime.strptime(start[key], "%Y-%m-%dT%H:%M:%SZ") for key in ("start", "end")]
    except (KeyError, TypeError, ValueError):
        return None
    begin, end = (moment.replace(tzinfo=UTC) for moment in ends)
    return (end - begin).total_seconds() / 3600


def _resumed(starts) -> str:
    """Say how often a run was started, and what was not the same each time."""
    watched = ("command", "git", "versions", "devices", "processes", "rewards", "judge")
    changed = [key for key in watched if any(one.get(key) != starts[0].get(key) for one in starts)]
    steps = ", ".join(str(start.get("step", UNKNOWN)) for start in starts)
    same = f"not the same each time: {', '.join(changed)}" if changed else "alike each time"
    return f"{len(starts)} (from step {steps}), {same}"


def _adapter(run) -> str:
    if run.adapter is None:
        return "none is written yet"
    command = fmt.escape(folder.next_command(run.path, run.config, run.adapter))
    path = fmt.escape(shlex.quote(str(Path(run.adapter))))
    other = " The numbers here may be of an earlier one." if run.outdated else ""
    return f"<code>{path}</code> in the run folder.{other} To generate with it:<pre>{command}</pre>"


def evidence(summary) -> str:
    """Say how many identities the two arms were compared on, and which."""
    count = summary.get("identities")
    many = UNKNOWN if count is None else count
    return f"identities: {many} ({proof.measured_on(summary)})"
