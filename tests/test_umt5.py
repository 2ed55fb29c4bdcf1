"""UMT5 equals transformers; the tokenizer we train loads there and spells any prompt."""

import json

import diffusers
import jax
import numpy as np
import pytest
import torch
import transformers
from compare import relative
from diffusers.pipelines.wan.pipeline_wan_vace import prompt_clean
from programs import python

from evoid_jax.models import umt5, weights
from evoid_jax.pretrain import tokenizer as tokenizers

TINY = umt5.UMT5Config(vocab_size=480, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4)
WIDE = umt5.UMT5Config(vocab_size=32, d_model=4096, d_kv=64, d_ff=128, num_layers=1, num_heads=8)
TEXTS = [
    f"A {age} {who} with {hair} hair {act} in the {place}, camera {move}."
    for age in ("young", "old", "smiling")
    for who in ("man", "woman")
    for hair in ("red", "black", "curly brown")
    for act in ("waves", "nods slowly", "turns the head", "blinks")
    for place in ("park", "kitchen")
    for move in ("still", "pans left")
]
FOREIGN = "Zoë ☺ 漢字 <0x41> ~`{}\\ \U0001d518 naïve"

encode = jax.jit(umt5.encode, static_argnums=1)


def torch_model(config: umt5.UMT5Config):
    torch.manual_seed(0)
    settings = transformers.UMT5Config(**config.to_json())
    model = transformers.UMT5EncoderModel(settings).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5)
    return model


def batch(config: umt5.UMT5Config, lengths: list[int]):
    """Return random ids_BS and a mask_BS with the given true lengths."""
    shape = (len(lengths), max(lengths))
    ids = np.random.default_rng(0).integers(3, config.vocab_size, shape).astype(np.int32)
    mask = (np.arange(shape[1])[None] < np.array(lengths)[:, None]).astype(np.int32)
    return ids * mask, mask


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizers.train(TEXTS, folder, 480)
    return folder


# 150 tokens reach the last bucket, at distance 128
@pytest.mark.parametrize(("config", "lengths"), [(TINY, [150, 7, 1]), (WIDE, [24, 9])])
def test_encode_equals_transformers_and_is_zero_past_the_end(config, lengths):
    model = torch_model(config)
    ids, mask = batch(config, lengths)
    with torch.no_grad():
        out = model(torch.tensor(ids).long(), torch.tensor(mask).long()).last_hidden_state.numpy()
    tensors = umt5.untie({name: x.numpy() for name, x in model.state_dict().items()})
    params = weights.to_params(tensors, umt5.rules(config))
    ours = encode(params, config, ids, mask)
    assert relative(ours, out * mask[..., None]) <= 1e-5
    np.testing.assert_array_equal(np.asarray(ours)[mask == 0], 0)


def test_padding_changes_no_number():
    params = umt5.init(jax.random.key(0), TINY)
    ids, mask = batch(TINY, [20])
    alone = encode(params, TINY, ids, mask)
    wide = encode(params, TINY, np.pad(ids, ((0, 0), (0, 12))), np.pad(mask, ((0, 0), (0, 12))))
    assert relative(wide[:, :20], alone) <= 1e-6


def test_buckets_equal_transformers_up_to_512_tokens():
    model = torch_model(TINY).encoder.block[0].layer[0].SelfAttention
    key_minus_query = torch.arange(512)[None, :] - torch.arange(512)[:, None]
    expected = model._relative_position_bucket(key_minus_query).numpy()
    np.testing.assert_array_equal(umt5.buckets(512, TINY), expected)


def test_our_folder_loads_in_transformers_and_returns(tmp_path):
    params = umt5.init(jax.random.key(0), TINY)
    tensors = weights.to_tensors(params, umt5.rules(TINY))
    weights.write_tensors(tmp_path / "model.safetensors", tensors)
    (tmp_path / "config.json").write_text(json.dumps(TINY.to_json()))
    model, info = transformers.UMT5EncoderModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ids, mask = batch(TINY, [9, 4])
    with torch.no_grad():
        out = model(torch.tensor(ids).long(), torch.tensor(mask).long()).last_hidden_state.numpy()
    assert relative(encode(params, TINY, ids, mask), out * mask[..., None]) <= 1e-5
    model.save_pretrained(tmp_path / "again")
    tensors = umt5.untie(weights.read_tensors(tmp_path / "again"))
    back = weights.to_params(tensors, umt5.rules(TINY))
    jax.tree.map(np.testing.assert_array_equal, back, params)
    assert umt5.UMT5Config.from_json(weights.read_config(tmp_path / "again")) == TINY


def test_untie_keeps_one_embedding_under_either_name():
    x = np.ones((2, 2))
    assert list(umt5.untie({"encoder.embed_tokens.weight": x})) == ["shared.weight"]
    assert list(umt5.untie({"encoder.embed_tokens.weight": x, "shared.weight": x})) == [
        "shared.weight"
    ]


def test_the_defaults_are_umt5_xxl_and_other_models_are_refused():
    config = umt5.UMT5Config()
    assert umt5.UMT5Config.from_json(config.to_json()) == config
    with pytest.raises(ValueError, match="model_type 't5' is not supported"):
        umt5.UMT5Config.from_json(config.to_json() | {"model_type": "t5"})
    with pytest.raises(ValueError, match="text_encoder/config.json lacks .*d_model"):
        umt5.UMT5Config.from_json({"model_type": "umt5"})


@pytest.mark.parametrize(
    "prompt",
    [
        "  A man\n\twaves  ",
        "fish &amp;amp; chips &lt;3",
        "schÃ¶n \u201cquoted\u201d ﬁne",
        "a\u00a0b\u3000c &nbsp; d",
        "",
    ],
)
def test_clean_equals_the_pipeline(prompt):
    assert umt5.clean(prompt) == prompt_clean(prompt)


def test_clean_has_literal_results():
    assert umt5.clean("  A man\n waves &amp;amp; smiles ") == "A man waves & smiles"
    assert umt5.clean("schÃ¶n") == "schön"


def test_any_prompt_survives_the_tokenizer(tokenizer_folder):
    tokenizer = umt5.load_tokenizer(tokenizer_folder)
    for prompt in (TEXTS[0], FOREIGN, "<pad", "x" * 300):
        ids = tokenizer(prompt)["input_ids"]
        assert ids[-1] == 1 and 2 not in ids and max(ids) < len(tokenizer)
        text = tokenizer.decode(ids, skip_special_tokens=True)
        assert text.strip() == prompt.replace("\U0001d518", "U")  # NFKC


def test_known_words_are_one_token_each(tokenizer_folder):
    tokenizer = umt5.load_tokenizer(tokenizer_folder)
    tokens = tokenizer.tokenize("An old woman waves in the park.")
    assert tokens[-7:] == ["▁old", "▁woman", "▁waves", "▁in", "▁the", "▁park", "."]


def test_auto_tokenizer_gives_the_same_ids(tokenizer_folder):
    auto = transformers.AutoTokenizer.from_pretrained(tokenizer_folder)
    ours = umt5.load_tokenizer(tokenizer_folder)
    assert (auto.pad_token_id, auto.eos_token_id, auto.unk_token_id) == (0, 1, 2)
    for prompt in (TEXTS[5], FOREIGN, ""):
        assert auto(prompt)["input_ids"] == ours(prompt)["input_ids"]


def test_tokenize_trims_to_eights_and_cuts_long_prompts(tokenizer_folder):
    tokenizer = umt5.load_tokenizer(tokenizer_folder)
    ids, mask = umt5.tokenize(tokenizer, [" old  woman", ""])
    assert ids.shape == mask.shape == (2, 8)
    assert ids.dtype == mask.dtype == np.int32
    np.testing.assert_array_equal(mask, [[1, 1, 1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(ids[1], [1, 0, 0, 0, 0, 0, 0, 0])
    ids, mask = umt5.tokenize(tokenizer, ["waves " * 600])
    assert ids.shape == (1, 512) and mask.all() and ids[0, -1] == 1


def test_training_the_tokenizer_twice_gives_the_same_file(tokenizer_folder, tmp_path):
    size = tokenizers.train(TEXTS, tmp_path, 480)
    name = "tokenizer.json"
    assert (tmp_path / name).read_bytes() == (tokenizer_folder / name).read_bytes()
    assert size == len(umt5.load_tokenizer(tmp_path)) <= 480
    with pytest.raises(ValueError, match="vocab_size is 300"):
        tokenizers.train(TEXTS, tmp_path, 300)
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        umt5.load_tokenizer(tmp_path / "absent")


def test_loading_and_encoding_never_import_torch(tokenizer_folder):
    python("tests/encoding_without_torch.py", tokenizer_folder)


def test_a_saved_pipeline_embeds_prompts_as_we_do(tokenizer_folder, tmp_path):
    config = diffusers.AutoencoderKLWan(base_dim=4, num_res_blocks=1)
    pipe = diffusers.WanVACEPipeline(
        tokenizer=transformers.AutoTokenizer.from_pretrained(tokenizer_folder),
        text_encoder=torch_model(TINY),
        vae=config,
        scheduler=diffusers.UniPCMultistepScheduler(),
    )
    pipe.save_pretrained(tmp_path)
    for file in tokenizer_folder.iterdir():
        (tmp_path / "tokenizer" / file.name).write_bytes(file.read_bytes())
    index = json.loads((tmp_path / "model_index.json").read_text())
    index["tokenizer"] = ["transformers", "PreTrainedTokenizerFast"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    pipe = diffusers.WanVACEPipeline.from_pretrained(tmp_path)
    prompts = [TEXTS[0], FOREIGN]
    with torch.no_grad():
        expected, null = pipe.encode_prompt(prompts, "", max_sequence_length=512)

    folder = tmp_path / "text_encoder"
    loaded = umt5.UMT5Config.from_json(weights.read_config(folder))
    params = weights.to_params(umt5.untie(weights.read_tensors(folder)), umt5.rules(loaded))
    tokenizer = umt5.load_tokenizer(tmp_path / "tokenizer")
    ids, mask = umt5.tokenize(tokenizer, [*prompts, ""])
    ours = np.asarray(encode(params, loaded, ids, mask))
    padded = np.pad(ours, ((0, 0), (0, 512 - ours.shape[1]), (0, 0)))
    assert relative(padded[:2], expected.numpy()) <= 1e-5
    assert relative(padded[2], null[0].numpy()) <= 1e-5
