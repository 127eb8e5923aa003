"""What a student learns from its teacher: next-token distributions, attention maps or hidden states.

Every strategy mixes its own distance (`soft_loss`) with the cross-entropy of the data's next token (`hard_loss`), both averaged
over the tokens that are targets: alpha · soft + (1 − alpha) · hard. Padding and prompts count nowhere.
"""

import abc
import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from tunix_lab._bounds import check_bounds
from tunix_lab.distillation.config import (
    AttentionProjectionKnobs,
    AttentionTransferKnobs,
    Direction,
    FeaturePoolingKnobs,
    FeatureProjectionKnobs,
    LayerKnobs,
    LogitKnobs,
)
from tunix_lab.distillation.features import Layers, Pairs, layer_pairs, run_layers
from tunix_lab.distillation.inputs import Inputs
from tunix_lab.distillation.vocabulary import Vocabulary
from tunix_lab.models.decoder import Decoder
from tunix_lab.ops import distill, features
from tunix_lab.ops.logps import token_logps
from tunix_lab.ops.weighted import WeightedMean

Losses = tuple[WeightedMean, dict[str, WeightedMean]]
"""The loss, and the named metrics beside it."""

# The logit of a token that a teacher does not have: its probability is 0.
_NEVER = -1e9


@dataclasses.dataclass(frozen=True)
class Models:
    """What a strategy works with inside a step.

    Attributes:
      student: is trained.
      teacher: is not; it runs in evaluation mode.
      projection: what is trained beside the student; None where the strategy has no such thing.
      vocabulary: the shared tokens of models that count them differently; None where all ids mean the same.
    """

    student: nnx.Module
    teacher: nnx.Module
    projection: Array | None = None
    vocabulary: Vocabulary | None = None

    def teacher_tokens(self, inputs: Inputs) -> Array:
        """The ids under which the teacher knows the tokens."""
        return inputs.tokens if self.vocabulary is None else jnp.maximum(self.vocabulary.teacher_of[inputs.tokens], 0)

    def next_logits(self, inputs: Inputs) -> tuple[Float[Array, "batch next vocab"], Float[Array, "batch next theirs"]]:
        """The logits of both for the next tokens, all at once; the teacher's in its own order.

        Raises:
          ValueError: the models know different numbers of ids, and nothing says which are the same.
        """
        ours, _ = self.student(inputs.tokens, inputs.positions, None, inputs.attention_mask)
        theirs, _ = self.teacher(self.teacher_tokens(inputs), inputs.positions, None, inputs.attention_mask)
        if self.vocabulary is None:
            check_sizes(ours.shape[-1], theirs.shape[-1])
        return ours[:, :-1], jax.lax.stop_gradient(theirs[:, :-1])


def check_sizes(student_size: int, teacher_size: int) -> None:
    """Raises ValueError where student and teacher know different numbers of ids."""
    if student_size != teacher_size:
        raise ValueError(
            f"the student knows {student_size} ids, the teacher {teacher_size}: if they mean the same tokens, say which by "
            "vocab_mapping (for each id of the teacher that of the student, or -1)"
        )


class Strategy(abc.ABC):
    """One way to distil.

    Attributes:
      looks_inside: whether it compares what the layers compute, and not only what comes out of the models.
    """

    looks_inside = False

    def check(self, student: nnx.Module, teacher: nnx.Module) -> None:
        """Raises ValueError where the strategy does not suit these models."""
        del student, teacher

    def initial_projection(self, student: nnx.Module, teacher: nnx.Module) -> np.ndarray | None:
        """What is to be trained beside the student, as it begins; None: nothing."""
        del student, teacher
        return None

    @abc.abstractmethod
    def losses(self, models: Models, inputs: Inputs) -> Losses:
        """The loss of a batch; a pure function of the arrays in its arguments."""


# ---- next-token distributions ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(kw_only=True)
class LogitStrategy(LogitKnobs, Strategy):
    """The student imitates the teacher's next-token distribution; `LogitKnobs` says what can be chosen.

    Of two decoders the hidden states are compared slice by slice, so that no [batch, seq, vocab] array is ever made.
    """

    def __post_init__(self) -> None:
        check_bounds(self)
        _check_choice(self, "direction", get_args(Direction))
        _check_choice(self, "top_k_rest", ("ignore", "one_class"))

    def losses(self, models: Models, inputs: Inputs) -> Losses:
        of_token = self._token_losses(models, inputs)
        return _mixed(inputs, self.alpha, of_token.soft, of_token.hard, kl=of_token.kl)

    def _token_losses(self, models: Models, inputs: Inputs) -> distill.TokenLosses:
        student, teacher, vocabulary = models.student, models.teacher, models.vocabulary
        shared = None if vocabulary is None else vocabulary.student_ids
        if not (isinstance(student, Decoder) and isinstance(teacher, Decoder)):
            ours, theirs = models.next_logits(inputs)
            theirs = theirs if vocabulary is None else theirs[..., vocabulary.teacher_ids]
            ours, theirs = (jnp.where(inputs.is_target[..., None], logits, 0.0) for logits in (ours, theirs))
            return distill.logit_losses(ours, theirs, inputs.targets, self._soft_loss, shared)
        final = run_layers(student, inputs.tokens, inputs).final
        teacher_final = run_layers(teacher, models.teacher_tokens(inputs), inputs).final
        teacher_head = teacher.head() if vocabulary is None else teacher.head()[vocabulary.teacher_ids]
        return distill.hidden_losses(
            distill.Unheaded(final, student.head(), student.config.final_logit_softcap),
            distill.Unheaded(teacher_final, teacher_head, teacher.config.final_logit_softcap),
            inputs.targets,
            inputs.is_target,
            self._soft_loss,
            shared,
        )

    def _soft_loss(self, student: Array, teacher: Array) -> Array:
        match self.direction:
            case "forward_kl":
                divergence = distill.forward_kl
            case "reverse_kl":
                divergence = distill.reverse_kl
            case "jsd":
                divergence = functools.partial(distill.jensen_shannon, mixture=self.jsd_mixture)
        keeps_rest = self.top_k_rest == "one_class"
        return distill.softened(
            divergence, student, teacher, temperature=self.temperature, top_k=self.top_k, keeps_rest=keeps_rest
        )


# ---- inside the models -----------------------------------------------------------------------------------------------------


class _LayerStrategy(LayerKnobs, Strategy):
    """A strategy that compares layers of two decoders."""

    looks_inside = True

    def check(self, student: nnx.Module, teacher: nnx.Module) -> None:
        for model in (student, teacher):
            if not isinstance(model, Decoder):
                raise ValueError(
                    f"{type(self).__name__} looks inside the models, which must be decoders: got {type(model).__name__}"
                )
        self.pairs(student, teacher)

    def pairs(self, student: Decoder, teacher: Decoder) -> Pairs:
        """Who imitates whom."""
        return layer_pairs(self.student_layers, self.teacher_layers, student.config, teacher.config)

    def losses(self, models: Models, inputs: Inputs) -> Losses:
        pairs = self.pairs(models.student, models.teacher)
        student = run_layers(models.student, inputs.tokens, inputs, **self.kept([ours for ours, _ in pairs], models.student))
        theirs = self.kept([theirs for _, theirs in pairs], models.teacher)
        teacher = jax.lax.stop_gradient(run_layers(models.teacher, models.teacher_tokens(inputs), inputs, **theirs))
        soft = self.distance_of_tokens(student, teacher, pairs, inputs, models.projection)
        head, softcap = models.student.head(), models.student.config.final_logit_softcap
        return _mixed(inputs, self.alpha, soft, -token_logps(student.final, head, inputs.targets, softcap=softcap))

    @abc.abstractmethod
    def kept(self, layers: list[int], model: Decoder) -> dict[str, tuple[int, ...]]:
        """Which of a model's outputs are compared: arguments of `run_layers`."""

    @abc.abstractmethod
    def distance_of_tokens(
        self, student: Layers, teacher: Layers, pairs: Pairs, inputs: Inputs, projection: Array | None
    ) -> Float[Array, "batch next"]:
        """How far the student is from the teacher at each token, averaged over the pairs of layers."""


class _AttentionStrategy(_LayerStrategy):
    """Compares attention maps, over the pairs of query and key that the student's layer may see.

    Where the student's window is shorter than the teacher's, the teacher's
    weights inside it are renormalised.
    """

    distance: Literal["kl", "mse"]

    def __post_init__(self) -> None:
        check_bounds(self)
        _check_choice(self, "distance", ("kl", "mse"))

    def kept(self, layers: list[int], model: Decoder) -> dict[str, tuple[int, ...]]:
        return {"attention": tuple(layers)}

    def distance_of_tokens(self, student, teacher, pairs, inputs, projection):
        measure = features.attention_kl if self.distance == "kl" else features.attention_mse
        total = jnp.zeros(inputs.targets.shape, jnp.float32)
        for i, (ours, theirs) in enumerate(pairs):
            of_student, of_teacher = student.attention[ours], teacher.attention[theirs]
            learned = None if projection is None else projection[i]
            maps, teacher_maps = self.aligned(of_student.weights, of_teacher.weights, learned)
            seen = jnp.broadcast_to(of_student.visible[:, None], maps.shape)
            total += measure(maps, teacher_maps, seen).mean(axis=1)
        return total / len(pairs)

    @abc.abstractmethod
    def aligned(self, student: Array, teacher: Array, projection: Array | None) -> tuple[Array, Array]:
        """The maps [batch, heads, query, key] of both, as many of one as of the other."""


@dataclasses.dataclass(kw_only=True)
class AttentionTransferStrategy(AttentionTransferKnobs, _AttentionStrategy):
    """The student's attention maps imitate the teacher's; `AttentionTransferKnobs` says what can be chosen."""

    def check(self, student: nnx.Module, teacher: nnx.Module) -> None:
        super().check(student, teacher)
        ours, theirs = student.config.num_heads, teacher.config.num_heads
        heads = range(ours) if self.teacher_heads is None else self.teacher_heads
        if len(heads) != ours or (self.teacher_heads is not None and not all(0 <= head < theirs for head in heads)):
            raise ValueError(
                f"teacher_heads must have one of the teacher's heads (0 to {theirs - 1}) for each of the student's {ours}, "
                f"got {self.teacher_heads}"
            )

    def aligned(self, student: Array, teacher: Array, projection: Array | None) -> tuple[Array, Array]:
        if self.teacher_heads is None:
            return student.mean(axis=1, keepdims=True), teacher.mean(axis=1, keepdims=True)
        return student, teacher[:, jnp.asarray(self.teacher_heads)]


@dataclasses.dataclass(kw_only=True)
class AttentionProjectionStrategy(AttentionProjectionKnobs, _AttentionStrategy):
    """Learned mixtures of the student's attention maps imitate the teacher's, head by head.

    Each of the teacher's heads gets weights over the student's heads, positive and adding up to 1, so that a mixture of maps is a
    map; they are the softmax of what is learned, and begin equal.
    """

    def initial_projection(self, student: nnx.Module, teacher: nnx.Module) -> np.ndarray:
        pairs = self.pairs(student, teacher)
        return np.zeros((len(pairs), teacher.config.num_heads, student.config.num_heads), np.float32)

    def aligned(self, student: Array, teacher: Array, projection: Array | None) -> tuple[Array, Array]:
        return jnp.einsum("jh,bhtk->bjtk", jax.nn.softmax(projection, axis=-1), student), teacher


class _FeatureStrategy(_LayerStrategy):
    """Compares hidden states: the outputs of layers."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def kept(self, layers: list[int], model: Decoder) -> dict[str, tuple[int, ...]]:
        return {"hidden": tuple(layers)}


@dataclasses.dataclass(kw_only=True)
class FeaturePoolingStrategy(FeaturePoolingKnobs, _FeatureStrategy):
    """The student's hidden states point where the teacher's averaged ones do; `FeaturePoolingKnobs` says what can be chosen."""

    def check(self, student: nnx.Module, teacher: nnx.Module) -> None:
        super().check(student, teacher)
        for what, ours, theirs in (
            ("width", student.config.embed_dim, teacher.config.embed_dim),
            *([("number of layers", student.config.num_layers, teacher.config.num_layers)] if self._pools_layers else []),
        ):
            if theirs < ours:
                raise ValueError(
                    f"FeaturePoolingStrategy averages the teacher's {what} down to the student's, but {theirs} is less than "
                    f"{ours}: take FeatureProjectionStrategy"
                )

    @property
    def _pools_layers(self) -> bool:
        return self.student_layers is None and self.teacher_layers is None

    def kept(self, layers: list[int], model: Decoder) -> dict[str, tuple[int, ...]]:
        return {"hidden": tuple(range(model.config.num_layers)) if self._pools_layers else tuple(layers)}

    def distance_of_tokens(self, student, teacher, pairs, inputs, projection):
        ours = jnp.stack([student.hidden[layer] for layer, _ in pairs])
        theirs = jnp.stack(list(teacher.hidden.values()) if self._pools_layers else [teacher.hidden[layer] for _, layer in pairs])
        theirs = features.average_pool(theirs, ours.shape[0], axis=0)
        theirs = features.average_pool(theirs, ours.shape[-1], axis=-1)
        return features.cosine_distance(ours, theirs).mean(axis=0)


@dataclasses.dataclass(kw_only=True)
class FeatureProjectionStrategy(FeatureProjectionKnobs, _FeatureStrategy):
    """The student's hidden states, through a learned map to the teacher's width, equal the teacher's.

    Attributes:
      seed: of the map's first values, drawn with variance 1 / the student's width.
    """

    seed: int = 0

    def initial_projection(self, student: nnx.Module, teacher: nnx.Module) -> np.ndarray:
        ours, theirs = student.config.embed_dim, teacher.config.embed_dim
        shape = (len(self.pairs(student, teacher)), ours, theirs)
        return (ours**-0.5 * np.random.default_rng([self.seed, _PROJECTION_KEY]).standard_normal(shape)).astype(np.float32)

    def distance_of_tokens(self, student, teacher, pairs, inputs, projection):
        ours = jnp.stack([student.hidden[layer] for layer, _ in pairs])
        theirs = jnp.stack([teacher.hidden[layer] for _, layer in pairs])
        return features.mean_squared_error(jnp.einsum("pbtd,pde->pbte", ours, projection), theirs).mean(axis=0)


# Purpose of a random draw, so that the map and the student of one seed have nothing in common.
_PROJECTION_KEY = 2


# ---- a loss of the user's own ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class CustomLoss(Strategy):
    """A function of logits; those of the whole batch are made for it.

    Attributes:
      loss_fn: `loss_fn(student_logits, teacher_logits, labels)`, logits [batch, seq − 1, vocab] and the next tokens, also where
        they are no targets; a parameter called `mask` gets True where they are. A token that the teacher lacks has logit −1e9.
      has_aux: whether it returns `(loss, {name: value})`.
    """

    loss_fn: Callable[..., Any]
    has_aux: bool = False

    def losses(self, models: Models, inputs: Inputs) -> Any:
        ours, theirs = models.next_logits(inputs)
        if models.vocabulary is not None:
            theirs, shared = theirs[..., models.vocabulary.teacher_ids], models.vocabulary.student_ids
            theirs = jnp.full(ours.shape, _NEVER, theirs.dtype).at[..., shared].set(theirs)
        more = {"mask": inputs.is_target} if "mask" in inspect.signature(self.loss_fn).parameters else {}
        out = self.loss_fn(ours, theirs, inputs.targets, **more)
        return out if self.has_aux else (out, {})


def _mixed(inputs: Inputs, alpha: float, soft: Array, hard: Array, **watched: Array) -> Losses:
    """alpha · soft + (1 − alpha) · hard over the target tokens, and all of them one by one."""
    over_targets = functools.partial(WeightedMean.of, weights=inputs.is_target)
    named = {"soft_loss": soft, "hard_loss": hard, **watched}
    return over_targets(alpha * soft + (1.0 - alpha) * hard), {name: over_targets(value) for name, value in named.items()}


def _check_choice(config: Any, name: str, options: tuple[str, ...]) -> None:
    value = getattr(config, name)
    if value not in options:
        raise ValueError(f"{type(config).__name__}.{name} must be one of {', '.join(map(repr, options))}, got {value!r}")
