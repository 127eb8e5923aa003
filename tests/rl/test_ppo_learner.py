"""PPO: actor and critic are trained together, saved together, and learn from fractions of rewards."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tunix_lab.models.value_head import value_model
from tunix_lab.ops.advantages import gae
from tunix_lab.rl.config import PPOConfig, Role
from tunix_lab.rl.forward import completion_logps
from tunix_lab.rl.ppo.ppo_learner import PPOLearner
from tunix_lab.rl.rewards import RewardProblem
from tunix_lab.sft.checkpoint_manager import CheckpointManager


@pytest.fixture(scope="module")
def make_ppo(make_cluster, even_reward):
    def make(config=None, rewards=None, learner=None, **cluster) -> PPOLearner:
        config = PPOConfig(**{"num_generations": 2, "beta": 0.0, **(config or {})})
        return PPOLearner(make_cluster(critic=True, **cluster), config, rewards or [even_reward], **learner or {})

    return make


def whole(learner):
    return {name: np.array(array) for name, array in learner.trainer._whole_state().params.items()}


def same(first, second, **tolerance):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_allclose(first[name], second[name], err_msg=name, **tolerance)


def test_the_first_batch(make_ppo, prompts, metrics, policy):
    """A fresh critic expects nothing, so that with λ = γ = 1 the advantage of each token is the reward of its answer."""
    learner = make_ppo({"whiten_advantages": False, "gae_lambda": 1.0}, max_steps=1, rollout={"eos_tokens": [5, 6, 7, 8]})
    learner.train(prompts())
    batch = learner.last_batch
    assert metrics(learner, "ratio") == [1.0] and metrics(learner, "clip_fraction") == [0.0]
    np.testing.assert_array_equal(batch["old_values"], 0)
    rewards = np.where(batch["loss_mask"], batch["advantages"], 0)
    lengths = batch["loss_mask"].sum(1)
    for row, n in zip(rewards, lengths, strict=True):
        np.testing.assert_allclose(row[:n], row[0], rtol=1e-6)
    assert metrics(learner, "reward") == pytest.approx([rewards[:, 0].mean()])
    assert 0 < metrics(learner, "reward")[0] < 1  # fractions are kept
    # ½ (0 − R)² over the tokens
    expected = 0.5 * np.square(batch["returns"])[batch["loss_mask"]].mean()
    np.testing.assert_allclose(metrics(learner, "value_loss"), [expected], rtol=1e-5)


def test_kl_is_taken_off_the_rewards(make_ppo, prompts, policy, metrics):
    """reward_t = −β k3_t, plus the score at the last token; the loss itself has no KL."""
    config = {"beta": 0.3, "whiten_advantages": False, "gae_lambda": 0.9, "gamma": 0.95}
    learner = make_ppo(config, reference=policy(5), max_steps=1)
    kept = []
    learner._on_trajectories = kept.append
    learner.train(prompts())
    batch, [t] = learner.last_batch, kept
    actor = np.asarray(completion_logps(policy(), batch, 1.0))
    difference = np.asarray(completion_logps(policy(5), batch, 1.0)) - actor
    rewards = np.where(batch["completion_mask"], -0.3 * (np.exp(difference) - difference - 1), 0.0)
    lengths = batch["completion_mask"].sum(1)
    rewards[np.arange(len(lengths)), lengths - 1] += t.reward
    expected, _ = gae(
        jnp.asarray(rewards, jnp.float32),
        jnp.zeros(rewards.shape),
        batch["completion_mask"],
        gamma=0.95,
        gae_lambda=0.9,
        bootstrap=jnp.zeros(len(lengths)),
    )
    np.testing.assert_allclose(batch["advantages"], np.where(batch["loss_mask"], expected, 0), rtol=1e-3, atol=1e-4)
    assert metrics(learner, "kl")[0] > 0


def test_sizes_of_micro_batches_change_nothing(make_ppo, prompts, policy):
    run = {"mini_batch_size": 4, "max_steps": 4, "rollout": {"max_tokens_to_generate": 20}}
    config = {"num_iterations": 2, "beta": 0.1, "entropy_coef": 0.01}
    one = make_ppo(config, reference=policy(), **run)
    one.train(prompts())
    cut = make_ppo(config, reference=policy(), train_micro_batch_size=1, compute_logps_micro_batch_size=2, **run)
    cut.train(prompts())
    same(whole(one), whole(cut), rtol=1e-3, atol=1e-5)


def test_resume_bitwise(make_ppo, prompts, policy, tmp_path):
    """Actor, critic and both optimizers are one checkpoint."""

    def learner(max_steps, folder):
        manager = CheckpointManager(folder, every=4)
        options = {"checkpoint_manager": manager, "optimizer": optax.adam(0.01), "mini_batch_size": 2}
        return make_ppo({"num_iterations": 2, "beta": 0.1}, reference=policy(), max_steps=max_steps, **options)

    unbroken = learner(8, tmp_path / "whole")
    unbroken.train(prompts())
    first = learner(4, tmp_path / "cut")
    first.train(prompts())
    first.rl_cluster.close()
    second = learner(8, tmp_path / "cut")
    assert second.trainer.train_steps == second.rl_cluster.critic_trainer.train_steps == 4
    second.train(prompts())
    same(whole(unbroken), whole(second), rtol=0)
    assert any(name.startswith("critic.") for name in whole(second))


def test_the_critic_learns(make_ppo, prompts, metrics):
    """Of rewards that are always 1 it comes to expect 1, and nothing is left to be better than expected."""

    def one(prompts, completions, **columns):
        return [1.0] * len(completions)

    config = {"num_iterations": 4, "whiten_advantages": False, "clip_range_value": 10.0}
    learner = make_ppo(config, [one], optimizer=optax.adam(0.003), max_steps=60)
    learner.train(prompts())
    values, losses = metrics(learner, "value_mean"), metrics(learner, "value_loss")
    assert values[0] == 0 and abs(values[-1] - 1) < 0.3
    assert losses[-1] < 0.1 * losses[0]


def test_truncated_answers_may_be_taken_to_go_on(make_ppo, prompts, policy):
    """Then the value behind their last token counts, and not behind a stop token."""
    config = {"bootstrap_truncated": True, "whiten_advantages": False, "gae_lambda": 1.0}
    cluster = {"rollout": {"eos_tokens": [5, 6, 7, 8]}, "max_steps": 1}
    learner = make_ppo(config, **cluster)
    learner.rl_cluster.critic_trainer._state.params["head"] = jnp.ones((16, 1))  # a critic that expects something
    kept = []
    learner._on_trajectories = kept.append
    learner.train(prompts())
    batch, [t] = learner.last_batch, kept
    assert set(t.finish_reasons) == {"stop", "length"}
    for i, reason in enumerate(t.finish_reasons):
        n = len(t.completion_ids[i])
        beyond = batch["returns"][i, n - 1] - t.reward[i]  # λ = γ = 1: what is expected behind the end
        assert (abs(beyond) < 1e-5) == (reason == "stop")


def test_entropy_bonus(make_ppo, prompts, metrics):
    """With nothing else to gain the policy spreads out."""

    def zeros(prompts, completions, **columns):
        return [0.0] * len(completions)

    learner = make_ppo({"entropy_coef": 1.0}, [zeros], optimizer=optax.adam(0.01), max_steps=15)
    learner.train(prompts())
    entropy = metrics(learner, "entropy")
    assert np.mean(entropy[-3:]) > np.mean(entropy[:3]) + 0.1


def test_a_reward_model(make_cluster, prompts, policy, metrics):
    """`Role.REWARD`: its score at the last token is the reward; functions are not needed then."""
    scorer = value_model(policy(7))
    scorer.head[...] = jnp.ones_like(scorer.head[...])
    kept = []
    cluster = make_cluster(critic=True, reward=scorer, max_steps=1)
    learner = PPOLearner(cluster, PPOConfig(beta=0.0), None, on_trajectories=kept.append)
    learner.train(prompts())
    [t] = kept
    text = np.concatenate([t.prompt_ids[0], t.completion_ids[0]])[None]
    values, _ = scorer(jnp.asarray(text), jnp.arange(text.size)[None])
    np.testing.assert_allclose(t.reward[0], np.asarray(values)[0, -1, 0], rtol=1e-4)
    assert cluster.inference_worker.has(Role.REWARD) and t.rewards.keys() == {"reward_model"}


def test_names_and_what_is_missing(make_cluster, even_reward):
    cluster = make_cluster(critic=True)
    assert PPOLearner(cluster, algo_config=PPOConfig(beta=0.0), reward_fns=[even_reward]).config.beta == 0
    with pytest.raises(ValueError, match="PPO needs a critic"):
        PPOLearner(make_cluster(), ppo_config=PPOConfig(beta=0.0), reward_fns=[even_reward])
    with pytest.raises(ValueError, match="beta > 0 needs a reference"):
        PPOLearner(cluster, ppo_config=PPOConfig(), reward_fns=[even_reward])
    with pytest.raises(ValueError, match="no reward: give reward_fns"):
        PPOLearner(cluster, ppo_config=PPOConfig(beta=0.0))
    with pytest.raises(ValueError, match="needs its configuration"):
        PPOLearner(cluster)


def test_mini_batch_size_of_the_configuration(make_ppo, prompts):
    learner = make_ppo({"mini_batch_size": 2}, max_steps=2)
    learner.train(prompts(4))
    assert learner.updates_per_rollout == 2


def test_updates_by_hand(make_ppo, prompts):
    """`update_actor` leaves the critic alone, `update_critic` the actor; each has metrics of its own."""
    learner = make_ppo()
    cluster = learner.rl_cluster
    [batch] = next(learner.updates(prompts()))
    before = whole(learner)
    cluster.update_actor(batch)
    after_actor = whole(learner)
    assert all((before[name] == after_actor[name]).all() for name in before if name.startswith("critic."))
    assert any((before[name] != after_actor[name]).any() for name in before if not name.startswith("critic."))
    cluster.update_critic([batch])
    after_critic = whole(learner)
    assert all((after_critic[name] == after_actor[name]).all() for name in before if not name.startswith("critic."))
    assert (cluster.actor_trainer.train_steps, cluster.critic_trainer.train_steps) == (1, 1)
    cluster.close()
    logged = cluster.actor_trainer.metrics_logger
    assert logged.metric_exists("loss") and logged.metric_exists("value_loss") and logged.metric_exists("critic_grad_norm")


def test_a_reward_model_that_gives_no_number(make_cluster, prompts, policy):
    scorer = value_model(policy(7))
    scorer.head[...] = jnp.full_like(scorer.head[...], jnp.nan)
    learner = PPOLearner(make_cluster(critic=True, reward=scorer, max_steps=1), PPOConfig(beta=0.0))
    with pytest.raises(RewardProblem, match="reward reward_model: it gave nan, for answer 0 of 4"):
        learner.train(prompts())
