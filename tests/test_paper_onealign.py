"""one-align's forward pass against its original code, and OpenS2V-Eval's smoothness around it.

The numbers come from Q-Align's code (14dfdff) under transformers 4.36.1 and tokenizers 0.15.0, with
the weights of paper_models.py.
"""

import json

import numpy as np
import paper_models
import pytest
import torch
from paper_folder import letters
from paper_models import picture

from evoid_jax.sidecars.paper import checkpoints, onealign, smoothness

CPU = torch.device("cpu")
BEFORE, AFTER, WORDS = [1, 17, 40, 99, 3], [13, 64, 77, 5], [11, 23, 42, 63, 101]
LOGITS = [
    [-1.92524767, 0.71462446, 1.37586057, 1.90591443, 0.62102240],
    [0.35889691, 1.16109443, 0.05857522, 0.73459315, 0.63406378],
]


def tiny(folder, shards=1, **other):
    config = paper_models.TINY_ONE_ALIGN | other
    return paper_models.write(folder, paper_models.one_align(config), config, shards)


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    return onealign.load(tiny(tmp_path_factory.mktemp("one-align"), shards=3), CPU, torch.float32)


@pytest.fixture(scope="module")
def seen(net):
    side = net.config.image
    frames = paper_models.random("frames", (4, 3, side, side)) * (3 * side * side) ** 0.5
    with torch.inference_mode():
        return net.see(frames)


def test_frames_are_seen_as_by_the_original(seen):
    assert seen.shape == (4, 6, 64)
    first, last = [0.41286564, -0.09651797, 1.89457107], [0.46094853, 1.94532764, 0.86301601]
    torch.testing.assert_close(seen[0, 0, :3], torch.tensor(first), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen[3, -2, -3:], torch.tensor(last), atol=1e-5, rtol=0)


def test_windows_are_read_as_by_the_original(net, seen):
    windows = seen[torch.tensor([[0, 0, 1], [1, 2, 3]])].flatten(1, 2)
    with torch.inference_mode():
        logits = net.read(BEFORE, windows, AFTER, WORDS)
    torch.testing.assert_close(logits, torch.tensor(LOGITS), atol=1e-5, rtol=0)


def test_the_published_list_of_tensors_is_the_nets():
    """By formula, as the original code names them; 8.2 billion numbers in 862 tensors."""
    published = paper_models.one_align(paper_models.ONE_ALIGN)
    with torch.device("meta"):
        net = onealign.OneAlign(onealign.Config())
    assert paper_models.shapes_of(net) == published
    assert (len(published), paper_models.count(published)) == (862, 8_204_550_144)


def test_the_config_of_the_checkpoint_is_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(paper_models.ONE_ALIGN))
    assert onealign.read_config(tmp_path) == onealign.Config()
    (tmp_path / "config.json").write_text(json.dumps({"num_key_value_heads": 8}))
    with pytest.raises(ValueError, match="another model"):
        onealign.read_config(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("model.norm.weight"), r"lacks 1 tensors .* model\.norm\.weight"),
        (lambda s: s.update(extra=(3,)), "has 'extra', which this net has not"),
        (lambda s: s.update({"model.norm.weight": (9,)}), r"norm\.weight is \(9,\); expected \(64"),
    ],
)
def test_another_list_of_tensors_is_refused(tmp_path, change, said):
    shapes = paper_models.one_align(paper_models.TINY_ONE_ALIGN)
    change(shapes)
    folder = paper_models.write(tmp_path, shapes, paper_models.TINY_ONE_ALIGN)
    with pytest.raises(ValueError, match=said):
        onealign.load(folder, CPU, torch.float32)


def test_rotary_tables_of_older_files_are_no_fault_and_pickles_are_read(tmp_path):
    shapes = paper_models.one_align(paper_models.TINY_ONE_ALIGN)
    state = paper_models.randoms(shapes | {"model.layers.0.self_attn.rotary_emb.inv_freq": (8,)})
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps(paper_models.TINY_ONE_ALIGN))
    net = onealign.load(tmp_path, CPU, torch.bfloat16)
    assert {p.dtype for p in net.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad or p.is_meta for p in net.parameters())


def test_a_folder_without_weights_and_a_missing_shard_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no weights; expected"):
        checkpoints.weight_files(tmp_path)
    folder = tiny(tmp_path, shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="00002-of-00002"):
        checkpoints.weight_files(folder)


# OpenS2V-Eval's MotionSmoothness


def test_windows_of_three_frames():
    """By its code: the first frame thrice; the last window begins with a frame twice."""
    assert smoothness.windows(5).tolist() == [[0, 0, 0], [0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 3, 4]]
    assert len(smoothness.windows(69)) == 69
    with pytest.raises(ValueError, match="3 frames"):
        smoothness.windows(2)


def test_seven_artefacts_of_69_frames_are_the_published_score():
    """Two lone jumps make 2 frames each, two in a row make 3: 7 of 69, as OpenS2V's demo has it."""
    grades = np.full(69, 0.5)
    grades[10:] += 0.1
    grades[30:] -= 0.1
    grades[50] += 0.1
    assert smoothness.smoothness(grades) == 0.8985507246376812
    assert smoothness.smoothness(np.full(69, 0.5)) == 1.0
    assert smoothness.smoothness(np.array([0.5, 0.524, 0.5])) == 1.0
    assert smoothness.smoothness(np.array([0.5, 0.526, 0.526])) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("size", "mean", "middle"),
    [
        ((48, 83), -0.0345198, [-0.7265773, -0.2963436, -0.3283944]),
        ((480, 832), 0.1005404, [1.1858164, 1.0693634, -1.3806794]),
        ((90, 40), -0.0311874, [1.6675646, -0.6565300, 0.7949909]),
    ],
)
def test_pixels_are_those_of_the_original_processor(size, mean, middle):
    """CLIPImageProcessor of transformers 4.36.1 at 448 on a square padded by Q-Align's code."""
    pixels = smoothness.pixels_of(picture(*size), 448)
    assert pixels.shape == (3, 448, 448) and pixels.dtype == np.float32
    assert pixels.mean() == pytest.approx(mean, abs=2e-6)
    np.testing.assert_allclose(pixels[:, 224, 200], middle, atol=1e-5)


def test_a_video_is_graded_the_same_in_batches_of_any_size(net):
    video = np.stack([np.roll(picture(20, 30), 5 * t, 1) for t in range(7)])
    few, many = (smoothness.Scorer(net, letters, 1, gib) for gib in (1e-9, 1.0))
    grades = many.grades(video)
    assert grades.shape == (7,) and ((grades > 0) & (grades < 1)).all()
    np.testing.assert_allclose(few.grades(video), grades, atol=1e-6)
    # The window of frame 0 shows it three times: the same as a clip of that frame alone.
    still = many.grades(np.repeat(video[:1], 3, 0))
    np.testing.assert_allclose(still, grades[0], atol=1e-6)


def test_the_prompt_stands_around_the_frames(net):
    """One beginning, the first half, the frames' place, the second half, without a second one."""
    scorer = smoothness.Scorer(net, letters, 1, 1.0)
    assert scorer.before == [1, *letters(smoothness.BEFORE)]
    assert scorer.after == letters(smoothness.AFTER)
    assert scorer.words == [letters(word)[0] for word in smoothness.GRADES]
    worth = {"excellent": 1, "good": 0.75, "fair": 0.5, "poor": 0.25, "bad": 0}
    assert worth == smoothness.GRADES


def test_the_tokenizer_of_the_checkpoint_is_read(tmp_path):
    spm = pytest.importorskip("sentencepiece", reason="sentencepiece is in requirements-paper.txt")
    text = tmp_path / "text"
    text.write_text("\n".join([smoothness.BEFORE + smoothness.AFTER, *smoothness.GRADES] * 20))
    spm.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    scorer = smoothness.load(tiny(tmp_path), CPU, torch.float32, memory=1.0)
    assert scorer.before[0] == 1 and len(scorer.after) > 1 and len(scorer.words) == 5
