"""The page and the figures of a run, from made-up numbers."""

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.image import imread

from rlhf_jax import report
from rlhf_jax.feedback import Comparison, Pairs
from rlhf_jax.measures import Reliability
from rlhf_jax.training import Fit
from rlhf_jax.types import Sequences


def evaluated(shift):
    tokens = np.array([[1, 7, 8, 9], [1, 5, 5, 2], [1, 6, 9, 2]], np.int32)
    mask = np.ones(tokens.shape, bool)
    values = {"proxy": jnp.array([0.0, 1.0, 2.0]) + shift, "gold": jnp.zeros(3) + shift / 2}
    values |= {
        "kl": jnp.full(3, 4 * shift),
        "length": jnp.full(3, 2.0),
        "distinct_2": jnp.array(0.5),
    }
    return Sequences(tokens, mask, mask & (np.arange(4) > 1)), values


@pytest.fixture
def written(tmp_path):
    names = ("kl", "reward", "gold", "length", "distinct_2", "skipped")
    history = [{"step": i} | dict.fromkeys(names, float(i)) for i in range(1, 4)]
    pairs = Pairs(*(np.array(x) for x in ([0, 1, 0], [1, 2, 2])))
    result = report.policy_report(
        tmp_path,
        Fit(None, history, "the budget is spent"),
        budget=5.0,
        samples=(evaluated(0.0), evaluated(1.0)),
        decode=lambda row: " ".join(f"w{token}|" for token in row),
        prompt_length=2,
        held_out={"proxy": jnp.array([0.1, 0.3, 0.2]), "gold": jnp.array([1.0, 2.0, 3.0])},
        truth=np.array([1.0, 2.0, 3.0]),
        compared=(pairs, Comparison(preference=np.array([0.0, 0.0, 0.5]))),
        others=np.array([1.0, 2.0, 3.0]),
        disclosed={"examples": "made up"},
    )
    return tmp_path, result


def test_what_is_measured(written):
    _, result = written
    assert result["proxy_gain_sd"] == pytest.approx(1.0)
    assert result["gold_gain_sd"] == pytest.approx(0.5)
    assert result["sequence_kl_nats"] == pytest.approx(4.0)
    assert result["reward_accuracy"] == pytest.approx(2 / 3)
    assert result["gold_accuracy"] == pytest.approx(1.0)
    assert result["one_human_accuracy"] == pytest.approx((1 + 1 + 0.5) / 3)
    assert result["skipped_steps"] == 3
    assert (result["iterations"], result["stopped"]) == (3, "the budget is spent")


def test_the_page_says_what_was_measured_and_what_was_not_disclosed(written):
    folder, _ = written
    page = (folder / "report.md").read_text()
    assert "+1.00 SD" in page
    assert "| Human feedback: selection of examples | made up |" in page
    assert page.count(report.NOT_DISCLOSED) == 7
    for name in ("overoptimisation", "reward_model", "diversity"):
        assert f"(plots/{name}.png)" in page
        image = imread(folder / "plots" / f"{name}.png")
        assert image.shape[0] > 300
        assert image[..., :3].std() > 0.02, "an empty figure"


def test_samples_show_prompt_and_answers_apart_and_escape_bars(written):
    folder, _ = written
    lines = (folder / "samples.md").read_text().splitlines()
    assert lines[4] == r"| w1\| w7\| | w8\| w9\| | +0.00 | w8\| w9\| | +0.50 |"


def test_reliability_of_several_models_is_one_figure(tmp_path):
    curve = Reliability(*(np.array(x) for x in ([0.2, np.nan, 0.8], [0.1, np.nan, 0.9], [5, 0, 5])))
    curves = {"single": curve, "ensemble": curve._replace(observed=curve.predicted)}
    path = tmp_path / "plots" / "reliability.png"
    report.plot_reliability(curves, path, errors={"single": 0.1, "ensemble": 0.0})
    assert imread(path)[..., :3].std() > 0.02, "an empty figure"
    with pytest.raises(ValueError, match=r"errors must be of \['ensemble', 'single'\], not of"):
        report.plot_reliability(curves, path, errors={"single": 0.1})


def test_an_unknown_item_to_disclose_is_refused():
    with pytest.raises(ValueError, match="no such item: colour"):
        report.transparency_table({"colour": "blue"})
