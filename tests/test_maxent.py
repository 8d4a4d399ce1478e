"""Maximum causal entropy against enumeration, and rewards found again from what people do."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax import losses, worlds

STATES, ACTIONS = 5, 3


def random_process(seed, discount=0.9, worlds_in_all=()):
    """Made by NumPy: jax's sampler of the simplex takes seconds to compile."""
    rng = np.random.default_rng(seed)
    transitions = rng.dirichlet(np.full(STATES, 0.3), (*worlds_in_all, STATES, ACTIONS))
    rewards = rng.normal(size=[*worlds_in_all, STATES, ACTIONS])
    return worlds.MDP(jnp.float32(transitions), jnp.float32(rewards), discount)


START = jnp.full(STATES, 1 / STATES)


def certain_process(seed=0):
    """Every action leads to one state, so that a likelihood is a fraction of e to the return."""
    rng = np.random.default_rng(seed)
    return worlds.MDP(
        np.eye(4, dtype=np.float32)[rng.integers(0, 4, [4, 2])],
        rng.normal(size=[4, 2]).astype(np.float32),
    )


def test_a_trajectory_is_as_likely_as_e_to_its_return():
    mdp, horizon, temperature = certain_process(), 4, 0.7
    solution = worlds.soft_value_iteration(mdp, horizon=horizon, temperature=temperature)
    actions = np.array(list(product(range(2), repeat=horizon)))
    states = np.zeros_like(actions)
    for step in range(1, horizon):
        moves = mdp.transitions[states[:, step - 1], actions[:, step - 1]]
        states[:, step] = moves.argmax(axis=1)
    every = worlds.Trajectories(states, actions)
    returns = np.tensordot(worlds.visits(every, (4, 2)), mdp.rewards, 2)
    likely = np.exp(returns / temperature)
    np.testing.assert_allclose(
        np.exp(worlds.trajectory_log_probs(solution.log_policy, every)),
        likely / likely.sum(),
        rtol=1e-4,
    )
    np.testing.assert_allclose(solution.values[0, 0], temperature * np.log(likely.sum()), rtol=1e-5)


def test_without_a_horizon_it_is_the_limit_of_long_ones_and_of_reason():
    mdp = random_process(0)
    solve = jax.jit(worlds.soft_value_iteration, static_argnames="horizon")
    forever, rational = (solve(mdp, temperature=jnp.float32(t)) for t in (1.0, 1e-3))
    long = solve(mdp, horizon=200)
    np.testing.assert_allclose(forever.values, long.values[0], rtol=1e-5)
    np.testing.assert_allclose(forever.log_policy, long.log_policy[0], atol=1e-5)
    exact = worlds.value_iteration(mdp)
    np.testing.assert_allclose(rational.values, exact.values, atol=0.01 * np.log(ACTIONS) + 1e-3)
    np.testing.assert_array_equal(rational.log_policy.argmax(axis=1), exact.policy)


@pytest.mark.parametrize("horizon", [4, None])
def test_the_gradient_is_a_difference_of_occupancies_and_that_of_the_likelihood(horizon):
    """With demonstrators of another temperature, whose occupancy is exact."""
    mdp = random_process(1)
    settings = {"discount": 0.9, "horizon": horizon}
    people = worlds.soft_value_iteration(mdp, temperature=0.5, horizon=horizon)
    demonstrations = worlds.occupancy(mdp, jnp.exp(people.log_policy), START)
    rewards = jax.random.normal(jax.random.key(2), [STATES, ACTIONS])

    def loss(rewards):
        return worlds.maxent_loss(rewards, mdp.transitions, demonstrations, START, **settings)

    def likelihood(rewards):
        """By step, as what people do in a state changes with the time left."""
        found = worlds.soft_value_iteration(mdp._replace(rewards=rewards), horizon=horizon)
        if horizon is None:
            return -jnp.sum(demonstrations * found.log_policy)
        here, total = START, 0.0
        for step in range(horizon):
            done = here[:, None] * jnp.exp(people.log_policy[step])
            total -= jnp.sum(done * found.log_policy[step])
            here = 0.9 * jnp.einsum("sa,sat->t", done, mdp.transitions)
        return total

    (value, slope), (expected, by_hand) = jax.jit(
        lambda x: (jax.value_and_grad(loss)(x), jax.value_and_grad(likelihood)(x))
    )(rewards)
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    np.testing.assert_allclose(slope, by_hand, atol=1e-4)
    asked = worlds.soft_value_iteration(mdp._replace(rewards=rewards), horizon=horizon)
    difference = worlds.occupancy(mdp, jnp.exp(asked.log_policy), START) - demonstrations
    np.testing.assert_allclose(slope, difference, atol=1e-4)
    assert np.abs(slope).max() > 0.1


def test_sampled_trajectories_visit_what_the_occupancy_says():
    mdp = random_process(3)

    @jax.jit
    def study():
        policy = jnp.exp(worlds.soft_value_iteration(mdp, horizon=6).log_policy)
        done = worlds.rollouts(jax.random.key(0), mdp, policy, START, trajectories=20_000, length=6)
        seen = worlds.visits(done, (STATES, ACTIONS), discount=0.9).mean(axis=0)
        always = jnp.broadcast_to(policy[0], [200, STATES, ACTIONS])
        policies = (policy, policy[0], always)
        return seen, *(worlds.occupancy(mdp, policy, START) for policy in policies)

    seen, expected, forever, long = study()
    np.testing.assert_allclose(expected.sum(), (1 - 0.9**6) / 0.1, rtol=1e-5)
    np.testing.assert_allclose(seen, expected, atol=0.02)
    np.testing.assert_allclose(forever, long, rtol=1e-4)


def test_the_policy_found_is_worth_what_the_expert_s_is():
    """science.md: at least .95 of the expert's gold, here above what chance earns."""
    horizon, features = 6, 4

    @jax.jit
    @jax.vmap
    def study(transitions, phi, wants, people):
        mdp = worlds.MDP(transitions, phi @ wants)
        expert = jnp.exp(worlds.soft_value_iteration(mdp, horizon=horizon).log_policy)
        done = worlds.rollouts(people, mdp, expert, START, trajectories=100, length=horizon)
        shown = worlds.visits(done, (STATES, ACTIONS)).mean(axis=0)
        adam = optax.adam(optax.cosine_decay_schedule(0.3, 200))
        fit = worlds.maxent_irl(
            mdp.transitions, phi, shown, START, adam, horizon=horizon, steps=200, l2=1e-3
        )
        policies = jnp.exp(fit.solution.log_policy), expert, jnp.full_like(expert, 1 / ACTIONS)
        ours, theirs, chance = (
            jnp.vdot(worlds.occupancy(mdp, policy, START), mdp.rewards) for policy in policies
        )
        return (ours - chance) / (theirs - chance), fit.gap

    many, rng = (12,), np.random.default_rng(0)
    phi = rng.normal(size=[*many, STATES, ACTIONS, features]).astype(np.float32)
    wants = rng.normal(size=[*many, features]).astype(np.float32)
    transitions = random_process(0, worlds_in_all=many).transitions
    share, gap = study(transitions, phi, wants, jax.random.split(jax.random.key(0), *many))
    assert share.min() >= 0.9
    assert share.mean() >= 0.95
    assert gap.max() < 0.05


def test_a_reward_is_found_up_to_shaping():
    """From all that the demonstrators do, of features that can be any reward."""
    mdp = random_process(4)
    expert = worlds.soft_value_iteration(mdp)
    shown = worlds.occupancy(mdp, jnp.exp(expert.log_policy), START)
    size = STATES * ACTIONS
    fit = jax.jit(
        lambda shown: worlds.maxent_irl(
            mdp.transitions,
            jnp.eye(size).reshape(STATES, ACTIONS, size),
            shown,
            START,
            optax.adam(optax.cosine_decay_schedule(0.2, 300)),
            discount=0.9,
            steps=300,
        )
    )(shown)
    np.testing.assert_allclose(fit.solution.log_policy, expert.log_policy, atol=0.02)
    zero = mdp._replace(rewards=jnp.zeros_like(mdp.rewards))
    shapings = jax.vmap(lambda potential: worlds.shaped(zero, potential).rewards)(jnp.eye(STATES))
    difference = np.ravel(fit.rewards - mdp.rewards)
    basis = np.reshape(shapings, [STATES, size]).T
    potential, *_ = np.linalg.lstsq(basis, difference, rcond=None)
    assert np.abs(difference).max() > 0.3
    np.testing.assert_allclose(basis @ potential, difference, atol=0.05)
    # And a shaped reward asks for the same.
    again = worlds.soft_value_iteration(worlds.shaped(mdp, jnp.arange(5.0)))
    np.testing.assert_allclose(again.log_policy, expert.log_policy, atol=1e-4)


@pytest.mark.slow
def test_demonstrations_and_preferences_beat_either_alone_where_each_is_blind():
    """science.md: at equal label count, on the fitted reward's gold, relative to the best prize.

    The demonstrators know the lock, and take the prize behind it by a habit that has nothing to do
    with what it is worth; those who compare know what it is worth, and compare what the current
    policy does, which alone never opens the lock. Where the demonstrators have no such habit,
    their demonstrations alone are as good: the control.
    """
    depth, actions, labels, rounds, steps, seeds = 4, 3, 32, 2, 80, 24
    states, horizon = depth + 2, depth + 1
    shape, size = (states, actions), states * actions
    phi, start, row = jnp.eye(size).reshape(*shape, size), jnp.eye(states)[0], jnp.arange(labels)

    def study(key, combination, prizes, wishes):
        people, voters = jax.random.split(key)
        mdp = worlds.combination_lock(combination, prizes)
        believed = worlds.combination_lock(combination, wishes)
        expert = jnp.exp(worlds.soft_value_iteration(believed, horizon=horizon).log_policy)
        many = {"trajectories": labels, "length": horizon}
        shown = worlds.visits(worlds.rollouts(people, mdp, expert, start, **many), shape)

        def learn(demonstrated, compared):
            """From so many demonstrations, and comparisons in two rounds; the value reached."""
            shares = jnp.where(row < demonstrated, 1 / jnp.maximum(demonstrated, 1), 0)

            def round_(votes, number):
                better, worse, said = votes

                def preferences(rewards):
                    returns = (jnp.tensordot(side, rewards, 2) for side in (better, worse))
                    return jnp.sum(said * losses.bradley_terry(*returns))

                fit = worlds.maxent_irl(
                    mdp.transitions,
                    phi,
                    jnp.tensordot(shares, shown, 1),
                    start,
                    optax.adam(optax.cosine_decay_schedule(0.2, steps)),
                    horizon=horizon,
                    steps=steps,
                    l2=0.1,
                    demonstration_weight=0.25 * demonstrated,
                    further=preferences,
                )
                policy, (act, vote) = (
                    jnp.exp(fit.solution.log_policy),
                    jax.random.split(jax.random.fold_in(voters, number)),
                )
                two = many | {"trajectories": 2 * labels}
                sides = worlds.visits(worlds.rollouts(act, mdp, policy, start, **two), shape)
                sides = sides.reshape(2, labels, *shape)
                first, second = jnp.tensordot(sides, mdp.rewards, 2)
                wins = jax.random.uniform(vote, [labels]) < jax.nn.sigmoid(first - second)
                asked = (row * rounds // jnp.maximum(compared, 1) == number) & (row < compared)
                sides = jnp.where(wins[:, None, None], sides, sides[::-1])
                better, worse = jnp.where(asked[:, None, None], sides, jnp.stack([better, worse]))
                learnt = mdp._replace(rewards=fit.rewards)
                best = worlds.soft_value_iteration(learnt, horizon=horizon, temperature=0.01)
                occupancy = worlds.occupancy(mdp, jnp.exp(best.log_policy), start)
                return (better, worse, said | asked), jnp.vdot(occupancy, mdp.rewards)

            nothing = jnp.zeros([labels, *shape])
            votes = (nothing, nothing, jnp.zeros(labels, bool))
            return jax.lax.scan(round_, votes, jnp.arange(rounds + 1))[1][-1] / prizes.max()

        half = labels // 2
        return jax.vmap(learn)(jnp.array([labels, 0, half]), jnp.array([0, labels, half]))

    rng, keys = np.random.default_rng(1), jax.random.split(jax.random.key(1), seeds)
    combinations = rng.integers(0, actions, [seeds, depth])
    prizes, habits = np.float32(8 + 2 * rng.normal(size=[2, seeds, actions]))
    every = jax.vmap(jax.vmap(study), (None, None, None, 0))
    habit, control = jax.jit(every)(keys, combinations, prizes, np.stack([habits, prizes]))
    for alone in (0, 1):
        gain = habit[:, 2] - habit[:, alone]
        assert gain.mean() - 1.96 * gain.std() / seeds**0.5 > 0
    assert jnp.abs(control[:, 2] - control[:, 0]).mean() < 0.03
    assert control[:, 0].mean() > 0.95 > habit[:, 0].mean()


def test_bad_input_is_refused():
    mdp = random_process(0)
    even = jnp.full([STATES, ACTIONS], 1 / ACTIONS)
    with pytest.raises(ValueError, match=r"discount must be below 1 without a horizon, not 1\.0"):
        worlds.soft_value_iteration(mdp._replace(discount=1.0))
    with pytest.raises(ValueError, match="horizon must be at least 1, not 0"):
        worlds.soft_value_iteration(mdp, horizon=0)
    with pytest.raises(ValueError, match=r"temperature must be positive, not 0\.0"):
        worlds.soft_value_iteration(mdp, temperature=0.0)
    with pytest.raises(ValueError, match=r"start must be probabilities that sum to 1, not to 2"):
        worlds.occupancy(mdp, even, 2 * START)
    with pytest.raises(ValueError, match=r"policy must be \[S, A\] or \[H, S, A\], not \[3, 5\]"):
        worlds.occupancy(mdp, even.T, START)
    with pytest.raises(ValueError, match="length must be at most the policy's 2 steps, not 3"):
        two = jnp.stack([even, even])
        worlds.rollouts(jax.random.key(0), mdp, two, START, trajectories=1, length=3)
    outside = worlds.Trajectories(np.array([[0, 1], [4, 5]]), np.zeros([2, 2], int))
    with pytest.raises(ValueError, match=r"states must be from 0 to 4, not 5 \(trajectory 1, step"):
        worlds.visits(outside, (STATES, ACTIONS))
    with pytest.raises(ValueError, match="trajectories of 2 steps, but a policy of 1"):
        worlds.trajectory_log_probs(even[None], outside._replace(states=np.zeros([2, 2], int)))
    shown = worlds.occupancy(mdp, jnp.stack([even, even]), START)
    with pytest.raises(ValueError, match=r"discounted steps of one demonstration, 1\.9, not 3\.8"):
        given = (mdp.rewards, mdp.transitions, 2 * shown, START)
        worlds.maxent_loss(*given, discount=0.9, horizon=2)
    with pytest.raises(ValueError, match=r"features must be \[S, F\] or \[S, A, F\], not \[3, 5\]"):
        worlds.maxent_irl(mdp.transitions, even.T, shown, START, optax.sgd(1.0), horizon=2)
    with pytest.raises(ValueError, match=r"combination must be of actions 0 to 1, not \[2\]"):
        worlds.combination_lock(jnp.array([0, 2]), jnp.ones(2))
