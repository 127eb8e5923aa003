"""Divergences by hand, gradients against plain ones, top-k, and two heads that never hold the logits of a whole batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tunix_lab.ops.distill import (
    Unheaded,
    forward_kl,
    hidden_losses,
    jensen_shannon,
    logit_losses,
    reverse_kl,
    softened,
)

LN2, LN3 = np.log(2.0), np.log(3.0)
# p_T = (1/2, 1/2), p_S = (3/4, 1/4)
TEACHER, STUDENT = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.75, 0.25]))


def test_distill_direction_and_T():
    # KL(T‖S) = ½ ln(½/¾) + ½ ln(½/¼) = ½ (ln 2 − ln 3) + ½ ln 2 = ln 2 − ½ ln 3
    assert forward_kl(STUDENT, TEACHER) == pytest.approx(LN2 - LN3 / 2, rel=1e-5)
    # KL(S‖T) = ¾ ln(¾/½) + ¼ ln(¼/½) = ¾ (ln 3 − ln 2) − ¼ ln 2 = ¾ ln 3 − ln 2
    assert reverse_kl(STUDENT, TEACHER) == pytest.approx(0.75 * LN3 - LN2, rel=1e-5)
    assert abs(float(forward_kl(STUDENT, TEACHER) - reverse_kl(STUDENT, TEACHER))) > 0.01
    # τ = 2 of logits (0, 2 ln 3) and (0, 0): softmax(0, ln 3) = (¼, ¾) and (½, ½), times τ² = 4
    student, teacher = jnp.array([0.0, 2 * LN3]), jnp.zeros(2)
    assert softened(forward_kl, student, teacher, temperature=2.0) == pytest.approx(4 * (LN2 - LN3 / 2), rel=1e-5)
    assert softened(reverse_kl, student, teacher, temperature=2.0) == pytest.approx(4 * (0.75 * LN3 - LN2), rel=1e-5)


def test_jensen_shannon_by_hand():
    # β = ½: m = (5/8, 3/8); KL(T‖m) = ½ ln(4/5) + ½ ln(4/3); KL(S‖m) = ¾ ln(6/5) + ¼ ln(2/3)
    of_teacher = 0.5 * np.log(4 / 5) + 0.5 * np.log(4 / 3)
    of_student = 0.75 * np.log(6 / 5) + 0.25 * np.log(2 / 3)
    assert jensen_shannon(STUDENT, TEACHER, mixture=0.5) == pytest.approx(0.5 * of_teacher + 0.5 * of_student, rel=1e-5)
    # β = ¼: m = ¼·(½, ½) + ¾·(¾, ¼) = (11/16, 5/16)
    of_teacher = 0.5 * np.log(8 / 11) + 0.5 * np.log(8 / 5)
    of_student = 0.75 * np.log(12 / 11) + 0.25 * np.log(4 / 5)
    assert jensen_shannon(STUDENT, TEACHER, mixture=0.25) == pytest.approx(0.25 * of_teacher + 0.75 * of_student, rel=1e-4)


def test_jensen_shannon_tends_to_either_kl():
    """Divided by its small weight: forward KL for β → 0, reverse KL for β → 1."""
    for beta, weight, limit in ((1e-3, 1e-3, forward_kl), (1 - 1e-3, 1e-3, reverse_kl)):
        assert jensen_shannon(STUDENT, TEACHER, mixture=beta) / weight == pytest.approx(float(limit(STUDENT, TEACHER)), rel=0.01)


def test_gradients_keep_their_size_with_temperature():
    """τ → ∞: d/dz_S → (z_S − mean z_S − (z_T − mean z_T)) / V, eq. 4 of Hinton et al., the same at τ = 100 and 1000."""
    student, teacher = jnp.array([1.0, 0.0, -1.0]), jnp.array([0.0, 3.0, 0.0])
    expected = (student - (teacher - 1.0)) / 3
    for temperature in (100.0, 1000.0):
        gradient = jax.grad(lambda z: softened(forward_kl, z, teacher, temperature=temperature))(student)  # noqa: B023
        np.testing.assert_allclose(gradient, expected, atol=0.05)


def test_gradient_by_hand():
    """d KL(T‖S) / d z_S = p_S − p_T; with τ: τ² · (p_S − p_T) / τ."""
    student, teacher = jnp.array([0.3, -1.0, 0.5]), jnp.array([1.0, 0.0, -0.5])
    for temperature in (1.0, 2.5):
        gradient = jax.grad(lambda z: softened(forward_kl, z, teacher, temperature=temperature))(student)  # noqa: B023
        p_student, p_teacher = jax.nn.softmax(student / temperature), jax.nn.softmax(teacher / temperature)
        np.testing.assert_allclose(gradient, temperature * (p_student - p_teacher), atol=1e-6)


def test_top_k_by_hand():
    # p_T = (4, 2, 1, 1)/8, p_S = (1, 1, 2, 4)/8; the teacher's two likeliest outcomes are the first two.
    teacher, student = jnp.log(jnp.array([4.0, 2.0, 1.0, 1.0])), jnp.log(jnp.array([1.0, 1.0, 2.0, 4.0]))
    bound = functools.partial(softened, forward_kl, student, teacher, temperature=1.0)
    # renormalised: (2/3, 1/3) and (1/2, 1/2): 2/3 ln(4/3) + 1/3 ln(2/3)
    assert bound(top_k=2) == pytest.approx(2 / 3 * np.log(4 / 3) + 1 / 3 * np.log(2 / 3), rel=1e-5)
    # the rest as one class: (4, 2, 2)/8 and (1, 1, 6)/8: ½ ln 4 + ¼ ln 2 + ¼ ln(1/3)
    assert bound(top_k=2, keeps_rest=True) == pytest.approx(0.5 * np.log(4) + 0.25 * LN2 - 0.25 * LN3, rel=1e-5)
    whole = float(bound())
    for k in (4, 9):
        for keeps_rest in (False, True):
            assert bound(top_k=k, keeps_rest=keeps_rest) == pytest.approx(whole, rel=1e-6)
    # at temperature 2 with logits twice as large the k outcomes are the same, times τ² = 4
    twice = softened(forward_kl, 2 * student, 2 * teacher, temperature=2.0, top_k=2, keeps_rest=True)
    assert twice == pytest.approx(4 * float(bound(top_k=2, keeps_rest=True)), rel=1e-5)


def test_top_k_is_the_teachers():
    """What is likely for the student alone has no part in it; the rest's gradient spreads as the student's own probabilities."""
    teacher, student = jnp.array([5.0, 4.0, 0.0, 0.0]), jnp.array([0.0, 1.0, 9.0, 2.0])
    left_out = jax.grad(lambda z: softened(forward_kl, z, teacher, temperature=1.0, top_k=2))(student)
    assert left_out[2:].tolist() == [0.0, 0.0] and left_out[0] != 0
    kept = jax.grad(lambda z: softened(forward_kl, z, teacher, temperature=1.0, top_k=2, keeps_rest=True))(student)
    assert kept[2] / kept[3] == pytest.approx(float(jnp.exp(9.0 - 2.0)), rel=1e-3)


# ---- losses of tokens ------------------------------------------------------------------------------------------------------

BATCH, LENGTH, VOCAB = 2, 7, 11
SOFT = functools.partial(softened, forward_kl, temperature=2.0)


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
    student = Unheaded(draw(BATCH, LENGTH, 5), draw(VOCAB, 5), 3.0)
    teacher = Unheaded(draw(BATCH, LENGTH, 6), draw(VOCAB, 6), 2.0)
    mask = jnp.asarray(np.arange(LENGTH)[None] < [[7], [4]])
    return student, teacher, jnp.asarray(rng.integers(0, VOCAB, (BATCH, LENGTH))), mask


def test_logit_losses(inputs):
    student, teacher, targets, _ = inputs
    losses = logit_losses(student.logits(), teacher.logits(), targets, SOFT)
    # soft-capped: c · tanh(h·W / c)
    z_s = 3.0 * np.tanh(np.einsum("btd,vd->btv", student.hidden, student.head) / 3.0)
    z_t = 2.0 * np.tanh(np.einsum("btd,vd->btv", teacher.hidden, teacher.head) / 2.0)
    log_s, log_t = (z - np.log(np.exp(z).sum(-1, keepdims=True)) for z in (z_s, z_t))
    np.testing.assert_allclose(losses.hard, -np.take_along_axis(log_s, np.asarray(targets)[..., None], -1)[..., 0], rtol=1e-4)
    np.testing.assert_allclose(losses.kl, (np.exp(log_t) * (log_t - log_s)).sum(-1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(losses.soft, SOFT(jnp.asarray(z_s), jnp.asarray(z_t)), rtol=1e-4, atol=1e-5)


def test_only_shared_outcomes_are_compared(inputs):
    """The teacher has ids 4, 0, 9 of the student only: both are renormalised on these, the hard loss is on all."""
    student, teacher, targets, _ = inputs
    shared = jnp.array([4, 0, 9])
    z_s, z_t = student.logits(), teacher.logits()[..., :3]
    losses = logit_losses(z_s, z_t, targets, SOFT, shared)
    np.testing.assert_allclose(losses.soft, SOFT(z_s[..., shared], z_t), rtol=1e-6)
    np.testing.assert_allclose(losses.hard, logit_losses(z_s, teacher.logits(), targets, SOFT).hard, rtol=1e-6)


def total(losses, mask):
    return jnp.where(mask, losses.soft + 0.3 * losses.hard + 7.0 * losses.kl, 0.0).sum()


@pytest.fixture(scope="module")
def expected(inputs):
    student, teacher, targets, mask = inputs

    def loss(student):
        losses = logit_losses(student.logits(), teacher.logits(), targets, SOFT)
        return total(losses, mask), losses

    return jax.grad(loss, has_aux=True)(student)


# rows · two vocabularies = 44 logits a token: 7 tokens at once, 3 (uneven slices), and the least, 1
@pytest.mark.parametrize("logits_at_once", [2**22, 3 * 44 + 5, 1])
def test_slices_change_nothing(inputs, expected, logits_at_once):
    """Values at the mask's tokens, and gradients by hidden states and head, none of them from `kl`."""
    student, teacher, targets, mask = inputs

    def loss(student):
        losses = hidden_losses(student, teacher, targets, mask, SOFT, logits_at_once=logits_at_once)
        return total(losses, mask), losses

    gradient, losses = jax.jit(jax.grad(loss, has_aux=True))(student)
    for ours, theirs in ((gradient.hidden, expected[0].hidden), (gradient.head, expected[0].head)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(losses), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_allclose(ours[mask], theirs[mask], rtol=1e-4, atol=1e-5)


def test_kl_is_watched_without_a_gradient(inputs):
    student, teacher, targets, mask = inputs
    gradient = jax.grad(lambda s: hidden_losses(s, teacher, targets, mask, SOFT).kl.sum())(student)
    assert not np.any(gradient.hidden) and not np.any(gradient.head)


def test_no_gradient_reaches_the_teacher(inputs):
    student, teacher, targets, mask = inputs
    for logits_at_once in (2**22, 1):
        losses = functools.partial(hidden_losses, targets=targets, mask=mask, soft_loss=SOFT, logits_at_once=logits_at_once)
        gradient = jax.grad(lambda t, losses=losses: total(losses(student, t), mask))(teacher)
        assert not np.any(gradient.hidden) and not np.any(gradient.head)
    assert not np.any(jax.grad(lambda z: total(logit_losses(student.logits(), z, targets, SOFT), mask))(teacher.logits()))


def test_masked_nan_stays_masked(inputs):
    """What stands where the mask is False is never read, nor does a gradient come from there."""
    student, teacher, targets, mask = inputs

    def loss(hidden, teacher_hidden):
        losses = hidden_losses(
            Unheaded(hidden, student.head, 3.0), Unheaded(teacher_hidden, teacher.head, 2.0), targets, mask, SOFT
        )
        return total(losses, mask)

    poison = lambda hidden: jnp.where(mask[..., None], hidden, jnp.nan)  # noqa: E731
    clean = jax.value_and_grad(loss)(student.hidden, teacher.hidden)
    poisoned = jax.value_and_grad(loss)(poison(student.hidden), poison(teacher.hidden))
    jax.tree.map(np.testing.assert_array_equal, poisoned, clean)


def test_slices_hold_no_logits_of_the_whole_batch():
    """The compiled backward pass needs less scratch memory in slices than at once."""
    batch, length, vocab = 4, 256, 512
    teacher = Unheaded(jnp.zeros((batch, length, 16)), jnp.zeros((vocab, 16)))
    targets, mask = jnp.zeros((batch, length), jnp.int32), jnp.ones((batch, length), bool)

    def scratch(logits_at_once):
        def loss(hidden, head):
            return total(hidden_losses(Unheaded(hidden, head), teacher, targets, mask, SOFT, logits_at_once=logits_at_once), mask)

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(jnp.zeros((batch, length, 8)), jnp.zeros((vocab, 8))).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    # all logits of both: 2 · 4 · 256 · 512 float32 = 4 MiB; a slice of 2**16: 256 KiB
    assert scratch(2**22) > 4 * 2**20 > 2 * scratch(2**16)
