"""Pairs: the tiny world's prepared set and a user's folder give the same batches at every step."""

import json

import numpy as np
import pytest
from picture_files import encoded, photo
from PIL import Image
from programs import python

from evoid_jax import media
from evoid_jax.data.pairs import batch, check_images, open_splits, order, spread
from evoid_jax.world import portraits


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def world(cache_dir):
    return open_splits("portraits", cache_dir=cache_dir)


@pytest.fixture(scope="module")
def evolution(world):
    return world.evolution


FIVE = ("a.png", "b.jpg", "c.png", "d.png", "e.png")


def write_folder(folder, lines, images=FIVE):
    """Write prompts.jsonl of objects or texts, and small images of different bytes."""
    for k, name in enumerate(images):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20 + k, 30), (40 * k, 10, 200)).save(folder / name)
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "prompts.jsonl").write_text("\n".join(texts), encoding="utf-8", newline="")
    return str(folder)


def five(folder):
    return write_folder(folder, [{"image": name, "prompt": f"about {name}"} for name in FIVE])


# --- the tiny world


def test_portraits_are_paired_with_their_own_prompts(evolution):
    assert len(evolution) == 512 * 4
    seen = set()
    for i in range(0, len(evolution), 97):
        pair = evolution[i]
        index, scene = map(int, pair.origin.split("-"))
        assert pair.identity == str(index)
        assert index in portraits.SPLITS["evolution"]
        np.testing.assert_array_equal(pair.attributes, portraits.identity(index))
        np.testing.assert_array_equal(pair.images[0], portraits.reference(pair.attributes))
        assert pair.prompt == portraits.prompt(portraits.scene(index, scene))
        row = evolution.rows[i]
        assert (row.prompt, row.origin, row.identity) == (pair.prompt, pair.origin, str(index))
        assert (row.pictures[0].height, row.pictures[0].width) == pair.images[0].shape[:2]
        seen.add(index)
    assert len(seen) > 10


@pytest.mark.parametrize("split", ["validation", "heldout"])
def test_people_set_apart_come_once_and_are_nobody_else(world, split):
    apart = getattr(world, split)
    assert set(apart.identities) == set(map(str, portraits.SPLITS[split]))
    assert len(apart) == 256
    others = [pairs for pairs in world if pairs is not apart]
    assert not set(apart.identities) & {name for pairs in others for name in pairs.identities}
    assert apart.kind == world.evolution.kind == "unseen identities"


def test_reopening_reads_the_same_pairs(evolution, cache_dir):
    again = open_splits("portraits", cache_dir=cache_dir).evolution
    assert again.origins == evolution.origins
    assert again[7].prompt == evolution[7].prompt


def test_a_batch_holds_what_its_order_says(evolution):
    got = batch(evolution, 3, 4)
    assert got.attributes.shape == (4, len(portraits.ATTRIBUTES))
    for p, i in enumerate(order(evolution, 3, 4)):
        pair = evolution[int(i)]
        assert got.prompts[p] == pair.prompt == evolution.prompts[i]
        np.testing.assert_array_equal(got.images[p][0], pair.images[0])
        np.testing.assert_array_equal(got.attributes[p], pair.attributes)


# --- batches


def test_the_order_depends_on_step_and_seed_only(evolution, cache_dir):
    """Resuming at step 5 needs nothing but the number 5."""
    straight = [order(evolution, step, 4).tolist() for step in range(7)]
    fresh = open_splits("portraits", cache_dir=cache_dir).evolution
    assert [order(fresh, step, 4).tolist() for step in (6, 5)] == [straight[6], straight[5]]
    other = open_splits("portraits", seed=1, cache_dir=cache_dir).evolution
    assert order(other, 0, 4).tolist() != straight[0]


def test_an_epoch_holds_every_pair_once_and_epochs_differ(tmp_path):
    names = [f"{k}.png" for k in range(6)]
    lines = [{"image": name, "prompt": name} for name in names]
    pairs = open_splits(folder=write_folder(tmp_path, lines, names), seed=3).evolution
    orders = [
        np.concatenate([order(pairs, 3 * epoch + k, 2) for k in range(3)]).tolist()
        for epoch in range(4)
    ]
    assert all(sorted(drawn) == list(range(6)) for drawn in orders)
    assert len(set(map(tuple, orders))) > 1


def test_no_repeat_in_an_epoch_that_the_count_does_not_divide(tmp_path):
    pairs = open_splits(folder=five(tmp_path)).evolution
    for epoch in range(6):
        drawn = np.concatenate([order(pairs, 2 * epoch + k, 2) for k in range(2)])
        assert len(set(drawn.tolist())) == 4


def test_fewer_pairs_than_the_batch_wants_come_equally_often(tmp_path):
    pairs = open_splits(folder=five(tmp_path)).evolution
    drawn = np.concatenate([order(pairs, step, 8) for step in range(5)])
    assert np.bincount(drawn).tolist() == [8] * 5


def test_spread_takes_everybody_before_anybody_twice():
    people = ["a", "a", "a", "b", "c", "b"]
    assert spread(people, 3) == [0, 3, 4]
    assert spread(people, 99) == [0, 3, 4, 1, 5, 2]
    assert spread(list("abcd"), 2) == [0, 1]


# --- a user's folder


def test_a_users_folder(tmp_path):
    lines = [
        {"image": ["a.png", "d.png"], "prompt": "Eine Frau lächelt.\u2028Sie winkt."},
        "",
        {"image": ["b.jpg", str(tmp_path / "c.png")], "prompt": "two views"},
    ]
    pairs = open_splits(folder=write_folder(tmp_path, lines)).evolution
    assert len(pairs) == 2
    assert pairs.prompts == ["Eine Frau lächelt.\u2028Sie winkt.", "two views"]
    assert pairs.origins == [f"{tmp_path / 'prompts.jsonl'}, line {n}" for n in (1, 3)]
    assert [image.shape for image in pairs[1].images] == [(30, 21, 3), (30, 22, 3)]
    assert pairs[1].images[0].dtype == np.uint8
    assert pairs[0].attributes is None
    assert batch(pairs, 0, 2).attributes is None


def test_other_people_prompts_or_pictures_make_other_pairs(tmp_path):
    line = {"image": "a.png", "prompt": "one", "identity": "Anna", "split": "evolution"}
    ben = {"image": "c.png", "prompt": "two", "identity": "Ben", "split": "evolution"}
    told = lambda **changes: open_splits(
        folder=write_folder(tmp_path, [ben, line | changes])
    ).digest()
    first = told()
    assert told() == first
    different = [told(identity="Anne"), told(prompt="One"), told(image="b.jpg")]
    different.append(told(split="validation"))
    assert len({first, *different}) == 5
    (tmp_path / "other.png").write_bytes((tmp_path / "a.png").read_bytes())
    assert told(image="other.png") == first
    del line["identity"]  # is then known by the picture's bytes
    unnamed = told()
    assert told(image="other.png") == unnamed != told(image="b.jpg")


def test_others_are_photos_of_the_person_on_other_lines(tmp_path):
    """Whoever has several photos: each line's others are the next ones, none twice, in a ring."""
    shown = [("a.png", "Anna"), ("b.jpg", "Ben"), ("c.png", "Anna"), ("a.png", "Anna")]
    shown += [("d.png", "Anna"), ("e.png", "Anna"), ("f.png", "Anna")]
    lines = [
        {"image": image, "prompt": f"{k}", "identity": identity}
        for k, (image, identity) in enumerate(shown)
    ]
    pairs = open_splits(folder=write_folder(tmp_path, lines, (*FIVE, "f.png"))).evolution
    read = {
        image.tobytes(): name
        for name in (*FIVE, "f.png")
        for image in (media.read_image(tmp_path / name),)
    }
    others = [[read[image.tobytes()] for image in pairs.with_others(k).others] for k in range(7)]
    assert others[0] == others[3] == ["c.png", "d.png", "e.png"]
    assert others[1] == []
    assert others[2] == ["d.png", "e.png", "f.png"] and others[5] == ["f.png", "a.png", "c.png"]
    assert list(pairs[0].others) == []  # a step of the loop asks for no monitors


def test_others_are_of_the_same_split(tmp_path):
    lines = [{"image": name, "prompt": "x", "identity": "Anna"} for name in ("a.png", "b.jpg")]
    lines += [{"image": "c.png", "prompt": "x", "identity": "Ben", "split": "heldout"}]
    splits = open_splits(folder=write_folder(tmp_path, lines))
    assert [len(splits.evolution.with_others(k).others) for k in (0, 1)] == [1, 1]
    assert splits.heldout.with_others(0).others == []


def test_iterating_ends(tmp_path):
    assert len(list(open_splits(folder=five(tmp_path)).evolution)) == 5


def test_one_reader_for_training_and_generating(tmp_path):
    """A cut-out of black hidden pixels is on white in both."""
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    grey = np.full((4, 4), 32768, np.uint16)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    lines = [{"image": name, "prompt": "x"} for name in ("clear.png", "deep.png")]
    pairs = open_splits(folder=write_folder(tmp_path, lines, ())).evolution
    for pair, value in zip(pairs, (255, 128), strict=True):
        assert (pair.images[0] == value).all()
    np.testing.assert_array_equal(pairs[0].images[0], media.read_image(tmp_path / "clear.png"))


def test_opening_decodes_once_and_prompts_decode_nothing(tmp_path, monkeypatch):
    folder = write_folder(tmp_path, [{"image": "a.png", "prompt": p} for p in "xyz"])
    checked, read = [], []
    check = media.check_image
    monkeypatch.setattr(media, "check_image", lambda file: checked.append(file) or check(file))
    monkeypatch.setattr(media, "read_image", read.append)
    pairs = open_splits(folder=folder).evolution
    assert pairs.prompts == ["x", "y", "z"]
    check_images(pairs, lambda height, width: None)
    assert len(checked) == 1 and not read


def test_a_byte_order_mark_and_windows_line_ends_are_fine(tmp_path):
    five(tmp_path)
    text = "\ufeff" + '{"image": "a.png", "prompt": "x"}\r\n{"image": "b.jpg", "prompt": "y"}\r\n'
    (tmp_path / "prompts.jsonl").write_bytes(text.encode())
    assert open_splits(folder=str(tmp_path)).evolution.prompts == ["x", "y"]


def test_a_name_is_found_however_its_accents_are_stored(tmp_path):
    composed, apart = "zo\u00eb.png", "zoe\u0308.png"
    for stored, written in ((composed, apart), (apart, composed)):
        folder = tmp_path / str(len(stored))
        folder.mkdir()
        pairs = open_splits(folder=write_folder(folder, [line(written)], [stored])).evolution
        assert pairs[0].images[0].shape == (30, 20, 3)


def test_a_picture_that_vanishes_later_is_named_with_its_line(tmp_path):
    pairs = open_splits(folder=five(tmp_path)).evolution
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"line 1: .*a\.png has changed since the start"):
        pairs[0]
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match=r"line 1: image .*a\.png does not exist"):
        pairs[0]


def test_sizes_that_cannot_be_are_named_with_their_line(tmp_path):
    folder = write_folder(tmp_path, [{"image": "a.png", "prompt": "x"}, line("b.jpg")])

    def fits(height, width):
        if width != 20:
            raise ValueError(f"{height}x{width} vanishes")

    with pytest.raises(ValueError, match=r"line 2: .*b\.jpg: 30x21 vanishes"):
        check_images(open_splits(folder=folder).evolution, fits)
    turned = Image.Exif()
    turned[0x0112] = 6
    photo(48, 64).save(tmp_path / "a.png", exif=turned)
    picture = open_splits(folder=folder).evolution.rows[0].pictures[0]
    assert (picture.height, picture.width) == (64, 48)  # as it will be read


# --- what a line can get wrong


def line(image="a.png", prompt="fine", **others) -> dict:
    return {"image": image, "prompt": prompt, **others}


GOOD = line(prompt="another")
FAULTS = {
    "bad JSON": ('{"image": "a.png", "prompt": ', "not valid JSON"),
    "two objects": ('{"image": "a.png"} {"prompt": "x"}', "not valid JSON"),
    "control character": ('{"image": "a.png", "prompt": "a\x01b"}', "not valid JSON"),
    "not an object": ('["a.png", "x"]', 'must be an object with "image" and "prompt"'),
    "deep": ("[" * 5000 + "]" * 5000, "nested too deep"),
    "no prompt": ({"image": "a.png"}, 'must be an object with "image" and "prompt"'),
    "empty prompt": (line(prompt="  "), '"prompt" is empty'),
    "zero-width prompt": (line(prompt="\u200b\ufeff\u00a0\u3164"), '"prompt" is empty, or has no'),
    "blank entities": (line(prompt="&nbsp;&amp;#8203;"), '"prompt" is empty, or has no visible'),
    "prompt is a number": (line(prompt=3), '"prompt" must be a string, not 3'),
    "prompt is null": (line(prompt=None), '"prompt" must be a string, not null'),
    "not a number": ('{"image": "a.png", "prompt": NaN}', "NaN is not valid JSON"),
    "half an emoji": (line(prompt="\ud83d A person"), r'"prompt" has half a character (\ud83d)'),
    "the other half": (line(prompt="A person \ude00"), r"half a character (\ude00)"),
    "NUL": (line(prompt="A\0person"), '"prompt" has the control character U+0000'),
    "escape": (line(prompt="\x1b[31mred"), "control character U+001B"),
    "NUL in a name": (line("a\0.png"), '"image" has the control character U+0000'),
    "image is a number": (line(7), '"image" must be a file name or a list'),
    "image is empty": (line(" "), '"image" must be a file name or a list'),
    "no images": (line([]), '"image" must be a file name or a list'),
    "nested image": (line(["a.png", 1]), '"image" must be a file name or'),
    "key twice": ('{"image": "a.png", "prompt": "x", "prompt": "y"}', 'has "prompt" twice'),
    "unknown key": (
        line(images="b.jpg"),
        'unknown key "images" (known: image, prompt, identity, split); did you mean "image"?',
    ),
    "key in capitals": ({"Image": "a.png", "prompt": "x"}, 'did you mean "image"?'),
    "strange key": (line(**{"\ud83d": 1}), r'unknown key "\ud83d"'),
    "identity is a number": (line(identity=3), '"identity" must be a name in quotes, not 3'),
    "identity is null": (line(identity=None), '"identity" must be a name in quotes, not null'),
    "identity is empty": (line(identity="\u200b"), '"identity" must be a name in quotes'),
    "split": (
        line(split="test"),
        '"split" must be one of "evolution", "validation", "heldout", not "t',
    ),
    "split is a list": (line(split=["heldout"]), '"split" must be one of "evolution"'),
    "missing file": (line("nobody.gif"), "nobody.gif does not exist"),
    "second file missing": (line(["a.png", "x.y"]), "x.y does not exist; correct the name or"),
    "wrong capitals": (line("A.PNG"), "A.PNG does not exist; did you mean a.png?"),
    "mistyped": (line("sub/bemn.png"), "did you mean ben.png?"),
    "backslash": (line("sub\\ben.png"), 'write "/" between a folder and a file'),
    "a folder": (line("sub"), "sub is a folder; name the image in it"),
    "long name": (line("a" * 999), "File name too long"),
    "text as image": (line("prompts.jsonl"), "is not a picture that can be read"),
    "empty file": (line("empty.png"), "empty.png is an empty file"),
    "cut-off image": (line("cut.png"), "cut.png cannot be read as a picture"),
    "cut-off jpeg": (line("cut.jpg"), "cut.jpg cannot be read as a picture"),
    "animation": (line("moves.gif"), "moves.gif cannot be read as a picture: it holds 2 pictures"),
    "another number of pictures": (line(["a.png", "b.jpg"]), "pictures is 2, but 1 in "),
    "repeated": (GOOD, "repeats "),
}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """A folder with pictures, whole and broken, to write prompts.jsonl into."""
    folder = tmp_path_factory.mktemp("faulty")
    write_folder(folder, [], [*FIVE, "sub/ben.png"])
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    for name, kind in (("cut.png", "PNG"), ("cut.jpg", "JPEG")):
        data = encoded(noise, kind)
        (folder / name).write_bytes(data[: len(data) // 2])
    (folder / "empty.png").touch()
    photo().save(folder / "moves.gif", save_all=True, append_images=[photo(seed=9)])
    return folder


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_line_is_named_with_file_and_number(faulty, fault):
    text, message = FAULTS[fault]
    write_folder(faulty, [GOOD, "", text, line("c.png")], ())
    with pytest.raises(ValueError) as error:
        open_splits(folder=str(faulty))
    assert f"{faulty / 'prompts.jsonl'}, line 3" in str(error.value)
    assert message in str(error.value)
    str(error.value).encode()  # can be printed


def test_a_faulty_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        open_splits(folder=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"prompts\.jsonl is missing; write"):
        open_splits(folder=str(tmp_path))
    (tmp_path / "Prompts.jsonl").touch()
    with pytest.raises(ValueError, match=r"is missing \(there is Prompts\.jsonl\)"):
        open_splits(folder=str(tmp_path))
    (tmp_path / "prompts.jsonl").write_text("\n \n")
    with pytest.raises(ValueError, match=r"prompts\.jsonl is empty; write"):
        open_splits(folder=str(tmp_path))
    (tmp_path / "prompts.jsonl").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="Git LFS pointer"):
        open_splits(folder=str(tmp_path))
    (tmp_path / "prompts.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="UTF-16; save it as UTF-8"):
        open_splits(folder=str(tmp_path))


def test_unknown_sources_and_shares_are_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown source of pairs None"):
        open_splits()
    with pytest.raises(ValueError, match=r"config\.data\.heldout=0\.2 is for a folder"):
        open_splits("portraits", heldout=0.2, cache_dir=str(tmp_path))
    with pytest.raises(ValueError, match="need a cache_dir"):
        open_splits("portraits")


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "faces").mkdir()
    five(tmp_path / "faces")
    assert len(open_splits(folder="~/faces").evolution) == 5


def test_tensorflow_and_torch_are_never_imported(cache_dir, evolution):
    python("tests/imports_of_pairs.py", cache_dir)
