"""Makes transformers_logits.json: logits of tiny models of every architecture by transformers.

Run it where transformers 5.23.0 and torch 2.13.0 (CPU) are installed: ``python
make_transformers_logits.py``. The tests only read the JSON. Weights are made of the tensors' names
(``weights.py``), here and there, so that they need not be stored. What could be mixed up has
different sizes, tokens are padded on the left, and texts are longer than the windows.
"""

import json
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from weights import weight

torch.set_num_threads(1)
SHAPE = {
    "vocab_size": 41,
    "hidden_size": 20,
    "intermediate_size": 28,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "max_position_embeddings": 64,
    "rms_norm_eps": 3e-6,
    "rope_theta": 777.0,
}
GEMMA = {"query_pre_attn_scalar": 11, "sliding_window": 5, "tie_word_embeddings": True}
QWEN = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
CONFIGS = {
    "llama": {
        **SHAPE, "model_type": "llama", "rope_scaling": LLAMA3, "attention_bias": True,
        "mlp_bias": True, "tie_word_embeddings": False,
    },
    "mistral": {
        **SHAPE, "model_type": "mistral", "sliding_window": 6, "tie_word_embeddings": True,
    },
    "qwen2": {
        **SHAPE, **QWEN, "model_type": "qwen2", "head_dim": 5 * 2, "rope_scaling": YARN,
        "tie_word_embeddings": True,
    },
    "qwen3": {**SHAPE, **QWEN, "model_type": "qwen3", "tie_word_embeddings": False},
    "gemma2": {
        **SHAPE, **GEMMA, "model_type": "gemma2", "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 4.0, "hidden_activation": "gelu_pytorch_tanh",
    },
    "gemma3_text": {
        **SHAPE, **GEMMA, "model_type": "gemma3_text", "rope_local_base_freq": 55.0,
        "sliding_window_pattern": 3, "rope_scaling": {"rope_type": "linear", "factor": 3.0},
        "hidden_activation": "gelu_pytorch_tanh",
    },
    "gpt2": {
        "model_type": "gpt2", "vocab_size": 41, "n_embd": 20, "n_inner": 28, "n_layer": 3,
        "n_head": 4, "n_positions": 32, "layer_norm_epsilon": 3e-6,
        "activation_function": "gelu_new",
    },
}  # fmt: skip
PADDING, LENGTH = 4, 24


def logits(published, tokens, mask):
    """What transformers makes of them, and the tensors that its model has."""
    config = AutoConfig.for_model(**published)
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config).float().eval()
    state = model.state_dict()
    if config.tie_word_embeddings:
        state.pop("lm_head.weight")
    shapes = {name: list(tensor.shape) for name, tensor in state.items()}
    tensors = {name: torch.tensor(weight(name, tuple(shapes[name]))) for name in shapes}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        found = model(tokens, attention_mask=mask, position_ids=positions, use_cache=False).logits
    return shapes, [[round(float(x), 6) for x in row] for row in found[mask.bool()]]


def frequencies(scaling):
    """Of a Llama whose head is wide enough for each of its dimensions to be scaled differently."""
    config = LlamaConfig(
        hidden_size=64, num_attention_heads=2, rope_theta=5000.0, max_position_embeddings=4096,
        rope_scaling=dict(scaling),
    )  # fmt: skip
    found, attention_factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, "cpu")
    return {"scaling": scaling, "frequencies": found.tolist(), "attention_factor": attention_factor}


def main():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 41, (2, LENGTH), generator=generator)
    mask = torch.ones_like(tokens)
    mask[1, :PADDING] = 0
    models = {}
    for kind, published in CONFIGS.items():
        shapes, rows = logits(published, tokens, mask)
        models[kind] = {"config": published, "shapes": shapes, "logits": rows}
    wide = {"original_max_position_embeddings": 512}
    scalings = [
        {"rope_type": "linear", "factor": 3.0},
        LLAMA3 | wide,
        YARN | wide,
        YARN | wide | {"beta_fast": 20.0, "beta_slow": 2.0, "truncate": False},
        YARN | wide | {"attention_factor": 1.3},
    ]
    golden = {
        "transformers": version("transformers"),
        "torch": version("torch"),
        "tokens": tokens.tolist(),
        "padding": PADDING,
        "models": models,
        "rope": [frequencies(scaling) for scaling in scalings],
    }
    path = Path(__file__).with_name("transformers_logits.json")
    path.write_text(json.dumps(golden, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
