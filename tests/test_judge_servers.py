"""The judge's client against servers: our heuristic, llama.cpp's own and vLLM.

The two others are third parties' software with tiny random models: what they say means nothing, but
they decode the pictures, keep to the schema and fail in their own ways. What is asserted is true of
every server that keeps to a schema.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import numpy as np
import pytest
from servers import dead_url, serve

from evoid_jax.rewards import judge
from evoid_jax.rewards.judge import Judge
from evoid_jax.rewards.judge_chat import Chat
from evoid_jax.rewards.judge_server import JudgeError, Refused, Server
from evoid_jax.sidecars.tiny import judge as judge_server
from evoid_jax.world import portraits

HERE = Path(__file__).parent
VLLM = "EVOID_JAX_VLLM"  # the Python of an environment that has vLLM, see docs/judge.md
THIRD_PARTIES = ("llama", "vllm")


def ended(process):
    """Stop a process that was started here, and all that it started."""
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    for package in ("xllamacpp", "gguf"):
        pytest.importorskip(package, reason=f"{package} of requirements-test.txt is not installed")
    import tiny_gguf

    folder = tmp_path_factory.mktemp("gguf")
    tiny_gguf.write(folder)
    with open(folder / "log.txt", "w") as log:
        process = subprocess.Popen(
            [sys.executable, str(HERE / "llama_judge.py"), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        address = next((x for x in process.stdout if x.startswith("http")), "").strip()
        assert address, (folder / "log.txt").read_text()[-2000:]
        yield f"{address}/v1", "tiny"
    finally:
        process.stdin.close()
        ended(process)


@pytest.fixture(scope="session")
def vllm(tmp_path_factory):
    python = os.environ.get(VLLM)
    if not python:
        pytest.skip(f"{VLLM} names no Python with vLLM; docs/judge.md says how to make one")
    folder = tmp_path_factory.mktemp("vllm")
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    settings |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "PYTHONPATH": str(HERE / "vllm_site")}
    made = [python, str(HERE / "tiny_qwen3vl.py"), str(folder)]
    subprocess.run(made, env=os.environ | settings, check=True)
    url = dead_url()
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--served-model-name", "tiny", "--host", "127.0.0.1"]
    command += ["--port", url.rpartition(":")[2], "--dtype", "float32", "--enforce-eager"]
    command += ["--max-model-len", "16384", "--max-num-seqs", "4"]
    command += ["--limit-mm-per-prompt", '{"image":40,"video":0}', "--structured-outputs-config"]
    command += ['{"backend":"xgrammar","disable_any_whitespace":true}']
    with open(folder / "log.txt", "w") as log:
        process = subprocess.Popen(command, env=os.environ | settings, stdout=log, stderr=log)
    try:
        until = time.monotonic() + 800
        while not answers(f"{url}/health"):
            said = (folder / "log.txt").read_text()[-2000:]
            assert process.poll() is None and time.monotonic() < until, said
            time.sleep(1)
        yield f"{url}/v1", "tiny"
    finally:
        ended(process)


def answers(url):
    try:
        return httpx2.get(url, trust_env=False).status_code == 200
    except httpx2.TransportError:
        return False


@pytest.fixture(scope="session")
def heuristic():
    with serve(judge_server.app()) as url:
        yield f"{url}/v1", "heuristic"


@pytest.fixture(params=["heuristic", "llama", pytest.param("vllm", marks=pytest.mark.slow)])
def server(request):
    """Return (kind, address, model) of each of them."""
    return (request.param, *request.getfixturevalue(request.param))


def opened(server, **options):
    """Return a chat with room for a busy machine, and for a model that rambles."""
    _, url, model = server
    options = {"timeout": 120.0, "workers": 2, "tokens": 3000} | options
    return Chat(Server(url, model, **options))


def world(count):
    """Return true videos of the tiny world, photos of their people and their prompts."""
    scenes = [portraits.scene(300 + b, 7 * b) for b in range(count)]
    video_BFHWC = np.stack([portraits.render(scene) for scene in scenes])
    photos = [[portraits.reference(scene.identity)] for scene in scenes]
    return video_BFHWC, photos, [portraits.prompt(scene) for scene in scenes]


def test_it_is_there_and_has_the_model(server):
    kind, url, _ = server
    opened(server).check()
    only = opened((kind, url, ""))
    only.check()
    assert only.model == server[2]
    with pytest.raises(ConnectionError, match="not 'other'"):
        opened((kind, url, "other")).check()


def test_every_video_gets_a_grade_and_the_same_one_again(server):
    asker = Judge(opened(server), frames=3)
    raw_B, score_B, valid_B = asker.vqscore(*world(3))
    assert np.all(valid_B) and np.all((raw_B >= 1) & (raw_B <= 10))
    np.testing.assert_allclose(raw_B * 5, np.round(raw_B * 5), rtol=1e-6)  # a mean of five
    np.testing.assert_allclose(score_B, (raw_B - 1) / 9, rtol=1e-6)
    np.testing.assert_array_equal(asker.vqscore(*world(3))[0], raw_B)
    usage = asker.chat.usage.take()
    assert usage["failures"] == 0 and usage["calls"] >= 6
    counted = usage["prompt_tokens"] > 0 and usage["answer_tokens"] > 0
    assert counted == (server[0] in THIRD_PARTIES)  # the heuristic has none


def test_needs_are_numbers_from_nought_to_ten(server):
    video_BFHWC, photos, prompts = world(4)
    asker = Judge(opened(server), frames=4)
    attention_G, pairs = asker.attention(
        video_BFHWC, photos, prompts, np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.3, 0.2])
    )
    assert pairs == 2 and np.all((attention_G >= 0) & (attention_G <= 10))
    np.testing.assert_allclose(attention_G * 2, np.round(attention_G * 2))


def test_naturalness_is_graded_three_times(server):
    raw_B, score_B, valid_B = judge.naturalness(
        opened(server), world(2)[0], asks=3, frames=2, side=64
    )
    assert np.all(valid_B) and np.all((raw_B >= 1) & (raw_B <= 5))
    np.testing.assert_allclose(raw_B * 3, np.round(raw_B * 3), rtol=1e-6)
    assert np.all((score_B >= 0) & (score_B <= 1))


def test_prompts_are_proposed(server):
    prompts = judge.propose(opened(server), world(1)[1][0][0], 3)
    assert len(set(prompts)) == 3 and all(0 < len(prompt) <= 700 for prompt in prompts)
    assert not any(re.search(r"\s\s|\n", prompt) for prompt in prompts)


def test_expected_grades_lie_between_the_whole_ones(server):
    """A random model is undecided: its expected grades are hardly ever whole."""
    asker = Judge(opened(server, expected=True), frames=2)
    raw_B, _, valid_B = asker.vqscore(*world(2))
    assert np.all(valid_B) and np.all((raw_B >= 1) & (raw_B <= 10))
    fifths = np.abs(raw_B * 5 - np.round(raw_B * 5))
    assert np.all(fifths > 1e-3) == (server[0] in THIRD_PARTIES)


def test_a_picture_that_is_none_is_told(server):
    asker = opened(server)
    torn = {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,AAAA"}}
    parts = [{"type": "text", "text": "reference"}, torn, {"type": "text", "text": "frame"}, torn]
    question = Judge(asker).questions.vqscore
    with pytest.raises(JudgeError, match="HTTP 400") as error:
        asker.ask(question, parts)
    assert not isinstance(error.value, Refused) or error.value.field is None
    assert asker.ask(question, parts_of_one()) and asker.usage.take()["failures"] == 1


def parts_of_one():
    """Return what a question about one video shows."""
    video_BFHWC, photos, _ = world(1)
    label = [{"type": "text", "text": "reference photo"}, judge.picture(photos[0][0], 64)]
    return label + judge.shown(video_BFHWC[0], 2, 64, 8)
