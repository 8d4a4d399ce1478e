"""What a reply of the chat-completions protocol says: a text, or a choice and its probability."""

import math
import re
from collections.abc import Mapping
from typing import Any

from rlhf_jax.judges.common import spellings
from rlhf_jax.judges.transport import Failed

__all__ = ["chosen", "first_choice", "text_of"]

# A choice that is not among the likeliest tokens is taken to have no less than this probability.
_LEAST = 1e-9


def first_choice(reply: Any) -> Mapping[str, Any]:
    """The reply's first choice."""
    if not isinstance(reply, Mapping):
        raise Failed("malformed reply: not an object", reply)
    choices = reply.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        raise Failed("malformed reply: no choices", reply)
    return choices[0]


def text_of(choice: Mapping[str, Any]) -> str:
    """What the model said."""
    message = choice.get("message")
    if not isinstance(message, Mapping):
        raise Failed("malformed reply: no message", choice)
    if message.get("refusal"):
        raise Failed("refused", message["refusal"])
    content = message.get("content")
    if content is not None and not isinstance(content, str):
        raise Failed("malformed reply: content is no text", content)
    if choice.get("finish_reason") == "content_filter":
        raise Failed("stopped by a content filter")
    return content or ""


def chosen(choice: Mapping[str, Any], choices: tuple[str, str], least_mass: float) -> float:
    """The log-odds of the first of two words, infinite if only the words themselves are there.

    Raises:
        Failed: neither the probabilities nor the text say which.
    """
    text = text_of(choice)
    in_words = _parsed(text, choices)
    listed = _listed(choice, choices if in_words is not None else ())
    log_odds = None if listed is None else _log_odds(listed, choices, least_mass)
    if log_odds is None:
        log_odds = in_words
    if log_odds is None:
        cut = "cut off, " if choice.get("finish_reason") == "length" else ""
        raise Failed(f"{cut}neither {choices[0]!r} nor {choices[1]!r}", text)
    return log_odds


def _listed(choice: Mapping[str, Any], said: tuple[str, ...]) -> dict[str, float] | None:
    """The likeliest tokens where the choice is made, or ``None`` if none were sent.

    That is where one of ``said`` was said ("B" in "Answer: B"); else at the first token, blank ones
    passed over.
    """
    log_probs = choice.get("logprobs")
    if log_probs is None or (isinstance(log_probs, Mapping) and not log_probs.get("content")):
        return None
    meant = {token for word in said for token in spellings(word)}
    try:
        spoken = [position for position in log_probs["content"] if position["token"].strip()]
        for position in [x for x in spoken if x["token"] in meant] + spoken:
            if not position.get("top_logprobs"):
                return None
            rows = [*position["top_logprobs"], position]
            found = {row["token"]: float(row["logprob"]) for row in rows}
            if any(math.isnan(x) or x > 1e-3 for x in found.values()):
                raise ValueError
            return found
    except (TypeError, KeyError, ValueError, AttributeError):
        raise Failed("malformed reply: logprobs that are none", log_probs) from None
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
        raise Failed(
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
