"""The root of a spec: one experiment, all sections together."""

from typing import Annotated

from annotated_types import Ge, Lt
from pydantic import ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from tunix_lab.spec.algorithm import Algorithm, Distill, Ppo
from tunix_lab.spec.checks import combination_faults
from tunix_lab.spec.data import Data
from tunix_lab.spec.model import Adapter, ExperimentInit, ModelSpec, NoAdapter, TokenizerSpec
from tunix_lab.spec.rl import CriticSpec
from tunix_lab.spec.section import Name, Section
from tunix_lab.spec.tracking import TrackingSpec
from tunix_lab.spec.training import CheckpointSpec, MeshSpec, OptimizerSpec, SamplesSpec, TrainingSpec

COMBINATION = "combination"
"""Pydantic's type of an error between sections."""


class ExperimentSpec(Section):
    """One experiment."""

    name: Name
    """Names the experiment's runs and its output folder."""
    description: str = ""
    """What the experiment is to find out; shown beside its runs."""
    seed: Annotated[int, Ge(0), Lt(2**32)] = 0
    """Root of all randomness."""
    model: ModelSpec
    tokenizer: TokenizerSpec = TokenizerSpec()
    adapter: Adapter = NoAdapter()
    """What is trained: all weights, or low-rank updates of them."""
    algorithm: Algorithm
    """The loss, and its knobs."""
    data: Data
    """Rows to train on and rows held out."""
    optimizer: OptimizerSpec
    training: TrainingSpec
    checkpoint: CheckpointSpec = CheckpointSpec()
    mesh: MeshSpec = MeshSpec()
    samples: SamplesSpec | None = None
    """Generations over the course of training; null: none."""
    tracking: TrackingSpec

    @model_validator(mode="after")
    def _sections_fit_together(self) -> "ExperimentSpec":
        faults = [
            InitErrorDetails(type=PydanticCustomError(COMBINATION, message), loc=path, input=None)
            for path, message in combination_faults(self)
        ]
        if faults:
            raise ValidationError.from_exception_data("ExperimentSpec", faults)
        return self


def upstream(spec: ExperimentSpec) -> str | None:
    """Name of the experiment whose output `spec` starts from; None where it needs none."""
    return spec.model.init.name if isinstance(spec.model.init, ExperimentInit) else None


def upstreams(spec: ExperimentSpec) -> list[str]:
    """Names of all experiments whose output `spec` needs: what it starts from, its teacher, its critic."""
    sources: list[object] = [spec.model.init]
    match spec.algorithm:
        case Distill(teacher=other) | Ppo(critic=CriticSpec(init=other)):
            sources.append(other)
    return list(dict.fromkeys(source.name for source in sources if isinstance(source, ExperimentInit)))
