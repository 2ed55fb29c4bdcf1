"""What cannot be evaluated as it is: refused before anything starts, or told in the table."""

import json

import pytest
from evaluations import KEYS, LEVELS, asked, benchmark, clips, judge_of, read, run, sidecar
from servers import serve

from evoid_jax import deployment
from evoid_jax.evaluate import __main__ as evaluate
from evoid_jax.evaluate import making, rows, upstream


@pytest.fixture
def data(tmp_path):
    return benchmark(tmp_path / "benchmark")


def measured(**changes):
    """Return metric files as another program may have written them; all parts are .5."""
    parts = {
        metric.file: {key: {metric.entry: 0.5} for key in KEYS} for metric in upstream.METRICS[:-1]
    }
    parts["aesthetic_score"] = {key: {"aes_score": 5.5} for key in KEYS}
    parts |= {f"naturalscore_{k}": dict.fromkeys(KEYS, "3") for k in (1, 2, 3)}
    for name, entry in changes.items():
        parts[name] = parts[name] | {KEYS[0]: entry}
    return parts


def merged(data, tmp_path, parts):
    """Make a row of metric files; returns the table's text and what total.json holds."""
    upstream.write(tmp_path / "theirs", parts)
    text = run(data, tmp_path / "out", f"--metrics={tmp_path}/theirs")
    return text, read(tmp_path / "out/theirs", "total.json")


@pytest.mark.parametrize(
    ("changes", "total", "words"),
    [
        (
            {"gmescore": {"gme_score": 67.2}},
            0.5 + 0.15 * 0.5 / 3,
            "GME cannot be so in 1 video, and counts: gmescore.json has 67.2, outside -1..1",
        ),
        (
            {"naturalscore_1": "35"},
            0.5 + 0.3 * 0.5 / 3,
            "a grade of naturalness cannot be so in 1 video, and counts: naturalscore_1.json has "
            "'35', outside 1..5",
        ),
        (
            {"facesim": {"cur_score": -3, "arc_score": 0.1}},
            0.5 - 0.25 * 3.5 / 3,
            "FaceSim cannot be so in 1 video, and counts: facesim.json has -3, outside -1..1",
        ),
    ],
)
def test_what_no_model_can_have_measured_counts_as_the_benchmark_counts_it_and_is_told(
    changes, total, words, data, tmp_path
):
    text, held = merged(data, tmp_path, measured(**changes))
    assert held["total_score"] == pytest.approx(total)
    assert f"- theirs: {words}" in text and len(held["doubtful"]) == 1


def test_a_cosine_a_rounding_above_1_and_a_grade_of_beauty_outside_its_scale_are_no_doubt(
    data, tmp_path
):
    changes = {"gmescore": {"gme_score": 1.0004}, "aesthetic_score": {"aes_score": 7.9}}
    text, held = merged(data, tmp_path, measured(**changes))
    assert held["doubtful"] == [] and "cannot be so" not in text


def test_a_grade_that_a_file_lacks_is_told(data, tmp_path):
    parts = measured()
    del parts["naturalscore_2"][KEYS[1]], parts["naturalscore_3"]
    text, held = merged(data, tmp_path, parts)
    assert held["total_score"] == pytest.approx(0.5)
    reasons = sorted((fault["key"], fault["reason"]) for fault in held["missing"])
    lacking = [(KEYS[1], "naturalscore_2.json has no such video")]
    lacking += [(key, "naturalscore_3.json has no such video") for key in KEYS]
    assert reasons == sorted(lacking)
    assert "a grade of naturalness is missing in 3 videos: naturalscore_3.json has no such" in text
    assert "naturalness: 3 of 3 videos have fewer than 3 grades" in held["not_comparable_because"]


def test_the_rows_files_are_such_as_the_benchmarks_merge_can_read(data, tmp_path):
    """It turns every grade into a number, and takes every entry as it is."""
    parts = measured(naturalscore_3="error", gmescore={"gme_score": None})
    merged(data, tmp_path, parts)
    row = tmp_path / "out/theirs"
    assert list(read(row, "metrics/naturalscore_3.json")) == list(KEYS[1:])
    assert list(read(row, "metrics/gmescore.json")) == list(KEYS[1:])
    assert read(row, "metrics/facesim.json") == parts["facesim"]


def test_a_row_in_which_grades_failed_is_not_comparable(data, tmp_path):
    folder, fake = clips(tmp_path / "mine", LEVELS), judge_of(natural=(3, *["no"] * 4))
    with serve(sidecar().app()) as url, serve(fake.app()) as judge_url:
        flags = [f"--reward.sidecars={url}", f"--reward.judge={judge_url}/v1", "--workers=1"]
        flags += ["--reward.judge_model=fake", "--noevoscore"]
        run(data, tmp_path / "out", f"--videos={folder}", *flags)
    why = read(tmp_path / "out/mine", "total.json")["not_comparable_because"]
    assert "naturalness: 3 of 3 videos have fewer than 3 grades" in why


def test_a_folder_without_any_video_of_the_list_is_refused_first(data, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match="mine has no video of the list, such as singlef"):
        asked(data, tmp_path / "out", f"--videos={folder}")
    (folder / "SingleFace_2.MP4").touch()
    with pytest.raises(FileNotFoundError, match=r"SingleFace_2\.MP4 must be called as its key"):
        asked(data, tmp_path / "out", f"--videos={folder}")


@pytest.mark.parametrize("name", ["table.md", "table.json", "logs"])
def test_a_row_cannot_have_the_name_of_another_file(name, data, tmp_path):
    folder = clips(tmp_path / "mine", LEVELS)
    with pytest.raises(ValueError, match="a row cannot be called"):
        asked(data, tmp_path / "out", f"--videos={folder}", f"--name={name}")


def test_a_folder_that_is_no_row_is_told_of_before_anything_is_scored(data, tmp_path):
    folder, strange = clips(tmp_path / "mine", LEVELS), tmp_path / "out/strange"
    strange.mkdir(parents=True)
    (strange / rows.TOTAL).write_text("{}")
    with pytest.raises(FileNotFoundError, match="strange/system.json .* move strange/ out"):
        asked(data, tmp_path / "out", f"--videos={folder}")
    (strange / rows.SYSTEM).write_text("{}")
    with pytest.raises(ValueError, match=r"strange/total.json is not as .*; run its row again"):
        asked(data, tmp_path / "out", f"--videos={folder}")
    asked(data, tmp_path / "out", f"--videos={folder}", "--name=strange")  # its row, run again


def how(model):
    return making.How(
        model=model,
        lora=None,
        chosen={},
        sampler=deployment.SAMPLER | {"residual": "float32"},
        seed=0,
        dtype=None,
        together=1,
        mesh=(-1, 1, 1),
    )


def test_a_row_is_not_gone_on_with_by_a_model_that_has_changed_at_its_place(tmp_path):
    model, row = tmp_path / "model", tmp_path / "row"
    (model / "transformer").mkdir(parents=True)
    (model / "scheduler").mkdir()
    weights = model / "transformer/w.safetensors"
    settings = model / "scheduler/scheduler_config.json"
    (model / "model_index.json").write_text("{}")
    weights.write_bytes(b"a" * 100)
    settings.write_text('{"flow_shift": 3.0}')
    rows.begin(row, making.facts([], how(model)))
    rows.begin(row, making.facts([], how(model)))
    for file, changed in ((weights, b"b" * 100), (settings, b'{"flow_shift": 9.0}')):
        was = file.read_bytes()
        file.write_bytes(changed)
        with pytest.raises(ValueError, match="begun with other videos .weights was"):
            rows.begin(row, making.facts([], how(model)))
        file.write_bytes(was)


def test_a_hubs_model_goes_on_at_the_commit_that_its_row_began_with(data, tmp_path, monkeypatch):
    names = []

    def pinned(name, was=""):
        names.append((str(name), was))
        return was or f"{name}@{'a' * 40}"

    monkeypatch.setattr(evaluate.hub, "pinned", pinned)
    monkeypatch.setattr(evaluate.hub, "folder", lambda name, with_weights: tmp_path)
    (tmp_path / "evoid.json").write_text("{}")
    first = asked(data, tmp_path / "out", "--model=Org/Name")
    (kind,) = first.kinds
    assert kind.name == "Name" and str(kind.how.model) == f"Org/Name@{'a' * 40}"
    rows.begin(tmp_path / "out/Name", making.facts(first.listed, kind.how))
    assert json.loads((tmp_path / "out/Name/system.json").read_text())["weights"] is None
    asked(data, tmp_path / "out", "--model=Org/Name")
    assert names == [("Org/Name", ""), ("Org/Name", f"Org/Name@{'a' * 40}")]


@pytest.mark.parametrize(("begun", "here"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_a_row_of_a_gpu_goes_on_without_one_as_it_was_begun(
    begun, here, data, tmp_path, monkeypatch, capsys
):
    """By the same command; a dtype that is asked for and is another one is refused."""
    (tmp_path / "model").mkdir()
    command = data, tmp_path / "out", f"--model={tmp_path}/model"
    row = tmp_path / "out/model"

    def begin(*more):
        held = asked(*command, *more)
        rows.begin(row, making.facts(held.listed, held.kinds[0].how))
        return held.kinds[0].how.dtype

    monkeypatch.setattr(evaluate.rollout, "usual_dtype", lambda: begun)
    assert begin() == begun and capsys.readouterr().out == ""
    monkeypatch.setattr(evaluate.rollout, "usual_dtype", lambda: here)
    assert begin() == begun
    assert f"model: {begun}, as it was begun; a new row here has {here}" in capsys.readouterr().out
    with pytest.raises(ValueError, match=f"begun with other videos .dtype was '{begun}', now"):
        begin(f"--dtype={here}")
    assert asked(*command, "--name=another").kinds[0].how.dtype == here
