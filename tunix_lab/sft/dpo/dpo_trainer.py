"""Preference training on pairs of answers: DPO and IPO against a frozen reference, ORPO without one."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float

from tunix_lab.data.pairs import tokenize_pairs
from tunix_lab.models.adapters import adapter_off
from tunix_lab.models.decoder import Decoder
from tunix_lab.ops.logps import sum_logps
from tunix_lab.ops.masks import causal_mask, positions_from_mask
from tunix_lab.ops.preference import dpo_loss, ipo_loss, log_odds, orpo_odds_loss
from tunix_lab.ops.weighted import WeightedMean
from tunix_lab.sft.config import DPOTrainingConfig as DPOTrainingConfig
from tunix_lab.sft.losses import next_token_logps
from tunix_lab.sft.peft_trainer import PeftTrainer
from tunix_lab.sft.train_state import copy_shared, snapshot

# Keys of a tokenised batch; shapes in `tokenize_pairs`.
_TOKENISED = ("prompt_ids", "prompt_mask", "chosen_ids", "chosen_mask", "rejected_ids", "rejected_mask")
# The reference's summed log-probabilities of the answers, [rows], where they were computed beforehand.
REFERENCE_COLUMNS = ("ref_chosen", "ref_rejected")


class DPOTrainer(PeftTrainer):
    """Trains a policy to prefer the chosen answer of each pair.

    A batch is a mapping with `prompts`, `chosen_responses` and `rejected_responses` (strings, the prompt rendered already), or a
    tokenised one with the keys that `data.pairs.tokenize_pairs` gives.

    Metrics, averaged over pairs: `chosen_reward`, `rejected_reward`, where the reward is β·(log π − log π_ref) (ORPO: λ·mean
    log π); `margin`, their difference; `accuracy`, the share of pairs with margin > 0, a tie counts one half; `chosen_logp`,
    `rejected_logp`, the summed log-probabilities, nats. ORPO also: `sft_loss`, `or_loss`, the two terms, and `log_odds_ratio`.
    """

    def __init__(
        self,
        model: nnx.Module,
        ref_model: nnx.Module | None,
        optimizer: optax.GradientTransformation,
        training_config: DPOTrainingConfig,
        tokenizer: Any = None,
        **trainer_options: Any,
    ):
        """Prepares training.

        Args:
          model: the policy.
          ref_model: the frozen reference of DPO and IPO; None takes the policy with its adapters off, so the policy must then
            have some. ORPO needs none, nor do batches that carry the reference's log-probabilities (`precompute_reference`).
          optimizer: the whole optimizer, clipping included.
          training_config: how to run, and which algorithm.
          tokenizer: needed for string batches only.
          **trainer_options: the keyword arguments of `PeftTrainer`.

        Raises:
          ValueError: DPO or IPO without reference and without adapters.
        """
        self.tokenizer = tokenizer
        self._ref_leaves = nnx.state(ref_model) if ref_model is not None else nnx.State({})
        super().__init__(model, optimizer, training_config, **trainer_options)
        self._reference_logps = None
        if training_config.algorithm != "orpo" and not training_config.precompute_reference:
            self._reference_logps = self._make_reference(model, ref_model)
        self.with_loss_fn(self._preference_loss, has_aux=True)
        self.with_gen_model_input_fn(lambda batch: {"batch": batch})

    def _make_reference(
        self, model: nnx.Module, ref_model: nnx.Module | None
    ) -> Callable[[dict[str, Array], int], dict[str, Array]]:
        """`f(placed batch, leading axes) -> {"ref_chosen", "ref_rejected"}`: summed log-probabilities under the reference."""
        if ref_model is not None:
            graph, state = nnx.split(ref_model)
            state = snapshot(state)
            arrays, merge = (lambda: state), (lambda state: nnx.merge(graph, snapshot(state)))
        elif self.is_lora and isinstance(model, Decoder):
            # The base's own program on the frozen arrays that the policy holds anyway.
            graph, _ = nnx.split(self._as_run(adapter_off(model)))
            arrays, merge = (lambda: self._frozen), (lambda state: nnx.merge(graph, snapshot(state)))
        elif self.is_lora:
            # Of a model of the user's own: an adapter whose factors are zero adds exactly nothing.
            off, parts = jax.tree.map(jnp.zeros_like, self._state.params), self._parts
            arrays, merge = (lambda: (self._state.variables, self._frozen)), (lambda state: parts.merge(off, *state))
        else:
            raise ValueError("DPO needs a reference: pass ref_model, or a policy with adapters (its base is the reference then)")

        def logps(state: Any, batch: dict[str, Array]) -> dict[str, Array]:
            chosen, rejected, *_ = answer_logps(merge(state), batch)
            return {"ref_chosen": chosen, "ref_rejected": rejected}

        whole = jax.jit(logps)
        by_micro_batch = jax.jit(lambda state, batches: jax.lax.map(functools.partial(logps, state), batches))
        return lambda batch, leading: (by_micro_batch if leading else whole)(arrays(), batch)

    def _own(self, params: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return copy_shared(params, self._ref_leaves)

    def _prepare_inputs(self, input_data: Any) -> dict[str, Any]:
        named = input_data if isinstance(input_data, Mapping) else dataclasses.asdict(input_data)
        if "prompt_ids" not in named:
            return self._tokenize(named)
        wanted = _TOKENISED + (REFERENCE_COLUMNS if self.config.precompute_reference else ())
        missing = [name for name in wanted if name not in named]
        if missing:
            raise ValueError(f"the batch lacks {', '.join(missing)}; of the reference, sft.dpo.reference.with_reference_logps")
        return {key: named[key] for key in wanted}

    def _place(self, batch: Any, *, leading: int) -> Any:
        """The batch, placed, with the reference's log-probabilities, which the host never waits for."""
        placed = super()._place(batch, leading=leading)
        return placed if self._reference_logps is None else placed | self._reference_logps(placed, leading)

    def _tokenize(self, named: Mapping[str, Any]) -> dict[str, np.ndarray]:
        if self.tokenizer is None:
            raise ValueError("string batches need a tokenizer: DPOTrainer(…, tokenizer=…)")
        return tokenize_pairs(
            self.tokenizer,
            named["prompts"],
            named["chosen_responses"],
            named["rejected_responses"],
            max_prompt_length=self.config.max_prompt_length,
            max_response_length=self.config.max_response_length,
        )

    def _count_tokens(self, inputs: Any) -> int:
        return int(2 * np.sum(inputs["prompt_mask"]) + np.sum(inputs["chosen_mask"]) + np.sum(inputs["rejected_mask"]))

    def _preference_loss(self, model: nnx.Module, batch: dict[str, Array]) -> tuple[WeightedMean, dict[str, WeightedMean]]:
        chosen, rejected, n_chosen, n_rejected = answer_logps(model, batch)
        if self.config.algorithm == "orpo":
            losses, rewards, aux = self._orpo(chosen / jnp.maximum(n_chosen, 1), rejected / jnp.maximum(n_rejected, 1))
        else:
            losses, rewards, aux = self._against_reference(chosen, rejected, batch["ref_chosen"], batch["ref_rejected"])
        margin = rewards[0] - rewards[1]
        aux |= {
            "chosen_reward": rewards[0],
            "rejected_reward": rewards[1],
            "margin": margin,
            "accuracy": jnp.where(margin == 0, 0.5, margin > 0),
            "chosen_logp": chosen,
            "rejected_logp": rejected,
        }
        is_pair = (n_chosen > 0) & (n_rejected > 0)  # rows that only fill up a batch have no answers
        return WeightedMean.of(losses, is_pair), {name: WeightedMean.of(value, is_pair) for name, value in aux.items()}

    def _against_reference(self, chosen, rejected, ref_chosen, ref_rejected):
        """Losses, rewards and further metrics of DPO and IPO, from summed log-probabilities."""
        config: DPOTrainingConfig = self.config
        logps = chosen, rejected, ref_chosen, ref_rejected
        match config.algorithm:
            case "dpo":
                losses = dpo_loss(*logps, beta=config.beta, label_smoothing=config.label_smoothing)
            case "ipo":
                losses = ipo_loss(*logps, beta=config.beta)
        return losses, (config.beta * (chosen - ref_chosen), config.beta * (rejected - ref_rejected)), {}

    def _orpo(self, chosen, rejected):
        """The same of ORPO, from mean log-probabilities: the likelihood of the chosen answer plus λ times the odds-ratio term."""
        config: DPOTrainingConfig = self.config
        odds = orpo_odds_loss(chosen, rejected, label_smoothing=config.label_smoothing)
        rewards = config.lambda_orpo * chosen, config.lambda_orpo * rejected
        aux = {"sft_loss": -chosen, "or_loss": odds, "log_odds_ratio": log_odds(chosen) - log_odds(rejected)}
        return -chosen + config.lambda_orpo * odds, rewards, aux


def answer_logps(
    model: nnx.Module, batch: Mapping[str, Array]
) -> tuple[Float[Array, " pair"], Float[Array, " pair"], Float[Array, " pair"], Float[Array, " pair"]]:
    """Summed log-probabilities (nats) of the chosen and of the rejected answers given the prompt, and their numbers of tokens.

    Both answers go through the model as one batch of 2 · pair rows.
    """
    prompt_length = batch["prompt_ids"].shape[1]
    answer_mask = jnp.concatenate([batch["chosen_mask"], batch["rejected_mask"]])
    answers = jnp.concatenate([batch["chosen_ids"], batch["rejected_ids"]])
    tokens = jnp.concatenate([jnp.tile(batch["prompt_ids"], (2, 1)), answers], axis=1)
    valid = jnp.concatenate([jnp.tile(batch["prompt_mask"], (2, 1)), answer_mask], axis=1)
    logps = next_token_logps(model, tokens, positions_from_mask(valid), causal_mask(valid), start=prompt_length - 1)
    sums = sum_logps(logps, answer_mask)
    counts = answer_mask.sum(axis=-1).astype(jnp.float32)
    chosen, rejected = jnp.split(sums, 2)
    n_chosen, n_rejected = jnp.split(counts, 2)
    return chosen, rejected, n_chosen, n_rejected
