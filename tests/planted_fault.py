"""A pytest plugin that breaks the library in one small way, named by TUNIX_LAB_FAULT, to see that the tests notice.

Each fault is one that has been shipped by some trainer: a wrong denominator, a mask off by one, a reference that is trained, …
"""

import os
from collections.abc import Callable
from typing import Any

import pytest

FAULTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {}


def fault(plant: Callable[[pytest.MonkeyPatch], None]) -> Callable[[pytest.MonkeyPatch], None]:
    """Registers a fault under the name of its function."""
    FAULTS[plant.__name__] = plant
    return plant


def pytest_sessionstart() -> None:
    name = os.environ.get("TUNIX_LAB_FAULT")
    if name is not None:
        FAULTS[name](pytest.MonkeyPatch())


def wrap(patch: pytest.MonkeyPatch, target: str, change: Callable[..., Any]) -> None:
    """Replaces `module.name` by `change(original, *args, **kwargs)`."""
    module, _, name = target.rpartition(".")
    import importlib

    holder = importlib.import_module(module) if not module.rpartition(".")[2][:1].isupper() else None
    if holder is None:
        outer, _, inner = module.rpartition(".")
        holder = vars(importlib.import_module(outer))[inner]
    original = getattr(holder, name)
    patch.setattr(holder, name, lambda *args, **kwargs: change(original, *args, **kwargs))


@fault
def mean_of_micro_batch_means(patch):
    """Every micro-batch weighs the same, however many tokens it has."""
    from tunix_lab.ops.weighted import WeightedMean

    wrap(
        patch,
        "tunix_lab.sft.peft_trainer.as_weighted",
        lambda original, value: WeightedMean(original(value).mean, original(value).count * 0 + 1),
    )


@fault
def mask_off_by_one(patch):
    """The mask of the inputs is used for the targets."""
    import jax.numpy as jnp

    def rolled(original, hidden, head, targets, mask, **options):
        return original(hidden, head, targets, jnp.roll(mask, -1, axis=1), **options)

    wrap(patch, "tunix_lab.sft.losses.head_cross_entropy", rolled)


@fault
def padding_counts_in_evaluation(patch):
    """Rows that fill up the last batch keep their masks."""
    patch.setattr("tunix_lab.data.pipeline.LOSS_MASKS", ())


@fault
def empty_batch_moves_parameters(patch):
    """Momentum is applied although nothing had weight."""
    import jax.numpy as jnp

    wrap(
        patch,
        "tunix_lab.ops.weighted.WeightedMean.of",
        lambda original, values, weights=None: _plus_one(original(values, weights)),
    )
    _ = jnp


def _plus_one(mean):
    import dataclasses

    return dataclasses.replace(mean, count=mean.count + 1)


@fault
def leaked_segment(patch):
    """Packed texts see what stands before them in their row."""
    from tunix_lab.ops.masks import causal_mask

    patch.setattr("tunix_lab.sft.losses.segment_causal_mask", lambda segment_ids: causal_mask(segment_ids > 0))


@fault
def positions_run_on(patch):
    """Packed texts count their positions from the start of the row."""
    from tunix_lab.ops.masks import positions_from_mask

    patch.setattr("tunix_lab.sft.losses.segment_positions", lambda segment_ids: positions_from_mask(segment_ids > 0))


@fault
def bos_in_the_middle(patch):
    """A response begins with BOS again."""
    import numpy as np

    def with_bos(original, tokenizer, prompt, response):
        return np.concatenate([[tokenizer.bos_id()], original(tokenizer, prompt, response)]).astype(np.int32)

    wrap(patch, "tunix_lab.data.pairs._answer_ids", with_bos)


@fault
def dropped_terminator(patch):
    """The end of a turn is not trained."""
    wrap(
        patch,
        "tunix_lab.data.chat._assistant_span",
        lambda original, *args: (lambda span: (span[0], span[1] - 1))(original(*args)),
    )


@fault
def trained_reference(patch):
    """The reference is the policy as it is now."""

    def current(original, self, model, ref_model):
        parts = self._parts

        def logps(batch, leading):
            import jax

            from tunix_lab.sft.dpo.dpo_trainer import answer_logps

            def one(batch):
                policy = parts.merge(self._state.params, self._state.variables, self._frozen)
                chosen, rejected, *_ = answer_logps(policy, batch)
                return {"ref_chosen": chosen, "ref_rejected": rejected}

            return jax.lax.map(one, batch) if leading else one(batch)

        return logps

    wrap(patch, "tunix_lab.sft.dpo.dpo_trainer.DPOTrainer._make_reference", current)


@fault
def prompt_in_the_log_probability(patch):
    """Preference losses sum over the prompt's last token too."""
    import jax.numpy as jnp

    def with_prompt(original, logps, mask):
        return original(logps, jnp.ones_like(mask))

    wrap(patch, "tunix_lab.sft.dpo.dpo_trainer.sum_logps", with_prompt)


@fault
def swapped_pair(patch):
    """The rejected answer is preferred."""
    wrap(
        patch,
        "tunix_lab.sft.dpo.dpo_trainer.dpo_loss",
        lambda original, a, b, ref_a, ref_b, **knobs: original(b, a, ref_b, ref_a, **knobs),
    )


@fault
def summed_orpo(patch):
    """ORPO's odds are of sums instead of means."""
    wrap(patch, "tunix_lab.sft.dpo.dpo_trainer.DPOTrainer._orpo", lambda original, self, a, b: original(self, 5 * a, 5 * b))


@fault
def everything_trains(patch):
    """A model with adapters trains its base as well."""
    patch.setattr("tunix_lab.sft.train_state.is_lora_model", lambda model: False)
    patch.setattr("tunix_lab.sft.trained_model.is_lora_model", lambda model: False)


@fault
def no_master_weights(patch):
    """Updates are applied to bfloat16 weights and lost."""
    patch.setattr("tunix_lab.sft.trained_model.masters", lambda params, dtype: params)


@fault
def optimizer_reset_on_resume(patch):
    """A restored run begins with fresh moments."""

    def forget(original, self, params, opt_state, variables=None):
        restored = original(self, params, opt_state, variables)
        return None if restored is None else (*restored[:2], opt_state, *restored[3:])

    wrap(patch, "tunix_lab.sft.checkpoint_manager.CheckpointManager.restore", forget)


@fault
def data_replayed_on_resume(patch):
    """A restored run reads the data from its start."""
    wrap(patch, "tunix_lab.data.pipeline.TrainBatches.set_state", lambda original, self, state: None)


@fault
def divided_twice(patch):
    """The loss is divided by its weight in the loss and in the update."""
    from tunix_lab.ops.weighted import WeightedMean

    def divided(original, *args, **options):
        loss = original(*args, **options)
        return WeightedMean(loss.mean, loss.count)

    wrap(patch, "tunix_lab.sft.losses.head_cross_entropy", divided)


@fault
def reversed_distillation(patch):
    """Forward and reverse KL are swapped."""
    import tunix_lab.ops.distill as distill

    forward, reverse = distill.forward_kl, distill.reverse_kl
    patch.setattr(distill, "forward_kl", reverse)
    patch.setattr(distill, "reverse_kl", forward)


@fault
def temperature_not_squared(patch):
    """Soft losses shrink with the temperature."""

    def shrunk(original, student, teacher, *args, temperature=1.0, **knobs):
        return original(student, teacher, *args, temperature=temperature, **knobs) / temperature**2

    wrap(patch, "tunix_lab.ops.distill.softened", shrunk)


@fault
def soft_cap_left_out_of_the_loss(patch):
    """The loss is of the uncapped logits."""
    wrap(patch, "tunix_lab.sft.losses.head_cross_entropy", lambda original, *args, softcap=None: original(*args))


# ---- reinforcement learning ----------------------------------------------------------------------------------------------


@fault
def rollouts_of_one_seed(patch):
    """Every step samples with the random numbers of the first."""
    wrap(
        patch,
        "tunix_lab.rl.rl_cluster._seed",
        lambda original, config, mode, step, round_number: original(config, mode, 0, round_number),
    )


@fault
def critic_optimizer_not_saved(patch):
    """A restored critic begins with fresh moments."""
    import dataclasses

    def forget(original, self, state, step):
        original(self, dataclasses.replace(state, opt_state=self.state.opt_state), step)

    wrap(patch, "tunix_lab.rl.trainer.CriticTrainer.resume_at", forget)


@fault
def ratio_to_the_policy_itself(patch):
    """The second update of a rollout is taken for on-policy, too."""
    from tunix_lab.rl.rl_learner import RLLearner

    patch.setattr(RLLearner, "needs_old_logps", property(lambda self: False))


@fault
def groups_mixed_up(patch):
    """Answers are compared with those to other prompts."""

    def transposed(original, rewards, estimator, valid=None):
        shape = rewards.shape
        mixed = [None if a is None else a.reshape(shape[::-1]).T for a in (rewards, valid)]
        return original(mixed[0], estimator, mixed[1]).T.reshape(shape)

    wrap(patch, "tunix_lab.rl.grpo.grpo_learner.group_advantages", transposed)


@fault
def end_of_answers_not_trained(patch):
    """The last token of each answer is no target."""
    import numpy as np

    def without_end(original, *args, **kwargs):
        batch = original(*args, **kwargs)
        last = np.roll(batch["completion_mask"], -1, axis=1)
        last[:, -1] = False
        return batch | {"loss_mask": batch["loss_mask"] & last}

    wrap(patch, "tunix_lab.rl.rl_learner.token_batch", without_end)


@fault
def sampler_one_update_behind(patch):
    """The rollout gets the weights that it should have had before."""
    import jax

    waiting = {}

    def late(original, self, params):
        copied = jax.tree.map(jax.numpy.copy, params)  # updates take over the buffers
        original(self, waiting.get(id(self), copied))
        waiting[id(self)] = copied

    wrap(patch, "tunix_lab.rl.rollout.vanilla_rollout.VanillaRollout.update_params", late)


@fault
def reference_that_follows(patch):
    """The KL divergence is from the policy as it is now."""
    from tunix_lab.rl.rl_cluster import RLCluster

    patch.setattr(RLCluster, "get_ref_per_token_logps", RLCluster.get_old_per_token_logps)


@fault
def prompts_read_again_on_resume(patch):
    """A restored run begins with the first prompts."""
    wrap(patch, "tunix_lab.rl.prompt_stream.PromptStream.set_state", lambda original, self, state: None)


@fault
def saved_amid_a_rollout(patch):
    """A checkpoint between the updates of one rollout, whose answers it does not hold."""
    from tunix_lab.rl.trainer import RLTrainer

    patch.setattr(RLTrainer, "can_pause", property(lambda self: True))


@fault
def failed_rewards_are_zero(patch):
    """An answer that nobody could judge is trained as if it were worth nothing."""
    import numpy as np

    wrap(
        patch,
        "tunix_lab.rl.rewards.Rewards.score",
        lambda original, *args, **kwargs: {name: np.nan_to_num(values) for name, values in original(*args, **kwargs).items()},
    )


@fault
def reward_at_every_token(patch):
    """The critic learns of a reward for each token of an answer instead of one at its end."""

    def everywhere(original, rewards, values, mask, **options):
        return original(rewards.sum(axis=1, keepdims=True) * mask, values, mask, **options)

    wrap(patch, "tunix_lab.rl.ppo.ppo_learner.gae", everywhere)


@fault
def padding_is_sampled(patch):
    """Every answer is as long as the longest."""
    import numpy as np

    def filled(original, *args, **kwargs):
        batch = original(*args, **kwargs)
        return batch | {"loss_mask": np.ones_like(batch["loss_mask"]) & batch["loss_mask"].any(axis=1, keepdims=True)}

    wrap(patch, "tunix_lab.rl.rl_learner.token_batch", filled)
