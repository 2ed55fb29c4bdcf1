"""One life: train 2, resume to 4, equals 4 straight, bit for bit; and a run leaves what it says."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from fake_sidecar import Fake
from safetensors import safe_open
from servers import dead_url, serve
from small_run import SMALL, lines, settings, state_of

from evoid_jax import (
    arms,
    checkpoint,
    config,
    convert,
    distributed,
    evolve,
    export,
    files,
    proof,
    session,
    sharding,
    stopping,
    train,
    triples,
    watch,
    work_folder,
)
from evoid_jax.media import write_image
from evoid_jax.models import adapters, lora, weights
from evoid_jax.models import wan as wan_model
from evoid_jax.rewards import absent
from evoid_jax.world import portraits

NAMES = [metric.name for metric in config.METRICS]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def runs(cache, tmp_path_factory):
    straight, resumed = (tmp_path_factory.mktemp(name) for name in ("straight", "resumed"))
    train.train(settings(cache, 4), straight)
    train.train(settings(cache, 2), resumed)
    train.train(settings(cache, 4), resumed)
    return straight, resumed


def test_resumed_run_equals_a_straight_one_bit_for_bit(runs, cache):
    straight, resumed = runs
    cfg = settings(cache, 4)
    (a, host_a), (b, host_b) = state_of(straight, cfg), state_of(resumed, cfg)
    assert int(a.step) == 4
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert host_a == host_b
    assert lines(straight) == lines(resumed)
    assert [row["step"] for row in lines(resumed)] == [0, 1, 2, 3]


def test_it_moved_and_the_evolving_leads_the_stable(runs, cache):
    state, _ = state_of(runs[0], settings(cache, 4))
    for tree in (state.evolving, state.stable):
        assert max(float(abs(x).max()) for x in jax.tree.leaves(tree["blocks"]["attn1"])) > 0
    first, *_, last = lines(runs[0])
    assert first["drift"]["evo_stb"] == 0 == first["drift"]["evo_init"]
    assert last["drift"]["evo_stb"] > 0 and last["drift"]["evo_init"] > 0
    assert all(row["grad_norm"] > 0 for row in (first, last))


def test_metrics_hold_what_a_reader_needs(runs):
    for row in lines(runs[0]):
        assert set(row["reward"]["score"]) == set(NAMES) == set(row["weights"])
        assert abs(sum(row["weights"].values()) - 1) < 1e-5
        assert all(0 <= x <= 1 for x in row["reward"]["score"].values())
        assert abs(row["reward"]["unified"] - 0.5) < 1e-6 and row["valid_fraction"] == 1
        assert row["missing"] == dict.fromkeys(NAMES, 0) and row["reasons"] == []
        loss = row["loss"]
        total = loss["policy"] + 0.01 * loss["t2v"] + 0.2 * loss["self"]
        assert abs(loss["total"] - total) < 1e-5
        assert set(row["attention"]) == set(config.GROUPS)


def test_a_run_leaves_what_it_says(runs):
    workdir = runs[0]
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["steps"] == 4 and set(summary["base"]) == {*NAMES, "total"}
    lo, hi = summary["delta_total_ci95"]
    assert lo <= summary["delta_total"] <= hi
    assert set(summary["monitor"]["base"]) == {"identity", "motion"}
    assert json.loads((workdir / "config.json").read_text())["steps"] == 4
    for name in ("heldout_00_base.mp4", "heldout_00_evolved.mp4", "heldout_00_reference.png"):
        assert (workdir / "samples" / name).stat().st_size > 500
    assert "<video" in (workdir / "report.html").read_text()
    assert summary["reached"] == 4 and set(summary["monitored_by"]) == {"identity", "motion"}
    scores = triples.read(workdir)
    assert scores.made_by and not triples.outdated(workdir, scores)
    assert len(scores.triples) == summary["pairs"] == 2
    base_B, evolved_B = triples.totals(scores)
    assert (evolved_B - base_B).mean() == pytest.approx(summary["delta_total"], abs=1e-9)
    kept = json.loads((workdir / "samples" / "heldout.json").read_text())
    keys = [triple.key for triple in scores.triples]
    assert all((e["identity"], e["prompt"], e["seed"]) in keys for e in kept)
    with safe_open(workdir / "export" / "pytorch_lora_weights.safetensors", "numpy") as file:
        assert "transformer.blocks.0.attn1.to_q.lora_A.weight" in file.keys()  # noqa: SIM118


def test_a_run_in_which_nothing_can_be_learned_ends_with_words_and_what_it_reached(
    tmp_path, cache, monkeypatch
):
    """Of both videos of every pair one lacks gme: nobody is left to be compared with.

    The update itself has nothing to do, and is not compiled.
    """
    next_step = jax.jit(lambda step: step + 1)

    def no_update(state, params, scored, teacher, setup):
        assert not np.any(jax.device_get(scored.valid_B))
        return state._replace(step=next_step(state.step)), {
            "loss": {},
            "drift": {"evo_init": 0.0},
            "refused": 0.0,
        }

    monkeypatch.setattr(evolve, "train_step", no_update)

    def change(reply):
        column = reply["scores"]["gme"]
        column["score"][1::2] = [None] * len(column["score"][1::2])
        column["reason"][1::2] = ["out of memory"] * len(column["reason"][1::2])
        column["excused"] = [False, True] * (len(column["score"]) // 2)
        return reply

    reward = {"judge": "", "preference": False, "dynamic": False, "idle_steps": 2}
    with serve(Fake(change=change).app()) as url:
        cfg = settings(cache, 9, reward=reward | {"sidecars": (url,)}, watch={"every": 0})
        with pytest.raises(absent.MissingReward, match="the last 2 steps .*out of memory") as error:
            train.train(cfg, tmp_path)
    assert isinstance(error.value, distributed.EXPECTED)  # told in a line, and a status of 1
    assert [row["missing"]["gme"] for row in lines(tmp_path)] == [0.5, 0.5]
    assert checkpoint.steps_in(tmp_path / checkpoint.FOLDER) == [2]


def test_workdir_of_another_run_is_refused(runs, cache):
    with pytest.raises(ValueError, match="holds another run: config.loss.beta was 2.0, now 0.5"):
        train.train(settings(cache, 4, loss={"beta": 0.5}), runs[0])


def test_servers_are_looked_for_before_a_model_is_fetched(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(session, "open_model", lambda cfg: pytest.fail("the model came first"))
    nobody = dead_url()
    for setting, value in (("sidecars", (nobody,)), ("judge", nobody)):
        cfg = settings(cache, 1, reward={setting: value, "timeout": 2.0})
        named = pytest.raises(ConnectionError, match=f"config.reward.{setting}")
        with named, session.open_run(cfg, tmp_path):
            pass


def test_a_run_goes_on_with_another_judge_or_mesh(tmp_path, cache):
    cfg = settings(cache, 4)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict(cfg)))
    there = {"reward": {"judge": "http://other:8200/v1"}, "mesh": {"context": 2}}
    work_folder.check_workdir(settings(cache, 9, **there), tmp_path)
    with pytest.raises(ValueError, match=r"another run: config\.reward\.clip was 0\.5, now 1\.0"):
        work_folder.check_workdir(settings(cache, 4, reward={"clip": 1.0}), tmp_path)


def test_every_prompt_has_room_whatever_its_script():
    """Few letters may be many tokens: 70 short English prompts and a Chinese one."""

    def tokenizer(texts, verbose):
        return {"input_ids": [list(text.encode()) for text in texts]}

    def split(prompts):
        return SimpleNamespace(prompts=prompts, origins=[f"line {i}" for i in range(len(prompts))])

    english = [f"A person walks {i}" for i in range(70)]
    chinese = "一个人在公园里挥手"
    longest = len(chinese.encode())
    assert len(chinese) < min(map(len, english)) and longest > max(map(len, english))
    one = sharding.make_mesh(devices=jax.devices()[:1])
    for last in (split([*english, chinese]), split([chinese])):
        splits = split(english), last
        assert session.longest_prompt(splits, "", tokenizer, 512) == longest
    assert session.longest_prompt((split(english),), chinese, tokenizer, 512) == longest
    assert longest <= session.text_rows(longest, 512, one) <= longest + 16
    assert session.text_rows(600, 512, one) == 512


def test_the_watch_keeps_comparisons_adapters_and_videos(runs):
    """The same in a run that was stopped and resumed, but for the seconds."""
    kept = []
    for workdir in runs:
        summaries = watch.read(workdir)
        assert [summary["steps"] for summary in summaries] == [2, 4]
        for summary in summaries:
            del summary["seconds"], summary["judge"]["seconds"]
            del summary["adapter_sha256"]  # its header tells how the run was made
        kept.append(summaries)
        for name in ("start", "step_000002", "step_000004"):
            assert (workdir / watch.FOLDER / f"{name}_00.mp4").stat().st_size > 100
        entries = json.loads((workdir / watch.FOLDER / "pairs.json").read_text())
        assert [(entry["k"], entry["seed"]) for entry in entries] == [(0, 2**21), (1, 2**21 + 1)]
        assert (workdir / watch.FOLDER / "pair_01_reference.png").stat().st_size > 100
    assert kept[0] == kept[1]
    assert all(summary["drift"] > 0 for summary in kept[0])
    assert kept[0][0]["base"] == kept[0][1]["base"] != kept[0][0]["evolved"]
    # The adapter of the last comparison is the one that the run ended with.
    last = adapters.to_diffusers(adapters.read(watch.adapter(runs[0], 4)))
    exported = adapters.to_diffusers(adapters.read(runs[0] / export.FILE))
    for name, tensor in exported.items():
        np.testing.assert_array_equal(last[name], tensor)


def test_the_best_adapter_is_converted_and_a_gamed_one_never(runs, tmp_path):
    """Totals made up in the watch's own files decide."""
    workdir = tmp_path / "run"
    shutil.copytree(runs[0], workdir)
    first, second = watch.read(workdir)

    def rewrite(step, summary):
        file = workdir / watch.FOLDER / f"step_{step:06d}.json"
        proof.write_json(file, files.sealed(summary))

    better = first | {"delta_total": second["delta_total"] + 1}
    rewrite(2, better)
    adapter, _ = convert.adapter_of_run(workdir, "best")
    assert adapter.header["step"] == "2"
    gamed = {"rewarded": ["a"], "identities": 9, "delta": {"a": {"ci95": [1, 2]}}}
    gamed["monitor_delta"] = {"m": {"ci95": [-2, -1]}}
    rewrite(2, better | gamed)
    assert convert.adapter_of_run(workdir, "best")[0].header["step"] == "4"
    rewrite(4, second | gamed)
    with pytest.raises(FileNotFoundError, match="in all of them a reward was gamed"):
        convert.adapter_of_run(workdir, "best")


def test_what_the_watch_kept_is_used_as_it_was_written_or_not_at_all(runs, tmp_path):
    """A changed digit of a comparison or a changed byte of its adapter would pass for another."""
    workdir = tmp_path / "run"
    shutil.copytree(runs[0], workdir)
    best = stopping.best(watch.read(workdir))["steps"]
    file = watch.adapter(workdir, best)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"step_{best:06d}\.safetensors is not as it was written"):
        convert.adapter_of_run(workdir, "best")
    for changed in (file.with_suffix(".json"), workdir / watch.FOLDER / "start.json"):
        changed.write_text(changed.read_text().replace("0.", "1.", 1))
    with pytest.raises(ValueError, match=rf"step_{best:06d}\.json is not as .* remove it"):
        convert.adapter_of_run(workdir, "best")
    file.with_suffix(".json").unlink()
    (left,) = watch.read(workdir)
    assert convert.adapter_of_run(workdir, "best")[0].header["step"] == str(left["steps"])
    assert watch.kept_start(workdir / watch.FOLDER / "start.json") == {}  # it is scored again
    assert watch.kept_start(runs[0] / watch.FOLDER / "start.json")["made_with"]


def test_a_run_that_the_watch_stops_is_saved_proved_and_stays_stopped(tmp_path, cache):
    """Any drift is too much, and there is some from the second step on.

    The same command proves the run again, and a raised limit goes on.
    """
    watched = {"every": 1, "identities": 2, "seeds": 1, "drift": 1e-9}
    small = {"watch": watched, "data": {"heldout_identities": 1}}
    for _ in range(2):
        train.train(settings(cache, 3, **small), tmp_path)
        assert [row["step"] for row in lines(tmp_path)] == [0, 1]
        assert json.loads((tmp_path / "summary.json").read_text())["steps"] == 2
    watched["drift"] = 0.0
    train.train(settings(cache, 3, **small), tmp_path)
    assert [row["step"] for row in lines(tmp_path)] == [0, 1, 2]


def test_a_prompt_that_the_model_reads_only_in_part_is_named(capsys):
    tokenizer = lambda texts, verbose: {"input_ids": [text.split() for text in texts]}
    data = SimpleNamespace(prompts=["one", "two words"], origins=["a.jsonl, line 1", "line 2"])
    session.longest_prompt((data,), "", tokenizer, text_len=1)
    said = capsys.readouterr().out
    assert "line 2: the prompt has 2 tokens; the model reads the first 1" in said
    assert "line 1" not in said


def save_adapter(file, cfg, rank, targets="main"):
    """Write an adapter of the run's base that changes all of its layers."""
    model = wan_model.WanConfig.from_json(weights.read_config(f"{cfg.model}/transformer"))
    base = jax.eval_shape(lambda key: wan_model.init(key, wan_model.Wan(model)), jax.random.key(0))
    tree = lora.init(jax.random.key(1), base, model, rank=rank, targets=targets)
    move = lambda x: x + 0.1 * jax.random.normal(jax.random.key(2), x.shape)
    lora.save(file, jax.tree.map(move, tree), scale=0.5)


def test_a_run_starts_at_the_strength_of_its_file_and_does_not_need_it_again(tmp_path, cache):
    """A file of rank 4 in a run of rank 8 and alpha 24; a step too small to see."""
    file, workdir = tmp_path / "start.safetensors", tmp_path / "run"
    small = {"lora": {"init": str(file), "rank": 8, "alpha": 24.0}, "train": {"lr": 1e-9}}
    cfg = settings(cache, 1, **small, data={"heldout_identities": 1})
    save_adapter(file, cfg, rank=4)

    train.train(cfg, workdir)
    export = workdir / "export" / "pytorch_lora_weights.safetensors"
    effect = lambda layer: layer.b_OR @ layer.a_RI
    got, want = adapters.read(export).layers, adapters.read(file).layers
    assert got.keys() == want.keys()
    for module, layer in want.items():
        np.testing.assert_allclose(effect(got[module]), effect(layer), rtol=1e-4, atol=1e-5)
    converted, _ = convert.adapter_of_run(workdir, "evolving")
    of_run, of_export = (adapters.to_diffusers(a) for a in (converted, adapters.read(export)))
    for name, tensor in of_export.items():
        np.testing.assert_array_equal(of_run[name], tensor)

    # The run is measured against its start, in the loss and in the proof: nothing has changed yet.
    (first,) = lines(workdir)
    assert first["loss"]["self"] == 0 and first["drift"]["evo_init"] == 0
    assert abs(json.loads((workdir / "summary.json").read_text())["delta_total"]) < 1e-4

    file.unlink()
    train.train(settings(cache, 2, **small, data={"heldout_identities": 1}), workdir)
    assert [row["step"] for row in lines(workdir)] == [0, 1]


def test_a_file_without_room_in_the_run_is_refused_before_anything_is_loaded(tmp_path, cache):
    file = tmp_path / "wide.safetensors"
    cfg = settings(cache, 1, lora={"init": str(file), "rank": 8})
    save_adapter(file, cfg, rank=16, targets="main+vace")
    words = r"config\.lora\.rank=16.*config\.lora\.targets=main\+vace"
    with pytest.raises(ValueError, match=words):
        train.train(cfg, tmp_path / "run")
    assert not (tmp_path / "run" / "logs").exists()  # no scorer had been started


@pytest.mark.parametrize(("each", "shards"), [(3, 8), (2, 1), (2, 8), (5, 4)])
def test_held_out_videos_divide_over_the_devices(each, shards):
    count = arms.triples(32, each, shards)
    assert count * each % shards == 0 and 16 <= count * each <= 40


def test_a_score_that_one_arm_of_the_proof_hides_is_nothing():
    def arm(score, blank):
        score_BM = np.array([score], np.float32).T
        blank_BM = np.array([blank], bool).T
        return arms.Arm([], score_BM, np.isfinite(score_BM), blank_BM, {})

    nan = np.nan
    base = arm([0.7, 0.6, nan, 0.5], [False, False, True, False])
    evolved = arm([nan, nan, nan, 0.9], [True, False, True, False])
    levelled = arms.level(base, evolved)
    np.testing.assert_allclose(levelled[0].score_BM[:, 0], [0.7, 0.6, nan, 0.5])
    np.testing.assert_allclose(levelled[1].score_BM[:, 0], [0, nan, nan, 0.9])


def test_users_own_folder_through_the_command_line(tmp_path, cache):
    for i in range(2):
        write_image(tmp_path / f"{i}.png", portraits.reference(portraits.identity(i), 80))
    pairs = [{"image": f"{i}.png", "prompt": f"A person number {i} waves."} for i in range(2)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    command = [sys.executable, "-m", "evoid_jax.train", "--config=configs/evoid.py:tiny"]
    command += [f"--config.data.dir={tmp_path}", f"--workdir={tmp_path / 'run'}"]
    flat = {
        f"{a}.{b}": v for a, part in SMALL.items() if a != "save_every" for b, v in part.items()
    }
    command += [f"--config.{key}={value}" for key, value in (flat | {"steps": 1}).items()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "report: " in done.stdout
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["heldout"] == "training pairs, new seeds"
    (tmp_path / "prompts.jsonl").write_text('{"image": "9.png", "prompt": "x"}')
    failed = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert failed.returncode != 0
    assert "prompts.jsonl" in failed.stderr and "9.png" in failed.stderr
    assert "Traceback" not in failed.stderr
