"""Real human feedback: 536,520 ratings of 23,703 sentences (Hutto & Gilbert 2014, MIT licence).

People rated how negative or positive a sentence is, from -4 to 4, in four domains: product
reviews, movie reviews, newspaper editorials and tweets. The raters were screened and trained, so
they disagree less than a crowd would.
"""

import hashlib
import html
import json
import logging
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rlhf_jax import assets

if TYPE_CHECKING:
    import datasets

__all__ = ["DOMAINS", "MAX_RATERS", "Ratings", "as_dataset", "fingerprint", "load_ratings"]

_log = logging.getLogger(__name__)

DOMAINS = ("amazon", "movies", "nyt", "tweets")
MAX_RATERS = 99

# What each domain's files are called, and the (items, ratings) in them before any is dropped.
_STEMS = ("amazonReviewSnippets", "movieReviewSnippets", "nytEditorialSnippets", "tweets")
_EXPECTED = ((3708, 74_160), (10_605, 198_810), (5190, 103_800), (4200, 159_750))
_EXPECTED_DROPPED = 196
# The two files round differently; by more than this, a mean speaks of other ratings than those
# that are listed. (Three more tweets are off by less than this.)
_MEAN_TOLERANCE = 0.01
# Movies only: within this many consecutive items a column of ratings is one person.
_BATCH = 30
# Where a folder may keep the files, tried in this order; an archive is unpacked and looked into.
_PLACES = (
    ".",
    "hutto_ICWSM_2014",
    "hutto_ICWSM_2014.tar.gz",
    "additional_resources/hutto_ICWSM_2014.tar.gz",
    "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz",
    assets.VADER_RATINGS.filename,
    f"assets/{assets.VADER_RATINGS.filename}",
)
_ENTITY = re.compile(r"&(?:#\d+|#x[0-9a-fA-F]+|\w+);")


@dataclass(frozen=True, eq=False)
class Ratings:
    """Sentences and what each of several people thought of them. The arrays are read-only.

    Outside movies a column is not known to be one person. In movies it appears to be one within a
    batch (inferred from residual correlations, not documented by the authors), and cannot be
    followed from one batch to the next.

    Attributes:
        texts: ``N`` sentences.
        domain: ``int32[N]``, index into ``DOMAINS``.
        ids: ``N`` identifiers, unique within a domain only.
        ratings: ``int8[N, 99]`` from -4 (negative) to 4 (positive), 0 where there is none.
        rating_mask: ``bool[N, 99]``, true where there is a rating.
        batch: ``int32[N]``: in movies the number of the batch of 30 consecutive items whose columns
            are one person each, -1 elsewhere.
        dropped: how many items were left out because their listed ratings contradict their
            published mean (196 tweets).
    """

    texts: tuple[str, ...]
    domain: np.ndarray
    ids: tuple[str, ...]
    ratings: np.ndarray
    rating_mask: np.ndarray
    batch: np.ndarray
    dropped: int

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def mean(self) -> np.ndarray:
        """``float32[N]``, the mean rating of each item."""
        total = self.ratings.sum(axis=1, where=self.rating_mask, dtype=np.int64)
        return (total / self.rating_mask.sum(axis=1)).astype(np.float32)

    def take(self, rows: Sequence[int] | np.ndarray) -> "Ratings":
        """The items at the given rows.

        Args:
            rows: ``int[M]`` row numbers or ``bool[N]``.

        Returns:
            ``Ratings`` of those items, in that order.
        """
        rows = np.arange(len(self))[np.asarray(rows, dtype=None if len(rows) else np.int64)]
        return replace(
            self,
            texts=tuple(self.texts[row] for row in rows),
            ids=tuple(self.ids[row] for row in rows),
            **{
                name: _frozen(getattr(self, name)[rows])
                for name in ("domain", "ratings", "rating_mask", "batch")
            },
        )

    def only(self, *domains: str) -> "Ratings":
        """The items of some domains.

        Args:
            *domains: names from ``DOMAINS``.

        Returns:
            ``Ratings`` of those items, in the order they had.

        Raises:
            ValueError: no such domain.
        """
        unknown = [name for name in domains if name not in DOMAINS]
        if unknown or not domains:
            raise ValueError(f"domains must be some of {DOMAINS}, got {domains}")
        return self.take(np.isin(self.domain, [DOMAINS.index(name) for name in domains]))


def load_ratings(data: Path | str | None = None) -> Ratings:
    """All four domains, joined by identifier, cleaned and checked.

    HTML entities are unescaped (twice where they were escaped twice), and the 196 tweets whose
    listed ratings contradict their published mean are left out and counted. The other oddities of
    the files (a byte order mark, two orders of the same items) are dealt with here and need no
    thought elsewhere.

    Args:
        data: a copy at hand: a folder with the extracted files, with ``hutto_ICWSM_2014.tar.gz`` or
            with the source distribution of vaderSentiment 3.3.2, or one of those archives itself.
            ``None`` fetches the source distribution through pip and keeps it in the cache folder.

    Returns:
        23,507 items.

    Raises:
        FileNotFoundError: the files are not in ``data``; the message names what was looked for.
        ValueError: the files are not those of Hutto & Gilbert 2014.
        rlhf_jax.assets.AssetError: they are not cached and cannot be fetched, or an archive is
            damaged.

    Reference: Hutto & Gilbert 2014, ICWSM-14.
    """
    # Unpacked afresh each time (a tenth of a second): there is no second cache to be damaged.
    with tempfile.TemporaryDirectory(prefix="rlhf_jax-") as scratch:
        if data is None:
            source = assets.fetch(assets.VADER_RATINGS)
        else:
            source = Path(data).expanduser()
            if not source.exists():
                raise FileNotFoundError(f"no file or folder {source} with the human ratings")
        folder = _locate(source, Path(scratch))
        if folder is None:
            raise FileNotFoundError(
                f"the human ratings are not in {source}: looked for {_STEMS[-1]}_GroundTruth.txt "
                f"and its seven fellows there and in {', '.join(_PLACES[1:])}"
            )
        domains = [_read_domain(folder, index) for index in range(len(DOMAINS))]
    for name, domain, expected in zip(DOMAINS, domains, _EXPECTED, strict=True):
        found = (len(domain.texts), int(domain.rating_mask.sum()))
        if found != expected:
            raise ValueError(
                f"{source}: {name} has {found[0]} items with {found[1]} ratings; those of Hutto & "
                f"Gilbert 2014 are {expected[0]} with {expected[1]}"
            )
    joined, means = _join(domains), np.concatenate([domain.means for domain in domains])
    keep = np.abs(joined.mean - means) <= _MEAN_TOLERANCE
    dropped = int((~keep).sum())
    if dropped != _EXPECTED_DROPPED:
        raise ValueError(
            f"{source}: {dropped} items have ratings that contradict their published mean; in those"
            f" of Hutto & Gilbert 2014 it is {_EXPECTED_DROPPED}"
        )
    _log.info("left out %d items whose ratings contradict their published mean", dropped)
    return replace(joined.take(keep), dropped=dropped)


def as_dataset(ratings: Ratings) -> "datasets.Dataset":
    """The ratings as a Hugging Face dataset in memory.

    Args:
        ratings: what ``load_ratings`` returned.

    Returns:
        A dataset with the columns ``text``, ``domain`` (a class label), ``id``, ``ratings`` (a list
        as long as there are ratings) and ``batch``.
    """
    import datasets  # It is slow to import and few need it.

    features = datasets.Features(
        text=datasets.Value("string"),
        domain=datasets.ClassLabel(names=list(DOMAINS)),
        id=datasets.Value("string"),
        ratings=datasets.Sequence(datasets.Value("int8")),
        batch=datasets.Value("int32"),
    )
    rows = zip(ratings.ratings, ratings.rating_mask, strict=True)
    columns = {
        "text": list(ratings.texts),
        "domain": ratings.domain.tolist(),
        "id": list(ratings.ids),
        "ratings": [values[mask].tolist() for values, mask in rows],
        "batch": ratings.batch.tolist(),
    }
    return datasets.Dataset.from_dict(columns, features=features)


def fingerprint(ratings: Ratings) -> str:
    """A hash of everything in the ratings, by which to name what is computed from them.

    Args:
        ratings: what ``load_ratings`` returned, or some of it.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256(json.dumps([ratings.texts, ratings.ids]).encode())
    for array in (ratings.domain, ratings.ratings, ratings.rating_mask, ratings.batch):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class _Domain:
    """One domain's files, joined: texts, ids, ratings, masks, batches and published means."""

    texts: list[str]
    ids: list[str]
    ratings: np.ndarray
    rating_mask: np.ndarray
    batch: np.ndarray
    means: np.ndarray


def _frozen(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array


def _join(domains: Sequence[_Domain]) -> Ratings:
    index = [np.full(len(domain.texts), i, np.int32) for i, domain in enumerate(domains)]
    return Ratings(
        texts=tuple(text for domain in domains for text in domain.texts),
        domain=np.concatenate(index),
        ids=tuple(name for domain in domains for name in domain.ids),
        ratings=np.concatenate([domain.ratings for domain in domains]),
        rating_mask=np.concatenate([domain.rating_mask for domain in domains]),
        batch=np.concatenate([domain.batch for domain in domains]),
        dropped=0,
    )


def _locate(source: Path, scratch: Path) -> Path | None:
    """The folder with the eight files: in a folder, or in an archive unpacked into scratch."""
    if source.is_file():
        # Twice at most: the source distribution holds the archive with the files.
        return _locate(assets.unpack(source, scratch / source.name), scratch)
    for place in _PLACES:
        candidate = source / place
        if candidate.is_dir() and (candidate / f"{_STEMS[-1]}_GroundTruth.txt").is_file():
            return candidate
        if candidate.is_file() and (found := _locate(candidate, scratch)):
            return found
    return None


def _read_domain(folder: Path, index: int) -> _Domain:
    """Read one domain's two files and join them by identifier."""
    truth_path = folder / f"{_STEMS[index]}_GroundTruth.txt"
    ratings_path = folder / f"{_STEMS[index]}_anonDataRatings.txt"
    truth = _read_table(truth_path, columns=3)
    rated = _read_table(ratings_path, columns=4)
    if truth.keys() != rated.keys():
        odd = sorted(truth.keys() ^ rated.keys())
        raise ValueError(
            f"{truth_path} and {ratings_path.name} are about different items: {len(odd)} are in one"
            f" only, {odd[0]!r} for instance"
        )
    shape = (len(rated), MAX_RATERS)
    ratings, mask = np.zeros(shape, np.int8), np.zeros(shape, bool)
    for row, (name, fields) in enumerate(rated.items()):
        try:
            values = json.loads(fields[2])
            valid = all(isinstance(value, int) and -4 <= value <= 4 for value in values)
        except (ValueError, TypeError):
            valid, values = False, []
        if not valid or not 0 < len(values) <= MAX_RATERS:
            raise ValueError(
                f"{ratings_path}: item {name!r} should have 1 to {MAX_RATERS} whole ratings "
                f"from -4 to 4, not {fields[2]!r:.80}"
            )
        ratings[row, : len(values)], mask[row, : len(values)] = values, True
    try:
        # By identifier and never by line: the two files of amazon are in different orders.
        means = np.asarray([float(truth[name][0]) for name in rated])
    except ValueError as error:
        raise ValueError(f"{truth_path}: a mean is not a number: {error}") from error
    is_movies = DOMAINS[index] == "movies"
    batch = np.arange(len(rated)) // _BATCH if is_movies else np.full(len(rated), -1)
    texts = [_unescape(truth[name][1]).strip() for name in rated]
    return _Domain(texts, list(rated), ratings, mask, batch.astype(np.int32), means)


def _unescape(text: str) -> str:
    """Turn HTML entities into characters, and those that were escaped twice as well."""
    once = _ENTITY.sub(lambda entity: html.unescape(entity[0]), text)
    return _ENTITY.sub(lambda entity: html.unescape(entity[0]), once)


def _read_table(path: Path, *, columns: int) -> dict[str, list[str]]:
    """A tab-separated file as ``{identifier: the other columns}``, in the file's order."""
    if not path.is_file():
        raise FileNotFoundError(f"{path.name} is missing beside its fellows in {path.parent}")
    # utf-8-sig: a byte order mark would become part of the first identifier. Lines end at "\n"
    # alone: str.splitlines would also split at characters that occur within texts.
    content = path.read_bytes().decode("utf-8-sig", errors="replace")
    table: dict[str, list[str]] = {}
    for number, line in enumerate(content.split("\n"), start=1):
        line = line.removesuffix("\r")
        if not line:
            continue
        name, *rest = line.split("\t", columns - 1)
        if len(rest) != columns - 1:
            raise ValueError(f"{path}, line {number}: {columns} columns expected, got {line!r:.80}")
        if name in table:
            raise ValueError(f"{path}, line {number}: a second item {name!r}")
        table[name] = rest
    return table
