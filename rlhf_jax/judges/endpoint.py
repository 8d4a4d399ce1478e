"""A language model behind an address that speaks OpenAI's chat-completions protocol.

Hosted services speak it, and so do the servers one runs oneself.
"""

import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rlhf_jax import checks
from rlhf_jax.judges.common import Assistant, Unanswered, aligned_texts
from rlhf_jax.judges.replies import chosen, first_choice, text_of
from rlhf_jax.judges.transport import Failed, Settings, key_of, post

__all__ = ["endpoint"]


def endpoint(
    url: str,
    *,
    model: str,
    key_variable: str | None = None,
    system: str | None = None,
    max_new_tokens: int = 1024,
    max_choice_tokens: int = 8,
    top_log_probs: int = 20,
    least_mass: float = 0.0,
    settings: Mapping[str, Any] | None = None,
    timeout: float = 60.0,
    retries: int = 4,
    backoff: float = 1.0,
    max_wait: float = 60.0,
    concurrency: int = 8,
) -> Assistant:
    """A language model behind an address, in the form that all judges here take.

    A choice is read off the probabilities of the token that makes it, where the server gives any:
    the first, or in "Answer: B" the one that is the choice. Else it is read off the text, which
    must be the choice and nothing else. A choice missing from the likeliest tokens counts as likely
    as it can be, so that the log-odds are rather too small than too large.

    Failures are told by row and never guessed away: each row is an answer or an ``Unanswered`` with
    the reason. Time-outs, broken connections, and the statuses 408, 409, 425, 429 and 5xx are tried
    again, waiting twice as long each time and never less than a ``Retry-After`` asks for. A reply
    that is not JSON, has no choices, or is cut off or unreadable is not tried again. Redirects are
    not followed: they would take the key elsewhere.

    Args:
        url: the address up to and without ``/chat/completions``.
        model: the name that the server knows the model by.
        key_variable: the name of the environment variable that holds the key, read at each request,
            kept nowhere and struck out of every reason; ``None`` for servers that need none.
        system: a system message, if any.
        max_new_tokens: the most tokens in a generated text.
        max_choice_tokens: the most tokens in a reply to a choice.
        top_log_probs: of how many likeliest tokens to ask for the probabilities; 0 for servers that
            have none. A server that refuses them by a status 400 or 422 is asked again without, at
            the price of a second request each time.
        least_mass: a choice is not answered if both together are less likely than this.
        settings: what else to send (``{"seed": 1}``), or, with the value ``None``, not to send
            (``{"max_tokens": None, "max_completion_tokens": 8}``).
        timeout: seconds for one request; one that drips is given up after at most twice as long.
        retries: how often to try again, each row for itself.
        backoff: seconds before the first time, doubled at each.
        max_wait: the longest wait in seconds. A row that has to wait longer is given up.
        concurrency: the most requests at a time.

    Returns:
        An ``Assistant``. ``ask`` sends a temperature of 0; ``generate`` leaves it to the server and
        ``settings``. What a server answers need not be the same twice.

    Raises:
        ValueError: a setting is impossible, or the key is not there.

    >>> endpoint("file:///etc/hosts", model="any")
    Traceback (most recent call last):
    ValueError: url must begin with http:// or https:// and name a host
    """
    try:
        parsed = urllib.parse.urlsplit(url)
        sound = parsed.scheme in ("http", "https") and bool(parsed.hostname)
        parsed.port  # noqa: B018 - raises if it is not a number
    except ValueError:
        sound = False
    if not sound:
        raise ValueError("url must begin with http:// or https:// and name a host")
    if parsed.path.rstrip("/").endswith("/chat/completions"):
        raise ValueError("url must stop before /chat/completions, which is put behind it")
    if "@" in parsed.netloc or parsed.query or parsed.fragment:
        raise ValueError("url must have no password, query or fragment: name a key_variable")
    checks.positive(
        timeout=timeout,
        concurrency=concurrency,
        max_new_tokens=max_new_tokens,
        max_choice_tokens=max_choice_tokens,
    )
    for name, value in (
        ("retries", retries),
        ("backoff", backoff),
        ("max_wait", max_wait),
        ("top_log_probs", top_log_probs),
    ):
        if value < 0:
            raise ValueError(f"{name} must not be negative: {value}")
    if not 0 <= least_mass <= 1:
        raise ValueError(f"least_mass must be from 0 to 1, not {least_mass}")
    key_of(key_variable)
    address = url.rstrip("/") + "/chat/completions"
    common = Settings(address, key_variable, timeout, retries, backoff, max_wait)

    def body(question: str, more: Mapping[str, Any]) -> dict[str, Any]:
        messages = [{"role": "user", "content": question}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        merged = {"model": model, "messages": messages, **more, **(settings or {})}
        return {name: value for name, value in merged.items() if value is not None}

    def each(questions: Sequence[str], answer: Callable[[str], Any]) -> list[Any]:
        """The answers in order, or why there is none."""
        aligned_texts(questions=questions)

        def one(question: str) -> Any:
            try:
                return answer(question)
            except Failed as failure:
                return Unanswered(failure.told(key_of(key_variable)))

        pool = ThreadPoolExecutor(max_workers=concurrency)
        try:
            return list(pool.map(one, questions))
        finally:  # Interrupted, what has not begun is not begun.
            pool.shutdown(cancel_futures=True)

    def ask(questions: Sequence[str], choices: tuple[str, str]) -> list[float | Unanswered]:
        if len({word.strip().casefold() for word in choices} - {""}) != 2:
            raise ValueError(f"choices must be two different words, not {choices}")

        def answer(question: str) -> float:
            plain = {"max_tokens": max_choice_tokens, "temperature": 0}
            full = {"logprobs": True, "top_logprobs": top_log_probs} if top_log_probs else {}
            try:
                reply = post(common, body(question, plain | full))
            except Failed as failure:
                refused = failure.status in (400, 422) and "logprobs" in (failure.said or "")
                if not full or not refused:
                    raise
                reply = post(common, body(question, plain))
            return chosen(first_choice(reply), choices, least_mass)

        return each(questions, answer)

    def generate(questions: Sequence[str]) -> list[str | Unanswered]:
        def answer(question: str) -> str:
            choice = first_choice(post(common, body(question, {"max_tokens": max_new_tokens})))
            text = text_of(choice)
            if choice.get("finish_reason") == "length":
                raise Failed("cut off at the token limit", text)
            if not text.strip():
                raise Failed("an empty reply")
            return text

        return each(questions, answer)

    return Assistant(ask, generate)
