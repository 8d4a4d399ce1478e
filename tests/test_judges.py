"""Judges whose preferences are known in closed form, and one that padding would disturb."""

import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import BIGRAM, EOS, bigram_logits, bigram_params, sample_fn

from rlhf_jax import algorithms, feedback, humans, judges, sampling
from rlhf_jax.feedback import Pairs
from rlhf_jax.judges import Principle, Texts, Unanswered
from rlhf_jax.judges.local import choice_log_odds, choice_tokens
from rlhf_jax.types import FactoredLogits, Prompts, Sequences

SHORT = "{rubric}|{prompt}|{first}|{second}|"
A = jax.nn.one_hot(ord("A"), 128)


def encode(text):
    return list(text.encode())


def decode(ids):
    return bytes(ids).decode()


def marks_logits(params, tokens, mask):
    """Log-odds of A: the !s in the first answer less those in the second, plus a bias."""
    field = jnp.cumsum((tokens == ord("|")) & mask, axis=1)
    marks = (tokens == ord("!")) & mask
    lead = jnp.cumsum(marks * ((field == 2) * 1.0 - (field == 3) * 1.0), axis=1) + params
    return FactoredLogits(lead[..., None], A[None])


def marks_judge(bias, **settings):
    ask = judges.local_ask(marks_logits, bias, encode=encode, max_length=64, **settings)
    return judges.pairwise(ask, rubric="Loud.", template=SHORT)


def pairs(first, second, prompts=None):
    prompts = prompts or ["?"] * len(first)
    return Pairs(Texts(prompts, [*first]), Texts(prompts, [*second]))


def fading_logits(params, tokens, mask):
    """Reads every token, the last ones more: padding between or before them would show."""
    ages = jnp.arange(tokens.shape[1])[:, None] - jnp.arange(tokens.shape[1])
    weights = jnp.where(ages >= 0, 0.9**ages, 0)
    hidden = weights @ jnp.where(mask[..., None], params["embed"][tokens], 0)
    return FactoredLogits(hidden, params["unembed"])


FADING = {
    "embed": np.random.default_rng(0).normal(size=[128, 4]).astype(np.float32),
    "unembed": np.random.default_rng(1).normal(size=[4, 128]).astype(np.float32),
}


# Comparisons


@pytest.mark.parametrize("bias", [0.0, 2.5, -7.0])
def test_position_bias_cancels_exactly(bias):
    verdicts = marks_judge(bias)(pairs(["a!!", "b", "c!"], ["a", "b!", "c!"]))
    np.testing.assert_allclose(verdicts.log_odds, [2, -1, 0], atol=1e-6)
    np.testing.assert_allclose(verdicts.position_bias, bias, atol=1e-6)
    expected = [1 / (1 + math.exp(-x)) for x in (2, -1, 0)]
    np.testing.assert_allclose(verdicts.comparison.preference, expected, atol=1e-6)
    # The same place is chosen twice exactly where the bias is larger than the difference.
    assert verdicts.swayed.tolist() == [abs(bias) > x for x in (2, 1, 0)]
    assert verdicts.comparison.answered.tolist() == [True] * 3
    assert verdicts.unanswered == {}


def test_both_sides_exchanged_give_the_complement():
    first, second, judge = ["a!!", "b"], ["a", "b!!!"], marks_judge(1.0)
    one = judge(pairs(first, second)).comparison.preference
    other = judge(pairs(second, first)).comparison.preference
    np.testing.assert_allclose(one + other, 1, atol=1e-6)


def test_the_judge_sees_rubric_prompt_and_answers_in_both_orders():
    seen = []

    def ask(questions, choices):
        seen.append((list(questions), choices))
        return [0.0] * len(questions)

    judge = judges.pairwise(ask, rubric="R {x}", choices=("1", "2"), template="{{" + SHORT)
    judge(pairs(["f {prompt}"], ["s"], ["p {first}"]))
    assert seen == [
        (["{R {x}|p {first}|f {prompt}|s|", "{R {x}|p {first}|s|f {prompt}|"], ("1", "2"))
    ]


def test_choices_without_probabilities():
    """A judge of words: agrees with itself, sticks to the first place, contradicts a soft one."""
    answers = [math.inf, math.inf, -math.inf, -1.0, -math.inf, math.inf, -math.inf, -math.inf]
    verdicts = judges.pairwise(lambda questions, choices: answers, rubric="")(pairs("abcd", "efgh"))
    assert verdicts.comparison.preference.tolist() == [1, 0.5, 0.5, 1]
    assert verdicts.log_odds.tolist() == [math.inf, 0, 0, math.inf]
    assert verdicts.swayed.tolist() == [False, True, True, True]


def test_a_pair_is_answered_only_in_both_orders():
    answers = [1.0, Unanswered("timed out"), 3.0, -1.0, 0.0, Unanswered("status 500")]
    judge = judges.pairwise(lambda questions, choices: answers, rubric="")
    verdicts = judge(pairs("abc", "def"))
    assert verdicts.comparison.answered.tolist() == [True, False, False]
    assert verdicts.unanswered == {1: "as given: timed out", 2: "exchanged: status 500"}
    assert np.isnan(verdicts.log_odds).tolist() == [False, True, True]
    assert not verdicts.swayed[1:].any()
    examples = Pairs(rows("abc"), rows("def"))
    for labels in ("soft", "hard", "sampled"):
        human = judges.as_human(judge, labels=labels, decode=decode)
        for ask in (human, humans.with_mistakes(human, rate=0.0)):  # which look at arrays
            with pytest.warns(UserWarning, match="2 of 3 pairs were not judged: row 1: as given: "):
                comparison = ask(jax.random.key(0), examples)
            assert comparison.answered.tolist() == [True, False, False]
            assert comparison.preference[1:].tolist() == [0.5, 0.5]  # as of all who do not answer
    batch = feedback.preferences(examples, comparison, keep_ties=False)
    for side in (batch.chosen, batch.rejected):
        assert side.response_mask.any(axis=1).tolist() == [True, False, False]


def test_answers_that_are_none_are_told():
    with pytest.raises(ValueError, match="ask gave 1 answers to 2 questions"):
        judges.pairwise(lambda *_: [1.0], rubric="")(pairs("a", "b"))
    with pytest.raises(ValueError, match="ask gave 3 answers to 1 questions"):
        judges.specification_scores(lambda *_: [1.0] * 3, specification="")(["a"])
    verdicts = judges.pairwise(lambda *_: [1.0, math.nan], rubric="")(pairs("a", "b"))
    assert verdicts.unanswered == {0: "exchanged: the log-odds are nan"}
    assert (verdicts.comparison.answered, verdicts.comparison.preference) == (False, 0.5)


def test_judges_fit_where_algorithms_want_them():
    """Shapes alone, without compiling: what the two return is tested below."""

    def words(text):
        return [2 + ord(x) % 8 for x in text]

    prompts = Prompts(jnp.array([[3, 4]] * 2), jnp.ones([2, 2], bool))
    sample, params = sample_fn(3, EOS), bigram_params()
    judge_fn = judges.preference_judge(
        bigram_logits, encode=words, rubric="", template=SHORT, hidden_ids=[EOS]
    )
    reward_fn = judges.specification_reward(
        bigram_logits,
        encode=words,
        specification="",
        template="{specification}{text}|",
        choices=("Y", "N"),
    )
    online = algorithms.online_dpo(bigram_logits, sample, judge_fn, optax.sgd(0.1))
    group = algorithms.policy_gradient(bigram_logits, sample, reward_fn, optax.sgd(0.1))
    for algorithm, name in ((online, "judge"), (group, "reward")):
        state = algorithm.init(params, jax.random.key(0), **{name: params})
        after, metrics = jax.eval_shape(algorithm.step, state, prompts)
        assert jax.tree.structure(after) == jax.tree.structure(state)
        assert metrics["loss"].shape == ()


def test_as_human():
    examples, judge = pairs(["a!", "b", "c"] * 200, ["a", "b!", "c"] * 200), marks_judge(3.0)
    key = jax.random.key(0)
    hard = judges.as_human(judge, labels="hard", rater=7, cost=0.5)(key, examples)
    assert hard.preference.tolist() == [1, 0, 0.5] * 200
    assert hard.rater.tolist() == [7] * 600 and hard.cost.tolist() == [0.5] * 600
    soft = judges.as_human(judge)(key, examples)
    np.testing.assert_allclose(soft.preference[:3], [0.731059, 0.268941, 0.5], atol=1e-6)
    assert soft.cost is None
    human = judges.as_human(judge, labels="sampled")
    sampled = human(key, examples).preference
    assert set(sampled.tolist()) == {0.0, 1.0}
    np.testing.assert_allclose(sampled.reshape(200, 3).mean(0), soft.preference[:3], atol=0.1)
    assert human(key, examples).preference.tolist() == sampled.tolist()
    assert human(jax.random.key(1), examples).preference.tolist() != sampled.tolist()


def rows(texts, prompt="?", left=0, length=12):
    """``Sequences`` of a prompt and an answer with padding on both sides."""
    tokens, mask, responses = (np.zeros([len(texts), length], int) for _ in range(3))
    for row, text in enumerate(texts):
        ids = encode(prompt + text)
        tokens[row, left : left + len(ids)] = ids
        mask[row, left : left + len(ids)] = 1
        responses[row, left + len(prompt) : left + len(ids)] = 1
    return Sequences(jnp.asarray(tokens), jnp.asarray(mask) > 0, jnp.asarray(responses) > 0)


def test_a_human_of_sequences():
    human = judges.as_human(marks_judge(1.0), labels="hard", decode=decode)
    examples = Pairs(rows(["a!", "b"], left=2), rows(["a", "b!"]))
    assert human(jax.random.key(0), examples).preference.tolist() == [1, 0]


def test_tokens_and_texts_are_judged_alike():
    logits_fn, params = fading_logits, FADING
    first, second = ["Yes, of it!", "no", ""], ["No.", "never", "x"]
    ask = judges.local_ask(logits_fn, params, encode=encode, max_length=64)
    judge = judges.pairwise(ask, rubric="Be kind.", template=SHORT)
    expected = judge(pairs(first, second, ["why?"] * 3)).comparison.preference
    assert np.ptp(expected) > 0.01
    judge_fn = judges.preference_judge(
        logits_fn, encode=encode, rubric="Be kind.", template=SHORT, hidden_ids=[2]
    )
    sides = rows(first, "why?", 3, 20), rows(second, "why?", 0, 10)
    np.testing.assert_allclose(jax.jit(judge_fn)(params, *sides), expected, atol=1e-6)
    # The token that is not to be shown is not.
    ended = sides[1].replace(
        tokens=sides[1].tokens.at[:, -1].set(2),
        mask=sides[1].mask.at[:, -1].set(True),
        response_mask=sides[1].response_mask.at[:, -1].set(True),
    )
    np.testing.assert_allclose(jax.jit(judge_fn)(params, sides[0], ended), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        (Pairs(Texts(["?"], "a"), Texts(["?"], ["b"])), "first must be several strings, not one"),
        (pairs(["a", None], ["b", "c"]), "first must be strings: row 1 is None"),
        (pairs(["a"], ["b", "c"]), "equally many of each, not {'prompts': 1, 'first': 1, 'second'"),
        (Pairs(Texts(["?"], ["a"]), Texts(["!"], ["b"])), "to one prompt: row 0"),
    ],
)
def test_bad_examples_are_named(examples, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        marks_judge(0.0)(examples)


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match=r"template must have each of \{rubric\}, .* not \['rub"):
        judges.pairwise(None, rubric="", template="{rubric} {prompt} {first}")
    with pytest.raises(ValueError, match="once"):
        judges.pairwise(None, rubric="", template=SHORT + "{first}")
    with pytest.raises(ValueError, match=r"without ! and :, \['first'\]"):
        judges.pairwise(None, rubric="", template="{rubric}{prompt}{first:>9}{second}")
    with pytest.raises(ValueError, match="template is no template"):
        judges.pairwise(None, rubric="", template="{")
    with pytest.raises(ValueError, match=r"labels must be .* not 'firm'"):
        judges.as_human(None, labels="firm")
    with pytest.raises(ValueError, match="least_mass must be from 0 to 1, not 2"):
        judges.local_ask(None, None, encode=encode, max_length=8, least_mass=2)
    with pytest.raises(ValueError, match="max_length must be positive, not 0"):
        judges.local_ask(None, None, encode=encode, max_length=0)


# A local model


def test_batches_and_padding_change_nothing():
    logits_fn, params = fading_logits, FADING
    traced = []

    def counted(*args):
        traced.append(args[1].shape)
        return logits_fn(*args)

    questions = ["a", "a longer question", "b?", "the longest", "c?", "too long" * 5, "d?"]
    ask = judges.local_ask(counted, params, encode=encode, max_length=30, batch_size=3)
    together = ask(questions, ("A", "B"))
    # 40 tokens are more than the model is given: not cut, not answered.
    assert together[5] == Unanswered("40 tokens, but the model is given at most 30")
    ask(questions[::-1], ("A", "B"))
    assert sorted(traced) == [(3, 16), (3, 30)]  # compiled once for each length
    for row in (0, 1, 2, 3, 4, 6):
        tokens = jnp.array([encode(questions[row])])
        hidden, kernel = jax.tree.leaves(logits_fn(params, tokens, tokens > 0))
        logits = hidden[0, -1] @ kernel
        assert together[row] == pytest.approx(float(logits[65] - logits[66]), abs=1e-5)


def test_a_choice_has_all_its_spellings():
    vocabulary = {"yes": 0, " yes": 1, "Yes": 2, "no": 3, " No": 4}

    def words(text):
        return [vocabulary[text]] if text in vocabulary else [5, 5]

    assert choice_tokens(words, ("yes", "no")) == ([0, 1, 2], [3, 4])
    logits = jnp.log(jnp.array([[[0.1, 0.2, 0.3, 0.1, 0.1, 0.2]]]))
    first, second = choice_tokens(words, ("yes", "no"))
    mask = jnp.array([[True]])
    odds, mass = choice_log_odds(logits, mask, first, second)
    assert float(odds[0]) == pytest.approx(math.log(3)) and float(mass[0]) == pytest.approx(0.8)
    factored = FactoredLogits(jnp.ones([1, 1, 1]), logits[0])
    np.testing.assert_allclose(choice_log_odds(factored, mask, first, second)[0], odds, atol=1e-6)
    capped = 0.5 * jnp.tanh(logits / 0.5)
    np.testing.assert_allclose(
        choice_log_odds(factored.replace(softcap=0.5), mask, first, second)[0],
        choice_log_odds(capped, mask, first, second)[0],
        atol=1e-6,
    )
    with pytest.raises(ValueError, match="token 7 is beyond the model's vocabulary of 6"):
        choice_log_odds(logits, mask, first, [7])
    with pytest.raises(ValueError, match="token 66 is beyond the model's vocabulary of 66"):
        ask = judges.local_ask(
            lambda params, tokens, mask: jnp.zeros([*tokens.shape, 66]),
            (),
            encode=encode,
            max_length=8,
        )
        ask(["?"], ("A", "B"))
    # The last product in float32: bfloat16 has nothing between 20 and 20.125.
    hidden, kernel = jnp.array([[[20.0, 1.0]]], jnp.bfloat16), jnp.array([[1.0, 1.0], [0.05, 0.0]])
    odds, _ = choice_log_odds(FactoredLogits(hidden, kernel), mask, [0], [1])
    np.testing.assert_allclose(odds, 0.05, atol=1e-3)
    with pytest.raises(ValueError, match=r"choice 'maybe' is not a token .* encodes to \[5, 5\]"):
        choice_tokens(words, ("yes", "maybe"))
    with pytest.raises(ValueError, match="encode must return a list of integers, not str"):
        choice_tokens(lambda text: text, ("A", "B"))


def test_questions_that_a_model_does_not_answer():
    def uniform(params, tokens, mask):
        return jnp.zeros([*tokens.shape, 128]) * params

    settings = {"encode": encode, "max_length": 16}
    ask = judges.local_ask(uniform, 1.0, **settings, least_mass=0.1)
    assert ask(["?"], ("A", "B")) == [
        Unanswered("'A' and 'B' have probability 0.016 together, below 0.1")
    ]
    assert judges.local_ask(uniform, 1.0, **settings)(["?"], ("A", "B")) == [0.0]
    broken = judges.local_ask(uniform, jnp.nan, **settings)
    assert broken(["?"], ("A", "B")) == [Unanswered("the model's log-odds are nan")]
    assert broken([""], ("A", "B")) == [Unanswered("the text has no tokens")]
    assert broken([], ("A", "B")) == []
    with pytest.raises(ValueError, match="questions must be several strings"):
        broken("?", ("A", "B"))


def test_a_local_model_generates():
    def bigram_encode(text):
        return [2 + ord(x) % 8 for x in text]

    sample = sampling.sampler(BIGRAM, max_new_tokens=6, eos_id=EOS)
    settings = {
        "encode": bigram_encode,
        "decode": lambda ids: " ".join(map(str, ids)),
        "max_length": 20,
        "key": jax.random.key(0),
    }
    params = jax.tree.map(lambda x: 4 * x, bigram_params())
    generate = judges.local_generate(sample, params, **settings, batch_size=2)
    questions = ["abc", "x", "a text of 17 toks", "too long" * 3, "y"]
    texts = generate(questions)
    assert texts[3] == Unanswered("24 tokens, but the model is given at most 20")
    # Who else is in the batch does not matter, nor the order.
    assert generate(questions[::-1]) == texts[::-1]
    assert [*generate(["x"]), *generate(["y"])] == [texts[1], texts[4]]
    # As by hand, without padding.
    ids = jnp.array([bigram_encode(x) for x in "xy"])
    folds = jnp.array([zlib.crc32(x.encode()) for x in "xy"], jnp.uint32)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(settings["key"], folds)
    alone = jax.jit(sample)(params, Prompts(ids, ids > 0), keys)
    for text, row, own in zip((texts[1], texts[4]), alone.tokens, alone.response_mask, strict=True):
        assert text == settings["decode"](row[own].tolist())
    several = {"key": jax.random.key(1)}
    assert judges.local_generate(sample, params, **settings | several)(questions) != texts
    strict = judges.local_generate(sample, params, **settings, eos_id=EOS)(questions)
    assert {type(text) for text in strict} == {str, Unanswered}
    for text, whole in zip(strict, texts, strict=True):
        if isinstance(whole, str):
            ended = whole.split()[-1] == str(EOS)
            assert text == (whole if ended else Unanswered("cut off after 6 tokens"))


# Specifications


def test_specification_rewards_of_tokens_and_texts_agree():
    logits_fn, params = fading_logits, FADING
    texts, told = ["Yes, of course!", "no", "perhaps?"], {"specification": "Agree.", "bos_id": 1}
    words = {"template": "{specification}#{text}#?", "choices": ("Y", "N")}
    ask = judges.local_ask(logits_fn, params, encode=encode, max_length=64, bos_id=1)
    scores = judges.specification_scores(ask, specification="Agree.", **words)
    expected = scores(texts)
    assert np.ptp(expected) > 0.01
    reward_fn = judges.specification_reward(logits_fn, encode=encode, **told, **words)
    for left in (0, 4):
        rewards = jax.jit(reward_fn)(params, rows(texts, "Will you? ", left, 30))
        np.testing.assert_allclose(rewards, expected, atol=1e-5)
    whole_fn = judges.specification_reward(
        logits_fn, encode=encode, **told, **words, whole=True, hidden_ids=[0]
    )
    np.testing.assert_allclose(
        whole_fn(params, rows(texts, "So: ", 2, 24)),
        scores(["So: " + text for text in texts]),
        atol=1e-5,
    )
    padding = rows(texts, "Will you? ", 0, 30).replace(response_mask=jnp.zeros([3, 30], bool))
    assert jax.jit(reward_fn)(params, padding).tolist() == [0, 0, 0]


def test_specification_scores_without_an_answer():
    def scores(answers, **settings):
        score = judges.specification_scores(lambda *_: answers, specification="", **settings)
        return score(["x"] * len(answers))

    with pytest.warns(UserWarning, match="1 of 2 texts were not judged: row 1: timed out"):
        rewards = scores([2.0, Unanswered("timed out")])
    assert rewards[0] == 2 and np.isnan(rewards[1])
    with pytest.raises(ValueError, match="row 1: the model gave its choice without a probability"):
        scores([0.0, math.inf])
    assert scores([1.0, math.inf, -math.inf], bound=3.0).tolist() == [1, 3, -3]
    with pytest.raises(ValueError, match="bound must be positive, not 0"):
        scores([1.0], bound=0)


# Constitutions

PRINCIPLES = [Principle("How is it rude?", "Be polite."), Principle("How is it long?", "Be brief.")]


def test_answers_are_criticised_and_revised():
    asked = []

    def generate(questions):
        asked.extend(questions)
        return [f" text {len(asked)}.{n} " for n, _ in enumerate(questions)]

    given = Texts(["p0", "p1"], ["a0 ", "a1"])
    done = judges.critique_and_revise(
        generate, given, principles=PRINCIPLES, key=jax.random.key(3), rounds=2
    )
    assert done.original == given and done.unanswered == {} and len(done.rounds) == 2
    assert done.rounds[0].critique.text == ["text 2.0", "text 2.1"]
    assert done.rounds[0].correction.corrected == Texts(given.prompts, ["text 4.0", "text 4.1"])
    assert done.revised == Texts(given.prompts, ["text 8.0", "text 8.1"])
    assert all(x.critique.answered.all() and x.correction.answered.all() for x in done.rounds)
    for number, first in enumerate((0, 4)):
        for row in (0, 1):
            critique, revision = asked[first + row], asked[first + 2 + row]
            principle = PRINCIPLES[int(done.rounds[number].principle[row])]
            answer = given.answers[row] if number == 0 else f"text 4.{row}"
            assert f"Question: p{row}\n\nAnswer: {answer}\n\n{principle.critique}" in critique
            assert f"Critique: text {first + 2}.{row}\n\n{principle.revision}" in revision
    drawn = np.concatenate([x.principle for x in done.rounds])
    assert set(drawn.tolist()) == {0, 1}


def test_rows_that_fail_keep_their_text_and_are_left_out():
    asked = []

    def generate(questions):
        asked.append(len(questions))
        revision = "Revised answer:" in questions[0]
        return [
            Unanswered("timed out")
            if ("p1" in question and not revision) or ("p2" in question and revision)
            else ("" if "p3" in question else "same")
            for question in questions
        ]

    given = Texts([f"p{n}" for n in range(5)], ["a0", "a1 ", "a2", "a3", "same"])
    done = judges.critique_and_revise(
        generate, given, principles=PRINCIPLES, key=jax.random.key(0), rounds=2
    )
    assert asked == [5, 3, 2, 2]
    assert done.revised.answers == ["same", "a1 ", "a2", "a3", "same"]
    assert done.unanswered == {
        1: "critique of round 1: timed out",
        2: "revision of round 1: timed out",
        3: "critique of round 1: an empty text",
    }
    assert done.rounds[0].critique.answered.tolist() == [True, False, True, False, True]
    assert done.rounds[0].correction.answered.tolist() == [True, False, False, False, True]
    assert done.rounds[1].critique.answered.tolist() == [True, False, False, False, True]

    trusted = judges.preferred(done).comparison
    assert trusted.answered.tolist() == [True, False, False, False, True]
    np.testing.assert_array_equal(trusted.preference, [1, 0.5, 0.5, 0.5, 0.5])

    shown = []

    def ask(questions, choices):
        shown.extend(questions)
        return [-1.0, Unanswered("status 500"), 2.0, 0.0]

    judged = judges.preferred(done, judges.pairwise(ask, rubric="", template=SHORT))
    assert shown == ["|p0|same|a0|", "|p4|same|same|", "|p0|a0|same|", "|p4|same|same|"]
    np.testing.assert_array_equal(judged.log_odds, [-1.5, *[np.nan] * 4])
    np.testing.assert_array_equal(judged.position_bias, [0.5, *[np.nan] * 4])
    assert judged.comparison.answered.tolist() == [True, False, False, False, False]
    assert judged.unanswered == done.unanswered | {4: "as given: status 500"}


def test_bad_constitutions_are_named():
    def revise(generate=None, principles=PRINCIPLES, answers=("a",), **settings):
        examples = Texts(["p"], answers)
        key = jax.random.key(0)
        judges.critique_and_revise(generate, examples, principles=principles, key=key, **settings)

    with pytest.raises(ValueError, match="principles must have at least one"):
        revise(principles=[])
    with pytest.raises(ValueError, match="rounds must be at least 1, not 0"):
        revise(rounds=0)
    with pytest.raises(ValueError, match="answers must be strings: row 0 is 3"):
        revise(answers=[3])
    with pytest.raises(ValueError, match=r"revise_template must have each of .*critique"):
        revise(revise_template="{prompt}{answer}{request}")
    with pytest.raises(ValueError, match="generate made 0 texts of 1 questions"):
        revise(lambda questions: [])
