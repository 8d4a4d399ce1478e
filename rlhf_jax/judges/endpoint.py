"""A language model behind an address that speaks OpenAI's chat-completions protocol.

Hosted services speak it, and so do the servers one runs oneself. Nothing here needs more than the
standard library: the protocol is one POST request with JSON in and out.
"""

import email.utils
import http.client
import json
import math
import os
import random
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from rlhf_jax import checks
from rlhf_jax.judges.common import Assistant, Unanswered, aligned_texts, spellings

__all__ = ["endpoint"]

# A choice that is not among the likeliest tokens is taken to have no less than this probability.
_LEAST = 1e-9
_SHOWN = 200
_SHORTEST_KEY = 8
_PASSING = {408, 409, 425, 429}


class _Failed(Exception):
    """A request without a usable reply.

    Attributes:
        reason: in words.
        said: what the server said, in full.
        again: whether the same request may succeed later.
        wait: for how many seconds the server asked to be left alone.
    """

    def __init__(
        self, reason: str, said: Any = None, *, again: bool = False, wait: float | None = None
    ):
        super().__init__(reason)
        self.reason, self.again, self.wait = reason, again, wait
        self.said = said if said is None or isinstance(said, str) else json.dumps(said)

    def told(self, key: str | None) -> str:
        """The reason with the start of what was said, on one line and without the key."""
        if self.said is None:
            return self.reason
        text = " ".join(self.said.split())
        # A server may repeat it. (What is shorter than any key is a word like "none".)
        if key is not None and len(key) >= _SHORTEST_KEY:
            text = text.replace(key, "[key]")
        return f"{self.reason}: {text if len(text) <= _SHOWN else text[:_SHOWN] + '...'!r}"


class _Settings(NamedTuple):
    """What every request has in common."""

    url: str
    key_variable: str | None
    timeout: float
    retries: int
    backoff: float
    max_wait: float


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would take the key to another address."""

    def redirect_request(self, *args: Any) -> None:
        return None


def _key(variable: str | None) -> str | None:
    """The key, or an error that does not show it."""
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise ValueError(f"key_variable: the environment variable {variable} is not set")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(f"key_variable: {variable} holds blanks or characters no key has")
    return key


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds from a ``Retry-After`` header, which holds a number or a date."""
    value = headers.get("Retry-After")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def _read(response: Any, deadline: float) -> bytes:
    """The whole body: a time-out of the socket alone would let a slow server drip for ever."""
    expected, chunks = response.headers.get("Content-Length"), []
    while chunk := response.read1(1 << 16):
        chunks.append(chunk)
        if time.monotonic() > deadline:
            raise TimeoutError
    body = b"".join(chunks)
    if expected is not None and expected.isdigit() and len(body) < int(expected):
        raise http.client.IncompleteRead(body, int(expected) - len(body))
    return body


def _post_once(settings: _Settings, body: Mapping[str, Any]) -> Any:
    """One request; its JSON, or ``_Failed``."""
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if (key := _key(settings.key_variable)) is not None:
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(
        settings.url, data=json.dumps(body).encode(), headers=headers, method="POST"
    )
    opener = urllib.request.build_opener(_NoRedirect)
    deadline = time.monotonic() + settings.timeout
    try:
        with opener.open(request, timeout=settings.timeout) as response:
            raw = _read(response, deadline)
    except urllib.error.HTTPError as error:
        with error:
            try:
                said = _read(error, deadline).decode(errors="replace")
            except (OSError, http.client.HTTPException):
                said = ""
            again = error.code in _PASSING or error.code >= 500
            wait = _retry_after(error.headers)
            raise _Failed(f"status {error.code}", said, again=again, wait=wait) from None
    except (TimeoutError, urllib.error.URLError, OSError, http.client.HTTPException) as error:
        cause = getattr(error, "reason", error)
        if isinstance(cause, TimeoutError):
            raise _Failed(f"no reply within {settings.timeout} s", again=True) from None
        name = f"{type(cause).__name__}: {cause}"
        raise _Failed(f"the connection failed ({name})", again=True) from None
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        said = raw.decode(errors="replace")
        raise _Failed("malformed reply: not JSON", said) from None


def _post(settings: _Settings, body: Mapping[str, Any]) -> Any:
    """``_post_once``, again and again where that may help."""
    for attempt in range(settings.retries + 1):
        try:
            return _post_once(settings, body)
        except _Failed as failure:
            tries = f" (tried {attempt + 1} times)" if attempt else ""
            failure.reason += tries
            if not failure.again or attempt == settings.retries:
                raise
            # Not all rows at the same moment; and not sooner than the server asks for.
            wait = settings.backoff * 2**attempt * random.uniform(0.5, 1)
            wait = min(wait, settings.max_wait)
            if failure.wait is not None:
                wait = max(wait, failure.wait)
            if wait > settings.max_wait:
                failure.reason += (
                    f"; asked to wait {failure.wait:.0f} s, more than max_wait={settings.max_wait}"
                )
                raise
            time.sleep(wait)
    raise AssertionError("unreachable")


def _choice(reply: Any) -> Mapping[str, Any]:
    """The reply's first choice."""
    if not isinstance(reply, Mapping):
        raise _Failed("malformed reply: not an object", reply)
    choices = reply.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        raise _Failed("malformed reply: no choices", reply)
    return choices[0]


def _text(choice: Mapping[str, Any]) -> str:
    """What the model said."""
    message = choice.get("message")
    if not isinstance(message, Mapping):
        raise _Failed("malformed reply: no message", choice)
    if message.get("refusal"):
        raise _Failed("refused", message["refusal"])
    content = message.get("content")
    if content is not None and not isinstance(content, str):
        raise _Failed("malformed reply: content is no text", content)
    if choice.get("finish_reason") == "content_filter":
        raise _Failed("stopped by a content filter")
    return content or ""


def _listed(choice: Mapping[str, Any]) -> dict[str, float] | None:
    """The likeliest first tokens (blank ones passed over), or ``None`` if none were sent."""
    log_probs = choice.get("logprobs")
    if log_probs is None or (isinstance(log_probs, Mapping) and not log_probs.get("content")):
        return None
    try:
        for position in log_probs["content"]:
            if position["token"].strip() and position.get("top_logprobs"):
                rows = [*position["top_logprobs"], position]
                found = {row["token"]: float(row["logprob"]) for row in rows}
                if any(math.isnan(x) or x > 1e-3 for x in found.values()):
                    raise ValueError
                return found
    except (TypeError, KeyError, ValueError, AttributeError):
        raise _Failed("malformed reply: logprobs that are none", log_probs) from None
    return None


def _log_odds(
    listed: Mapping[str, float], choices: tuple[str, str], least_mass: float
) -> float | None:
    """The choices' log-odds; ``None`` if neither is listed.

    A choice that is not listed is less likely than all that are, and than what they leave.
    """
    probabilities = [
        sum(math.exp(listed[token]) for token in spellings(choice) if token in listed)
        for choice in choices
    ]
    mass = sum(probabilities)
    if mass == 0:
        return None
    if mass < least_mass:
        raise _Failed(
            f"{choices[0]!r} and {choices[1]!r} have probability {mass:.2g} together, "
            f"below {least_mass}"
        )
    rest = 1 - sum(math.exp(x) for x in listed.values())
    bound = max(min(math.exp(min(listed.values())), rest), _LEAST)
    first, second = (p if p > 0 else min(bound, mass) for p in probabilities)
    return math.log(first) - math.log(second)


def _parsed(text: str, choices: tuple[str, str]) -> float | None:
    """A choice in words: plus or minus infinity, or ``None`` if it is neither and nothing else.

    >>> _parsed("**Answer: B**", ("A", "B")), _parsed("A better one is B", ("A", "B"))
    (-inf, None)
    """
    words = "|".join(map(re.escape, choices))
    found = re.fullmatch(rf"[\W_]*(?:answer[\W_]+)?({words})[\W_]*", text, re.IGNORECASE)
    if found is None:
        return None
    return math.inf if found[1].casefold() == choices[0].casefold() else -math.inf


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

    A choice is read off the probabilities of the first token, where the server gives any; else off
    the text, which must be the choice and nothing else. A choice missing from the likeliest tokens
    counts as likely as it can be, so that the log-odds are rather too small than too large.

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
    _key(key_variable)
    address = url.rstrip("/") + "/chat/completions"
    common = _Settings(address, key_variable, timeout, retries, backoff, max_wait)

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
            except _Failed as failure:
                return Unanswered(failure.told(_key(key_variable)))

        pool = ThreadPoolExecutor(max_workers=concurrency)
        try:
            return list(pool.map(one, questions))
        finally:  # Interrupted, what has not begun is not begun.
            pool.shutdown(cancel_futures=True)

    def ask(questions: Sequence[str], choices: tuple[str, str]) -> list[float | Unanswered]:
        def answer(question: str) -> float:
            plain = {"max_tokens": max_choice_tokens, "temperature": 0}
            full = {"logprobs": True, "top_logprobs": top_log_probs} if top_log_probs else {}
            try:
                reply = _post(common, body(question, plain | full))
            except _Failed as failure:
                if not full or failure.again or "logprobs" not in (failure.said or ""):
                    raise
                reply = _post(common, body(question, plain))
            choice = _choice(reply)
            text, listed = _text(choice), _listed(choice)
            log_odds = _log_odds(listed, choices, least_mass) if listed else None
            if log_odds is None:
                log_odds = _parsed(text, choices)
            if log_odds is None:
                cut = "cut off, " if choice.get("finish_reason") == "length" else ""
                raise _Failed(f"{cut}neither {choices[0]!r} nor {choices[1]!r}", text)
            return log_odds

        return each(questions, answer)

    def generate(questions: Sequence[str]) -> list[str | Unanswered]:
        def answer(question: str) -> str:
            choice = _choice(_post(common, body(question, {"max_tokens": max_new_tokens})))
            text = _text(choice)
            if choice.get("finish_reason") == "length":
                raise _Failed("cut off at the token limit", text)
            if not text.strip():
                raise _Failed("an empty reply")
            return text

        return each(questions, answer)

    return Assistant(ask, generate)
