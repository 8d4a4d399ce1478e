"""Templates: jinja in its sandbox, and only the assistant's words are learnt."""

import sys

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from rlhf_jax.data import (
    chat_template,
    plain_template,
    templates,
    tokenise_preferences,
    tokenise_prompts,
    tokenise_sequences,
)


def said(*contents, first="user"):
    roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    return [{"role": roles[n % 2], "content": content} for n, content in enumerate(contents)]


# As SmolLM2's: a system message that is not there is made up.
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe kind<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
OPENED = "<|im_start|>system\nBe kind<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"


def read(tokens):
    return bytes(np.asarray(tokens).tolist()).decode()


def learnt(sequences, row=0):
    """What is learnt, each stretch by itself."""
    mask = np.concatenate([[False], sequences.response_mask[row], [False]])
    starts, ends = np.flatnonzero(mask[1:] & ~mask[:-1]), np.flatnonzero(mask[:-1] & ~mask[1:])
    return [read(sequences.tokens[row, a:b]) for a, b in zip(starts, ends, strict=True)]


def test_hugging_faces_names_are_there():
    template = chat_template(CHATML)
    assert template(said("Hi"), True) == OPENED + "<|im_start|>assistant\n"
    assert template(said("Hi"), False) == OPENED
    source = (
        "{{ bos_token }}{% for m in messages %}\n"
        "    {% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}\n"
        "    {%- if loop.index > 2 %}{% break %}{% endif %}\n"
        "    {%- generation %}{{ m | tojson }}{% endgeneration %}\n"
        "{%- endfor %}{{ strftime_now('%Y') if strftime_now is defined else '2024' }}"
        "{{ tools or '' }}{{ eos_token }}"
    )
    template = chat_template(source, bos_token="<s>", eos_token="")
    dumped = '{"role": "user", "content": "<é>"}{"role": "assistant", "content": "b"}'
    assert template(said("<é>", "b", "c"), False) == f"<s>{dumped}2024"
    dated = chat_template(source, bos_token="", eos_token="", strftime_now=lambda form: form)
    assert dated([], False) == "%Y"
    with pytest.raises(ValueError, match="the template refuses: no tools"):
        template([{"role": "tool", "content": "x"}], False)
    with pytest.raises(ValueError, match="writes bos_token and eos_token: chat_template needs"):
        chat_template(source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for m in messages %}", "the template is not jinja: "),
        ("{{ messages.__class__.__mro__ }}", "refuses: access to attribute '__class__'"),
        ("{{ messages.append(1) }}", "refuses: .*unsafe"),
        ("{{ messages[9].content.strip() }}", "refuses: "),
        ("{{ messages[0].content + 1 }}", "refuses: "),
        ("{{ range(10**9) | list }}", "refuses: Range too big"),
        ({"default": "x"}, "source must be a template in jinja or a tokenizer with one, not dict"),
    ],
)
def test_the_sandbox_holds(source, message):
    with pytest.raises(ValueError, match=message):
        chat_template(source)(said("Hi"), True)


def test_without_jinja(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2.sandbox", None)
    templates._environment.cache_clear()
    with pytest.raises(ImportError, match=r"pip install 'rlhf_jax\[chat\]'"):
        chat_template(CHATML)


def test_only_what_the_assistant_says_is_learnt():
    row = {"messages": said("Hi", "Hello", "Why?", "So.", "Thanks")}
    batch = tokenise_sequences([row], str.encode, max_length=999, template=CHATML).batch
    assert learnt(batch) == ["Hello<|im_end|>\n", "So.<|im_end|>\n"]
    # What stands behind the last answer is not in it, and everything else is.
    assert read(batch.tokens[0]) == chat_template(CHATML)(row["messages"][:-1], False)
    for eos in (None, 36):
        batch = tokenise_sequences([row], str.encode, max_length=999, eos_id=eos).batch
        assert learnt(batch) == [" Hello", " So." + "$" * (eos is not None)]


def test_within_a_preferred_side_too():
    """As where dialogues of hh-rlhf part early; the user's words are nobody's preference."""
    sides = {"chosen": said("Hello", "Bye", "Bye!", first="assistant")}
    sides |= {"rejected": said("Go", first="assistant")}
    batch = tokenise_preferences([{"prompt": said("Hi")} | sides], str.encode, max_length=99).batch
    assert learnt(batch.chosen) == [" Hello", " Bye!"]
    assert read(batch.chosen.tokens[0]).endswith("\n\nUser: Bye\n\nAssistant: Bye!")
    assert learnt(batch.rejected) == [" Go"]


def test_a_template_that_looks_ahead_is_refused():
    # As Qwen3's: thoughts are left out of all answers but the last.
    source = (
        "{% for m in messages %}{{ m.role[0] }}:{{ m.content if loop.last or m.role == 'user' "
        "else m.content.split('/')[-1] }};{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
    )
    row = {"messages": said("Hi", "hm/Hello", "Why?", "So.")}
    with pytest.raises(
        ValueError, match=r"row 0: the template writes .* message 3 once .*'u:Hi;a:hm/"
    ):
        tokenise_sequences([row], str.encode, max_length=99, template=source)
    row = {"messages": said("Hi", "Hello", "Why?", "So.")}
    batch = tokenise_sequences([row], str.encode, max_length=99, template=source).batch
    assert learnt(batch) == ["Hello;", "So.;"]


def test_tokens_at_the_ends_are_written_once():
    row = {"prompt": said("Hi"), "completion": said("Yo", first="assistant")}
    template = "^{% for m in messages %}{{ m.content }}{% endfor %}"
    options = {
        "max_length": 99,
        "template": template + "{{ '' if add_generation_prompt else '$\n' }}",
    }
    batch = tokenise_sequences([row], str.encode, max_length=99, template=template).batch
    assert (read(batch.tokens[0]), learnt(batch)) == ("^HiYo", ["Yo"])
    with pytest.raises(ValueError, match="row 0 begins with the token 94 already"):
        tokenise_sequences([row], str.encode, bos_id=94, **options)
    with pytest.raises(ValueError, match="row 0 ends with the token 36 already"):
        tokenise_sequences([row], str.encode, eos_id=36, **options)
    with pytest.raises(ValueError, match="row 0: the template refuses"):
        tokenise_sequences([row], str.encode, max_length=9, template="{{ raise_exception('x') }}")
    with pytest.raises(
        ValueError, match="template must be a function, jinja or a tokenizer, not int"
    ):
        tokenise_sequences([row], str.encode, max_length=9, template=7)
    with pytest.raises(ValueError, match="encode must be a function or a tokenizer, not int"):
        tokenise_sequences([row], 7, max_length=9)


class Transformers:
    """What is used of a tokenizer of transformers."""

    def encode(self, text, add_special_tokens=True):
        return [94] * add_special_tokens + list(text.encode())

    def apply_chat_template(self, messages, tokenize=True, add_generation_prompt=False):
        assert not tokenize
        if messages[0]["role"] == "tool":
            raise RuntimeError("no tools")
        return plain_template(messages, add_generation_prompt)


def test_tokenizers_can_be_given_as_they_are():
    rows, tokenizer = [{"messages": said("Hi", "Yo")}], Transformers()
    expected = tokenise_sequences(rows, str.encode, max_length=99).batch
    batch = tokenise_sequences(rows, tokenizer, max_length=99, template=tokenizer).batch
    np.testing.assert_array_equal(batch.tokens, expected.tokens)
    with pytest.raises(ValueError, match="row 0: the template refuses: no tools"):
        prompts = [{"prompt": [{"role": "tool", "content": "x"}]}]
        tokenise_prompts(prompts, tokenizer, max_length=9, template=tokenizer)
    with pytest.raises(ValueError, match="a tokenizer knows its own"):
        chat_template(tokenizer, bos_token="<s>")
    words = Tokenizer(models.WordLevel({"a": 5, "b": 6, "?": 7}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    row = {"prompt": "a", "completion": "b a"}
    batch = tokenise_sequences([row], words, max_length=9).batch
    assert batch.tokens.tolist() == [[5, 6, 5]]
