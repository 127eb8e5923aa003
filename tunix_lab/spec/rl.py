"""What the algorithms of reinforcement learning have beside their knobs: how answers are sampled, and what they are worth."""

from typing import Annotated, Literal, TypeAlias

from annotated_types import Ge, Gt, Le
from pydantic import Field

from tunix_lab.spec.model import ExperimentInit, HubInit, PathInit
from tunix_lab.spec.section import LABEL_PATTERN, REFERENCE_PATTERN, Section


class RolloutSpec(Section):
    """How answers are sampled."""

    max_new_tokens: Annotated[int, Gt(0)]
    """Most tokens of an answer, its terminator included."""
    max_prompt_length: Annotated[int, Gt(0)]
    """Most tokens of a prompt; data.overlong says what happens to longer ones."""
    temperature: Annotated[float, Gt(0)] = 1.0
    """1 samples from the model's own distribution; less makes it sharper."""
    top_k: Annotated[int, Gt(0)] | None = None
    """Only the k most probable tokens; null: all."""
    top_p: Annotated[float, Gt(0), Le(1)] | None = None
    """Only the smallest set of tokens of this total probability; null: all."""
    prompts: Annotated[int, Gt(0)] | None = None
    """Prompts that are answered at once, for several updates; a multiple of training.batch_size. null: training.batch_size."""
    max_rows: Annotated[int, Gt(0)] | None = None
    """Answers that are decoded side by side; the others take the places of those that end. null: all."""
    eval_temperature: Annotated[float, Ge(0)] = 0.0
    """Temperature of evaluations; 0 takes the likeliest token."""


class RewardFunction(Section):
    """One function that says what answers are worth."""

    function: Annotated[str, Field(pattern=REFERENCE_PATTERN)]
    """`package.module:function`, called with prompts, completions and the rows' other columns; one number for each answer."""
    weight: float = 1.0
    """Factor of its rewards in the sum."""
    name: Annotated[str, Field(pattern=LABEL_PATTERN, max_length=64)] | None = None
    """Its rewards are logged as reward_<name>; null: the function's own name."""

    @property
    def label(self) -> str:
        """Name of its rewards."""
        return self.function.partition(":")[2] if self.name is None else self.name


class RewardsSpec(Section):
    """What answers are worth: the weighted sum of these functions."""

    functions: Annotated[list[RewardFunction], Field(min_length=1)]
    """The functions; their weighted values are added up."""
    timeout_s: Annotated[float, Gt(0)] = 10.0
    """Seconds that a function may take for the answers of one rollout."""
    workers: Annotated[int, Gt(0)] = 1
    """Processes that run the functions."""
    on_error: Literal["stop", "mask"] = "stop"
    """After an exception, a timeout or a value that is no number: stop, with the answer shown; or mask, which trains nothing from
    the answer and counts it."""
    memory_mb: Annotated[int, Gt(0)] | None = None
    """Most memory of one of the processes, in megabytes; null: no limit."""


CriticInit: TypeAlias = Annotated[ExperimentInit | PathInit | HubInit, Field(discriminator="kind")]


class CriticSpec(Section):
    """The critic of PPO: a decoder whose head gives a value for each token."""

    init: CriticInit | None = None
    """Whose weights the critic starts from, below its new head, of the actor's family and size; null: those of the actor."""
    learning_rate: Annotated[float, Gt(0)] | None = None
    """Peak learning rate; null: optimizer.learning_rate."""
