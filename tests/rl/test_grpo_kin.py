"""GSPO-token, DAPO, Dr. GRPO and RLOO: what each does otherwise than GRPO."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tunix_lab.rl.config import RolloutConfig
from tunix_lab.rl.forward import completion_logps
from tunix_lab.rl.grpo.dapo_learner import DAPOConfig, DAPOLearner, overlong_penalty
from tunix_lab.rl.grpo.drgrpo_learner import DrGRPOConfig, DrGRPOLearner
from tunix_lab.rl.grpo.gspo_learner import GSPOConfig, GSPOLearner
from tunix_lab.rl.grpo.rloo_learner import RLOOConfig, RLOOLearner
from tunix_lab.rl.rl_learner import RLLearner


def zeros(prompts, completions, **columns):
    return [0.0] * len(completions)


def trained_numbers(t):
    """The prompts whose answers are trained on."""
    return sorted({number for number, trained in zip(t.columns["number"], t.trained, strict=True) if trained})


def gradient_step(model, batch, losses):
    """What one step of SGD at 0.1 makes of the model, for a loss that is a function of its log-probabilities."""
    gradient = nnx.grad(lambda model: losses(completion_logps(model, batch, 1.0)))(model)
    pairs = zip(nnx.to_flat_state(nnx.state(model)), nnx.to_flat_state(gradient), strict=True)
    return {".".join(map(str, path)): np.asarray(v.get_value() - 0.1 * g.get_value()) for (path, v), (_, g) in pairs}


def trained(learner: RLLearner, prompts):
    """The parameters after one update, and the batch that made it."""
    learner.train(prompts)
    return {name: np.array(array) for name, array in learner.trainer.state.params.items()}, learner.last_batch


def close(found, expected):
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


# ---- losses of the first update --------------------------------------------------------------------------------------------


def test_drgrpo(make_cluster, even_reward, prompts, policy):
    """The sum of a row's token losses over the budget, not over its length; the advantage is r − mean."""
    config = DrGRPOConfig(num_generations=4)
    rollout = {"max_tokens_to_generate": 24, "eos_tokens": [5, 6, 7]}
    found, batch = trained(DrGRPOLearner(make_cluster(max_steps=1, rollout=rollout), config, [even_reward]), prompts())
    assert batch["loss_mask"].sum(1).min() < batch["loss_mask"].sum(1).max()
    mask, advantages = batch["loss_mask"], batch["advantages"]
    np.testing.assert_allclose(advantages[:, 0].reshape(4, 4).sum(1), 0, atol=1e-5)  # r − mean adds up to 0 in a group
    close(found, gradient_step(policy(), batch, lambda logps: -(jnp.where(mask, advantages * logps, 0).sum(1) / 24).mean()))


def test_rloo(make_cluster, prompts, policy):
    """REINFORCE of whole answers: the baseline is the mean of the others'."""

    def numbered(prompts, completions, **columns):
        return [0.0, 1.0, 2.0, 6.0] * (len(completions) // 4)

    config = RLOOConfig(num_generations=4, beta=0.0)
    found, batch = trained(RLOOLearner(make_cluster(max_steps=1), config, [numbered]), prompts())
    # 0 − (1+2+6)/3 = −3; 1 − 8/3 = −5/3; 2 − 7/3 = −1/3; 6 − 1 = 5
    np.testing.assert_allclose(batch["advantages"][:4, 0], [-3, -5 / 3, -1 / 3, 5], rtol=1e-5)
    mask, advantages = batch["loss_mask"], batch["advantages"]
    close(found, gradient_step(policy(), batch, lambda logps: -jnp.where(mask, advantages * logps, 0).sum(1).mean()))


def test_gspo_clips_whole_answers(make_cluster, even_reward, prompts, metrics):
    """One ratio for all tokens of an answer; the clip of its own is far narrower than GRPO's."""
    config = GSPOConfig(num_generations=4, beta=0.0, num_iterations=2)
    learner = GSPOLearner(make_cluster(max_steps=4, optimizer=optax.sgd(1.0)), config, [even_reward])
    learner.train(prompts())
    clipped = metrics(learner, "clip_fraction")
    assert clipped[0] == clipped[2] == 0 and clipped[1] > 0.2
    assert (config.epsilon, config.epsilon_high, config.ratio_level) == (3e-4, 4e-4, "sequence")


def test_dapo_needs_no_reference_and_averages_tokens(make_cluster, even_reward, prompts, policy):
    config = DAPOConfig(num_generations=4)
    rollout = {"max_tokens_to_generate": 24, "eos_tokens": [5, 6, 7]}
    found, batch = trained(DAPOLearner(make_cluster(max_steps=1, rollout=rollout), config, [even_reward]), prompts())
    mask, advantages = batch["loss_mask"], batch["advantages"]
    close(found, gradient_step(policy(), batch, lambda logps: -jnp.where(mask, advantages * logps, 0).sum() / mask.sum()))


# ---- DAPO's sampling and shaping ---------------------------------------------------------------------------------------------


def test_dynamic_sampling_fills_the_batch(make_cluster, prompts, metrics):
    """Groups whose rewards are alike make room for those of further prompts; which prompts were read is remembered."""

    def every_third(prompts, completions, number, **columns):
        return [float(i % 4) if n % 3 == 0 else 1.0 for i, n in enumerate(number)]

    kept = []
    config = DAPOConfig(num_generations=4, max_sampling_rounds=8)
    learner = DAPOLearner(make_cluster(max_steps=2), config, [every_third], on_trajectories=kept.append)
    learner.train(prompts(4))
    used = [trained_numbers(t) for t in kept]
    assert used == [[0, 3, 6, 9], [12, 15, 18, 21]]  # 0 … 11 were read for the first batch
    # Those of no use are in the record, too, and in the mean of rewards: a group in three has 0, 1, 2 and 3, the others have 1.
    assert [len(t) for t in kept] == [48, 48]
    assert metrics(learner, "reward") == pytest.approx([(1.5 + 1 + 1) / 3] * 2)
    assert metrics(learner, "sampling_rounds") == [3, 3]
    np.testing.assert_allclose(metrics(learner, "frac_zero_std_groups"), [8 / 12, 8 / 12])
    assert all(np.abs(row).max() > 0 for t in kept for row in t.advantages[:1])


def test_dynamic_sampling_gives_up(make_cluster, prompts, metrics):
    """After its rounds it trains with what there is: half a batch here, and nothing at all there."""

    def seldom(prompts, completions, number, **columns):
        return [float(i % 4) if n in (1, 5) else 1.0 for i, n in enumerate(number)]

    kept = []
    config = DAPOConfig(num_generations=4, max_sampling_rounds=2)
    cluster = make_cluster(max_steps=2)
    learner = DAPOLearner(cluster, config, [seldom], on_trajectories=kept.append)
    learner.train(prompts(4))
    assert trained_numbers(kept[0]) == [1, 5]
    assert metrics(learner, "frac_zero_std_groups") == [0.75, 1.0]
    assert np.isfinite(metrics(learner, "loss")).all()
    half = DAPOLearner(make_cluster(max_steps=1, train_micro_batch_size=1), config, [seldom])
    half.train(prompts(4))
    assert metrics(half, "loss")[0] == pytest.approx(metrics(learner, "loss")[0], abs=1e-6)  # filling rows weigh nothing


def test_dynamic_sampling_at_the_end_of_the_prompts(make_cluster, prompts):
    learner = DAPOLearner(make_cluster(max_steps=None), DAPOConfig(num_generations=4), [zeros])
    learner.train(prompts(4, batches=3))
    assert learner.trainer.train_steps == 1


def test_overlong_penalty():
    # budget 10, buffer 4: free up to 6, then −1/4 for each token, −1 at 10
    np.testing.assert_allclose(overlong_penalty(np.array([1, 6, 7, 9, 10]), 10, 4), [0, 0, -0.25, -0.75, -1])


def test_overlong_answers_lose_reward(make_cluster, prompts, metrics):
    kept, functions = [], [zeros]
    config = DAPOConfig(num_generations=4, overlong_buffer_length=4, overlong_buffer_penalty=2.0)
    rollout = {"max_tokens_to_generate": 8, "eos_tokens": [5, 6, 7]}
    learner = DAPOLearner(make_cluster(max_steps=1, rollout=rollout), config, functions, on_trajectories=kept.append)
    learner.train(prompts())
    [t] = kept
    lengths = np.array([len(ids) for ids in t.completion_ids])
    np.testing.assert_allclose(t.rewards["overlong"], -2.0 * np.clip((lengths - 4) / 4, 0, 1))
    np.testing.assert_allclose(t.reward, t.rewards["overlong"])
    assert functions == [zeros]


# ---- what samplers do otherwise ---------------------------------------------------------------------------------------------


def test_sampler_weights_and_rollout_logps(make_grpo, prompts, metrics):
    """Of a sampler that agrees with the trainer the weights are 1, and its log-probabilities are those before the updates."""
    run = {"mini_batch_size": 2, "max_steps": 2}
    plain, weighted, reused = (make_grpo(config, **run) for config in ({}, {"sampler_is": "token"}, {"use_rollout_logps": True}))
    for learner in (plain, weighted, reused):
        learner.train(prompts())
    params = [jax.device_get(learner.trainer.state.params) for learner in (plain, weighted, reused)]
    for other in params[1:]:
        close(other, params[0])
    assert reused.needs_old_logps is False and plain.needs_old_logps is True


def test_answers_that_are_all_alike_but_for_their_length_are_of_no_use(make_cluster, prompts, metrics):
    """What an answer loses by its length makes no group worth training on; nor do answers that are masked."""
    config = DAPOConfig(num_generations=4, overlong_buffer_length=8, max_sampling_rounds=2)
    rollout = {"max_tokens_to_generate": 8, "eos_tokens": [5, 6, 7]}
    learner = DAPOLearner(make_cluster(max_steps=1, rollout=rollout), config, [zeros])
    before = {name: np.array(array) for name, array in learner.trainer.state.params.items()}
    found, batch = trained(learner, prompts())
    assert metrics(learner, "sampling_rounds") == [2] and metrics(learner, "empty_batches") == [1.0]
    assert not batch["loss_mask"].any()
    for name in before:
        np.testing.assert_array_equal(found[name], before[name], err_msg=name)

    masked = DAPOConfig(num_generations=4, mask_truncated=True, max_sampling_rounds=2)
    learner = DAPOLearner(
        make_cluster(max_steps=1, rollout={"eos_tokens": [63]}), masked, [lambda **answers: numbered(**answers)]
    )
    learner.train(prompts())
    assert metrics(learner, "sampling_rounds") == [2]


def numbered(prompts, completions, **columns):
    return [float(i) for i in range(len(completions))]


@pytest.mark.parametrize(
    "mode",
    ["token-mean", "sequence-mean-token-mean", "sequence-mean-token-scale", "seq-mean-token-sum", "sequence-mean-token-sum-norm"],
)
def test_rows_that_fill_up_a_batch_weigh_nothing(make_grpo, prompts, metrics, mode):
    """Three prompts in micro-batches of two: the last one is filled up."""
    norms = []
    for micro in (None, 2):
        learner = make_grpo({"loss_agg_mode": mode}, train_micro_batch_size=micro, max_steps=1)
        learner.train(prompts(3))
        norms += metrics(learner, "grad_norm")
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)


def test_groups_of_equal_fractions_are_alike(make_grpo, prompts, metrics):
    learner = make_grpo({"num_generations": 7}, [lambda prompts, completions, **columns: [1 / 3] * len(completions)], max_steps=1)
    learner.train(prompts(2))
    assert metrics(learner, "frac_zero_std_groups") == [1.0]


@pytest.mark.parametrize("seed", [None, 5])
def test_the_record_has_each_answers_own_log_probabilities(make_grpo, prompts, seed):
    """Also where the prompts were dealt out to updates in another order; where they are not all known there are none."""
    kept = []
    learner = make_grpo({"num_iterations": 2}, learner={"data_shuffle_seed": seed, "on_trajectories": kept.append}, max_steps=2)
    learner.train(prompts())
    [t] = kept
    for sampler, trainer in zip(t.sampler_logps, t.trainer_logps, strict=True):
        np.testing.assert_allclose(sampler, trainer, atol=1e-4)
    reused = make_grpo(
        {"num_iterations": 2, "use_rollout_logps": True},
        learner={"data_shuffle_seed": seed, "on_trajectories": kept.append},
        max_steps=2,
    )
    reused.train(prompts())
    for sampler, trainer in zip(kept[-1].sampler_logps, kept[-1].trainer_logps, strict=True):
        np.testing.assert_allclose(sampler, trainer, atol=1e-4)


def test_what_does_not_go_together(make_grpo, prompts):
    with pytest.raises(ValueError, match="choose one of them"):
        make_grpo({"sampler_is": "token", "use_rollout_logps": True})

    def overlong(prompts, completions, **columns):
        return [0.0] * len(completions)

    with pytest.raises(ValueError, match="a reward may not be called 'overlong'"):
        make_grpo(rewards=[overlong])
    with pytest.raises(ValueError, match="makes its own batches"):
        make_grpo().trainer.with_data_hooks(None)
    with pytest.raises(ValueError, match="rollout_config has no entry 'eval'"):
        make_grpo(cluster={"rollout_config": {"train": RolloutConfig()}})
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        RolloutConfig(seed=-1)
