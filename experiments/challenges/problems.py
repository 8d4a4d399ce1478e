"""The 23 open problems of the survey, in its order: Casper et al. 2023, section 3.

https://arxiv.org/abs/2307.15217. Of each the section, whether the survey calls it fundamental
(tractable otherwise), and what it says, in a sentence.
"""

from typing import NamedTuple


class Problem(NamedTuple):
    """What the survey says of one."""

    section: str
    fundamental: bool
    claim: str


# By the name of their scripts, in which - is _.
PROBLEMS = {
    "evaluator-selection": Problem(
        "3.1.1",
        False,
        "Selecting representative humans and getting them to give good feedback is hard.",
    ),
    "evaluator-bias": Problem("3.1.1", False, "Some evaluators have harmful biases and opinions."),
    "poisoned-feedback": Problem(
        "3.1.1",
        False,
        "Malicious people can poison feedback, so that a trigger brings out what they want.",
    ),
    "simple-mistakes": Problem(
        "3.1.2", False, "Humans make simple mistakes due to limited time, attention, or care."
    ),
    "partial-observability": Problem(
        "3.1.2", False, "Partial observability limits human evaluators."
    ),
    "hard-tasks": Problem(
        "3.1.2", True, "Humans cannot evaluate performance on difficult tasks well."
    ),
    "misled-evaluators": Problem(
        "3.1.2", True, "Humans can be misled, so their evaluations can be gamed."
    ),
    "data-collection-bias": Problem(
        "3.1.3", False, "Collecting data can introduce harmful biases."
    ),
    "cost-quality": Problem(
        "3.1.3", True, "There is an inherent cost/quality tradeoff when collecting human feedback."
    ),
    "feedback-richness": Problem(
        "3.1.4",
        True,
        "RLHF suffers from a tradeoff between the richness and efficiency of feedback types.",
    ),
    "values-not-a-reward": Problem(
        "3.2.1",
        True,
        "An individual human's values are difficult to represent with a reward function.",
    ),
    "single-reward-society": Problem(
        "3.2.1", True, "A single reward function cannot represent a diverse society of humans."
    ),
    "reward-misgeneralization": Problem(
        "3.2.2", False, "Reward models can misgeneralise, even from correctly labelled data."
    ),
    "reward-overoptimization": Problem(
        "3.2.2", True, "Optimising for an imperfect reward proxy leads to reward hacking."
    ),
    "rm-evaluation": Problem(
        "3.2.3", False, "Evaluating reward models is difficult and expensive."
    ),
    "policy-optimization-difficulty": Problem(
        "3.3.1", False, "It is (still) challenging to optimize policies effectively."
    ),
    "adversarial-exploitation": Problem(
        "3.3.1", False, "Policies can be adversarially exploited, though they do well in training."
    ),
    "goal-misgeneralization": Problem(
        "3.3.2",
        True,
        "Policies can perform poorly in deployment even if rewards seen in training were right.",
    ),
    "power-seeking": Problem("3.3.2", True, "Optimal RL agents tend to seek power."),
    "pretraining-bias": Problem(
        "3.3.3", False, "Pretraining introduces biases into policy optimization."
    ),
    "mode-collapse": Problem(
        "3.3.3", False, "RL collapses onto few answers, though others are nearly as good."
    ),
    "auto-induced-shift": Problem("3.4", False, "Joint training induces distribution shifts."),
    "efficiency-overfitting": Problem(
        "3.4", False, "It is hard to balance efficiency against overfitting by the policy."
    ),
}
