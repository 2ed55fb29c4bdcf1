"""Pairs: the tiny world's prepared set and a user's folder give the same batches at every step."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from evoid_jax.data import pairs as pairs_module
from evoid_jax.data.pairs import batch, open_pairs
from evoid_jax.world import portraits


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def evolution(cache_dir):
    return open_pairs("portraits", cache_dir=cache_dir)


def write_folder(folder, lines, images=("a.png", "b.jpg", "c.png", "d.png", "e.png")):
    for k, name in enumerate(images):
        Image.new("RGB", (20 + k, 30), (40 * k, 10, 200)).save(folder / name)
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "prompts.jsonl").write_text("\n".join(texts))
    return str(folder)


def five(folder):
    names = ("a.png", "b.jpg", "c.png", "d.png", "e.png")
    return write_folder(folder, [{"image": name, "prompt": f"about {name}"} for name in names])


def test_portraits_are_paired_with_their_own_prompts(evolution):
    assert len(evolution) == 512 * 4
    seen = set()
    for i in range(0, len(evolution), 97):
        pair = evolution[i]
        index, scene = map(int, pair.name.split("-"))
        assert index in portraits.SPLITS["evolution"]
        np.testing.assert_array_equal(pair.attributes, portraits.identity(index))
        np.testing.assert_array_equal(pair.images[0], portraits.reference(pair.attributes))
        assert pair.prompt == portraits.prompt(portraits.scene(index, scene))
        seen.add(index)
    assert len(seen) > 10


def test_heldout_people_come_once_and_are_nobody_from_evolution(cache_dir):
    heldout = open_pairs("portraits", split="heldout", cache_dir=cache_dir)
    names = [heldout[i].name for i in range(len(heldout))]
    assert {int(name.split("-")[0]) for name in names} == set(portraits.SPLITS["heldout"])
    assert len(names) == 256


def test_reopening_reads_the_same_pairs(evolution, cache_dir):
    again = open_pairs("portraits", cache_dir=cache_dir)
    assert [again[i].name for i in range(20)] == [evolution[i].name for i in range(20)]


def test_a_batch_holds_what_its_indices_say(evolution):
    got = batch(evolution, 3, 4)
    assert got.attributes.shape == (4, len(portraits.ATTRIBUTES))
    assert got.index.shape == (4,)
    for p, i in enumerate(got.index):
        pair = evolution[int(i)]
        assert got.prompts[p] == pair.prompt
        np.testing.assert_array_equal(got.images[p][0], pair.images[0])
        np.testing.assert_array_equal(got.attributes[p], pair.attributes)


def test_a_batch_depends_on_step_and_seed_only(evolution, cache_dir):
    """Resuming at step 5 needs nothing but the number 5."""
    straight = [batch(evolution, step, 4).index.tolist() for step in range(7)]
    fresh = open_pairs("portraits", cache_dir=cache_dir)
    assert [batch(fresh, step, 4).index.tolist() for step in (6, 5)] == [straight[6], straight[5]]
    other = open_pairs("portraits", seed=1, cache_dir=cache_dir)
    assert batch(other, 0, 4).index.tolist() != straight[0]


def test_an_epoch_holds_every_pair_once_and_epochs_differ(tmp_path):
    names = [f"{k}.png" for k in range(6)]
    lines = [{"image": name, "prompt": name} for name in names]
    pairs = open_pairs(folder=write_folder(tmp_path, lines, names), seed=3)
    orders = [
        np.concatenate([batch(pairs, 3 * epoch + k, 2).index for k in range(3)]).tolist()
        for epoch in range(4)
    ]
    assert all(sorted(order) == list(range(6)) for order in orders)
    assert len(set(map(tuple, orders))) > 1


def test_no_repeat_in_an_epoch_that_the_count_does_not_divide(tmp_path):
    pairs = open_pairs(folder=five(tmp_path))
    for epoch in range(6):
        drawn = np.concatenate([batch(pairs, 2 * epoch + k, 2).index for k in range(2)])
        assert len(set(drawn.tolist())) == 4


def test_fewer_pairs_than_the_batch_wants_come_equally_often(tmp_path):
    pairs = open_pairs(folder=five(tmp_path))
    drawn = np.concatenate([batch(pairs, step, 8).index for step in range(5)])
    assert np.bincount(drawn).tolist() == [8] * 5


def test_a_users_folder(tmp_path):
    lines = [
        {"image": "a.png", "prompt": "Eine Frau lächelt."},
        "",
        {"image": ["b.jpg", "c.png"], "prompt": "two views", "note": "kept out"},
    ]
    pairs = open_pairs(folder=write_folder(tmp_path, lines))
    assert len(pairs) == 2
    assert pairs[0].prompt == "Eine Frau lächelt."
    assert [image.shape for image in pairs[1].images] == [(30, 21, 3), (30, 22, 3)]
    assert pairs[1].images[0].dtype == np.uint8
    assert pairs[0].attributes is None
    assert batch(pairs, 0, 2).attributes is None
    assert {pairs[0].name, pairs[1].name} == {"a", "b"}


def test_iterating_ends(tmp_path):
    assert len(list(open_pairs(folder=five(tmp_path)))) == 5


def test_images_are_read_upright_and_on_white(tmp_path):
    turned = Image.new("RGB", (20, 10))
    exif = turned.getexif()
    exif[0x0112] = 6  # the camera was held on its side
    turned.save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert pairs_module.load_image(tmp_path / "turned.jpg").shape == (20, 10, 3)
    assert (pairs_module.load_image(tmp_path / "clear.png") == 255).all()


def test_a_byte_order_mark_and_windows_line_ends_are_fine(tmp_path):
    five(tmp_path)
    text = "\ufeff" + '{"image": "a.png", "prompt": "x"}\r\n{"image": "b.jpg", "prompt": "y"}\r\n'
    (tmp_path / "prompts.jsonl").write_bytes(text.encode())
    assert [pair.prompt for pair in open_pairs(folder=str(tmp_path))] == ["x", "y"]


GOOD = {"image": "a.png", "prompt": "fine"}
FAULTS = {
    "bad JSON": ('{"image": "a.png", "prompt": ', "not valid JSON"),
    "not an object": ('["a.png", "x"]', 'must be an object with "image" and "prompt"'),
    "no prompt": ({"image": "a.png"}, 'must be an object with "image" and "prompt"'),
    "empty prompt": ({"image": "a.png", "prompt": "  "}, '"prompt" is empty'),
    "prompt is a number": ({"image": "a.png", "prompt": 3}, '"prompt" must be a string, not 3'),
    "prompt is null": ({"image": "a.png", "prompt": None}, '"prompt" must be a string, not null'),
    "image is a number": ({"image": 7, "prompt": "x"}, '"image" must be a file name or a list'),
    "no images": ({"image": [], "prompt": "x"}, '"image" must be a file name or a list'),
    "nested image": ({"image": ["a.png", 1], "prompt": "x"}, '"image" must be a file name or'),
    "missing file": (
        {"image": ["a.png", "nobody.png"], "prompt": "x"},
        "nobody.png does not",
    ),
    "a folder": ({"image": "sub", "prompt": "x"}, "sub does not exist"),
    "text as image": ({"image": "prompts.jsonl", "prompt": "x"}, "is not a readable image"),
    "cut-off image": ({"image": "cut.png", "prompt": "x"}, "cut.png is not a readable image"),
    "cut-off jpeg": ({"image": "cut.jpg", "prompt": "x"}, "cut.jpg is not a readable image"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_line_is_named_with_file_and_number(tmp_path, fault):
    line, message = FAULTS[fault]
    folder = write_folder(tmp_path, [GOOD, "", line, GOOD])
    (tmp_path / "sub").mkdir()
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    for name, kind in (("cut.png", "PNG"), ("cut.jpg", "JPEG")):
        file = io.BytesIO()
        noise.save(file, kind)
        (tmp_path / name).write_bytes(file.getvalue()[: len(file.getvalue()) // 2])
    with pytest.raises(ValueError) as error:
        open_pairs(folder=folder)
    assert f"{tmp_path / 'prompts.jsonl'}, line 3: " in str(error.value)
    assert message in str(error.value)


def test_a_faulty_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        open_pairs(folder=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"prompts\.jsonl is missing; write"):
        open_pairs(folder=str(tmp_path))
    (tmp_path / "prompts.jsonl").write_text("\n \n")
    with pytest.raises(ValueError, match=r"prompts\.jsonl is empty; write"):
        open_pairs(folder=str(tmp_path))
    (tmp_path / "prompts.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not UTF-8"):
        open_pairs(folder=str(tmp_path))


def test_unknown_sources_and_splits_are_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown source of pairs None"):
        open_pairs()
    with pytest.raises(ValueError, match="unknown split 'train'"):
        open_pairs("portraits", split="train", cache_dir=str(tmp_path))
    with pytest.raises(ValueError, match="need a cache_dir"):
        open_pairs("portraits")


def test_tensorflow_and_torch_are_never_imported(cache_dir, evolution):
    code = (
        "import sys; from evoid_jax.data.pairs import open_pairs, batch;"
        "assert 'tensorflow_datasets' not in sys.modules;"
        f"batch(open_pairs('portraits', cache_dir={cache_dir!r}), 0, 4);"
        "assert 'tensorflow_datasets' in sys.modules;"
        "assert not {'tensorflow', 'torch'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
