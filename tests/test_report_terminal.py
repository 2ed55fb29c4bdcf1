"""Facts about the last lines of a training: what they say, and that they fit the terminal."""

import made_up
import numpy as np
import pytest

from evoid_jax import proof
from evoid_jax.report import folder
from evoid_jax.report.terminal import terminal_summary


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return folder.load(made_up.fill(tmp_path_factory.mktemp("tiny"), samples=0), videos=0)


def test_result_verdict_changes_and_next_command(finished):
    text, summary = terminal_summary(finished), finished.summary
    base, evolved = summary["base"]["total"], summary["evolved"]["total"]
    assert f"total {base:.3f} -> {evolved:.3f}, change {summary['delta_total']:+.3f}" in text
    assert "95 % interval +0." in text
    assert proof.verdict(summary)[1] in text
    for name in made_up.REWARDS:
        assert f"{name} {summary['delta'][name]['mean']:+.3f}" in text
    assert "motion -0." in text and "(LOWER)" in text
    assert "small stand-ins" in text and "no language model" in text
    assert f"--lora={finished.path}/export/pytorch_lora_weights.safetensors" in text
    assert "python -m evoid_jax.generate --model=tiny" in text
    assert text.isascii()


def test_command_takes_the_sizes_that_were_trained():
    config = {
        "model": "my model",
        "video": {"frames": 9, "height": 64, "width": 64, "fps": 8},
        "rollout": {"steps": 20, "shift": 3.0},
    }
    got = folder.next_command("runs/a b", config, "export/x.safetensors").split(" \\\n    ")
    assert got == [
        "python -m evoid_jax.generate '--model=my model'",
        "'--lora=runs/a b/export/x.safetensors'",
        "--frames=9 --height=64 --width=64 --fps=8 --steps=20 --shift=3.0",
        '--image=face.png --prompt="A person waves a hand." --output=out.mp4',
    ]


@pytest.mark.parametrize("identities", [1, 2, 9])
@pytest.mark.parametrize("rewards", [1, 8, 40])
def test_at_most_twelve_lines_of_at_most_100_columns(finished, rewards, identities):
    names = [f"a_reward_with_a_long_name_{m}" for m in range(rewards)]
    base_BM = np.full((identities, rewards), 0.4)
    evolved_BM = base_BM + 0.1
    evolved_BM[: identities // 2] = np.nan
    summary = proof.summary(
        names=names,
        prior_M=np.ones(rewards),
        base_BM=base_BM,
        evolved_BM=evolved_BM,
        cluster_B=[str(b) for b in range(identities)],
        monitor_base={name: base_BM[:, 0] for name in names},
        monitor_evolved={name: base_BM[:, 0] - 0.1 for name in names},
        steps=1,
        seconds={},
        heldout=proof.TRAINED,
    )
    video = {"video": {"frames": 81, "height": 480, "width": 832, "fps": 16}}
    config = {"model": "Wan2.1-VACE-14B-diffusers", "lora": {"init": "a"}} | video
    run = finished._replace(path="runs/x", summary=summary, config=config)
    lines = terminal_summary(run).split("\n")
    assert len(lines) <= 12 and max(map(len, lines)) <= 100
    assert "No verdict" in " ".join(lines)
    assert ("more in the report" in " ".join(lines)) == (rewards > 1)


def test_a_run_without_summary_says_only_where_its_adapter_is(finished):
    lines = terminal_summary(finished._replace(summary=None)).split("\n")
    assert lines[1].startswith("to generate") and len(lines) == 5
    assert "generate" not in terminal_summary(finished._replace(adapter=None))
