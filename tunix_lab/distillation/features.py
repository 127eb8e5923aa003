"""Layers of the student and the layers of the teacher that they imitate: which belong together, and what both compute in them."""

import dataclasses

import jax
from jaxtyping import Array, Float

from tunix_lab.distillation.inputs import Inputs
from tunix_lab.models.capture import AttentionMap, Capture
from tunix_lab.models.config import ModelConfig
from tunix_lab.models.decoder import Decoder

Pairs = tuple[tuple[int, int], ...]
"""(layer of the student, layer of the teacher), counted from 0."""


def layer_pairs(
    student_layers: list[int] | None, teacher_layers: list[int] | None, student: ModelConfig, teacher: ModelConfig
) -> Pairs:
    """Who imitates whom. Without `teacher_layers`, layer i of n imitates layer ⌈(i + 1)·m / n⌉ − 1 of m: the last the last.

    Raises:
      ValueError: the lists differ in length, or name a layer twice that imitates, or one that is not there.
    """
    n, m = student.num_layers, teacher.num_layers
    ours = list(range(n)) if student_layers is None else student_layers
    theirs = [-(-(i + 1) * m // n) - 1 for i in ours] if teacher_layers is None else teacher_layers
    if len(ours) != len(theirs) or not ours:
        raise ValueError(f"{len(ours)} layers of the student cannot imitate {len(theirs)} layers of the teacher, one each")
    if len(set(ours)) != len(ours):
        raise ValueError(f"student_layers {ours} name a layer twice")
    for name, layers, count in (("student_layers", ours, n), ("teacher_layers", theirs, m)):
        outside = [layer for layer in layers if not 0 <= layer < count]
        if outside:
            raise ValueError(f"{name}: there is no layer {outside[0]}, only 0 to {count - 1}")
    return tuple(zip(ours, theirs, strict=True))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Layers:
    """What a model computed in some of its layers, at the positions whose next token may be learned.

    Attributes:
      final: the final hidden states, before the head.
      hidden: layer -> its output.
      attention: layer -> its map; queries as the other positions, keys all.
    """

    final: Float[Array, "batch next embed"]
    hidden: dict[int, Float[Array, "batch next embed"]]
    attention: dict[int, AttentionMap]


def run_layers(
    model: Decoder,
    tokens: Array,
    inputs: Inputs,
    *,
    hidden: tuple[int, ...] = (),
    attention: tuple[int, ...] = (),
) -> Layers:
    """One forward pass that keeps the outputs of the layers `hidden` and the maps of the layers `attention`."""
    kept = Capture(hidden, attention)
    asked = kept if hidden or attention else None  # who asks for nothing gets the ordinary program
    final, _ = model(tokens, inputs.positions, None, inputs.attention_mask, skip_lm_head=True, capture=asked)
    return Layers(
        final[:, :-1],
        {layer: array[:, :-1].astype("float32") for layer, array in kept.hidden.items()},
        {layer: AttentionMap(m.weights[:, :, :-1], m.visible[:, :-1]) for layer, m in kept.attention.items()},
    )
