"""What samples answers: the interface of rollout engines."""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from flax import nnx
from jax.sharding import Mesh

from tunix_lab.data.tokenizer_adapter import TokenizerAdapter
from tunix_lab.rl.config import RolloutConfig as RolloutConfig
from tunix_lab.rl.experience import pad


@dataclasses.dataclass(frozen=True)
class RolloutOutput:
    """One entry per answer, the answers to one prompt side by side.

    Attributes:
      text: of the answers, without special tokens.
      tokens: ids int32 [T], the terminator included.
      logprobs: float32 [T], log-probability of each of `tokens` at the sampling temperature over the whole vocabulary, nats.
      finish_reason: "stop", or "length" if the budget cut the answer off.
      prompt_tokens: ids int32 [P] of each answer's prompt.
    """

    text: list[str]
    tokens: list[np.ndarray]
    logprobs: list[np.ndarray]
    finish_reason: list[str]
    prompt_tokens: list[np.ndarray]

    @property
    def left_padded_prompt_tokens(self) -> np.ndarray:
        """The prompts as one array int32 [answers, longest prompt], padded with 0 on the left."""
        return pad(self.prompt_tokens, max(map(len, self.prompt_tokens)), left=True)[0]

    def __add__(self, other: "RolloutOutput") -> "RolloutOutput":
        return RolloutOutput(*(mine + theirs for mine, theirs in zip(self._columns(), other._columns(), strict=True)))

    def take(self, rows: Sequence[int]) -> "RolloutOutput":
        """Some of the answers."""
        return RolloutOutput(*([column[i] for i in rows] for column in self._columns()))

    def _columns(self) -> tuple[list, ...]:
        return self.text, self.tokens, self.logprobs, self.finish_reason, self.prompt_tokens


class BaseRollout(abc.ABC):
    """Samples answers with weights of its own, which `update_params` replaces."""

    @abc.abstractmethod
    def __init__(self, model: nnx.Module, tokenizer: TokenizerAdapter, config: RolloutConfig, mesh: Mesh | None):
        """Prepares sampling.

        Args:
          model: the policy; its arrays lie where its trainer has them.
          tokenizer: of the prompts.
          config: how to sample while training.
          mesh: where to sample; None is where the model lies.

        Raises:
          ValueError: the configuration asks for what this engine cannot do.
        """

    @abc.abstractmethod
    def generate(
        self,
        prompts: Sequence[np.ndarray],
        config: RolloutConfig,
        *,
        num_generations: int,
        seed: int,
        sample_ids: Sequence[int],
    ) -> RolloutOutput:
        """Samples `num_generations` answers to each prompt.

        Args:
          prompts: token ids, exactly as they are to be read.
          config: how to sample.
          num_generations: answers to each.
          seed: of this call.
          sample_ids: one per answer: with the seed it says the answer's random numbers, whatever is sampled beside it.
        """

    @abc.abstractmethod
    def update_params(self, params: nnx.State) -> None:
        """Goes on with these weights; those that are not among them stay."""

    @abc.abstractmethod
    def params(self) -> nnx.State:
        """The weights that answers are sampled with now."""


def make_rollout(
    engine: str | type[BaseRollout], model: nnx.Module, tokenizer: Any, config: RolloutConfig, mesh: Mesh | None
) -> BaseRollout:
    """The engine of a name, or of a class.

    Raises:
      ValueError: no engine has this name, or what it needs is not installed.
    """
    adapter = TokenizerAdapter(tokenizer)
    match engine:
        case "vanilla":
            from tunix_lab.rl.rollout.vanilla_rollout import VanillaRollout

            return VanillaRollout(model, adapter, config, mesh)
        case "vllm" | "sglang_jax":
            raise ValueError(
                f"rollout_engine {engine!r} is an engine of another project that is not installed here: take 'vanilla', or a "
                "class of rollout.base_rollout.BaseRollout that drives it"
            )
        case str():
            raise ValueError(
                f"rollout_engine: there is no {engine!r}; take 'vanilla', or a class of rollout.base_rollout.BaseRollout"
            )
        case _:
            return engine(model, adapter, config, mesh)
