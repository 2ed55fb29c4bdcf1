"""The other nets of preset `paper`: published tensors, original code's numbers, pixels, batches.

Numbers of GME and IR-101 come from OpenS2V-Eval's code (franciszzj's fork) under transformers
4.51.3, with the weights of paper_models.py.
"""

from pathlib import Path

import numpy as np
import paper_models
import pytest
import torch
from paper_models import picture
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from evoid_jax.sidecars.paper import aesthetic, batching, checkpoints, faces, gme, ir101

CPU = torch.device("cpu")
LAION = next((p / "shared/data/laion" for p in Path(__file__).parents
              if (p / "shared/data/laion").is_dir()), None)  # fmt: skip
TINY_CLIP = paper_models.CLIP | {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}


# IR-101


def test_the_published_tensors_of_ir101_are_the_nets():
    published = paper_models.ir101()
    with torch.device("meta"):
        net = ir101.IR101()
    assert paper_models.shapes_of(net) == published
    assert len(published) == 917
    assert sum(p.numel() for p in net.parameters()) == 65_150_912


def test_faces_are_embedded_as_by_the_original():
    """IR-18, whose units are IR-101's, since the original has no smaller one."""
    units = (2, 2, 2, 2)
    with torch.device("meta"):
        net = ir101.IR101(units)
    net.load_state_dict(paper_models.randoms(paper_models.ir101(units)), assign=True)
    upright = picture(112, 112)
    pair = [faces.Face(None, face) for face in (upright, upright[::-1].copy())]
    vectors = faces.Encoder(net.eval(), CPU, memory=1e-9).embed(pair)
    want = [[3.2736986, -0.5134760, 2.1690383], [-3.8064482, 4.4360404, -2.4996262]]
    np.testing.assert_allclose(vectors[:, :3], want, rtol=2e-5, atol=2e-5)
    assert faces.cosine(*vectors) == pytest.approx(0.1625425, abs=1e-5)


# LAION's head on CLIP


def test_the_published_tensors_of_clip_are_the_nets():
    published = paper_models.clip(paper_models.CLIP)
    with torch.device("meta"):
        net = CLIPVisionModelWithProjection(CLIPVisionConfig(**paper_models.CLIP))
    assert paper_models.shapes_of(net) == published
    assert (len(published), paper_models.count(published)) == (392, 303_966_208)


def head_of(width):
    sizes = (width, 1024, 128, 64, 16, 1)
    shapes = {}
    for place, c_in, c_out in zip((0, 2, 4, 6, 7), sizes, sizes[1:], strict=False):
        shapes |= paper_models.linear(f"layers.{place}", c_in, c_out)
    return paper_models.randoms(shapes)


@pytest.fixture(scope="module")
def laion(tmp_path_factory):
    """A random CLIP, with a text tower beside it as the published file has, and a random head."""
    folder = tmp_path_factory.mktemp("clip")
    shapes = paper_models.clip(TINY_CLIP) | {"text_model.final_layer_norm.weight": (8,)}
    config = TINY_CLIP | {"model_type": "clip_vision_model"}
    paper_models.write(folder, shapes | {"logit_scale": ()}, config)
    torch.save(head_of(768), folder / "aesthetic-model.pth")
    return folder


def test_a_checkpoint_is_graded_frame_by_frame_in_batches_of_any_size(laion):
    few, many = (
        aesthetic.load(laion, laion / "aesthetic-model.pth", CPU, gib) for gib in (1e-9, 1.0)
    )
    frames = [picture(48, 83, shift) for shift in range(4)]
    grades = many.grades(frames)
    assert grades.shape == (4,) and np.ptp(grades) > 0
    np.testing.assert_allclose(few.grades(frames), grades, atol=1e-5)
    # By hand: the head is affine, so the products of its matrices and biases are the grade.
    with torch.inference_mode():
        inputs = many.pixels(images=frames, return_tensors="pt")["pixel_values"]
        seen = torch.nn.functional.normalize(many.clip(inputs).image_embeds, dim=1)
        for layer in (many.head.layers[i] for i in (0, 2, 4, 6, 7)):
            seen = seen @ layer.weight.T + layer.bias[None]
    np.testing.assert_allclose(grades, seen[:, 0].numpy(), atol=1e-5)


def test_a_clip_that_lacks_a_tensor_is_refused(laion, tmp_path):
    shapes = paper_models.clip(TINY_CLIP)
    del shapes["visual_projection.weight"]
    config = TINY_CLIP | {"model_type": "clip_vision_model"}
    folder = paper_models.write(tmp_path, shapes, config)
    with pytest.raises(ValueError, match=r"lacks 1 tensors: visual_projection\.weight"):
        aesthetic.load(folder, laion / "aesthetic-model.pth", CPU, 1.0)


@pytest.mark.parametrize(
    ("size", "mean", "middle"),
    [
        ((48, 83), 0.0464584, [-0.5659947, -0.2513203, -0.5274753]),
        ((480, 832), 0.1837025, [0.1055330, 0.8592546, 1.0651721]),
        ((90, 40), 0.0230215, [0.3975015, -0.4614290, 0.5959100]),
    ],
)
def test_clip_sees_the_pixels_of_the_original_processor(size, mean, middle):
    processor = aesthetic.CLIPImageProcessorPil()
    pixels = processor(images=[picture(*size)], return_tensors="np")["pixel_values"][0]
    assert pixels.shape == (3, 224, 224) and pixels.mean() == pytest.approx(mean, abs=2e-6)
    np.testing.assert_allclose(pixels[:, 112, 100], middle, atol=1e-5)


@pytest.mark.skipif(LAION is None, reason="LAION's head and embeddings are not beside the checkout")
def test_laions_head_gives_its_ten_published_grades():
    file = LAION / "sac+logos+ava1-l14-linearMSE.pth"
    head = checkpoints.fill(aesthetic.Head(), [file], CPU, torch.float32)
    rows = torch.from_numpy(np.stack([np.load(LAION / f"rating{i}.npy") for i in range(10)]))
    want = [1.655, 2.359, 3.070, 3.672, 4.238, 4.701, 5.073, 5.365, 5.577, 5.747]
    np.testing.assert_allclose(head(rows.reshape(10, 768).float()).numpy(), want, atol=6e-4)


# GME


@pytest.mark.parametrize(
    ("config", "tensors", "numbers"),
    [(paper_models.GME, 730, 8_291_375_616), (paper_models.GME_2B, 729, 2_208_985_600)],
    ids=["7B", "2B"],
)
def test_the_published_tensors_of_gme_are_the_nets(config, tensors, numbers):
    """transformers 5 gave two towers other names; a tied head stands in no file."""
    published = paper_models.gme(config)
    assert (len(published), paper_models.count(published)) == (tensors, numbers)
    with torch.device("meta"):
        net = Qwen2VLForConditionalGeneration(Qwen2VLConfig(**config))
    new = lambda name: (
        name.replace("visual.", "model.visual.", 1)
        if name.startswith("visual.")
        else name.replace("model.", "model.language_model.", 1)
    )
    shapes = {new(name): shape for name, shape in published.items()}
    if config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = published["model.embed_tokens.weight"]
    assert paper_models.shapes_of(net) == shapes


@pytest.fixture(scope="module")
def tiny_gme(tmp_path_factory):
    config = paper_models.TINY_GME
    folder = tmp_path_factory.mktemp("gme")
    paper_models.write(folder, paper_models.gme(config), config)
    net, info = Qwen2VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    checkpoints.strictly(info, folder)
    return net.eval().requires_grad_(False)


def test_embeddings_are_those_of_gmes_own_code(tiny_gme):
    """Two pictures of 24 and 16 patches, two texts; the shorter ones are padded."""
    ids = torch.tensor([[5, 9, 92, *[90] * 6, 93, 7, 3], [4, 8, 92, *[90] * 4, 93, 3, 0, 0, 0]])
    mask = torch.tensor([[1] * 12, [1] * 9 + [0] * 3])
    pixels = paper_models.random("pixels", (40, 1176)) * 1176**0.5
    picture_ND = gme.embed(tiny_gme.model, ids, mask, pixels, torch.tensor([[1, 4, 6], [1, 4, 4]]))
    words = torch.tensor([[5, 9, 33, 7, 3], [8, 2, 6, 0, 0]])
    text_ND = gme.embed(tiny_gme.model, words, torch.tensor([[1] * 5, [1, 1, 1, 0, 0]]))
    want = [[0.28086287, -0.03716847, 0.09977913], [0.38076761, -0.13633433, 0.15284310]]
    np.testing.assert_allclose(picture_ND[:, :3].numpy(), want, atol=1e-5)
    want = [[0.41535383, -0.19581228, 0.18937165], [0.03453121, -0.00012357, 0.25724068]]
    np.testing.assert_allclose(text_ND[:, :3].numpy(), want, atol=1e-5)
    cosines = [[0.58722079, 0.40518671], [0.64456093, 0.30607545]]
    np.testing.assert_allclose((picture_ND @ text_ND.T).numpy(), cosines, atol=1e-5)


class Tokens:
    """Stands in for GME's tokenizer: a number for each word and each special token."""

    MARKS = ("<|image_pad|>", "<|vision_start|>", "<|vision_end|>")

    def __call__(self, texts, **limit):
        assert limit["max_length"] == 1800 and limit["padding"] and limit["truncation"]
        rows = []
        for text in texts:
            for mark in self.MARKS:
                text = text.replace(mark, f" {mark} ")
            numbers = dict(zip(self.MARKS, (90, 92, 93), strict=True))
            rows.append([numbers.get(word, 3 + len(word)) for word in text.split()])
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        return {"input_ids": ids, "attention_mask": mask}


def test_frames_and_prompts_are_embedded_alike_in_batches_of_any_size(tiny_gme):
    few, many = (gme.Embedder(tiny_gme, Tokens(), gib) for gib in (1e-9, 4.0))
    frames = [picture(90, 120, shift) for shift in (0, 40)]
    vectors = many.frames(frames)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(few.frames(frames), vectors, atol=1e-5)
    prompts = ["A person waves.", "A person who nods and then walks away."]
    texts = many.texts(prompts)
    np.testing.assert_allclose(few.texts(prompts), texts, atol=1e-5)
    assert abs(texts[0] @ texts[1]) < 0.9999


@pytest.mark.parametrize(
    ("size", "whole", "grid", "mean"),
    [
        ((48, 83), (84, 56), [1, 28, 40], -0.0529157),  # enlarged to 256 tokens and more
        ((480, 832), (840, 476), [1, 34, 60], 0.1802355),
        ((1500, 2000), (1988, 1512), [1, 62, 82], 0.1845924),  # reduced to 1280 and fewer
    ],
)
def test_gme_sees_the_pixels_of_the_original_processor(size, whole, grid, mean, tiny_gme):
    frame = gme.resized(picture(*size))
    assert frame.size == whole
    inputs = gme.Embedder(tiny_gme, Tokens(), 1.0).pixels(images=[frame], return_tensors="np")
    assert inputs["image_grid_thw"].tolist() == [grid]
    assert inputs["pixel_values"].mean() == pytest.approx(mean, abs=2e-6)


# Batches


def test_batches_are_halved_where_memory_runs_out():
    sizes = []

    def works(items):
        sizes.append(len(items))
        if len(items) > 3:
            raise torch.OutOfMemoryError("full")
        return torch.tensor(items)

    assert batching.run(works, list(range(10)), 8).tolist() == list(range(10))
    assert sizes == [8, 4, 2, 2, 2, 2, 2]
    with pytest.raises(torch.OutOfMemoryError):
        batching.run(lambda items: works([0] * 9), [1, 2], 2)


def test_a_budget_is_shared_out():
    # 10 tokens of (8 x 4 + 3 x 16) numbers of 2 bytes: 1600 bytes.
    assert batching.transformer_bytes(10, 4, 16, 2) == 1600
    assert batching.most(1600, 16_000 / 2**30) == 10
    assert batching.most(2**40, 1.0) == 1
