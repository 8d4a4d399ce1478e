"""The methods that have a name: each a ``partial`` of ``direct`` or of ``policy_gradient``.

Every setting can be given anew: ``ipo(logits_fn, optimizer, loss=partial(losses.squared,
tau=0.5))``. Numbers are the papers' defaults where they name one; learning rates, batch sizes and
how long to train are the caller's.
"""

from functools import partial

from rlhf_jax import advantages, implicit_rewards, losses
from rlhf_jax.algorithms.direct import direct
from rlhf_jax.algorithms.policy_gradient import policy_gradient
from rlhf_jax.divergences import adaptive_coefficient, kl_k3
from rlhf_jax.sequences import sequence_mean, sequence_sum, token_mean

__all__ = [
    "cdpo",
    "cispo",
    "cpo",
    "dapo",
    "dpo",
    "dr_grpo",
    "grpo",
    "gspo",
    "ipo",
    "kto",
    "orpo",
    "ppo",
    "raft",
    "rdpo",
    "reinforce",
    "reinforce_plus_plus",
    "remax",
    "rloo",
    "rrhf",
    "simpo",
    "slic",
]

# On a batch of Preferences.
dpo = partial(direct, beta=0.1)  # Rafailov et al. 2023, arXiv 2305.18290
cdpo = partial(dpo, loss=partial(losses.smoothed, flip_rate=0.1))  # Mitchell 2023
rdpo = partial(dpo, loss=partial(losses.unbiased, flip_rate=0.1))  # Chowdhury 2024, 2403.00409
ipo = partial(direct, beta=1.0, loss=partial(losses.squared, tau=0.1))  # Azar 2023, 2310.12036
# Those that need no reference policy.
_free = partial(direct, reference_free=True)
slic = partial(  # Zhao et al. 2023, arXiv 2305.10425
    _free,
    beta=1.0,
    loss=partial(losses.hinge, margin=1.0),
    implicit_reward=implicit_rewards.log_prob,
    supervised_weight=1.0,
)
cpo = partial(  # Xu et al. 2024, arXiv 2401.08417
    _free, beta=0.1, implicit_reward=implicit_rewards.log_prob, supervised_weight=1.0
)
simpo = partial(  # Meng et al. 2024, arXiv 2405.14734
    _free,
    beta=2.0,
    loss=partial(losses.bradley_terry, margin=1.0),
    implicit_reward=implicit_rewards.mean_log_prob,
)
orpo = partial(  # Hong et al. 2024, arXiv 2403.07691; the paper's lambda is loss_weight
    _free,
    beta=1.0,
    implicit_reward=implicit_rewards.log_odds,
    loss_weight=0.1,
    supervised_weight=1.0,
)
# On a batch of Rated, with booleans and with unrelated answers.
kto = partial(direct, beta=0.1, loss=losses.kto)  # Ethayarajh et al. 2024, arXiv 2402.01306
# On a batch of Ranked.
rrhf = partial(  # Yuan et al. 2023, arXiv 2304.05302
    _free,
    beta=1.0,
    loss=losses.rrhf,
    implicit_reward=implicit_rewards.mean_log_prob,
    supervised_weight=1.0,
)

# On prompts, with the penalty in the reward.
reinforce = partial(  # Williams 1992, Machine Learning 8
    policy_gradient,
    samples_per_prompt=1,
    advantage=advantages.no_baseline,
    policy_loss=losses.reinforce,
    aggregation=sequence_sum,
)
rloo = partial(  # Ahmadian et al. 2024, arXiv 2402.14740
    reinforce, samples_per_prompt=4, advantage=advantages.leave_one_out
)
remax = partial(reinforce, advantage=advantages.greedy_baseline)  # Li 2023, 2310.10505: baseline_fn
raft = partial(  # Dong et al. 2023, arXiv 2304.06767
    reinforce, samples_per_prompt=8, advantage=advantages.best_of_n, reward_penalty=None
)
reinforce_plus_plus = partial(  # Hu et al. 2025, arXiv 2501.03262
    policy_gradient,
    samples_per_prompt=1,
    advantage=advantages.reinforce_plus_plus,
    per_token=True,
    policy_loss=losses.ppo_clip,
)
ppo = partial(  # Schulman 2017, 1707.06347; Ziegler 2019, 1909.08593: give value_fn
    policy_gradient,
    samples_per_prompt=1,
    advantage=advantages.gae,
    per_token=True,
    policy_loss=losses.ppo_clip,
    value_loss=losses.clipped_value,
    kl_coefficient=adaptive_coefficient(0.2, target=6.0),
    whiten=True,
    epochs=4,
)
# On prompts, a group of samples for each, with the penalty in the loss or without one.
grpo = partial(  # Shao et al. 2024, arXiv 2402.03300
    policy_gradient,
    samples_per_prompt=8,
    advantage=advantages.group_normalised,
    policy_loss=losses.ppo_clip,
    reward_penalty=None,
    loss_penalty=kl_k3,
    kl_coefficient=0.04,
    aggregation=sequence_mean,
)
_unpenalised = partial(grpo, loss_penalty=None)
dr_grpo = partial(  # Liu et al. 2025, arXiv 2503.20783
    _unpenalised,
    advantage=partial(advantages.group_normalised, scale=False),
    aggregation=sequence_sum,
)
dapo = partial(  # Yu et al. 2025, arXiv 2503.14476, without its dynamic sampling
    _unpenalised,
    policy_loss=partial(losses.ppo_clip, clip_range=0.2, clip_range_high=0.28),
    aggregation=token_mean,
)
gspo = partial(_unpenalised, policy_loss=losses.sequence_clip)  # Zheng et al. 2025, 2507.18071
cispo = partial(  # MiniMax 2025, arXiv 2506.13585
    _unpenalised, policy_loss=losses.clipped_is, aggregation=token_mean
)
