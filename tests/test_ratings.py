"""The human ratings: fabricated files with every trap in them, and the real ones if at hand."""

import tarfile
from pathlib import Path

import numpy as np
import pytest

from rlhf_jax import assets
from rlhf_jax.data import ratings as module
from rlhf_jax.data.ratings import DOMAINS, as_dataset, fingerprint, load_ratings

MOVIES = 45


def _write(path: Path, lines: list[str], *, mark: bool = False) -> None:
    # CRLF, no newline at the end, perhaps a byte order mark: as the real files are.
    path.write_bytes(b"\xef\xbb\xbf" * mark + "\r\n".join(lines).encode("utf-8", "surrogateescape"))


def _line(name: str, values: list[int], mean: float | None = None) -> str:
    return f"{name}\t{np.mean(values) if mean is None else mean:.9g}\t0.5\t{values}"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Miniatures of the eight files."""
    folder = tmp_path / "hutto_ICWSM_2014"
    folder.mkdir()
    # amazon: a mark before the first identifier, and the two files in different orders.
    rated = [_line("1_1", [1, 2]), _line("1_2", [-4, 4, 0]), _line("1_3", [3])]
    _write(folder / "amazonReviewSnippets_anonDataRatings.txt", rated, mark=True)
    truth = ["1_1\t1.5\tfirst &amp; best", "1_3\t3\t third ", "", "1_2\t0\tsecond"]
    _write(folder / "amazonReviewSnippets_GroundTruth.txt", truth)
    # movies: characters at which str.splitlines would split, and more than one batch.
    rated = [_line(str(i), [i % 5, -1]) for i in range(MOVIES)]
    _write(folder / "movieReviewSnippets_anonDataRatings.txt", rated)
    truth = [f"{i}\t{(i % 5 - 1) / 2}\ta\x85b\u2028c\td {i}" for i in range(MOVIES)]
    _write(folder / "movieReviewSnippets_GroundTruth.txt", truth)
    # nyt: escaped twice, and a byte that is not UTF-8.
    _write(folder / "nytEditorialSnippets_anonDataRatings.txt", [_line("1_1", [0] * 20)])
    _write(folder / "nytEditorialSnippets_GroundTruth.txt", ["1_1\t0\tA &amp;amp; B \udc92 AT&T"])
    # tweets: published means that contradict the ratings, and one that only rounds differently.
    rated = [_line("1", [4] * 99), _line("2", [4, 4]), _line("3", [1, 1, 2])]
    _write(folder / "tweets_anonDataRatings.txt", rated)
    truth = ["1\t4\t&lt;3 http://url_removed", "2\t3.5\twrong", "3\t1.335\tfine"]
    _write(folder / "tweets_GroundTruth.txt", truth)
    expected = ((3, 6), (MOVIES, 2 * MOVIES), (1, 20), (3, 104))
    monkeypatch.setattr(module, "_EXPECTED", expected)
    monkeypatch.setattr(module, "_EXPECTED_DROPPED", 1)
    return folder


def _archive(folder: Path, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, folder.name)
    return path


def test_the_traps(folder):
    found = load_ratings(folder)
    amazon, tweets = found.only("amazon"), found.only("tweets")
    assert amazon.ids == ("1_1", "1_2", "1_3")
    assert amazon.texts == ("first & best", "second", "third")
    assert amazon.ratings[1, :3].tolist() == [-4, 4, 0]
    assert amazon.rating_mask.sum(axis=1).tolist() == [2, 3, 1]
    np.testing.assert_allclose(amazon.mean, [1.5, 0.0, 3.0])
    assert found.only("nyt").texts == ("A & B \ufffd AT&T",)
    assert found.only("movies").texts[44] == "a\x85b\u2028c\td 44"
    assert tweets.texts == ("<3 http://url_removed", "fine")
    assert (found.dropped, len(found)) == (1, 3 + MOVIES + 1 + 2)


def test_shapes_types_and_batches(folder):
    found = load_ratings(folder)
    assert found.ratings.shape == found.rating_mask.shape == (len(found), 99)
    assert (found.ratings.dtype, found.rating_mask.dtype) == (np.int8, bool)
    assert found.batch.dtype == found.domain.dtype == np.int32
    assert (found.ratings[~found.rating_mask] == 0).all()
    assert found.only("movies").batch.tolist() == [0] * 30 + [1] * 15
    assert (found.batch[found.domain != DOMAINS.index("movies")] == -1).all()
    with pytest.raises(ValueError, match="read-only"):
        found.ratings[0, 0] = 1


def test_take_and_only(folder):
    found = load_ratings(folder)
    part = found.take([2, 0])
    assert part.ids == ("1_3", "1_1")
    assert part.take(np.array([False, True])).ids == ("1_1",)
    assert len(found.take([])) == 0
    assert set(found.only("tweets", "nyt").domain.tolist()) == {2, 3}
    with pytest.raises(ValueError, match="domains must be some of"):
        found.only("films")


@pytest.mark.parametrize(
    "place",
    [
        "hutto_ICWSM_2014.tar.gz",
        "additional_resources/hutto_ICWSM_2014.tar.gz",
        "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz",
    ],
)
def test_a_copy_at_hand_is_found_in_any_shape(folder, tmp_path, place):
    expected = fingerprint(load_ratings(folder))
    assert fingerprint(load_ratings(tmp_path)) == expected, "in the folder above"
    copy = _archive(folder, tmp_path / "copy" / place)
    assert fingerprint(load_ratings(tmp_path / "copy")) == expected, "beside"
    assert fingerprint(load_ratings(str(copy))) == expected, "the archive itself"
    sdist = tmp_path / "sdist" / "vaderSentiment-3.3.2.tar.gz"
    sdist.parent.mkdir()
    with tarfile.open(sdist, "w:gz") as archive:
        inner = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
        archive.add(copy, inner)
    assert fingerprint(load_ratings(sdist)) == expected, "the source distribution itself"
    assert fingerprint(load_ratings(sdist.parent)) == expected, "its folder"


def test_fetches_when_no_copy_is_given(folder, tmp_path, monkeypatch):
    archive = _archive(folder, tmp_path / "fetched.tar.gz")
    monkeypatch.setattr(assets, "fetch", lambda asset: archive)
    assert len(load_ratings()) == 3 + MOVIES + 1 + 2


def test_what_is_missing_is_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        load_ratings(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"looked for .*vaderSentiment-3\.3\.2\.tar\.gz"):
        load_ratings(tmp_path / "empty")
    (folder / "tweets_anonDataRatings.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"tweets_anonDataRatings\.txt is missing"):
        load_ratings(folder)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1\t4", "line 1: 4 columns expected"),
        ("1\t4\t0\t[5]", "whole ratings from -4 to 4"),
        ("1\t4\t0\t[1.5]", "whole ratings from -4 to 4"),
        ("1\t4\t0\t[]", "1 to 99"),
        ("1\t4\t0\t[1, 2", "whole ratings"),
        (_line("1", [1] * 100), "1 to 99"),
        (_line("1", [1]) + "\r\n" + _line("1", [1]), "line 2: a second item '1'"),
        (_line("9", [1]), "about different items"),
    ],
)
def test_damaged_files_are_refused(folder, line, message):
    _write(folder / "tweets_anonDataRatings.txt", [line, _line("2", [4]), _line("3", [1])])
    with pytest.raises(ValueError, match=message):
        load_ratings(folder)


def test_other_data_are_refused(folder, monkeypatch):
    monkeypatch.setattr(module, "_EXPECTED_DROPPED", 0)
    with pytest.raises(ValueError, match="1 items have ratings that contradict"):
        load_ratings(folder)
    monkeypatch.undo()
    with pytest.raises(
        ValueError, match=r"amazon has 3 items with 6 ratings; .* are 3708 with 74160"
    ):
        load_ratings(folder)


def test_as_dataset(folder):
    found = load_ratings(folder)
    dataset = as_dataset(found)
    assert dataset.num_rows == len(found)
    assert dataset[1]["ratings"] == [-4, 4, 0]
    assert dataset[0]["text"] == "first & best"
    assert dataset.features["domain"].int2str(dataset[3]["domain"]) == "movies"


def test_fingerprint_notices_any_change(folder):
    found = load_ratings(folder)
    assert fingerprint(found) == fingerprint(load_ratings(folder))
    assert fingerprint(found) != fingerprint(found.take(range(1, len(found))))


@pytest.fixture(scope="module")
def data() -> module.Ratings:
    try:
        return load_ratings()
    except assets.AssetError as error:
        pytest.skip(f"the human ratings are neither cached nor to be fetched: {error}")


def test_the_real_ratings(data):
    counts = {name: len(data.only(name)) for name in DOMAINS}
    assert counts == {"amazon": 3708, "movies": 10605, "nyt": 5190, "tweets": 4200 - 196}
    assert data.dropped == 196
    movies = data.only("movies")
    raters = movies.rating_mask.sum(axis=1)
    assert (raters.min(), raters.max()) == (15, 29)
    # Were the batches shifted by one, their numbers of raters would not be constant.
    for batch in range(354):
        assert len(set(raters[movies.batch == batch])) == 1
    row = data.ids.index("263_3")
    assert data.domain[row] == DOMAINS.index("amazon")
    assert not any("&amp;" in text or text != text.strip() for text in data.texts)


def test_columns_of_a_movie_batch_are_persons(data):
    """Residuals of neighbours correlate within a batch and not across its border."""
    movies = data.only("movies")
    mask = movies.rating_mask[:-1, :15] & movies.rating_mask[1:, :15]
    residual = movies.ratings[:, :15] - movies.mean[:, None]
    within = (movies.batch[:-1] == movies.batch[1:])[:, None] & mask
    across = ~(movies.batch[:-1] == movies.batch[1:])[:, None] & mask

    def correlation(where):
        return np.corrcoef(residual[:-1][where], residual[1:][where])[0, 1]

    assert correlation(within) > 0.25
    assert abs(correlation(across)) < 0.1
