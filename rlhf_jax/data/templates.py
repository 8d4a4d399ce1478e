"""Conversations as text: templates in Python or in jinja, and which parts are answers."""

import functools
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rlhf_jax.data.formats import Messages

if TYPE_CHECKING:
    import jinja2

__all__ = ["Part", "Template", "as_template", "chat_template", "parts", "plain_template"]

# messages, whether the beginning of an answer is to follow -> text
Template = Callable[[Messages, bool], str]
# A piece of text, and whether the assistant wrote it.
Part = tuple[str, bool]


def plain_template(messages: Messages, begin_answer: bool) -> str:
    r"""Who said what, in plain words: for models that were taught no template of their own.

    >>> plain_template([{"role": "user", "content": "Hello"}], True)
    'User: Hello\n\nAssistant:'
    """
    said = [f"{message['role'].capitalize()}: {message['content']}" for message in messages]
    return "\n\n".join([*said, "Assistant:"] if begin_answer else said)


def chat_template(
    source: Any,
    *,
    bos_token: str | None = None,
    eos_token: str | None = None,
    **names: Any,
) -> Template:
    r"""A chat template such as comes with a model, as a function for ``template=``.

    Jinja runs in its sandbox, with Hugging Face's settings and names: ``messages``,
    ``add_generation_prompt``, ``bos_token``, ``eos_token``, ``raise_exception``, the filter
    ``tojson``, ``break`` and ``continue``; ``{% generation %}`` is passed over. ``strftime_now`` is
    left out, so that the same rows give the same tokens on any day: a template may ask whether it
    is there and else write a fixed date, or be given a function of that name. There are no tools.

    Args:
        source: the template, in jinja; or a Hugging Face tokenizer, whose own is used.
        bos_token: the token as text; to be given if the template writes it.
        eos_token: the same of the end.
        **names: what else the template is to know.

    Returns:
        ``(messages, whether the beginning of an answer is to follow) -> text``. It raises a
        ``ValueError`` where the template refuses the messages.

    Raises:
        ValueError: the source is no template, or it uses a token that is not given.
        ImportError: jinja2 is not installed.

    What it cannot see: a special token that someone spelt out in a message. Most tokenizers take it
    for one, so that a user may forge the assistant's turn; escape it, or encode text by itself.

    >>> source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
    >>> source += "{% if add_generation_prompt %}<assistant>{% endif %}"
    >>> template = chat_template(source, eos_token="</s>")
    >>> template([{"role": "user", "content": "Hello"}], True)
    '<user>Hello</s><assistant>'
    """
    if hasattr(source, "apply_chat_template"):
        if bos_token is not None or eos_token is not None:
            raise ValueError("bos_token and eos_token are for jinja; a tokenizer knows its own")

        def applied(messages: Messages, begin_answer: bool) -> str:
            try:
                return source.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=begin_answer, **names
                )
            # Jinja's errors, which are of no common kind, and whatever else a tokenizer raises.
            except Exception as error:
                raise ValueError(f"the template refuses: {error}") from error

        return applied
    if not isinstance(source, str):
        kind = type(source).__name__
        raise ValueError(f"source must be a template in jinja or a tokenizer with one, not {kind}")
    environment = _environment()
    import jinja2.meta

    try:
        used = jinja2.meta.find_undeclared_variables(environment.parse(source))
        compiled = environment.from_string(source)
    except jinja2.TemplateError as error:
        raise ValueError(f"the template is not jinja: {error}") from error
    tokens = {"bos_token": bos_token, "eos_token": eos_token}
    missing = [name for name, token in tokens.items() if token is None and name in used]
    if missing:
        raise ValueError(f"the template writes {' and '.join(missing)}: chat_template needs it")
    names = {name: token or "" for name, token in tokens.items()} | names

    def rendered(messages: Messages, begin_answer: bool) -> str:
        try:
            return compiled.render(messages=messages, add_generation_prompt=begin_answer, **names)
        # Anything may go wrong in somebody's template: it adds a number to a text, say.
        except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError) as error:
            raise ValueError(f"the template refuses: {error}") from error

    return rendered


def as_template(template: Any) -> Template:
    """What was given for ``template=`` as a function."""
    if isinstance(template, str) or hasattr(template, "apply_chat_template"):
        return chat_template(template)
    if not callable(template):
        kind = type(template).__name__
        raise ValueError(f"template must be a function, jinja or a tokenizer, not {kind}")
    return template


def parts(
    template: Template, prompt: Messages, answer: Messages, place: str
) -> tuple[str, list[Part]]:
    """The text of a conversation in two: the prompt, answer begun, and the parts of the answer.

    The conversation is rendered up to each message; what one adds must not depend on those behind.

    Args:
        template: as a function.
        prompt: what comes before the answer.
        answer: beginning with the assistant; others may speak in between.
        place: which row it is, for messages.
    """

    def text(messages: Messages, begin_answer: bool) -> str:
        try:
            return template(messages, begin_answer)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error

    opened = text(prompt, True)
    found, written = [], opened
    for number, message in enumerate(answer, start=1):
        before, so_far = [*prompt, *answer[: number - 1]], [*prompt, *answer[:number]]
        speaks = message["role"] == "assistant"
        begun, whole = text(before, True) if speaks else written, text(so_far, False)
        if not (begun.startswith(written) and whole.startswith(begun)):
            raise ValueError(
                f"{place}: the template writes otherwise what stands before message {len(so_far)} "
                f"once that is there, so nobody can tell where it starts; before, it is {begun!r}"
            )
        found += [(begun[len(written) :], False), (whole[len(begun) :], speaks)]
        written = whole
    return opened, [part for part in found if part[0]]


@functools.cache
def _environment() -> "jinja2.Environment":
    try:
        import jinja2.ext
        import jinja2.sandbox
    except ImportError as error:
        raise ImportError("templates in jinja need jinja2: pip install 'rlhf_jax[chat]'") from error

    class Generation(jinja2.ext.Extension):
        """By ``{% generation %}`` some templates say what the assistant wrote: text as any."""

        tags = frozenset({"generation"})

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(["name:endgeneration"], drop_needle=True)

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        # Jinja's own writes for web pages, with < as an escape.
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    return environment
