"""transformers' generate on a Llama of random weights, for generation.py, in its own environment.

Reads the shape, the prompts and the response's length from the first line, then a line for each
call ("sampling" or "greedy") that it answers with the seconds taken, of the wall and of processors.
"""

import ctypes
import json
import os
import sys
import time

# Freed blocks are kept: else each large temporary is mapped and its pages faulted in again.
_LIBC = ctypes.CDLL(None)
_LIBC.mallopt(-3, 2**30)
_LIBC.mallopt(-1, 2**31 - 1)

import torch  # noqa: E402
import transformers  # noqa: E402

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
shape, prompts, length = json.loads(sys.stdin.readline())
model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape)).eval()
prompts = torch.tensor(prompts)
settings = {
    "attention_mask": torch.ones_like(prompts),
    "max_new_tokens": length,
    "min_new_tokens": length,
    "eos_token_id": None,
    "pad_token_id": 0,
}
for line in sys.stdin:
    how = {"do_sample": False}
    if line.strip() == "sampling":
        how = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    began = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        out = model.generate(prompts, **settings, **how)
    taken = time.perf_counter() - began[0], time.process_time() - began[1]
    if out.shape != (len(prompts), prompts.shape[1] + length):
        raise RuntimeError(f"generate gave {tuple(out.shape)}")
    print(json.dumps(taken), flush=True)
