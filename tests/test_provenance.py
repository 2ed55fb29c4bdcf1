"""Facts about run.json: what is recorded of a start, that starts add up, and that no secret is."""

import json
import subprocess

import made_up
import pytest
import small_run

from evoid_jax import metrics, provenance, train

SECRETS = ("hunter2", "sk-123")


def test_a_start_has_command_code_versions_and_devices():
    start = made_up.start()
    assert start["command"] == "python -m evoid_jax.train --config=configs/evoid.py:tiny"
    assert start["devices"] == [{"kind": "TPU v6 lite", "platform": "tpu", "count": 4}]
    assert start["processes"] == 2 and start["step"] == 0 and start["end"] is None
    assert {"python", "jax", "flax", "numpy", "evoid_jax"} <= set(start["versions"])
    assert start["monitors"] == ["identity", "motion"]
    json.dumps(start, allow_nan=False)


def test_rewards_are_those_of_the_table_with_what_their_sidecars_say():
    rewards = {row["name"]: row for row in made_up.start()["rewards"]}
    assert list(rewards) == list(made_up.REWARDS)
    assert rewards["gme"]["group"] == "text" and rewards["gme"]["prior"] == 0.15
    (source,) = rewards["gme"]["sources"]
    assert (source["preset"], source["version"], source["address"]) == ("tiny", "tiny-1", "local")
    assert rewards["vqscore"]["sources"] == []  # no sidecar offers it


def test_replicas_that_answer_alike_are_one_source():
    table = [made_up.Metric("a", "text", 1.0)]
    one = {"preset": "p", "rewards": [{"name": "a", "version": "1"}]}
    other = {"preset": "p", "rewards": [{"name": "a", "version": "2"}]}
    count = lambda *infos: len(
        provenance.collect(
            ["x"],
            [],
            table=table,
            sidecars=[(f"http://h:{i}", info) for i, info in enumerate(infos)],
        )["rewards"][0]["sources"]
    )
    assert (count(one, one), count(one, other)) == (1, 2)


TABLE = [made_up.Metric("a", "text", 1.0), made_up.Metric("b", "text", 1.0)]


def offered(**versions):
    rewards = [
        {"name": name, "version": version, "sha256": "0123456789abcdef"}
        for name, version in versions.items()
    ]
    return [("local", {"preset": "p", "rewards": rewards})]


def test_a_run_goes_on_with_the_versions_that_it_began_with(tmp_path):
    provenance.check_versions(tmp_path, TABLE, offered(a="1"))  # there is no run yet
    start = provenance.collect(["x"], [], table=TABLE, sidecars=offered(a="1", b="1"))
    provenance.write(tmp_path, start)
    provenance.check_versions(tmp_path, TABLE, offered(a="1", b="1"))
    provenance.check_versions(tmp_path, TABLE, offered(a="1"))  # who is there is checked elsewhere
    twice = [*offered(a="1", b="1"), *offered(a="2")]
    words = r"a was 1 \(0123456789ab\), is 1 .* and 2 .*reward.versions=any"
    with pytest.raises(ValueError, match=words):
        provenance.check_versions(tmp_path, TABLE, twice)
    with pytest.raises(ValueError, match=r"rewards would not compare: b was 1 .*, is without one"):
        provenance.check_versions(tmp_path, TABLE, offered(a="1", b=""))


def test_a_run_goes_on_with_the_pairs_that_it_began_with(tmp_path):
    provenance.check_data(tmp_path, "a")  # there is no run yet
    provenance.write(tmp_path, provenance.collect(["x"], []))
    provenance.check_data(tmp_path, "a")  # it did not say
    provenance.write(tmp_path, provenance.collect(["x"], [], data="a"))
    provenance.check_data(tmp_path, "a")
    with pytest.raises(ValueError, match=r"^config\.data: its people, prompts or pictures are not"):
        provenance.check_data(tmp_path, "b")


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("http://me:hunter2@host:80/v1", "http://host:80/v1"),
        ("https://me:hunter2@sk-123@host/v1", "https://host/v1"),
        ("http://host/v1?key=hunter2&b=sk-123", "http://host/v1?key=***&b=***"),
        ("--config.reward.judge=http://me:hunter2@host", "--config.reward.judge=http://host"),
        ("--api_key=hunter2", "--api_key=***"),
        ("('http://a:hunter2@b','http://c')", "('http://b','http://c')"),
        ("--config.model.tokenizer=a?b=c", "--config.model.tokenizer=a?b=c"),
        ("mail me@home.org", "mail me@home.org"),
    ],
)
def test_secrets_are_cut_out_of_texts(text, clean):
    assert metrics.without_secrets(text) == clean
    assert metrics.without_secrets({"x": [text, 1]}) == {"x": [clean, 1]}


def test_no_secret_reaches_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "hunter2")
    address = "http://me:hunter2@host/v1?token=sk-123"
    argv = ["evoid_jax/train.py", "--config.reward.judge", address, f"--x={address}"]
    start = provenance.collect(
        argv, [], sidecars=[(address, made_up.INFO)], judge_model="m", judge_address=address
    )
    text = provenance.write(tmp_path, start).read_text()
    assert not any(secret in text for secret in SECRETS)
    assert "http://host/v1" in text


def test_resumed_run_keeps_its_earlier_starts(tmp_path):
    assert provenance.finish(tmp_path) is None  # nothing to stamp
    provenance.write(tmp_path, made_up.start())
    provenance.write(tmp_path, made_up.start(step=5))
    provenance.finish(tmp_path)
    first, last = provenance.read(tmp_path)["starts"]
    assert (first["step"], first["end"], last["step"]) == (0, None, 5)
    assert last["end"] >= last["start"]
    later = "2999-01-31T12:00:00Z"  # a process that had not yet written down its start
    assert provenance.finish(tmp_path, since=later) is None


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"starts": 3}',
        '{"starts": [1]}',
        '{"starts": [{"devices": 3}]}',
        '{"starts": [{"rewards": [{"name": []}]}]}',
        '{"starts": [{"rewards": [{"name": "a", "sources": [1]}]}]}',
    ],
)
def test_a_broken_file_is_named(tmp_path, text):
    (tmp_path / provenance.FILE).write_text(text)
    with pytest.raises(ValueError, match=r"run\.json"):
        provenance.write(tmp_path, made_up.start())


def test_a_script_from_elsewhere_stands_as_it_was_called():
    assert provenance.command(["/x y/z.py", "--a=b c"]) == "'/x y/z.py' '--a=b c'"
    assert provenance.command(["evoid_jax/report/__main__.py"]) == "python -m evoid_jax.report"


def git(folder, *words):
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", folder, *who, *words], check=True, capture_output=True)


def test_commit_is_that_of_our_code_alone(tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    assert provenance.git(package) is None  # no repository
    git(tmp_path, "init")
    (tmp_path / "theirs.txt").write_text("1")
    git(tmp_path, "add", "theirs.txt")
    git(tmp_path, "commit", "-m", "theirs")
    assert provenance.git(package) is None  # installed inside somebody else's repository
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "ours")
    assert provenance.git(package)["changed"] is False
    (package / "__init__.py").write_text("x = 1")
    assert provenance.git(package)["changed"] is True
    assert len(provenance.git(package)["commit"]) == 40


@pytest.mark.parametrize("disk", ["room", "full"])
def test_an_interrupted_start_has_its_end(disk, tmp_path, monkeypatch):
    """Where the disk is full it has none, and what the user is told is the same."""

    def interrupted(cfg, workdir):
        provenance.write(workdir, made_up.start())
        if disk == "full":
            monkeypatch.setattr(provenance, "_save", full)
        raise KeyboardInterrupt

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(train, "run_whole", interrupted)
    with pytest.raises(train.Interrupted, match="stopped before anything was saved"):
        train.train(small_run.settings(str(tmp_path / "cache"), 1), tmp_path / "run")
    (only,) = provenance.read(tmp_path / "run")["starts"]
    assert (only["end"] is None) == (disk == "full")
