"""Photos without a face end a run at its start, named by their lines, before the model loads."""

import dataclasses
import json

import numpy as np
import pytest
from fake_sidecar import Fake
from fastapi import FastAPI
from servers import serve

from evoid_jax import canvas, config, media, session
from evoid_jax.data import pairs
from evoid_jax.rewards import client, faceless
from evoid_jax.sidecars import serve as sidecar
from evoid_jax.sidecars.preset import Preset, Scorer


class Looker:
    """A sidecar that finds a face in every photo that is not dark."""

    def __init__(self, name="looker"):
        self.seen: list[np.ndarray] = []
        scorers = tuple(Scorer(name, "1", "", "", None) for name in Fake().names)
        preset = Preset(name, scorers, (), prepare=lambda request: (), check_photo=self.look)
        self.app = sidecar.app(preset)

    def look(self, photo_HWC: np.ndarray) -> str:
        self.seen.append(photo_HWC)
        return "no face" if photo_HWC.mean() < 20 else ""


def folder(place, levels: list[int], size=(48, 40)) -> pairs.Splits:
    """Make a folder of grey photos, one a line, and open it."""
    lines = []
    for i, level in enumerate(levels):
        photo = np.full((*size, 3), level, np.uint8)
        photo[:3, : i + 1] = 255 - level  # no two alike
        media.write_image(place / f"{i}.png", photo)
        lines.append({"image": f"{i}.png", "prompt": "A person waves.", "identity": f"p{i}"})
    (place / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return pairs.open_splits(folder=str(place))


def refuse(cfg: config.Config, splits: pairs.Splits, *apps) -> None:
    """Ask these sidecars about all photos, as a run does at its start."""
    if not apps:
        faceless.refuse(cfg, splits, [], [])
        return
    urls, running = [], [serve(app) for app in apps]
    try:
        urls = [one.__enter__() for one in running]
        faceless.refuse(cfg, splits, urls, [client.info(url) for url in urls])
    finally:
        for one in running:
            one.__exit__(None, None, None)


@pytest.fixture
def cfg():
    return config.Config()


def test_a_photo_without_a_face_is_named_with_its_line(tmp_path, cfg):
    looker = Looker()
    splits = folder(tmp_path, [200, 0, 120, 0, 90, 80])
    words = r"2 of 6 photos .*line 2: .*1\.png: no face \(says looker\); .*line 4: .*3\.png.*lines"
    with pytest.raises(ValueError, match=words):
        refuse(cfg, splits, looker.app)
    assert len(looker.seen) == 6  # each once, though all splits show it


def test_faces_in_all_photos_are_no_news(tmp_path, cfg):
    looker = Looker()
    refuse(cfg, folder(tmp_path, [200, 90]), looker.app)
    np.testing.assert_array_equal(looker.seen[1], media.read_image(tmp_path / "1.png"))


def test_many_are_counted_and_not_all_listed(tmp_path, cfg):
    with pytest.raises(
        ValueError, match=r"9 of 9 photos .*line 5.*; and 4 more\. Replace"
    ) as error:
        refuse(cfg, folder(tmp_path, [0] * 9), Looker().app)
    assert "line 6" not in str(error.value)


def test_only_sidecars_that_look_are_asked_and_replicas_once(tmp_path, cfg):
    splits, one, twin, other = folder(tmp_path, [200]), Looker(), Looker(), Looker("other")
    blind = Fake()
    refuse(cfg, splits, blind.app(), one.app, twin.app, other.app)
    assert [len(looker.seen) for looker in (one, twin, other)] == [1, 0, 1]
    refuse(cfg, splits)


def test_photos_are_sent_as_they_will_be_scored(tmp_path, cfg):
    splits, looker = folder(tmp_path, [200], size=(400, 3000)), Looker()
    refuse(cfg, splits, looker.app)
    assert looker.seen[0].shape == (273, 2048, 3)
    small = config.Video(frames=5, height=32, width=48)
    as_model = dataclasses.replace(cfg, video=small, reward=config.Reward(photos="canvas"))
    refuse(as_model, splits, looker.app)
    seen = canvas.seen(media.read_image(tmp_path / "0.png"), 32, 48)
    np.testing.assert_array_equal(looker.seen[1], seen)


@pytest.mark.parametrize("reply", [{}, {"problems": []}, {"problems": [1]}, {"problems": "no"}])
def test_an_answer_of_another_form_is_named_with_its_setting(tmp_path, cfg, reply):
    api = FastAPI()
    info = {"preset": "odd", "rewards": [], "photos": True}
    api.get("/info")(lambda: info)
    api.post("/photos")(lambda: reply)
    words = r"^config\.reward\.sidecars: http.*/photos: expected 1 problems, each a text or null"
    with pytest.raises(ConnectionError, match=words):
        refuse(cfg, folder(tmp_path, [200]), api)


def test_a_run_asks_before_it_loads_the_model(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    folder(tmp_path / "photos", [0, 200])
    loaded = []
    monkeypatch.setattr(session, "load_frozen", lambda *given: loaded.append(given))
    with serve(Looker().app) as url:
        reward = config.Reward(sidecars=(url,), judge="", preference=False, dynamic=False)
        data = config.Data(dir=str(tmp_path / "photos"), pairs=2, seeds=2)
        video = config.Video(frames=9, height=64, width=64, fps=8)
        cfg = config.Config(dtype="float32", data=data, video=video, reward=reward)
        with (
            pytest.raises(ValueError, match="1 of 2 photos cannot be references"),
            session.open_run(config.checked(cfg), tmp_path / "run"),
        ):
            pass
    assert not loaded
