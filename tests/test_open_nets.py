"""The parts of preset `open` on made-up weights: what their maths says, and what they refuse."""

import math

import cv2
import made_up_open
import numpy as np
import pytest
import torch

from evoid_jax.sidecars.open import (
    align,
    brisque,
    catalogue,
    conse,
    dlib_resnet,
    efficientnet,
    faces,
    looks,
    minilm,
    onnx_file,
    sface,
    steadiness,
    transnet,
)

# Alignment


def test_a_turned_and_shrunk_template_is_laid_back_over_itself():
    angle, size = 0.3, 0.4
    turn = size * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = align.similarity(align.ARCFACE @ turn.T + [7, -3], align.ARCFACE)
    back = (align.ARCFACE @ turn.T + [7, -3]) @ matrix[:, :2].T + matrix[:, 2]
    np.testing.assert_allclose(back, align.ARCFACE, atol=1e-9)
    assert math.hypot(matrix[0, 0], matrix[1, 0]) == pytest.approx(1 / size)


def test_a_mirrored_face_is_not_mirrored_back():
    matrix = align.similarity(align.ARCFACE * [-1, 1], align.ARCFACE)
    assert np.linalg.det(matrix[:, :2]) > 0


def test_points_that_are_all_one_are_refused():
    with pytest.raises(ValueError, match="must differ"):
        align.similarity(np.ones((5, 2)), align.ARCFACE)


@pytest.mark.parametrize("factor", [1, 6])
def test_a_crop_puts_the_points_onto_the_template(factor):
    """A white spot at each point is found at the template's place, in large photos too."""
    picture = np.zeros((200 * factor, 200 * factor, 3), np.uint8)
    points = (align.ARCFACE + 40) * factor
    for x, y in points:
        cv2.circle(picture, (round(x), round(y)), 3 * factor, (255, 255, 255), -1)
    crop = align.crop(picture, points, align.ARCFACE, 112)
    for x, y in align.ARCFACE:
        around = crop[round(y) - 5 : round(y) + 6, round(x) - 5 : round(x) + 6, 0].astype(float)
        weight = around / around.sum()
        middle = [(weight * grid).sum() - 5 for grid in np.mgrid[0:11, 0:11]]
        assert np.abs(np.array(middle) - [y - round(y), x - round(x)]).max() < 0.6


# Faces


def test_an_opencv_that_cannot_read_the_detector_says_so(tmp_path, monkeypatch):
    file = tmp_path / "face.onnx"
    file.write_bytes(b"no net")
    monkeypatch.setattr(catalogue, "find", lambda *_: file)
    with pytest.raises(RuntimeError, match="cannot read the face detector .* --upgrade .* Failed"):
        faces.Finder()


class Detector:
    """Stands where OpenCV's net does: sees one face where the picture has a red pixel."""

    def setInputSize(self, size):
        self.size = size

    def detect(self, image):
        assert image.shape[1::-1] == self.size
        y, x = np.nonzero(image[..., 2] > 200)
        if not len(x) or min(x.min(), y.min()) == 0:  # none, or one that fills the picture
            return 0, None
        box = [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]
        small = [0, 0, 4, 4]
        return 2, np.float32([[*small, *range(10), 0.7], [*box, *range(10), 0.9]])


def finder() -> faces.Finder:
    made = object.__new__(faces.Finder)
    made._net = Detector()
    return made


def test_boxes_are_in_the_pictures_own_pixels_and_the_largest_comes_first():
    picture = np.zeros((600, 1280, 3), np.uint8)
    picture[200:400, 300:500, 0] = 255
    largest, other = finder().find(picture)
    np.testing.assert_allclose(largest.box, [300, 200, 500, 400], atol=3)
    assert largest.score == pytest.approx(0.9) and other.score == pytest.approx(0.7)
    np.testing.assert_allclose(largest.points[1], [4, 6], atol=0.1)  # (2, 3) at half the size


def test_a_face_that_fills_the_picture_is_found_with_a_border():
    picture = np.full((64, 48, 3), (255, 0, 0), np.uint8)
    np.testing.assert_allclose(finder().find(picture)[0].box, [0, 0, 48, 64], atol=1)
    assert finder().find(np.zeros((64, 48, 3), np.uint8)) == []


# Files of weights


def test_an_onnx_file_is_read_as_it_was_written():
    rng = np.random.default_rng(1)
    arrays = {
        "a": rng.standard_normal((2, 3)).astype(np.float32),
        "b": rng.integers(-128, 128, (300,)).astype(np.int8),
        "c": np.array([-1, 2**40], np.int64),
    }
    got = onnx_file.weights(made_up_open.onnx(arrays))
    assert list(got) == ["a", "b", "c"]
    for name, array in arrays.items():
        np.testing.assert_array_equal(got[name], array)
        assert got[name].dtype == array.dtype


def test_packed_sizes_are_read_too():
    # TensorProto: dims 1 packed (2, 3), data_type int8, name "x", six raw bytes.
    tensor = b"\x0a\x02\x02\x03\x10\x03\x42\x01x\x4a\x06abcdef"
    graph = b"\x2a" + bytes([len(tensor)]) + tensor
    got = onnx_file.weights(b"\x3a" + bytes([len(graph)]) + graph)
    assert got["x"].shape == (2, 3) and got["x"][1, 2] == ord("f")


@pytest.mark.parametrize("content", [b"", b"no net", b"\x3a\xff", b"\x3a\x05\x2a\x03\x10"])
def test_what_is_no_onnx_file_is_refused(content):
    with pytest.raises(ValueError):
        onnx_file.weights(content)


def test_weights_in_blocks_by_hand():
    arrays = {
        "w_quantized": np.array([[1, 2, 3, 4]], np.int8),
        "w_scales": np.array([[0.5, 2]], np.float32),
        "w_zero_point": np.array([[1, 0]], np.int8),
        "w_shape": np.array([1, 2, 2]),
    }
    assert sface.dequantised(arrays, "w").tolist() == [[[0, 0.5], [6, 8]]]


def test_weights_of_tensorflow_js_by_hand():
    manifest = """[{"weights": [
        {"name": "a", "shape": [2], "quantization": {"dtype": "uint8", "scale": 0.5, "min": -1}},
        {"name": "b", "shape": [1], "dtype": "float32"}]}]"""
    content = bytes([0, 6]) + np.float32(0.25).tobytes()
    got = dlib_resnet.dequantised(manifest, content)
    assert got["a"].tolist() == [-1, 2] and got["b"].tolist() == [0.25]
    with pytest.raises(ValueError, match="6 bytes of weights, there are 7"):
        dlib_resnet.dequantised(manifest, content + b"x")


@pytest.mark.parametrize(
    ("build", "weights"),
    [
        (sface.build, {"conv_1_relu_gamma": np.ones(3)}),
        (dlib_resnet.build, {"fc": torch.ones(3)}),
        (efficientnet.build, {"_fc.bias": torch.ones(3)}),
        (transnet.build, {"fc1.bias": torch.ones(3)}),
        (minilm.build, {"embeddings.LayerNorm.bias": torch.ones(3)}),
    ],
)
def test_weights_of_another_net_are_refused(build, weights):
    with pytest.raises(ValueError, match="these are not the weights of"):
        build(weights)


def test_weights_that_are_left_over_are_refused():
    manifest, content = made_up_open.dlib_files(np.random.default_rng(0))
    tensors = dlib_resnet.dequantised(manifest, content)
    with pytest.raises(ValueError, match="no place for more"):
        dlib_resnet.build(tensors | {"more": torch.ones(1)})


# Nets


def test_an_affine_multiplied_into_a_convolution_is_the_affine_after_it():
    rng = np.random.default_rng(0)
    tensors = dlib_resnet.dequantised(*made_up_open.dlib_files(rng))
    net = dlib_resnet.build(tensors)
    x = torch.rand(1, 3, 20, 20)
    weight = tensors["conv32_down/conv/filters"].permute(3, 2, 0, 1)
    y = torch.nn.functional.conv2d(x, weight, tensors["conv32_down/conv/bias"], stride=2)
    scale, shift = (tensors[f"conv32_down/scale/{k}"] for k in ("weights", "biases"))
    y = y * scale[:, None, None] + shift[:, None, None]
    torch.testing.assert_close(net.stem(x), y, atol=1e-5, rtol=1e-5)


def test_a_block_that_halves_pads_what_is_missing_with_zeros():
    """8 pixels: the convolution leaves 3, the pooling 4; the last row is the pooling's alone."""
    block = dlib_resnet.Block(2, 4, down=True)
    for conv in (block.first, block.second):
        torch.nn.init.zeros_(conv.weight)
        torch.nn.init.ones_(conv.bias)
    y = block(torch.full((1, 2, 8, 8), 2.0))
    assert y.shape == (1, 4, 4, 4)
    assert y[0, 0, 0, 0] == 3 and y[0, 0, 3, 3] == 2  # 1 + 2, and 0 + 2
    assert y[0, 3, 0, 0] == 1 and y[0, 3, 3, 3] == 0  # channels that the input lacks


def test_padding_of_an_even_size_is_right_and_below():
    conv = efficientnet.Same(1, 1, 3, 2, bias=False)
    torch.nn.init.ones_(conv.weight)
    y = conv(torch.ones(1, 1, 4, 4))
    assert y.tolist() == [[[[9, 6], [6, 4]]]]


def test_sentences_of_a_batch_are_those_alone():
    torch.manual_seed(0)
    net = minilm.MiniLM().eval()
    ids, mask = torch.tensor([[5, 6, 0, 0], [5, 6, 7, 8]]), torch.tensor([[1, 1, 0, 0], [1] * 4])
    both, alone = net(ids, mask), net(ids[:1, :2], mask[:1, :2])
    torch.testing.assert_close(both[:1], alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(both.norm(dim=1), torch.ones(2))


def test_a_colour_stands_in_its_own_bin():
    frames = torch.tensor([[[[[255, 0, 31], [0, 32, 255]]]]], dtype=torch.uint8)
    counts = transnet.histograms(frames)
    assert counts.shape == (1, 1, 512)
    assert counts[0, 0].nonzero().flatten().tolist() == [8 + 7, 7 * 64]


def test_likeness_compares_a_frame_with_its_neighbours_in_time():
    net = transnet.Likeness()
    torch.nn.init.zeros_(net.fc.weight)
    torch.nn.init.zeros_(net.fc.bias)
    net.fc.weight.data[0, 50] = net.fc.weight.data[1, 51] = net.fc.weight.data[2, 49] = 1
    x = torch.eye(3)[[0, 0, 1]][None]  # two frames alike, then another
    y = net(x)[0, :, :3].tolist()
    assert y == [[1, 1, 0], [1, 0, 1], [1, 0, 0]]  # itself, the next one, the last one


@pytest.mark.parametrize("count", [1, 50, 51, 120])
def test_every_frame_has_its_probability_whatever_the_length(count, monkeypatch):
    """Frame i holds the pixel i: the net gives the pixel back."""

    class Echo(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = torch.nn.Linear(1, 1)

        def forward(self, frames_BTHWC):
            assert frames_BTHWC.shape == (1, 100, 27, 48, 3)
            return torch.logit(frames_BTHWC[..., 0, 0, 0].float() / 256)

    cuts = object.__new__(transnet.Cuts)
    cuts.net = Echo()
    video = np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones(
        (1, 27, 48, 3), np.uint8
    )
    np.testing.assert_allclose(cuts.probabilities(video) * 256, np.arange(count), atol=1e-3)


# Measures


def test_a_gaussian_is_fitted_as_one():
    """Shape 2 is a Gaussian; twice the spread above 0 is found there."""
    values = np.random.default_rng(0).standard_normal(200_000)
    shape, left, right = brisque.fit(values)
    assert shape == pytest.approx(2, abs=0.03) and left == pytest.approx(right, rel=0.02)
    _, left, right = brisque.fit(np.where(values > 0, 2 * values, values))
    assert right / left == pytest.approx(2, rel=0.02)


def test_the_neighbours_of_a_picture_are_where_they_should_be():
    """Stripes along a direction agree with their neighbour in it, so the products are positive."""
    y, x = np.mgrid[0:64, 0:64]
    for stripes, place in ((y % 8, 0), (x % 8, 1), ((x - y) % 8, 2), ((x + y) % 8, 3)):
        features = brisque.features((30 * stripes).astype(np.uint8))
        means = features[[3, 7, 11, 15]]  # of right, below, and both diagonals
        assert means.argmax() == place


def test_a_regression_by_hand():
    """One support vector at the scaled features: alpha x exp(0) - rho."""
    grey = np.random.default_rng(0).integers(0, 256, (32, 32)).astype(np.uint8)
    picture = np.repeat(grey[..., None], 3, 2)
    features = brisque.features(grey)
    least, most = features - 1, features + 1  # so scaled features are 0
    regression = brisque.Regression(np.zeros((1, 36)), np.array([30.0]), -12, 0.1, least, most)
    assert brisque.score(regression, picture) == pytest.approx(42)
    high = regression._replace(rho=-500.0)
    assert brisque.score(high, picture) == 100
    far = regression._replace(vectors_SD=np.full((1, 36), 1 / 6))  # a distance of 1
    assert brisque.score(far, picture) == pytest.approx(12 + 30 * math.exp(-0.1))
    with pytest.raises(ValueError, match="needs 16 pixels or more; got 8 x 40"):
        brisque.features(np.zeros((8, 40), np.uint8))


def test_colourfulness_by_hand():
    """One flat red: no spread, means 200 and 100, so 0.3 sqrt(200^2 + 100^2)."""
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 200
    assert looks.colourfulness(red) == pytest.approx(0.3 * math.hypot(200, 100))
    assert looks.colourfulness(np.full((4, 4, 3), 90, np.uint8)) == 0


def test_a_look_is_a_weighted_mean():
    """A flat mid-grey: nothing is sharp, in contrast or in colour, and nothing is grainy."""
    least, most = np.zeros(36), np.ones(36)
    regression = brisque.Regression(np.zeros((1, 36)), np.zeros(1), -20.0, 0.1, least, most)
    grey = np.full((32, 32, 3), 115, np.uint8)
    parts = looks.measures(regression, grey)
    assert parts["clean"] == pytest.approx(0.8)
    assert parts["light"] == pytest.approx(1, abs=0.005)
    assert [parts[name] for name in ("sharp", "contrast", "colour")] == [0, 0, 0]
    assert parts["smooth"] == 1
    assert looks.look(dict.fromkeys(looks.WEIGHTS, 0.3)) == pytest.approx(0.3)
    grain = np.random.default_rng(0).normal(115, 10, (64, 64))
    noisy = np.repeat(grain.clip(0, 255).astype(np.uint8)[..., None], 3, 2)
    assert looks.measures(regression, noisy)["smooth"] < 0.3


def test_steadiness_by_hand():
    features = np.array([[1, 0], [1, 0], [0.7, math.sqrt(1 - 0.49)]])
    error = np.array([0.02, 0.02])
    smooth = math.exp(-0.02 / steadiness.TAU)
    value = steadiness.steadiness(error, features, np.array([0, 1.0, 0]))
    assert value == pytest.approx(smooth * 0.7 / 0.9 / 2)  # least cosine .7, and one cut halves


def test_a_picture_that_slides_is_warped_back_and_its_speed_is_measured():
    rng = np.random.default_rng(0)
    noise = cv2.GaussianBlur(rng.integers(0, 256, (80, 160)).astype(np.float32), (0, 0), 2)
    noise = cv2.normalize(noise, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    frames = [noise[:, 3 * i : 3 * i + 120] for i in range(5)]
    motion = steadiness.motion(np.stack([np.repeat(f[..., None], 3, 2) for f in frames]))
    assert motion.length_F == pytest.approx(3 / 80, rel=0.15)
    assert motion.error_F.max() < 0.03
    assert np.abs(np.diff(np.stack(frames).astype(float), axis=0)).mean() / 255 > 0.08
    with pytest.raises(ValueError, match="2 frames"):
        steadiness.motion(np.zeros((1, 32, 32, 3), np.uint8))


def test_conse_by_hand():
    """Two classes seen with .6 and .2: the prompt is the first one's own sentence."""

    class Vectors:
        def embed(self, sentences):
            names = {"a photo of a cat": [1, 0], "a photo of a dog": [0, 1], "a cat": [1, 0]}
            return np.array([names.get(s, [0, 0]) for s in sentences], float)

    chance = np.array([[0.6, 0.2], [0.0, 1.0]])
    got = conse.similarities(Vectors(), ["cat", "dog"], chance, "a cat")
    assert got == pytest.approx([0.6 / math.hypot(0.6, 0.2), 0])
