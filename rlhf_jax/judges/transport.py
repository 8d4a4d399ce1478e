"""One POST request with JSON in and out, tried again where that may help, and never the key told.

Nothing here needs more than the standard library.
"""

import email.utils
import http.client
import json
import math
import os
import random
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["Failed", "Settings", "key_of", "post", "retry_after"]

_SHOWN = 200
_SHORTEST_KEY = 8
_PASSING = {408, 409, 425, 429}


class Failed(Exception):
    """A request without a usable reply.

    Attributes:
        reason: in words.
        said: what the server or the connection said, in full.
        again: whether the same request may succeed later.
        wait: for how many seconds the server asked to be left alone.
        status: the reply's, if it was an error.
    """

    def __init__(
        self,
        reason: str,
        said: Any = None,
        *,
        again: bool = False,
        wait: float | None = None,
        status: int | None = None,
    ):
        super().__init__(reason)
        self.reason, self.again, self.wait, self.status = reason, again, wait, status
        self.said = said if said is None or isinstance(said, str) else json.dumps(said)

    def told(self, key: str | None) -> str:
        """The reason with the start of what was said, on one line and without the key."""

        def struck(text: str) -> str:
            # A server may repeat it. (What is shorter than any key is a word like "none".)
            if key is None or len(key) < _SHORTEST_KEY:
                return text
            return text.replace(key, "[key]").replace(json.dumps(key)[1:-1], "[key]")

        if self.said is None:
            return struck(self.reason)
        text = struck(" ".join(self.said.split()))
        shown = text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
        return f"{struck(self.reason)}: {shown!r}"


class Settings(NamedTuple):
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


def key_of(variable: str | None) -> str | None:
    """The key, or an error that does not show it."""
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise ValueError(f"key_variable: the environment variable {variable} is not set")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(f"key_variable: {variable} holds blanks or characters no key has")
    return key


def retry_after(headers: Mapping[str, str]) -> float | None:
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


def _post_once(settings: Settings, body: Mapping[str, Any]) -> Any:
    """One request; its JSON, or ``Failed``."""
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if (key := key_of(settings.key_variable)) is not None:
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
            wait = retry_after(error.headers)
            reason, status = f"status {error.code}", error.code
            raise Failed(reason, said, again=again, wait=wait, status=status) from None
    except (TimeoutError, urllib.error.URLError, OSError, http.client.HTTPException) as error:
        cause = getattr(error, "reason", error)
        if isinstance(cause, TimeoutError):
            raise Failed(f"no reply within {settings.timeout} s", again=True) from None
        # What it says may be what the server said: a status line that is none.
        name = f"the connection failed ({type(cause).__name__})"
        raise Failed(name, str(cause), again=True) from None
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        said = raw.decode(errors="replace")
        raise Failed("malformed reply: not JSON", said) from None


def post(settings: Settings, body: Mapping[str, Any]) -> Any:
    """``_post_once``, again and again where that may help."""
    for attempt in range(settings.retries + 1):
        try:
            return _post_once(settings, body)
        except Failed as failure:
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
