"""GRPO from prompts to updates: on-policy at first, the same however it is cut up, resumable to the bit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tunix_lab.errors import TrainingFailed, UserError
from tunix_lab.models.adapters import adapter_off, add_lora
from tunix_lab.rl.config import RolloutConfig
from tunix_lab.rl.experience import rows_of
from tunix_lab.rl.forward import completion_logps
from tunix_lab.rl.grpo.grpo_learner import GRPOConfig
from tunix_lab.rl.rollout.vanilla_rollout import VanillaRollout
from tunix_lab.sft.checkpoint_manager import CheckpointManager


def record(learner_options):
    """Options of a learner that keeps its trajectories in a list, and the list."""
    kept = []
    return {**learner_options, "on_trajectories": kept.append}, kept


def same(first, second, **tolerance):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_allclose(first[name], second[name], err_msg=name, **tolerance)


# ---- the first update ----------------------------------------------------------------------------------------------------


def test_grpo_step0(make_grpo, prompts, metrics, policy, params_of):
    """On-policy the ratio is 1, nothing is clipped, and the update is that of the plain policy gradient, −Σ A log π."""
    options, kept = record({})
    learner = make_grpo(learner=options, max_steps=1)
    learner.train(prompts())
    assert metrics(learner, "ratio") == [1.0] and metrics(learner, "clip_fraction") == [0.0]
    [sampled] = kept
    batch = learner.last_batch

    def plain(model):
        logps = completion_logps(model, batch, 1.0)
        by_answer = jnp.where(batch["loss_mask"], batch["advantages"] * logps, 0.0).sum(1) / batch["loss_mask"].sum(1)
        return -by_answer.mean()

    model = policy()
    gradient = nnx.grad(plain)(model)
    expected = {
        ".".join(map(str, path)): np.asarray(v.get_value() - 0.1 * g.get_value())
        for (path, v), (_, g) in zip(nnx.to_flat_state(nnx.state(model)), nnx.to_flat_state(gradient), strict=True)
    }
    same(params_of(learner), expected, rtol=1e-5, atol=1e-6)
    assert max(np.abs(row).max() for row in sampled.advantages) > 0.1


def test_the_sampler_agrees_with_the_trainer(make_grpo, prompts, metrics):
    learner = make_grpo(rollout={"temperature": 0.7, "top_k": 20, "top_p": 0.9})
    learner.train(prompts())
    names = {name.removeprefix("train/") for name in learner.trainer.metrics_logger._history}
    assert "sampled_nll" in names and "entropy" not in names  # a part of the distribution has another entropy
    assert max(metrics(learner, "logp_gap_max")) < 1e-4
    assert len(metrics(learner, "logp_gap_mean")) == 3


def test_terminator_trained(make_grpo, prompts, word_tokenizer):
    """Answers that end by themselves end with the stop token, which is in the loss and has an advantage."""
    options, kept = record({})
    learner = make_grpo(learner=options, rollout={"max_tokens_to_generate": 32, "eos_tokens": [5, 6, 7, 8]})
    learner.train(prompts())
    stopped = [(t, i) for t in kept for i, reason in enumerate(t.finish_reasons) if reason == "stop"]
    assert stopped
    for t, i in stopped:
        assert t.completion_ids[i][-1] in (5, 6, 7, 8) and not set(t.completion_ids[i][:-1].tolist()) & {5, 6, 7, 8}
        assert len(t.advantages[i]) == len(t.completion_ids[i]) == len(t.trainer_logps[i]) == len(t.sampler_logps[i])
        assert t.advantages[i][-1] == t.advantages[i][0]
    assert any(t.advantages[i][-1] for t, i in stopped)
    # the last rollout: all tokens of an answer are in the loss, and nothing behind them
    in_loss = learner.last_batch["loss_mask"]
    assert in_loss.sum(axis=1).tolist() == [len(tokens) for tokens in kept[-1].completion_ids] and not in_loss.all()
    assert all(row[:n].all() for row, n in zip(in_loss, in_loss.sum(axis=1), strict=True))


def test_token_in_token_out(make_grpo, prompts):
    """What was sampled is trained, though its text could not be tokenized again: most ids are no letter."""
    options, kept = record({})
    learner = make_grpo(learner=options, max_steps=1)
    learner.train(prompts())
    [t], batch = kept, learner.last_batch
    assert any("<" in text for text in t.completions)
    for i, sampled in enumerate(t.completion_ids):
        np.testing.assert_array_equal(batch["completion_ids"][i][batch["completion_mask"][i]], sampled)
        np.testing.assert_array_equal(batch["prompt_ids"][i][batch["prompt_mask"][i]], t.prompt_ids[i])


# ---- rollouts ------------------------------------------------------------------------------------------------------------


def test_rollouts_differ_by_step_and_within_a_group(make_grpo, prompts):
    """Also where the weights and the prompts stay the same."""
    options, kept = record({})
    make_grpo(learner=options, optimizer=optax.sgd(0.0)).train([prompts()[0]] * 3)
    texts = [tuple(t.completions) for t in kept]
    assert len(set(texts)) == 3
    assert all(len(set(t.completions[:4])) > 1 for t in kept)


def test_the_seed_decides(make_grpo, prompts):
    def sampled(seed):
        options, kept = record({})
        make_grpo(learner=options, rollout={"seed": seed}, max_steps=1).train(prompts())
        return kept[0].completions

    assert sampled(3) == sampled(3) != sampled(4)
    assert sampled(None) == sampled(0)
    assert sampled(jax.random.key(3)) == sampled(jax.random.key(3)) != sampled(jax.random.key(4))


def test_answers_follow_their_numbers(make_grpo, prompts):
    """The random numbers of an answer are those of its prompt's number, whatever is sampled beside it."""
    cluster = make_grpo().rl_cluster
    [batch] = prompts(4, 1)
    whole = cluster.generate(batch["prompts"], num_generations=2, sample_ids=[10, 11, 12, 13])
    part = cluster.generate(batch["prompts"][2:3], num_generations=2, sample_ids=[12])
    assert part.text == whole.text[4:6]
    small = cluster.generate(batch["prompts"], num_generations=2, sample_ids=[10, 11, 12, 13], micro_batch_size=3)
    assert small.text == whole.text


def test_stale_weights_are_refused(make_grpo, prompts):
    learner = make_grpo(max_steps=1)
    learner.train(prompts())
    with pytest.raises(RuntimeError, match="weights of step 0, the actor has made 1 updates: call sync_weights"):
        learner.rl_cluster.generate(["a b"])
    learner.rl_cluster.sync_weights()
    assert learner.rl_cluster.generate(["a b"]).text


def test_a_sampler_of_another_policy_stops_training(make_grpo, prompts):
    class Stale(VanillaRollout):
        """Keeps the weights that it began with."""

        def __init__(self, model, *rest):
            graph, state = nnx.split(model)
            super().__init__(nnx.merge(graph, jax.tree.map(jnp.copy, state)), *rest)

        def update_params(self, params):
            pass

    learner = make_grpo(cluster={"rollout_engine": Stale}, optimizer=optax.sgd(30.0))
    with pytest.raises(TrainingFailed, match="log-probabilities of the answers sampled after 1 updates are .* limit is 0.1"):
        learner.train(prompts())


@pytest.mark.parametrize("engine", ["vllm", "sglang_jax"])
def test_engines_that_are_not_installed(make_grpo, engine):
    with pytest.raises(ValueError, match=f"rollout_engine '{engine}' is an engine of another project that is not installed"):
        make_grpo(cluster={"rollout_engine": engine})


def test_settings_of_other_engines_are_refused(make_grpo):
    with pytest.raises(ValueError, match="for engines of other projects"):
        make_grpo(rollout={"engine_options": {"hbm_utilization": 0.3}})
    with pytest.raises(ValueError, match="tensor_parallel_size is 4, but the rollout's mesh has 1 devices along 'tp'"):
        make_grpo(rollout={"tensor_parallel_size": 4})
    with pytest.raises(ValueError, match="kv_cache_size 8 is less than"):
        RolloutConfig(max_tokens_to_generate=8, max_prompt_length=4, kv_cache_size=8)


def test_a_prompt_that_is_too_long(make_grpo):
    with pytest.raises(UserError, match="a prompt has 8 tokens, RolloutConfig.max_prompt_length is 6"):
        make_grpo().train([{"prompts": ["a b c d e f g", "a"]}])


# ---- batches -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes",
    [
        {"train_micro_batch_size": 1},
        {"train_micro_batch_size": 2, "rollout_micro_batch_size": 1, "compute_logps_micro_batch_size": 1},
        {"rollout_micro_batch_size": 3, "compute_logps_micro_batch_size": 3},
    ],
    ids=str,
)
def test_sizes_of_micro_batches_change_nothing(make_grpo, prompts, params_of, policy, sizes):
    config = {"num_iterations": 2, "beta": 0.1}
    run = {"mini_batch_size": 4, "max_steps": 4, "rollout": {"max_tokens_to_generate": 20}}
    whole = make_grpo(config, reference=policy(), **run)
    whole.train(prompts())
    cut = make_grpo(config, reference=policy(), **run, **sizes)
    cut.train(prompts())
    same(params_of(whole), params_of(cut), rtol=1e-4, atol=1e-5)


def test_updates_of_one_rollout(make_grpo, prompts, metrics):
    """Batches of 4 prompts, updates of 2, twice: 4 updates of each rollout; the first is on-policy."""
    options, kept = record({})
    learner = make_grpo({"num_iterations": 2}, learner=options, mini_batch_size=2, max_steps=8, optimizer=optax.sgd(1.0))
    told = []
    learner.rl_cluster.with_external_metrics_logger(lambda buffer: told.append(buffer.global_steps))
    learner.train(prompts())
    assert [t.step for t in kept] == [0, 4]
    ratios = metrics(learner, "ratio")
    np.testing.assert_allclose([ratios[0], ratios[4]], 1.0, atol=1e-6)
    assert abs(ratios[1] - 1) > 1e-6
    assert len(metrics(learner, "reward")) == 2 and len(metrics(learner, "loss")) == 8
    assert len(metrics(learner, "logp_gap_mean")) == 2 and told == [4, 8]  # with the last update of each


def test_shuffling_deals_prompts_to_updates(make_grpo, prompts, params_of):
    def trained(seed):
        learner = make_grpo(learner={"data_shuffle_seed": seed}, mini_batch_size=2, max_steps=4, optimizer=optax.sgd(1.0))
        learner.train(prompts())
        return params_of(learner)

    same(trained(0), trained(0), rtol=0)
    assert any((a != b).any() for a, b in zip(trained(0).values(), trained(5).values(), strict=True))


def test_a_batch_that_does_not_divide(make_grpo, prompts):
    with pytest.raises(UserError, match="4 prompts cannot be divided into updates of 3"):
        make_grpo(mini_batch_size=3).train(prompts(4))


def test_training_ends_with_the_prompts(make_grpo, prompts, metrics):
    learner = make_grpo(max_steps=None)
    learner.train(prompts(2, batches=3))
    assert learner.trainer.train_steps == 3


def test_zero_std_group(make_grpo, prompts, metrics, params_of):
    """Groups of equal rewards train nothing and are counted; nothing is NaN."""

    def by_prompt(prompts, completions, number, **columns):
        return [0.3] * 8 + [float(i) for i in range(8)]

    options, kept = record({})
    learner = make_grpo(rewards=[by_prompt], learner=options, max_steps=1)
    learner.train(prompts(4))
    # of 0 1 2 3, and of 4 5 6 7: ∓1.5 and ∓0.5 over the deviation √(5/3)
    expected = [0.0] * 8 + 2 * [-1.5 / (5 / 3) ** 0.5, -0.5 / (5 / 3) ** 0.5, 0.5 / (5 / 3) ** 0.5, 1.5 / (5 / 3) ** 0.5]
    np.testing.assert_allclose([row[0] for row in kept[0].advantages], expected, rtol=1e-5)
    assert metrics(learner, "frac_zero_std_groups") == [0.5]
    assert np.isfinite(metrics(learner, "loss")).all()

    constant = make_grpo(rewards=[lambda prompts, completions, **columns: [1.7] * len(completions)])
    before = params_of(constant)
    constant.train(prompts(4))
    same(params_of(constant), before, rtol=0)
    assert metrics(constant, "reward") == pytest.approx([1.7] * 3)  # fractions are kept


def test_columns_reach_rewards_as_they_are(make_grpo):
    seen = []

    def look(prompts, completions, table, **columns):
        seen.append((prompts, table, columns))
        return [0.0] * len(completions)

    table = np.arange(8).reshape(2, 4)
    make_grpo(rewards=[look], max_steps=1).train([{"prompts": ["a b", "c d"], "table": table}])
    [(texts, tables, columns)] = seen
    assert texts == ["a b"] * 4 + ["c d"] * 4 and not columns
    np.testing.assert_array_equal(tables, np.repeat(table, 4, axis=0))


def test_truncated_answers_can_be_masked(make_grpo, prompts, metrics):
    options, kept = record({})
    learner = make_grpo({"mask_truncated": True}, learner=options, rollout={"eos_tokens": [5, 6, 7, 8]}, max_steps=1)
    learner.train(prompts())
    [t] = kept
    assert t.trained == [reason == "stop" for reason in t.finish_reasons] and set(t.trained) == {True, False}
    assert metrics(learner, "masked_answers") == [1 - np.mean(t.trained)]
    assert all(not row.any() for row, trained in zip(t.advantages, t.trained, strict=True) if not trained)


# ---- the reference -------------------------------------------------------------------------------------------------------


def test_kl_pulls_to_the_reference(make_grpo, prompts, metrics, policy, params_of):
    """Without any reward, beta moves the policy back to a reference that it differs from."""

    def nothing(prompts, completions, **columns):
        return [0.0] * len(completions)

    learner = make_grpo({"beta": 1.0}, [nothing], reference=policy(5), optimizer=optax.adam(0.03), max_steps=40)
    learner.train(prompts(8))
    kl = metrics(learner, "kl")
    assert np.mean(kl[-5:]) < 0.7 * np.mean(kl[:5])


def test_a_missing_reference(make_grpo):
    with pytest.raises(ValueError, match="beta > 0 needs a reference"):
        make_grpo({"beta": 0.1})


def test_reference_frozen(make_grpo, prompts, policy, metrics):
    """A reference that is the actor's own object at first stays as it was; with adapters its arrays are the actor's base."""
    actor = policy()
    graph, state = nnx.split(actor)
    reference = nnx.merge(graph, jax.tree.map(lambda array: array, state))  # the same arrays
    learner = make_grpo({"beta": 0.1}, actor=actor, reference=reference, optimizer=optax.sgd(1.0))
    before = learner.rl_cluster.inference_worker.state("reference")
    before = jax.tree.map(np.array, before)
    learner.train(prompts())
    after = learner.rl_cluster.inference_worker.state("reference")
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.array, after))
    assert metrics(learner, "kl")[0] == 0 and metrics(learner, "kl")[-1] > 0


def test_adapters_share_their_base_with_the_reference(make_grpo, prompts, policy):
    base = policy()
    adapted = add_lora(base, rank=2, alpha=2.0, targets=".*q_einsum", seed=0)
    learner = make_grpo({"beta": 0.1}, actor=adapted, reference=adapter_off(adapted), optimizer=optax.sgd(1.0))
    learner.train(prompts())
    address = lambda array: array.addressable_shards[0].data.unsafe_buffer_pointer()  # noqa: E731
    held = {address(a) for a in jax.tree.leaves(learner.rl_cluster.inference_worker.state("reference"))}
    frozen = {address(a) for a in jax.tree.leaves(learner.trainer._frozen)}
    assert held and held <= frozen
    assert set(learner.trainer.state.params) == {"layers.0.attn.q_einsum.w_lora_a", "layers.0.attn.q_einsum.w_lora_b"}


# ---- evaluation and resuming ---------------------------------------------------------------------------------------------


def test_evaluation_answers_every_prompt(make_grpo, prompts, metrics):
    options, kept = record({})
    learner = make_grpo(learner=options, max_steps=2, eval_every_n_steps=2)
    learner.train(prompts(4), prompts(3, batches=2))
    evaluated = [t for t in kept if t.mode == "eval"]
    assert [(t.step, len(t)) for t in evaluated] == [(0, 6), (2, 6)]
    expected = [float(np.mean(t.reward)) for t in evaluated]
    np.testing.assert_allclose(metrics(learner, "reward", "eval"), expected, rtol=1e-6)
    np.testing.assert_allclose(metrics(learner, "loss", "eval"), -np.array(expected), rtol=1e-6)


@pytest.mark.parametrize("how", ["on-policy", "several updates"])
def test_resume_bitwise(make_grpo, prompts, params_of, policy, tmp_path, how):
    several = how == "several updates"
    config = {"beta": 0.1, "num_iterations": 2 if several else 1}
    run = {"mini_batch_size": 2, "optimizer": optax.adam(0.01)} if several else {"optimizer": optax.adam(0.01)}
    every = 4 if several else 1

    def learner(max_steps, folder):
        manager = CheckpointManager(folder, every=every)
        return make_grpo(config, reference=policy(), max_steps=max_steps, checkpoint_manager=manager, **run)

    whole = learner(3 * every, tmp_path / "whole")
    whole.train(prompts())
    first = learner(every, tmp_path / "cut")
    first.train(prompts())
    first.rl_cluster.close()
    second = learner(3 * every, tmp_path / "cut")
    assert second.trainer.train_steps == every
    second.train(prompts())
    same(params_of(whole), params_of(second), rtol=0)


def test_training_may_end_within_a_rollout(make_grpo, prompts):
    """And goes on with the next prompts: what waited is left, not mixed with them."""
    options, kept = record({})
    learner = make_grpo({"num_iterations": 2}, learner=options, max_steps=3)
    learner.train(prompts())
    assert learner.trainer.train_steps == 3 and not learner.between_rollouts
    learner.trainer.config.max_steps = 5
    learner.train(prompts())
    assert [t.step for t in kept] == [0, 2, 3] and learner.trainer.train_steps == 5


def test_checkpoints_stand_between_rollouts(make_grpo, prompts, tmp_path):
    """With four updates of each rollout, one wanted every update is made every fourth."""
    manager = CheckpointManager(tmp_path, every=1)
    learner = make_grpo({"num_iterations": 2}, mini_batch_size=2, max_steps=8, checkpoint_manager=manager)
    learner.train(prompts())
    learner.rl_cluster.close()
    assert sorted(int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()) == [4, 8]


# ---- variants ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"algo_variant": "gspo-token"}, {"ratio_level": "sequence"}),
        ({"loss_algo": "gspo"}, {"ratio_level": "sequence"}),
        ({"loss_agg_mode": "mean"}, {"loss_agg_mode": "token-mean"}),
        ({"loss_agg_mode": "sum"}, {"loss_agg_mode": "seq-mean-token-sum"}),
        ({}, {"ratio_level": "token", "kl_loss_mode": "low_var_kl", "num_generations": 2, "beta": 0.04}),
    ],
    ids=str,
)
def test_names_of_the_original_library(config, expected):
    made = GRPOConfig(**config)
    assert {name: getattr(made, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"algo_variant": "ppo"}, "GRPOConfig.algo_variant must be one of 'grpo', 'gspo', 'gspo-token', got 'ppo'"),
        ({"loss_agg_mode": "bogus"}, "GRPOConfig.loss_agg_mode must be one of 'token-mean'"),
        ({"advantage_estimator": "gae"}, "GRPOConfig.advantage_estimator must be one of"),
        ({"num_generations": 1}, "num_generations must be greater than 1"),
    ],
)
def test_configurations_that_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        GRPOConfig(**config)


def test_cluster_methods_on_padded_tokens(make_grpo, policy, run_model):
    """Masks follow from the padding where none are given: the leading run of the prompt, what stands behind the end."""
    cluster = make_grpo(reference=policy(5)).rl_cluster
    prompt_tokens, answers = np.array([[0, 0, 2, 7], [2, 5, 6, 7]]), np.array([[9, 8, 1, 0], [9, 0, 8, 7]])
    logps = cluster.get_ref_per_token_logps(prompt_tokens, answers, pad_id=0, eos_id=1)
    for row, (prompt, answer) in enumerate([([2, 7], [9, 8, 1]), ([2, 5, 6, 7], [9, 0, 8, 7])]):
        text = np.array([prompt + answer])
        logits = np.asarray(run_model(policy(5), np.pad(text, ((0, 0), (0, 8 - text.size))), np.arange(8)[None] < text.size))[0]
        logits = logits.astype(np.float64)[len(prompt) - 1 : text.size - 1]
        expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        np.testing.assert_allclose(logps[row, : len(answer)], expected[np.arange(len(answer)), answer], rtol=1e-4, atol=1e-5)


def test_update_actor_is_one_update(make_grpo, prompts):
    learner = make_grpo()
    kept = {}
    learner.rl_cluster.with_external_metrics_logger(lambda buffer: kept.update(buffer.metrics))
    stream = learner.updates(prompts())
    [batch] = next(stream)
    learner.rl_cluster.update_actor([rows_of(batch, slice(0, 8)), rows_of(batch, slice(8, 16))])
    assert learner.rl_cluster.global_steps == 1
    learner.rl_cluster.close()
    assert {"loss", "grad_norm", "reward"} <= kept.keys()
    assert learner.trainer.metrics_logger.metric_exists("reward")
