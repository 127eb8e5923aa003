"""What one update read and did, as hashes: the first two that differ between two runs say where the runs part, and why."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """The hashes of one optimizer update, in hex.

    Attributes:
      step: updates made, this one included.
      batch: of all arrays of its micro-batches, in their order; 16 digits.
      rows: of the content of each row, in the order of the update; 8 digits each.
      loss: its loss.
      grad_norm: global norm of its gradient.
      grads: by layer, of the gradient that reached the optimizer; 16 digits.
      params: by layer, of the trained parameters after it; empty where it was not their turn.
      rest: of optimizer state and other variables after it; empty where it was not their turn.
    """

    step: int
    batch: str
    rows: tuple[str, ...]
    loss: float
    grad_norm: float
    grads: dict[str, str]
    params: dict[str, str]
    rest: str


def layer_of(name: str) -> str:
    """The layer that a variable belongs to: its dotted path up to the first number, "layers.3.mlp.w" -> "layers.3"."""
    parts = name.split(".")
    place = next((i for i, part in enumerate(parts) if part.isdigit()), 0)
    return ".".join(parts[: place + 1])
