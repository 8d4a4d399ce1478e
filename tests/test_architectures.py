"""Published architectures against the logits of transformers 5.23.0 itself.

``goldens/make_transformers_logits.py`` made the numbers; neither torch nor transformers is needed
here. Both sides invent the weights from the tensors' names.
"""

import dataclasses
import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import models
from rlhf_jax.models import attention
from rlhf_jax.pretrained import architectures
from rlhf_jax.pretrained.architectures import config_from, entries, published_config

GOLDENS = Path(__file__).parent / "goldens"
GOLDEN = json.loads((GOLDENS / "transformers_logits.json").read_text())
TOKENS = np.array(GOLDEN["tokens"], np.int32)
MASK = np.ones_like(TOKENS, bool)
MASK[1, : GOLDEN["padding"]] = False
spec = spec_from_file_location("weights", GOLDENS / "weights.py")
weights = module_from_spec(spec)
spec.loader.exec_module(weights)

LLAMA = GOLDEN["models"]["llama"]["config"]


def parameters(config, kind):
    """What a loader makes of a checkpoint's tensors and the table."""
    params = {}
    for entry in entries(config, kind):
        value = weights.weight(entry.name, entry.shape)
        value = value[..., slice(*entry.columns)] if entry.columns else value
        value = value.T if entry.transpose else value
        node = params
        for name in entry.path[:-1]:
            node = node.setdefault(name, {})
        if entry.layer is None:
            node[entry.path[-1]] = value
        else:
            rows = node.setdefault(entry.path[-1], [])
            assert entry.layer == len(rows)
            rows.append(value)
    return jax.tree.map(np.stack, params, is_leaf=lambda x: isinstance(x, list))


@pytest.mark.parametrize("kind", list(GOLDEN["models"]))
def test_logits_are_those_of_transformers(kind):
    golden = GOLDEN["models"][kind]
    config = config_from(golden["config"])
    table = entries(config, architectures.ARCHITECTURES[kind])
    assert {entry.name: list(entry.shape) for entry in table} == golden["shapes"]
    top = 2 if kind in ("gemma3_text", "gpt2") else 0  # in the other layout, the same numbers
    model = models.language_model(dataclasses.replace(config, num_top_layers=top))
    params = parameters(model.config, kind)

    @jax.jit
    def both(params):
        """Read at once, and through a cache in pieces, the first of one row all padding."""

        def step(cache, piece):
            found, cache = model.decoder.apply(params, *piece, cache)
            return cache, found

        pieces = [jnp.swapaxes(x.reshape(2, 6, 4), 0, 1) for x in (TOKENS, MASK)]
        _, last = jax.lax.scan(step, model.decoder.init_cache(2, 24), pieces)
        return model.logits_fn(params, TOKENS, MASK), jnp.swapaxes(last, 0, 1)

    logits, cached = both(params)
    expected = np.array(golden["logits"])
    assert np.ptp(expected) > 4  # it is about something
    np.testing.assert_allclose(logits[MASK], expected, rtol=0, atol=1e-4)
    ends, real = logits[:, 3::4], MASK[:, 3::4]
    np.testing.assert_allclose(cached[real], ends[real], rtol=0, atol=1e-4)
    np.testing.assert_array_equal(cached[real].argmax(-1), ends[real].argmax(-1))


@pytest.mark.parametrize("case", GOLDEN["rope"], ids=lambda case: str(case["scaling"]))
def test_rotary_frequencies_are_those_of_transformers(case):
    scaling = config_from(LLAMA | {"rope_scaling": case["scaling"]}).rope_scaling
    found = attention.rotary_frequencies(32, 5000.0, scaling)
    np.testing.assert_allclose(found, case["frequencies"], rtol=1e-5)
    np.testing.assert_allclose(scaling.resolved_attention_factor, case["attention_factor"])


@pytest.mark.parametrize("kind", list(GOLDEN["models"]))
def test_a_configuration_is_published_as_it_was(kind):
    config = config_from(GOLDEN["models"][kind]["config"])
    published = published_config(config)
    assert (published["model_type"], published["architectures"]) == (
        kind,
        [architectures.ARCHITECTURES[kind]],
    )
    assert json.loads(json.dumps(published)) == published
    back = config_from(published)
    assert dataclasses.replace(back, head_dim=config.head_dim) == config
    # What was written by transformers 5 reads the same.
    newer = dict(published)
    if kind != "gpt2":
        rope = {"rope_theta": newer.pop("rope_theta")} | (newer.pop("rope_scaling") or {})
        if kind == "gemma3_text":
            local = {"rope_theta": newer.pop("rope_local_base_freq"), "rope_type": "default"}
            rope = {"full_attention": rope, "sliding_attention": local}
        assert config_from(newer | {"rope_parameters": rope}) == back


def test_what_no_architecture_has_is_not_published():
    config = models.TransformerConfig(vocab_size=8, norm="layer", query_key_norm=True)
    with pytest.raises(ValueError, match="cannot be expressed") as error:
        published_config(config)
    assert "  llama: norm=layer (it would be rms), query_key_norm=True" in str(error.value)
    windowed = models.TransformerConfig(vocab_size=8, sliding_window=5)
    assert published_config(windowed)["model_type"] == "mistral"
    with pytest.raises(ValueError, match=r"llama: sliding_layers=\(True.*sliding_window=5"):
        published_config(windowed, "LlamaForCausalLM")
    # What is about computing and not about the model does not matter.
    config = models.TransformerConfig(8, dtype=jnp.bfloat16, remat=True, num_top_layers=2)
    assert published_config(config)["model_type"] == "llama"


def test_sparse_and_older_configurations():
    sparse = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 7}
    pictures = sparse | {"sliding_window": 9, "rope_scaling": {"type": "linear", "factor": 8.0}}
    config = config_from({"model_type": "gemma3", "text_config": pictures, "vision_config": {}})
    assert (config.vocab_size, config.head_dim, config.query_scale) == (262208, 256, 0.0625)
    assert config.sliding_layers == (True,) * 5 + (False, True)
    assert (config.rope_theta, config.local_rope_theta) == (1e6, 1e4)
    assert config.rope_scaling == models.RopeScaling("linear", 8.0)
    sparse |= {"model_type": "gemma2", "vocab_size": 9, "num_attention_heads": 4}
    config = config_from(sparse)
    assert (config.attention_softcap, config.logit_softcap) == (50.0, 30.0)
    assert config_from(sparse | {"final_logit_softcapping": None}).logit_softcap is None
    plain = LLAMA | {"rope_scaling": None}
    assert config_from(plain | {"model_type": "qwen2", "sliding_window": 5}).sliding_window is None
    assert config_from(plain | {"model_type": "mistral"}).sliding_window == 4096
    assert (
        config_from(plain | {"model_type": "mistral", "sliding_window": None}).sliding_window
        is None
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mixtral"}, "model_type 'mixtral' is not supported; what is: llama, mis"),
        ({"quantization_config": {"quant_method": "awq"}}, "weights quantised by 'awq'"),
        ({"hidden_act": "xielu"}, "activation 'xielu' is not supported; what is: silu, swish"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "'longrope' is not supported; what is: def"),
        ({"rope_scaling": {"rope_type": "linear"}}, "config.json of a llama must have 'factor'"),
        ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor=0.5 is not supported; what is: 1"),
        ({"vocab_size": None}, "must have 'vocab_size'"),
        ({"model_type": "gpt2"}, "config.json of a gpt2 must have 'n_embd'"),
        (
            {"model_type": "gemma3_text", "attn_logit_softcapping": 3.0},
            "attn_logit_softcapping=3.0 is not supported; what is: None",
        ),
        (
            {"model_type": "gemma2", "layer_types": ["chunked_attention"] * 3},
            "layer_types: chunked_attention is not supported; what is: full_attention, sliding",
        ),
        ({"model_type": "gemma2", "use_bidirectional_attention": True}, "use_bidirectional_attent"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        config_from(LLAMA | change)
    with pytest.raises(ValueError, match="architecture 'BertModel' is not supported; what is: ll"):
        entries(models.TransformerConfig(vocab_size=8), "BertModel")


def test_names_of_other_checkpoints():
    table = entries(models.TransformerConfig(vocab_size=8, num_layers=1), "llama")
    found = architectures.stored_names(
        [
            "language_model.model.norm.weight",
            "vision_tower.patch.weight",
            "model.language_model.embed_tokens.weight",
            "layers.0.mlp.up_proj.weight",
            "lm_head.weight",
            "adapter.weight",
        ],
        table,
    )
    assert found == {
        "model.norm.weight": "language_model.model.norm.weight",
        "model.embed_tokens.weight": "model.language_model.embed_tokens.weight",
        "model.layers.0.mlp.up_proj.weight": "layers.0.mlp.up_proj.weight",
        "adapter.weight": "adapter.weight",
    }
    with pytest.raises(ValueError, match=r"norm.weight and model.norm.weight are both model.norm"):
        architectures.stored_names(["norm.weight", "model.norm.weight"], table)
    untied = models.TransformerConfig(vocab_size=8, num_layers=1, tie_embeddings=False)
    table = entries(untied, "llama")
    assert "lm_head.weight" in architectures.stored_names(["lm_head.weight"], table)
