"""Checkpoints from the Hugging Face hub, by a name and a revision."""

import re
from pathlib import Path

__all__ = ["download", "is_hub_name"]

# What is loaded, and nothing else: no pickles, no programs, no weights of other libraries.
_WANTED = ["*.safetensors", "*.safetensors.index.json", "*.jinja", "README.md"]
_WANTED += ["config.json", "generation_config.json", "special_tokens_map.json"]
_WANTED += ["tokenizer.json", "tokenizer_config.json"]


def is_hub_name(name: str) -> bool:
    """Whether a name looks like ``organisation/model``.

    >>> is_hub_name("HuggingFaceTB/SmolLM2-135M"), is_hub_name("runs/model/9"), is_hub_name("./x")
    (True, False, False)
    """
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is not None


def download(name: str, revision: str | None) -> Path:
    """The folder of a model of the hub, in the cache of ``huggingface_hub``.

    Args:
        name: ``organisation/model``.
        revision: a commit, which names the same bytes for ever, or a tag or branch.

    Returns:
        A folder whose name is the commit.

    Raises:
        ConnectionError: the hub cannot be reached and the model is not in the cache.
        ImportError: ``huggingface_hub`` is not installed.
        ValueError: ``revision`` is missing, or the hub has no such model or revision to show.
    """
    if revision is None:
        raise ValueError(
            f"{name} is a name of the hub, where what it stands for may change: give revision=, a "
            "commit of 40 digits (the page 'Files and versions' of the model shows it), or "
            "revision='main' for whatever is there now"
        )
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise ImportError(
            f"{name} is a name of the hub, which needs the package huggingface_hub: "
            "pip install 'rlhf_jax[pretrained]'"
        ) from error
    what = f"{name} at revision {revision}"
    try:
        folder = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=_WANTED, ignore_patterns=["*/*"]
        )
    except errors.GatedRepoError as error:
        raise ValueError(
            f"{what} is shown only to those who have accepted its conditions: do so on its page, "
            "and log in with `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"the hub's {name} has no revision {revision!r}") from error
    except errors.RepositoryNotFoundError as error:
        raise ValueError(
            f"the hub has no model {name}, or shows it only to its owners (`hf auth login`)"
        ) from error
    except (errors.HfHubHTTPError, OSError) as error:
        # Their messages have many lines; of offline and of unreachable, they say so in different
        # classes, all of them of OSError.
        first = next(iter(str(error).splitlines()), "")
        raise ConnectionError(
            f"{what} is not in the cache, and the hub cannot be reached "
            f"({type(error).__name__}: {first}). On a machine with a connection, fetch it with\n"
            f"  hf download {name} --revision {revision} --local-dir FOLDER\n"
            "and load that folder"
        ) from error
    return Path(folder)
