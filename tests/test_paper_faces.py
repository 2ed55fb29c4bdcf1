"""Faces of preset `paper`, by the benchmark's rules (OpenS2V-Eval, get_facesim)."""

import numpy as np
import pytest
import torch
from paper_folder import Analysis, align, with_faces

from evoid_jax.sidecars.paper import clips, faces


def test_the_largest_face_is_taken_in_the_order_of_colours_that_insightface_has():
    face = faces.Finder(Analysis(), align).find(with_faces((5, 8), (50, 30), (20, 11)))
    assert face.embedding_D.tolist() == [1, 50, 30]  # its box is the widest
    assert face.crop_HWC.shape == (224, 224, 3) and (face.crop_HWC == (255, 0, 0)).all()


def test_a_face_without_air_is_found_in_a_grey_border_and_cut_from_the_picture_itself():
    analysis = Analysis(needs_air=True)
    face = faces.Finder(analysis, align).find(with_faces((5, 8)))
    # 25 % of 40 and of 60 on each side; points move back by that much.
    assert analysis.seen == [(40, 60, 3), (60, 90, 3)]
    assert face.embedding_D.tolist() == [1, 20, 18] and (face.crop_HWC == (255, 0, 0)).all()
    assert faces.Finder(analysis, align).find(with_faces()) is None


def test_the_benchmarks_likeness_with_its_quirks():
    """cosines .6, -.8 (0), 0, and a frame without a face."""
    photo = np.array([1.0, 0.0])
    frames = [np.array(v) for v in ((3.0, 4.0), (-4.0, 3.0), (0.0, 2.0))] + [None]
    assert faces.likeness(photo, frames, drop_zeros=False) == pytest.approx((0.2, 0.15))
    assert faces.likeness(photo, frames, drop_zeros=True) == pytest.approx((0.6, 0.15))
    assert faces.likeness(photo, [None, None], drop_zeros=True) == (0.0, 0.0)
    assert faces.likeness(photo, frames[1:], drop_zeros=True) == (0.0, 0.0)


def test_the_benchmarks_32_frames():
    index = clips.sample(69)
    assert len(index) == 32 and index[:5].tolist() == [0, 2, 4, 6, 8] and index[-1] == 68
    asked = []

    def measure(frames):
        asked.append(len(frames))
        return np.array([frame.mean() for frame in frames])

    video = np.stack([np.full((4, 4, 3), 10 * t, np.uint8) for t in range(3)])
    values = clips.over_sample(measure, video)
    assert asked == [3]  # each of them once
    assert values.tolist() == [10.0 * t for t in np.linspace(0, 2, 32, dtype=int)]


def write_pack(folder):
    """Write nets of SCRFD's and ArcFace's form: a face at one place, its first pixels for a vector.

    The detector's outputs are scores, boxes and points at strides 8, 16 and 32, two anchors each,
    in strides from the anchor; only anchor (20, 10) of stride 8 finds something.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def save(name, shape, nodes, outputs):
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
        infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs]
        graph = helper.make_graph(nodes, name, inputs, infos)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        onnx.save(model, folder / name)

    def constant(name, value):
        tensor = numpy_helper.from_array(np.asarray(value))
        return helper.make_node("Constant", [], [name], value=tensor)

    nodes, names = [], []
    at = 2 * (10 * 40 + 20)  # row 10, column 20, first anchor
    for part, width in (("score", 1), ("box", 4), ("points", 10)):
        for stride in (8, 16, 32):
            values = np.zeros((2 * (320 // stride) ** 2, width), np.float32)
            if stride == 8:
                row = {"score": [0.9], "box": [4] * 4, "points": [-2, -2, 2, -2, 0, 0, -1, 2, 1, 2]}
                values[at] = row[part]
            names.append(f"{part}{stride}")
            nodes.append(constant(names[-1], values))
    save("det.onnx", [1, 3, 320, 320], nodes, names)
    ends = [constant("flat", [1, -1]), constant("first", [0]), constant("last", [512])]
    axis = constant("axis", [1])
    reshape = helper.make_node("Reshape", ["x", "flat"], ["row"])
    part = helper.make_node("Slice", ["row", "first", "last", "axis"], ["vector"])
    save("rec.onnx", ["n", 3, 112, 112], [*ends, axis, reshape, part], ["vector"])


def test_insightface_runs_on_a_pack_by_its_folder(tmp_path):
    """Box and points in pixels of the picture: the detector sees 480 x 640 at half the size."""
    pytest.importorskip("insightface", reason="insightface is in requirements-paper.txt")
    write_pack(tmp_path)
    finder = faces.load_finder(tmp_path, torch.device("cpu"))
    frame = np.full((480, 640, 3), (200, 100, 50), np.uint8)
    (found,) = finder.analysis.get(frame)
    # The anchor is at (160, 80), of which 4 strides are 32.
    np.testing.assert_allclose(found["bbox"], [256, 96, 384, 224], atol=1e-3)
    np.testing.assert_allclose(found["kps"][0], [288, 128], atol=1e-3)
    face = finder.find(frame)
    assert face.crop_HWC.shape == (224, 224, 3) and (face.crop_HWC[112, 112] == frame[0, 0]).all()
    assert face.embedding_D.shape == (512,)
    # The first pixels of the red plane, as the net sees them: (200 - 127.5) / 127.5.
    np.testing.assert_allclose(face.embedding_D[100:110], 72.5 / 127.5, atol=1e-3)


@pytest.mark.parametrize(("lost", "said"), [("rec", "recognises faces"), ("det", "detects faces")])
def test_a_pack_that_lacks_a_net_is_refused(tmp_path, lost, said):
    pytest.importorskip("insightface", reason="insightface is in requirements-paper.txt")
    write_pack(tmp_path)
    (tmp_path / f"{lost}.onnx").unlink()
    with pytest.raises(ValueError, match=f"no ONNX file that {said}"):
        faces.load_analysis(tmp_path, torch.device("cpu"))
