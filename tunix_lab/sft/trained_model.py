"""The model that a trainer trains: taken apart into arrays, put together again for its user, its batches beside it."""

from typing import Any

import jax
import optax
from flax import nnx

from tunix_lab.models.decoder import Decoder, for_training
from tunix_lab.models.sharding import place_batch
from tunix_lab.models.stack import unstacked
from tunix_lab.sft.config import TrainingConfig
from tunix_lab.sft.train_state import TrainState, init_opt_state, is_lora_model, masters, mesh_of, split_model


class TrainedModel:
    """What trainers have in common whatever their loop does: one model, its optimizer, and the arrays of both.

    Attributes:
      config: how to run.
      optimizer: the whole optimizer.
      is_lora: whether only adapters are trained.
    """

    def __init__(self, model: nnx.Module, optimizer: optax.GradientTransformation, training_config: TrainingConfig):
        self.config = training_config
        self.optimizer = optimizer
        self.is_lora = is_lora_model(model)
        self._model = model
        self._home = split_model(model)[0]
        self._parts, params, variables, self._frozen = split_model(self._as_run(model))
        params = masters(self._own(params), training_config.master_dtype)
        self._state = TrainState(params, variables, init_opt_state(optimizer, params))
        self._mesh = mesh_of(params)

    @property
    def model(self) -> nnx.Module:
        """The model with its present parameters."""
        params = unstacked(self._state.params) if self.config.scan_layers else self._state.params
        nnx.update(self._model, self._home.to_state(params), self._state.variables)
        return self._model

    @property
    def state(self) -> TrainState:
        """Trained parameters, other variables and optimizer state; the next update takes their buffers."""
        return self._state

    @property
    def frozen(self) -> nnx.State:
        """The parameters that no update touches; other models may hold them too."""
        return self._frozen

    def _as_run(self, model: nnx.Module) -> nnx.Module:
        """The model as training runs it; what its user holds stays as it is."""
        scan_layers, remat = self.config.scan_layers, self.config.remat
        if not scan_layers and remat == "none":
            return model
        if not isinstance(model, Decoder):
            raise ValueError("scan_layers and remat are for this library's decoders; a model of your own chooses in its own code")
        return for_training(model, scan_layers=scan_layers, remat=remat)

    def _own(self, params: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Hook for subclasses that hold a second model: parameters whose buffers nobody else uses."""
        return params

    def _place(self, batch: Any, *, leading: int) -> Any:
        """The batch as compiled steps read it."""
        if self._mesh is None:
            return batch  # a step sends it to its one device itself, at a fraction of what `device_put` costs the host
        return place_batch(batch, self._mesh, leading=leading, axes=self.config.data_sharding_axis)

    def _whole_state(self) -> TrainState:
        """All that training changes: what is saved, restored and fingerprinted."""
        return self._state

    def _take_state(self, state: TrainState) -> None:
        """Goes on from a state of the form that `_whole_state` gives."""
        self._state = state
