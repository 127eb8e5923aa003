"""Distillation on logits: how far a student's next-token distributions are from a teacher's, a slice of the batch at a time."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tunix_lab.ops.logps import gather_logps
from tunix_lab.ops.softcap import soft_cap

# Logits held at once, of student and teacher together: 2**22 float32 are 16 MiB.
_LOGITS_AT_ONCE = 2**22

Divergence = Callable[[Float[Array, "*token outcome"], Float[Array, "*token outcome"]], Float[Array, "*token"]]
"""(log-probabilities of the student, of the teacher) -> nats, one value per token."""


# ---- divergences of two distributions --------------------------------------------------------------------------------------


def forward_kl(student: Float[Array, "*token outcome"], teacher: Float[Array, "*token outcome"]) -> Float[Array, "*token"]:
    """KL(p_T ‖ p_S) = Σ p_T · (log p_T − log p_S): the student must cover all that the teacher may say.

    https://arxiv.org/abs/1503.02531 (there as a cross-entropy, which differs by the teacher's entropy, a constant).
    """
    return jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1)


def reverse_kl(student: Float[Array, "*token outcome"], teacher: Float[Array, "*token outcome"]) -> Float[Array, "*token"]:
    """KL(p_S ‖ p_T) = Σ p_S · (log p_S − log p_T), https://arxiv.org/abs/2306.08543: the student may leave out, not make up."""
    return forward_kl(teacher, student)


def jensen_shannon(
    student: Float[Array, "*token outcome"], teacher: Float[Array, "*token outcome"], *, mixture: float
) -> Float[Array, "*token"]:
    """JSD(β) = β·KL(p_T ‖ m) + (1−β)·KL(p_S ‖ m), m = β·p_T + (1−β)·p_S; https://arxiv.org/abs/2306.13649.

    Divided by β it tends to the forward KL as β → 0; divided by 1−β to the reverse KL as β → 1.

    Args:
      student: log p_S.
      teacher: log p_T.
      mixture: β, the teacher's share of the mixture m, between 0 and 1.
    """
    middle = jnp.logaddexp(teacher + jnp.log(mixture), student + jnp.log1p(-mixture))
    return mixture * forward_kl(middle, teacher) + (1.0 - mixture) * forward_kl(middle, student)


def softened(
    divergence: Divergence,
    student: Float[Array, "*token vocab"],
    teacher: Float[Array, "*token vocab"],
    *,
    temperature: float,
    top_k: int | None = None,
    keeps_rest: bool = False,
) -> Float[Array, "*token"]:
    """τ² · D(softmax(z_S/τ), softmax(z_T/τ)), eq. 1–4 of https://arxiv.org/abs/1503.02531.

    Gradients of D by the logits shrink as 1/τ²; the factor τ² (applied here, once, in every direction) keeps their size, so that
    the weight of a hard loss beside it need not change with τ.

    Args:
      divergence: D.
      student: logits z_S.
      teacher: logits z_T, over the same outcomes.
      temperature: τ.
      top_k: compare the teacher's k likeliest outcomes only; None compares all.
      keeps_rest: whether all other outcomes count as one more. Otherwise they are left out, and both distributions are
        renormalised on the k.
    """
    student, teacher = student / temperature, teacher / temperature
    if top_k is not None and top_k < teacher.shape[-1]:
        student, teacher = _top_outcomes(student, teacher, top_k, keeps_rest)
    return temperature**2 * divergence(jax.nn.log_softmax(student), jax.nn.log_softmax(teacher))


def _top_outcomes(student: Array, teacher: Array, k: int, keeps_rest: bool) -> tuple[Array, Array]:
    """Logits of the teacher's k likeliest outcomes and, if wanted, one for all the rest: the log-sum-exp of theirs."""
    top, ids = jax.lax.top_k(teacher, k)
    chosen = jnp.take_along_axis(student, ids, axis=-1)
    if not keeps_rest:
        return chosen, top
    is_top = jnp.put_along_axis(jnp.zeros(teacher.shape, bool), ids, True, axis=-1, inplace=False)
    rest = lambda logits: jax.nn.logsumexp(jnp.where(is_top, -jnp.inf, logits), axis=-1, keepdims=True)  # noqa: E731
    return jnp.concatenate([chosen, rest(student)], axis=-1), jnp.concatenate([top, rest(teacher)], axis=-1)


# ---- losses per token ------------------------------------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenLosses:
    """What distillation says of each token.

    Attributes:
      soft: the divergence that is trained.
      hard: −log p_S(target), nats, at temperature 1.
      kl: KL(p_T ‖ p_S), nats, at temperature 1 over all shared outcomes, to be watched; it has no gradient.
    """

    soft: Float[Array, "batch seq"]
    hard: Float[Array, "batch seq"]
    kl: Float[Array, "batch seq"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Unheaded:
    """A model's final hidden states and what makes logits of them.

    Attributes:
      hidden: the final hidden states.
      head: the output head.
      softcap: logits go through softcap · tanh(logits / softcap); None leaves them.
    """

    hidden: Float[Array, "batch seq embed"]
    head: Float[Array, "vocab embed"]
    softcap: float | None = dataclasses.field(default=None, metadata={"static": True})

    def logits(self) -> Float[Array, "batch seq vocab"]:
        """hidden · headᵀ in float32."""
        logits = jnp.einsum("btd,vd->btv", self.hidden, self.head, preferred_element_type=jnp.float32)
        return soft_cap(logits, self.softcap)


def logit_losses(
    student: Float[Array, "batch seq vocab"],
    teacher: Float[Array, "batch seq shared"],
    targets: Int[Array, "batch seq"],
    soft_loss: Divergence,
    shared: Int[Array, " shared"] | None = None,
) -> TokenLosses:
    """The losses of tokens whose logits are given; no gradient goes to the teacher.

    Args:
      student: its logits, of the next token.
      teacher: its logits, in the order of `shared`.
      targets: the next tokens.
      soft_loss: of the two logits, such as `softened` with its arguments bound.
      shared: the student's ids that the teacher's logits belong to, both distributions being renormalised on these; None: all.
    """
    student, teacher = student.astype(jnp.float32), jax.lax.stop_gradient(teacher.astype(jnp.float32))
    compared = student if shared is None else student[..., shared]
    watched = jax.lax.stop_gradient(compared)
    return TokenLosses(
        soft=soft_loss(compared, teacher),
        hard=-gather_logps(student, targets),
        kl=forward_kl(jax.nn.log_softmax(watched), jax.nn.log_softmax(teacher)),
    )


def hidden_losses(
    student: Unheaded,
    teacher: Unheaded,
    targets: Int[Array, "batch seq"],
    mask: Bool[Array, "batch seq"],
    soft_loss: Divergence,
    shared: Int[Array, " shared"] | None = None,
    logits_at_once: int = _LOGITS_AT_ONCE,
) -> TokenLosses:
    """`logit_losses` of hidden states, never holding the logits of a whole batch.

    Both heads are applied to slices of the sequence axis (rows stay whole, so a batch split over devices stays split), and the
    backward pass recomputes each slice: memory is that of one slice, not of two [B, T, V] arrays.

    Args:
      student: is trained.
      teacher: gets no gradient; its head has the rows of `shared`, in their order.
      targets: the next tokens.
      mask: where the losses are wanted; elsewhere they are those of hidden states 0, and what stood there is never read.
      soft_loss: of the two logits, see `logit_losses`.
      shared: the student's ids of the teacher's head; None: all.
      logits_at_once: of both models together.
    """
    here = mask[..., None]
    hidden = jnp.where(here, student.hidden, 0), jnp.where(here, jax.lax.stop_gradient(teacher.hidden), 0)

    # The heads are arguments, so that what the backward pass keeps of a slice is no more than what went in.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def of_slice(student_head, teacher_head, piece):
        (student_hidden, teacher_hidden), targets = piece
        z_student = Unheaded(student_hidden, student_head, student.softcap).logits()
        z_teacher = Unheaded(teacher_hidden, teacher_head, teacher.softcap).logits()
        losses = logit_losses(z_student, z_teacher, targets, soft_loss, shared)
        return losses.soft, losses.hard, losses.kl

    heads = student.head, jax.lax.stop_gradient(teacher.head)
    batch, length = targets.shape
    size = max(1, logits_at_once // (batch * sum(head.shape[0] for head in heads)))
    if size >= length:
        return TokenLosses(*of_slice(*heads, (hidden, targets)))
    slices = jax.tree.map(lambda array: _sliced(array, size), (hidden, targets))
    losses = jax.lax.map(lambda piece: of_slice(*heads, piece), slices)
    return TokenLosses(*(array.swapaxes(0, 1).reshape(batch, -1)[:, :length] for array in losses))


def _sliced(array: Array, size: int) -> Array:
    """[batch, seq, …] -> [slices, batch, size, …], the last slice filled up with zeros."""
    batch, length, *rest = array.shape
    count = -(-length // size)
    padded = jnp.pad(array, ((0, 0), (0, count * size - length), *[(0, 0)] * len(rest)))
    return padded.reshape(batch, count, size, *rest).swapaxes(0, 1)
