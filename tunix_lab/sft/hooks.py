"""Where a user's code enters the training loop.

Order of one `train`: on_train_begin · [on_eval_begin … on_eval_end] · then for every update on_train_step_begin,
on_train_step_end (of the update before), when due on_eval_begin … on_eval_end, on_update, when due a checkpoint · on_train_end.

Every hook has two names, that of the documentation and that of the original library; override either.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunix_lab.sft.fingerprint import Fingerprint
    from tunix_lab.sft.peft_trainer import PeftTrainer


class TrainingHooks:
    """Called around training; each method does nothing until overridden."""

    def on_train_start(self, trainer: "PeftTrainer") -> None: ...

    def on_train_end(self, trainer: "PeftTrainer") -> None: ...

    def on_train_step_start(self, trainer: "PeftTrainer") -> None: ...

    def on_train_step_end(self, trainer: "PeftTrainer", train_step: int, train_loss: float) -> None:
        """`train_loss` is that of update `train_step`; the call comes one update late, when the device has the number."""

    def on_fingerprint(self, trainer: "PeftTrainer", fingerprint: "Fingerprint") -> None:
        """The hashes of an update, right before its `on_train_step_end`; only if the configuration asks for them."""

    def on_update(self, trainer: "PeftTrainer") -> None:
        """Comes after each update and its evaluation, before its checkpoint: what it does is not lost by resuming from there."""

    def on_eval_step_start(self, trainer: "PeftTrainer") -> None: ...

    def on_eval_step_end(self, trainer: "PeftTrainer", eval_loss: float) -> None:
        """`eval_loss` is the average over the whole evaluation set."""

    def on_train_begin(self, trainer: "PeftTrainer") -> None:
        self.on_train_start(trainer)

    def on_train_step_begin(self, trainer: "PeftTrainer") -> None:
        self.on_train_step_start(trainer)

    def on_eval_begin(self, trainer: "PeftTrainer") -> None:
        self.on_eval_step_start(trainer)

    def on_eval_end(self, trainer: "PeftTrainer", eval_loss: float) -> None:
        self.on_eval_step_end(trainer, eval_loss)


class DataHooks:
    """Gives batches instead of `train_ds` and `eval_ds`; None ends the data."""

    def load_next_train_batch(self, trainer: "PeftTrainer") -> Any | None:
        raise NotImplementedError

    def load_next_eval_batch(self, trainer: "PeftTrainer") -> Any | None:
        raise NotImplementedError
