import contextlib
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import numpy as np
import programs
import pytest
from fake_sidecar import NAMES, SEVEN, Fake
from servers import dead_url, serve

from evoid_jax.rewards import client, local, sharing

QUICK = client.Options(timeout=30.0, attempts=3, backoff=0.01, patience=0.3)


@contextlib.contextmanager
def running(*fakes):
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(serve(fake.app())) for fake in fakes]


def batch(count=4) -> dict:
    """Return `client.score`'s arguments for videos whose pixels are 10, 20, ..."""
    video_BFHWC = np.zeros((count, 3, 16, 16, 3), np.uint8)
    photo = np.full((8, 8, 3), 7, np.uint8)
    video_BFHWC[:] = (10 * np.arange(1, count + 1, dtype=np.uint8)).reshape(-1, 1, 1, 1, 1)
    return {
        "video_BFHWC": video_BFHWC,
        "references": [[photo]] * count,
        "prompts": [f"video {b}" for b in range(count)],
    }


def check_all_valid(scores, count=4):
    want = 10.0 * np.arange(1, count + 1)[:, None] + np.arange(7)[None]
    np.testing.assert_array_equal(scores.table.raw_BM[:, :7], want)
    np.testing.assert_allclose(
        scores.table.score_BM[:, :7], np.tile(want[:, :1] / 255, 7), rtol=1e-6
    )
    assert np.all(scores.table.valid_BM[:, :7])


def check_all_invalid(scores, words):
    assert not np.any(scores.table.valid_BM)
    assert np.all(np.isnan(scores.table.raw_BM)) and np.all(np.isnan(scores.table.score_BM))
    for reasons in scores.reasons:
        assert set(reasons) == set(NAMES)
        assert words in reasons["arcface"]


def test_every_try_is_a_whole_body_that_says_its_length():
    """Servers take room for a body by it; videos of any layout in memory, of more than a chunk."""
    fake = Fake(before=[(500, "once more")])
    asked = batch() | {"video_BFHWC": np.zeros((4, 3, 16 * 32, 16 * 32, 3), np.uint8)}
    asked["video_BFHWC"][:] = batch()["video_BFHWC"][:, :1, :1, :1]
    asked["video_BFHWC"] = np.asfortranarray(asked["video_BFHWC"])
    with running(fake) as urls:
        check_all_valid(client.score(urls, NAMES, **asked, options=QUICK))
    assert len(fake.lengths) == 2 and all(said == came for said, came in fake.lengths)
    assert int(fake.lengths[0][1]) > asked["video_BFHWC"].nbytes > 2**20


def test_scores_stand_in_the_columns_of_the_table():
    fake = Fake(names=reversed(SEVEN))
    truth = [[0.5, 1.0], None, [0.1, 0.2], None]
    with running(fake) as urls:
        scores = client.score(
            urls, NAMES, **batch(), attributes=truth, monitors=True, options=QUICK
        )
    check_all_valid(scores)
    assert (
        scores.table.raw_BM.dtype == scores.table.score_BM.dtype == np.float32
        and scores.failed == 0
    )
    assert not np.any(scores.table.valid_BM[:, 7]) and np.all(np.isnan(scores.table.score_BM[:, 7]))
    assert all(r == {"vqscore": "no sidecar offers it"} for r in scores.reasons)
    np.testing.assert_array_equal(scores.monitor["truth"], [20, 40, 60, 80])
    sent = fake.batches[0]
    assert sent.prompts == batch()["prompts"] and sent.monitors and sent.fps == 8
    np.testing.assert_array_equal(np.stack(sent.references), np.stack(batch()["references"]))
    np.testing.assert_allclose(sent.attributes[2], [0.1, 0.2], rtol=1e-6)
    assert sent.attributes[1] is None


def test_a_batch_is_shared_out_among_replicas():
    one, two = Fake(), Fake()
    with running(one, two) as urls:
        options = QUICK._replace(batch=3)
        check_all_valid(client.score(urls, NAMES, **batch(10), options=options), 10)
    sizes = [[len(b.videos) for b in fake.batches] for fake in (one, two)]
    assert sorted(sizes) == [[3, 1], [3, 3]] or sorted(map(sorted, sizes)) == [[1, 3], [3, 3]]


def shares(parts, replicas: int) -> list[int]:
    """Return how many videos each replica gets of a batch that is scored part by part."""
    team, got = [str(k) for k in range(replicas)], [0] * replicas
    for rows in parts:
        for job in sharing.split(team, ("gme",), rows, watch=False, most=32):
            got[int(job.urls[0])] += job.stop - job.start
            assert sorted(job.urls) == team  # each of the others stands in
    return got


@pytest.mark.parametrize(("each", "replicas"), [(1, 4), (2, 4), (4, 4), (8, 4), (1, 2), (2, 8)])
def test_parts_of_a_batch_load_all_replicas_alike(each, replicas):
    parts = [range(first, first + each) for first in range(0, 32, each)]
    assert shares(parts, replicas) == [32 // replicas] * replicas


@pytest.mark.parametrize("each", [3, 5, 6, 7])
def test_parts_that_do_not_divide_come_close(each):
    got = shares([range(first, first + each) for first in range(0, 12 * each, each)], 4)
    assert sum(got) == 12 * each and max(got) - min(got) <= 2


def test_videos_scored_one_by_one_go_where_there_is_room():
    """One of them is down: the others take what would have been its own."""
    fakes, one = [Fake() for _ in range(3)] + [Fake(before=[(503, "")] * 99)], batch(1)
    with running(*fakes) as urls, ThreadPoolExecutor(8) as pool:
        ask = lambda row: client.score(urls, NAMES, **one, options=QUICK, first=row)
        for scores in pool.map(ask, range(32)):
            check_all_valid(scores, 1)
    assert sum(len(fake.batches) for fake in fakes[:3]) == 32
    assert all(len(fake.batches) >= 4 for fake in fakes[:3]) and not fakes[3].batches


def test_each_sidecar_is_asked_for_its_own_rewards():
    faces, rest = Fake(SEVEN[:2], monitors=()), Fake(SEVEN[1:])
    with running(faces, rest) as urls:
        scores = client.score(urls, NAMES, **batch(), monitors=True, options=QUICK)
    check_all_valid(scores)
    assert [b.rewards for b in faces.batches] == [list(SEVEN[:2])]
    assert [b.rewards for b in rest.batches] == [list(SEVEN[2:])]
    assert set(scores.monitor) == {"truth"}


@pytest.mark.parametrize(
    "before",
    [[(500, "oh")], [(503, ""), (429, "")], [(429, "")] * 5],
    ids=["500", "503 429", "429"],
)
def test_trouble_that_passes_is_tried_again(before):
    """A 429 is no failure, however often it comes: QUICK has three attempts."""
    fake = Fake(before=before)
    with running(fake) as urls:
        scores = client.score(urls, NAMES, **batch(), options=QUICK)
    check_all_valid(scores)
    assert scores.failed == 0 and fake.posts == len(before) + 1


@pytest.mark.parametrize(
    "early,tries,words",
    [
        ((500, "out of memory"), 3, "HTTP 500: out of memory"),
        ((400, "no such reward"), 1, "HTTP 400: no such reward"),
        ((200, "<html>"), 3, "expected JSON"),
        ((200, ""), 3, "expected JSON"),
        ((200, '{"scores": {"gme"'), 3, "expected JSON"),
        ((200, "[" * 10**5), 3, "expected JSON"),
        ((200, "[1]"), 3, "expected a JSON object, got list"),
        ((200, "{}"), 1, "does not repeat digest, ids, rewards"),
        (600.0, 1, "no reply from http"),
    ],
    ids=["500", "400", "html", "nothing", "cut off", "deep", "list", "unbound", "timeout"],
)
def test_what_does_not_pass_makes_scores_invalid(early, tries, words):
    fake = Fake(before=[early] * 3)
    with running(fake) as urls:
        scores = client.score(urls, NAMES, **batch(), options=QUICK._replace(timeout=1.5))
    check_all_invalid(scores, words)
    assert fake.posts == tries
    assert scores.failed == 1


def test_a_dead_sidecar():
    url = dead_url()
    scores = client.score([url], NAMES, **batch(), options=QUICK)
    check_all_invalid(scores, url)
    assert scores.failed == 1
    with pytest.raises(client.SidecarError, match=url):
        client.info(url, QUICK)


def test_a_dead_sidecar_is_asked_again_and_spares_the_others():
    rest, late = Fake(SEVEN[2:]), Fake(SEVEN[:2])
    url = dead_url()
    with running(rest) as urls:
        scores = client.score([url, *urls], NAMES, **batch(), options=QUICK)
        assert np.all(scores.table.valid_BM[:, 2:7]) and not np.any(scores.table.valid_BM[:, :2])
        assert scores.failed == 1 and url in scores.reasons[0]["arcface"]
        with running(late) as more:
            check_all_valid(client.score([*more, *urls], NAMES, **batch(), options=QUICK))


def test_a_replica_stands_in():
    good, bad = Fake(), Fake(before=[(500, "")] * 9)
    with running(bad, good) as urls:
        scores = client.score(urls, NAMES, **batch(), options=QUICK._replace(batch=1))
    check_all_valid(scores)
    assert bad.posts > 0 and scores.failed == 0


def altered(name, **fields):
    def change(reply):
        reply["scores"][name] |= fields
        return reply

    return change


NULL = {"score": [None, 0.1, None, 0.3]}


@pytest.mark.parametrize(
    "fields,blank",
    [
        (NULL, [0, 2]),
        (NULL | {"excused": [True, False, False, False]}, [2]),
        (NULL | {"excused": None}, [0, 2]),
        ({"raw": [1, float("nan"), 3, 4]}, [1]),
        ({"score": [0.1, 1.7, 0.2, 0.3]}, []),  # the server's mistake
        ({"score": 0.3}, []),
    ],
)
def test_a_null_is_blank_unless_it_is_excused(fields, blank):
    with running(Fake(change=altered("gme", **fields))) as urls:
        scores = client.score(urls, NAMES, **batch(), options=QUICK)
    want_BM = np.zeros((4, 8), bool)
    want_BM[blank, 2] = True
    np.testing.assert_array_equal(scores.table.blank_BM, want_BM)


@pytest.mark.parametrize(
    "fields,bad,words",
    [
        ({"raw": [1, None, 3, 4], "reason": [None, "no face", None, None]}, [1], "no face"),
        ({"score": [None, 0.1, 0.2, 0.3]}, [0], "no number"),
        ({"score": [0.1, 0.2, float("nan"), float("inf")]}, [2, 3], "no number"),
        ({"excused": [1, 0, 0, 0]}, [0, 1, 2, 3], "gme excused: expected 4 booleans"),
        ({"score": [0.1, 1.7, 0.2, -0.4]}, [1, 3], "outside 0..1"),
        ({"score": [0.1, 0.2]}, [0, 1, 2, 3], "gme score: expected 4 numbers or nulls, got 2"),
        ({"score": 0.3}, [0, 1, 2, 3], "gme score: expected 4 numbers"),
        ({"raw": ["a", "b", "c", "d"]}, [0, 1, 2, 3], "gme raw: expected 4 numbers"),
        ({"raw": [True, 1, 1, 1]}, [0, 1, 2, 3], "gme raw: expected 4 numbers"),
        ({"raw": [10**400, 1, 1, 1]}, [0, 1, 2, 3], "beyond all floats"),
        ({"reason": "none"}, [0, 1, 2, 3], "expected 4 reasons"),
    ],
)
def test_a_bad_column_is_invalid_alone(fields, bad, words):
    fake = Fake(change=altered("gme", **fields))
    with running(fake) as urls:
        scores = client.score(urls, NAMES, **batch(), options=QUICK)
    want = np.ones((4, 8), bool)
    want[bad, 2] = want[:, 7] = False
    np.testing.assert_array_equal(scores.table.valid_BM, want)
    np.testing.assert_array_equal(np.isnan(scores.table.score_BM), ~want)
    assert all(words in scores.reasons[b]["gme"] for b in bad)


def test_bad_monitors_do_not_matter():
    fake = Fake(change=lambda reply: reply | {"monitor": {"truth": [1], "other": [1, None, 2, 3]}})
    with running(fake) as urls:
        scores = client.score(urls, NAMES, **batch(), monitors=True, options=QUICK)
    check_all_valid(scores)
    np.testing.assert_array_equal(scores.monitor["truth"], [np.nan] * 4)
    np.testing.assert_array_equal(scores.monitor["other"], [1, np.nan, 2, 3])


class Grader:
    def __init__(self, answer):
        self.answer = answer

    def vqscore(self, video_BFHWC, references, prompts):
        if self.answer is None:
            raise RuntimeError("burnt out")
        return self.answer

    def evoscore(self, video_BFHWC, references, prompts):
        score_B = np.linspace(0, 1, len(prompts), dtype=np.float32)
        return score_B, score_B, np.arange(len(prompts)) != 1


def test_the_judge_fills_the_columns_that_it_is_asked_for():
    raw_B = np.array([1, 5.5, 10, 10], np.float32)
    grader = Grader((raw_B, (raw_B - 1) / 9, np.isfinite(raw_B)))
    names = (*NAMES, "evoscore")
    with running(Fake()) as urls:
        asked = {"options": QUICK, "judge": grader}
        both = client.score(urls, names, **batch(), **asked, judged=("vqscore", "evoscore"))
        one = client.score(urls, names, **batch(), **asked, judged=("evoscore",))
        failed = Grader(None)
        other = client.score(
            urls, names, **batch(), options=QUICK, judge=failed, judged=("vqscore", "evoscore")
        )
    np.testing.assert_allclose(
        both.table.score_BM[:, 7:], [[0, 0], [0.5, np.nan], [1, 2 / 3], [1, 1]]
    )
    assert [set(r) for r in both.reasons] == [set(), {"evoscore"}, set(), set()]
    assert not np.any(one.table.valid_BM[:, 7]) and one.table.valid_BM[:, 8].tolist() == [
        1,
        0,
        1,
        1,
    ]
    assert "burnt out" in other.reasons[0]["vqscore"] and other.table.valid_BM[0, 8]


def test_the_judge_fills_its_column():
    raw_B = np.array([1, 5.5, np.nan, 10], np.float32)
    answer = (raw_B, (raw_B - 1) / 9, np.isfinite(raw_B))
    with running(Fake()) as urls:
        scores = client.score(urls, NAMES, **batch(), options=QUICK, judge=Grader(answer))
        failed = client.score(urls, NAMES, **batch(), options=QUICK, judge=Grader(None))
    check_all_valid(scores)
    np.testing.assert_array_equal(scores.table.valid_BM[:, 7], [True, True, False, True])
    np.testing.assert_allclose(scores.table.score_BM[:, 7], [0, 0.5, np.nan, 1])
    assert [set(r) for r in scores.reasons] == [set(), set(), {"vqscore"}, set()]
    check_all_valid(failed)
    assert not np.any(failed.table.valid_BM[:, 7]) and "burnt out" in failed.reasons[0]["vqscore"]


def test_arguments_are_checked():
    good = batch()
    for change, words in [
        ({"video_BFHWC": good["video_BFHWC"].astype(np.float32)}, "uint8"),
        ({"video_BFHWC": good["video_BFHWC"][0]}, "rank 5"),
        ({"references": good["references"][:2]}, "photos for 4 videos, got 2"),
        ({"references": [[], *good["references"][1:]]}, "got none"),
        ({"references": [[np.zeros((8, 8), np.uint8)]] * 4}, r"got uint8 \(8, 8\)"),
        ({"references": [[np.zeros((8, 8, 3))]] * 4}, r"got float64 \(8, 8, 3\)"),
        ({"others": [[]] * 3}, "others: expected photos for 4 videos, got 3"),
        ({"others": [[np.zeros((8, 8), np.uint8)], [], [], []]}, r"others: .* got uint8 \(8, 8\)"),
        ({"prompts": good["prompts"][:3]}, "3 first"),
        ({"attributes": [None]}, "4 attributes"),
    ]:
        with pytest.raises(ValueError, match=words):
            client.score([], NAMES, **(good | change))
    with pytest.raises(ValueError, match="list of addresses"):
        client.score("http://127.0.0.1:1", NAMES, **batch())


def gone(pid):
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
            with open(f"/proc/{pid}/stat") as stat:
                if stat.read().rsplit(")", 1)[1].split()[0] == "Z":
                    return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False


def test_a_local_server_lives_and_ends(tmp_path):
    with local.start_judge(tmp_path) as server:
        assert httpx2.get(server.url + "/health", trust_env=False).json() == {"status": "ok"}
        assert os.getpgid(server.pid) == server.pid != os.getpgid(0)
        assert "heuristic judge at http" in server.tail()
    assert not server.alive() and gone(server.pid)
    server.stop()  # twice is fine


@pytest.mark.parametrize(
    "how,words",
    [("ends", "status 3.*\n.*no such weights"), ("never ready", "not ready.*\n.*still lo")],
)
def test_a_local_server_that_fails_shows_its_log(tmp_path, monkeypatch, how, words):
    monkeypatch.setenv("PYTHONPATH", programs.environment()["PYTHONPATH"])
    with pytest.raises(ConnectionError, match=words):
        local.start_local("failing_server", [how], tmp_path / "logs", timeout=5.0)


def test_a_local_server_ends_with_its_parent(tmp_path):
    """Even when the parent is killed and runs no exit handlers."""
    command = [sys.executable, "tests/parent_of_judge.py", str(tmp_path)]
    parent = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env=programs.environment(),
        cwd=programs.ROOT,
    )
    try:
        pid = int(parent.stdout.readline())
        os.kill(pid, 0)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    assert gone(pid)
