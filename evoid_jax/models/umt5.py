"""UMT5 text encoder and its tokenizer: prompt to embeddings, as Wan's pipelines make them.

Numbers follow `UMT5EncoderModel` of transformers: pre-norm T5 with a gated GELU, a relative
position bias in every layer, and no 1/sqrt(d) in the attention.

Letters: B prompts, S tokens, E width, N heads, K head size.
"""

from __future__ import annotations

import dataclasses
import functools
import html
import math
import re
from pathlib import Path

import ftfy
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerFast

from evoid_jax import files, sharding
from evoid_jax.models import keys
from evoid_jax.models.weights import Rule

FILE = "text_encoder/config.json"
TOKENIZERS = ("T5TokenizerFast", "T5Tokenizer", "PreTrainedTokenizerFast", "TokenizersBackend")
REQUIRED = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
BUCKETS = ("relative_attention_num_buckets", "relative_attention_max_distance")
# Of training, of the decoder, of writing text. The encoder's embedding is one array whatever is
# said of the decoder's, and `scalable_attention` is in released files but in no code.
IGNORED = ("dropout_rate", "classifier_dropout", "initializer_factor", "use_cache")
IGNORED += ("is_encoder_decoder", "num_decoder_layers", "decoder_start_token_id", "output_past")
IGNORED += ("scale_decoder_outputs", "tie_word_embeddings", "scalable_attention")
IGNORED += ("output_attentions", "output_hidden_states", "return_dict", "chunk_size_feed_forward")
IGNORED += ("id2label", "label2id", "problem_type", "n_positions", "task_specific_params")
IGNORED += ("pad_token_id", "eos_token_id", "bos_token_id", "max_length", "tokenizer_class")
KEYS = keys.Keys(
    whole=REQUIRED + BUCKETS,
    real=("layer_norm_epsilon",),
    fixed={
        "model_type": ("umt5",),
        "architectures": (["UMT5EncoderModel"], None),
        "feed_forward_proj": ("gated-gelu",),
        "dense_act_fn": ("gelu_new",),
        "is_gated_act": (True,),
        "is_decoder": (False,),
    },
    lists={},
    ignored=IGNORED,
)


@dataclasses.dataclass(frozen=True)
class UMT5Config:
    """Sizes, named as in transformers' config.json; the defaults are umt5-xxl."""

    vocab_size: int = 256384
    d_model: int = 4096
    d_kv: int = 64
    d_ff: int = 10240
    num_layers: int = 24
    num_heads: int = 64
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6

    @classmethod
    def from_json(cls, config: dict, file: str = FILE) -> UMT5Config:
        """Read a text_encoder/config.json.

        Args:
          file: its name, for messages.

        Raises:
          ValueError: another model, a feed-forward other than UMT5's gated GELU, a key that is not
            known, or a size that is absent or none; the message names file and key.
        """
        keys.check(config, KEYS, file)
        if missing := [name for name in REQUIRED if name not in config]:
            raise ValueError(f"{file} lacks {', '.join(missing)}")
        names = {field.name for field in dataclasses.fields(cls)} & config.keys()
        return cls(**{name: config[name] for name in names})

    def to_json(self) -> dict:
        """Return the complete transformers config.json of a `UMT5EncoderModel`."""
        fixed = {"architectures": ["UMT5EncoderModel"], "model_type": "umt5", "dtype": "float32"}
        fixed |= {"feed_forward_proj": "gated-gelu", "dropout_rate": 0.0, "use_cache": False}
        fixed |= {"is_encoder_decoder": True, "num_decoder_layers": self.num_layers}
        fixed |= {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
        return fixed | dataclasses.asdict(self)


def rules(config: UMT5Config) -> list[Rule]:
    """List the tensors of a `UMT5EncoderModel` and their places; layers stacked on axis 0."""
    block, n = "encoder.block.{i}.layer", config.num_layers
    attention, feed = f"{block}.0.SelfAttention", f"{block}.1.DenseReluDense"
    linear = {name: f"{attention}.{name}.weight" for name in "qkvo"}
    linear |= {name: f"{feed}.{name}.weight" for name in ("wi_0", "wi_1", "wo")}
    plain = {"bias": f"{attention}.relative_attention_bias.weight"}
    plain |= {"norm_0": f"{block}.0.layer_norm.weight", "norm_1": f"{block}.1.layer_norm.weight"}
    table = [Rule("shared.weight", ("shared",))]
    table += [Rule(key, ("layers", name), layers=n) for name, key in linear.items()]
    table += [Rule(key, ("layers", name), layers=n) for name, key in plain.items()]
    return [*table, Rule("encoder.final_layer_norm.weight", ("final_norm",))]


def untie(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Keep one copy of the token embedding, under the name that `rules` expects.

    The embedding is tied in the model: a file may hold it as shared.weight, as
    encoder.embed_tokens.weight or as both.
    """
    tensors = dict(tensors)
    copy = tensors.pop("encoder.embed_tokens.weight", None)
    if copy is not None:
        tensors.setdefault("shared.weight", copy)
    return tensors


@functools.partial(jax.jit, static_argnames="config")  # one program, not one a shape
def init(key: jax.Array, config: UMT5Config) -> dict:
    """Draw fresh parameters at T5's scales (transformers modeling_umt5.py, _init_weights)."""
    d, f, inner = config.d_model, config.d_ff, config.num_heads * config.d_kv
    shapes = {"q": (inner, d), "k": (inner, d), "v": (inner, d), "o": (d, inner)}
    shapes |= {"wi_0": (f, d), "wi_1": (f, d), "wo": (d, f)}
    stds = {name: shape[1] ** -0.5 for name, shape in shapes.items()}
    shapes |= {"bias": (config.relative_attention_num_buckets, config.num_heads)}
    stds |= {"q": (d * config.d_kv) ** -0.5, "bias": d**-0.5}  # q takes attention's missing scale
    layers = {
        "norm_0": jnp.ones((config.num_layers, d)),
        "norm_1": jnp.ones((config.num_layers, d)),
    }
    for i, (name, shape) in enumerate(shapes.items()):
        draw = jax.random.normal(jax.random.fold_in(key, i), (config.num_layers, *shape))
        layers[name] = draw * stds[name]
    shared = jax.random.normal(jax.random.fold_in(key, len(shapes)), (config.vocab_size, d))
    return {"shared": shared, "layers": layers, "final_norm": jnp.ones(d)}


def buckets(length: int, config: UMT5Config) -> np.ndarray:
    """Return the relative position bucket of each (query, key), int32 (length, length).

    Half of the buckets are for keys after the query; within a half, the first half are exact
    distances and the rest logarithmic up to the maximum. float32 with truncation, as PyTorch.
    """
    half = config.relative_attention_num_buckets // 2
    exact = half // 2
    relative = np.arange(length)[None, :] - np.arange(length)[:, None]
    distance = np.abs(relative)
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    ratio /= np.float32(math.log(config.relative_attention_max_distance / exact))
    far = exact + (ratio * np.float32(half - exact)).astype(np.int32)
    near = np.where(distance < exact, distance, np.minimum(far, half - 1))
    return (near + half * (relative > 0)).astype(np.int32)


def _norm(gamma_E: jax.Array, x_BSE: jax.Array, eps: float) -> jax.Array:
    x32 = x_BSE.astype(jnp.float32)
    y = x32 * lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return y.astype(gamma_E.dtype) * gamma_E[None, None]


def _attention(p: dict, x_BSE: jax.Array, bucket_SS: jax.Array, mask_BS: jax.Array) -> jax.Array:
    """Attend over the true tokens, with the layer's own position bias; float32 softmax."""
    heads = p["bias"].shape[-1]
    split = lambda name: _linear(x_BSE, p[name]).reshape(*x_BSE.shape[:2], heads, -1)
    q_BSNK, k_BSNK, v_BSNK = split("q"), split("k"), split("v")
    logits = jnp.einsum("bqnk,bsnk->bnqs", q_BSNK, k_BSNK, preferred_element_type=jnp.float32)
    logits += jnp.moveaxis(p["bias"][bucket_SS], -1, 0)[None].astype(jnp.float32)
    logits = jnp.where(mask_BS[:, None, None], logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(x_BSE.dtype)
    y = jnp.einsum("bnqs,bsnk->bqnk", weights, v_BSNK)
    return _linear(y.reshape(*x_BSE.shape[:2], -1), p["o"])


def _linear(x_BSI: jax.Array, kernel_OI: jax.Array) -> jax.Array:
    return jnp.einsum("bsi,oi->bso", x_BSI, kernel_OI)


def encode(params: dict, config: UMT5Config, ids_BS, mask_BS, mesh: Mesh | None = None):
    """Embed prompts.

    Args:
      params: tree of `init` or of the `rules`.
      ids_BS: token ids, 0 <= id < vocab_size.
      mask_BS: 1 (or True) on true tokens, 0 on padding.
      mesh: where the parameters lie in pieces. A layer's are gathered where they are used and every
        device computes all, so that the numbers do not depend on how many there are.

    Returns:
      text_BSE in the parameters' dtype, zero past each prompt's end.
    """
    everywhere = lambda x: sharding.constrain(x, mesh, sharding.REPLICATED)
    bucket_SS = jnp.asarray(buckets(ids_BS.shape[1], config))
    mask_BS = jnp.asarray(mask_BS) > 0
    eps = config.layer_norm_epsilon

    def layer(x_BSE, p):
        p = jax.tree.map(everywhere, p)
        x_BSE = x_BSE + _attention(p, _norm(p["norm_0"], x_BSE, eps), bucket_SS, mask_BS)
        h = _norm(p["norm_1"], x_BSE, eps)
        h = jax.nn.gelu(_linear(h, p["wi_0"]), approximate=True) * _linear(h, p["wi_1"])
        return x_BSE + _linear(h, p["wo"]), None

    # jnp.asarray: parameters may come as numpy, which cannot be indexed by a traced array
    x_BSE = everywhere(jnp.asarray(params["shared"])[ids_BS])
    x_BSE, _ = lax.scan(layer, x_BSE, params["layers"])
    return _norm(params["final_norm"], x_BSE, eps) * mask_BS[..., None].astype(x_BSE.dtype)


def clean(prompt: str) -> str:
    """Repair a prompt's text as Wan's pipelines do (diffusers pipeline_wan.py, prompt_clean)."""
    return re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(prompt)))).strip()


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a diffusers folder's tokenizer/.

    The same ids as `AutoTokenizer`, which imports torch wherever torch is installed.

    Raises:
      OSError: the folder holds no tokenizer.json.
      ValueError: a file is damaged, or the tokenizer is of a kind that UMT5 has not; names it.
    """
    folder = Path(folder)
    hint = "expected a fast tokenizer, as AutoTokenizer.from_pretrained(...).save_pretrained writes"
    files.read_json(folder / "tokenizer.json", hint=hint)
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if (folder / name).exists():
            config = files.read_json(folder / name)
            kind = config.get("tokenizer_class") if name == "tokenizer_config.json" else None
            if kind not in (None, *TOKENIZERS):
                raise ValueError(
                    f"{folder / name} is of a {kind}; expected {' or '.join(TOKENIZERS)}, so this "
                    "tokenizer is of another model"
                )
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder)
    except Exception as error:  # the library raises no narrower kind
        raise ValueError(f"{folder} holds no tokenizer that can be read: {error}") from error


def tokenize(
    tokenizer: PreTrainedTokenizerFast, prompts: list[str], max_len: int = 512
) -> tuple[np.ndarray, np.ndarray]:
    """Clean prompts and turn them into ids, each prompt ending in EOS.

    Args:
      max_len: tokens of a prompt at most, EOS included; longer prompts are cut.

    Returns:
      ids_BS and mask_BS, int32; S is the longest prompt rounded up to a multiple of 8, at most
      max_len. The mask is 1 on true tokens.

    Raises:
      ValueError: a prompt holds half a character, such as one surrogate of an emoji's two.
    """
    for prompt in prompts:
        check_text(prompt)
    cleaned = [clean(prompt) for prompt in prompts]
    rows = tokenizer(cleaned, truncation=True, max_length=max_len)["input_ids"]
    length = min(-(-max(map(len, rows)) // 8) * 8, max_len)
    ids_BS = np.full((len(rows), length), tokenizer.pad_token_id, np.int32)
    mask_BS = np.zeros((len(rows), length), np.int32)
    for row, ids in enumerate(rows):
        ids_BS[row, : len(ids)] = ids
        mask_BS[row, : len(ids)] = 1
    return ids_BS, mask_BS


def check_text(prompt: str) -> None:
    """Raise a ValueError where a prompt is no text that a tokenizer can read."""
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the prompt {prompt!a} holds half a character at position {error.start}; write "
            "the whole character, in UTF-8"
        ) from None
