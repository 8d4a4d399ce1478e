"""Model cards: what a saved model is made of, and what it is not for."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Card"]


@dataclass(frozen=True)
class Card:
    """What a saved model's ``README.md`` says; what is left out is said to be left out.

    Attributes:
        name: the model's.
        base_model: what it was trained from: a name of the hub, or in words.
        data: what it was trained on, and whose feedback.
        method: how.
        licence: its SPDX name, such as ``"Apache-2.0"``.
        limits: what it is bad at, not for, or not tested for.
        results: measured figures, by what was measured.
    """

    name: str = "A language model"
    base_model: str | None = None
    data: str | None = None
    method: str | None = None
    licence: str | None = None
    limits: str | None = None
    results: Mapping[str, float | str] = field(default_factory=dict)

    def text(self) -> str:
        """The card in Markdown, headed by the lines that the hub reads.

        >>> print(Card(name="Toy", licence="Apache-2.0").text()[:60])
        ---
        library_name: "transformers"
        pipeline_tag: "text-generat
        """
        head = {
            "library_name": "transformers",
            "pipeline_tag": "text-generation",
            "tags": ["rlhf_jax"],
        }
        if self.licence is not None:
            head["license"] = self.licence.lower()
        # The hub takes nothing here but names of its own.
        if self.base_model is not None and " " not in self.base_model:
            head["base_model"] = self.base_model
        # What is JSON is YAML too.
        lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in head.items()), "---"]
        lines += ["", f"# {self.name}"]
        sections = {
            "Base model": self.base_model,
            "Data": self.data,
            "Method": self.method,
            "Licence": self.licence,
            "Limits": self.limits,
        }
        for heading, said in sections.items():
            lines += ["", f"## {heading}", "", said or "Not stated."]
        if self.results:
            lines += ["", "## Results", "", "| | |", "| --- | --- |"]
            lines += [f"| {what} | {figure} |" for what, figure in self.results.items()]
        return "\n".join(lines) + "\n"
