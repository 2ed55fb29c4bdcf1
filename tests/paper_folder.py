"""Stand-ins for what preset `paper` loads: a folder of tiny weights, faces that are red pixels."""

import cv2
import numpy as np
import paper_models
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers


def put(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def words_of(folder):
    """Write a tokenizer of single words, with GME's special tokens at the tiny model's numbers."""
    marks = {"<|endoftext|>": 2, "<|image_pad|>": 90, "<|vision_start|>": 92, "<|vision_end|>": 93}
    plain = {chr(33 + i): 3 + i for i in range(80)}
    tokens = Tokenizer(models.WordLevel({"?": 0, "<|im_start|>": 1} | marks | plain, unk_token="?"))
    tokens.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokens.add_special_tokens([AddedToken(mark) for mark in ("<|im_start|>", *marks)])
    tokens.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<|endoftext|>"}'
    )


def weights(folder):
    """Write tiny random checkpoints under the published names."""
    put(folder, "models/antelopev2/det.onnx", "glint360k_curricular_face_r101_backbone.bin")
    gme = folder / "gme-Qwen2-VL-2B-Instruct"
    paper_models.write(gme, paper_models.gme(paper_models.TINY_GME), paper_models.TINY_GME)
    words_of(gme)
    eye = paper_models.CLIP | {"hidden_size": 32, "intermediate_size": 64, "image_size": 28}
    eye |= {"num_hidden_layers": 1, "num_attention_heads": 4, "model_type": "clip_vision_model"}
    paper_models.write(folder / "clip-vit-large-patch14", paper_models.clip(eye), eye)
    head = {}
    for place, (c_in, c_out) in {0: (768, 1024), 2: (1024, 128), 4: (128, 64), 6: (64, 16),
                                 7: (16, 1)}.items():  # fmt: skip
        head |= paper_models.linear(f"layers.{place}", c_in, c_out)
    torch.save(paper_models.randoms(head), folder / "aesthetic-model.pth")
    tiny = paper_models.TINY_ONE_ALIGN
    paper_models.write(folder / "one-align", paper_models.one_align(tiny), tiny)
    put(folder, "one-align/tokenizer.model")
    return folder


def letters(text):
    """Stand in for one-align's tokenizer: a token for each letter."""
    return [3 + ord(c) % 100 for c in text]


class Analysis:
    """Finds a face wherever a pixel is pure red: a box of its size, an embedding of its own."""

    def __init__(self, needs_air=False):
        self.needs_air, self.seen = needs_air, []

    def get(self, picture_bgr):
        self.seen.append(picture_bgr.shape)
        grey = (picture_bgr[0, 0] == 128).all()
        if self.needs_air and not grey:
            return []
        rows, columns = np.nonzero((picture_bgr == (0, 0, 255)).all(2))
        found = []
        for y, x in zip(rows, columns, strict=True):
            box = np.array([x - 1.0 - x / 100, y - 1.0, x + 1.0, y + 1.0])
            points = np.full((5, 2), (x, y), np.float32)
            found.append({"bbox": box, "kps": points, "embedding": np.array([1.0, x, y])})
        return found


def align(picture_bgr, landmark, image_size):
    x, y = landmark[0].astype(int)
    pixel = picture_bgr[y : y + 1, x : x + 1]
    return np.repeat(np.repeat(pixel, image_size, 0), image_size, 1)


def with_faces(*places, size=(40, 60)):
    frame = np.full((*size, 3), 77, np.uint8)
    for x, y in places:
        frame[y, x] = (255, 0, 0)
    return frame


def clip_with(*places, frames=5):
    """A clip with a face at one place in each frame, or at none."""
    shown = (*places, *([places[-1]] * (frames - len(places))))
    return np.stack([with_faces(*([place] if place else [])) for place in shown])


def moving(side, fps, steps=4):
    """The same motion on the screen, whatever size and frame rate: 4 % of the side at 8 frames."""
    spots = np.random.default_rng(0).integers(0, 256, (50, 50, 3), np.uint8)
    large = cv2.resize(spots, (800, 800), interpolation=cv2.INTER_CUBIC)
    frames = [np.roll(large, int(24 * t * 8 / fps), 1)[100:700, 100:700] for t in range(steps)]
    return np.stack([cv2.resize(f, (side, side), interpolation=cv2.INTER_AREA) for f in frames])
