"""Strategies on decoders: their values by hand from what the layers compute, which layers and heads, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tunix_lab.distillation.features import layer_pairs, run_layers
from tunix_lab.distillation.inputs import Inputs
from tunix_lab.distillation.strategies import (
    AttentionProjectionStrategy,
    AttentionTransferStrategy,
    FeaturePoolingStrategy,
    FeatureProjectionStrategy,
    LogitStrategy,
    Models,
)
from tunix_lab.models.capture import Capture

# The student has two layers of four heads, 16 wide.
TEACHER = {"num_layers": 4, "embed_dim": 32, "num_heads": 6}


@pytest.fixture(scope="module")
def student(tiny_decoder):
    return tiny_decoder(0, num_layers=2)


@pytest.fixture(scope="module")
def teacher(tiny_decoder):
    return tiny_decoder(1, **TEACHER)


@pytest.fixture(scope="module")
def rows(sft_rows):
    return {name: jnp.asarray(value) for name, value in sft_rows([8, 3, 6], width=8).items()}


@pytest.fixture(scope="module")
def inputs(rows):
    return Inputs.of(**rows)


@pytest.fixture(scope="module")
def seen(student, teacher, inputs):
    """What both compute, in float64 numpy: final, hidden [layer], weights [layer], visible [layer] of each."""

    def run(model):
        kept = Capture(range(4), range(4))
        final, _ = model(inputs.tokens, inputs.positions, None, inputs.attention_mask, skip_lm_head=True, capture=kept)
        arrays = [kept.hidden[i] for i in sorted(kept.hidden)], [kept.attention[i].weights for i in sorted(kept.attention)]
        visible = [np.asarray(kept.attention[i].visible) for i in sorted(kept.attention)]
        return np.asarray(final, np.float64), *(np.asarray(each, np.float64) for each in arrays), visible

    return run(student), run(teacher)


@pytest.fixture(scope="module")
def hard(student, seen, inputs):
    """Cross-entropy over the target tokens."""
    logits = seen[0][0][:, :-1] @ np.asarray(student.head(), np.float64).T
    logps = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -np.take_along_axis(logps, np.asarray(inputs.targets)[..., None], -1)[..., 0][np.asarray(inputs.is_target)].mean()


def evaluate(strategy, student, teacher, inputs, projection=None):
    strategy.check(student, teacher)
    if projection is None:
        projection = strategy.initial_projection(student, teacher)
    loss, aux = strategy.losses(Models(student, teacher, None if projection is None else jnp.asarray(projection)), inputs)
    assert loss.count == aux["soft_loss"].count == inputs.is_target.sum()
    return float(loss.mean), float(aux["soft_loss"].mean), float(aux["hard_loss"].mean)


def check(strategy, student, teacher, inputs, hard, soft, projection=None):
    found = evaluate(strategy, student, teacher, inputs, projection)
    alpha = strategy.alpha
    np.testing.assert_allclose(found, [alpha * soft + (1 - alpha) * hard, soft, hard], rtol=2e-4)


def map_distance(student_maps, teacher_maps, visible, is_target, kind):
    """Mean over target tokens and heads, one query at a time over the keys that the student may see."""
    values = []
    for b, t in zip(*np.nonzero(is_target), strict=True):
        keys = visible[b, t]
        for mine, theirs in zip(student_maps[b, :, t], teacher_maps[b, :, t], strict=True):
            p, q = theirs[keys] / theirs[keys].sum(), mine[keys]
            values.append(np.sum(p * np.log(p / q)) if kind == "kl" else np.mean((p - q) ** 2))
    return np.mean(values)


@pytest.mark.parametrize("kind", ["kl", "mse"])
@pytest.mark.parametrize("heads", [None, [5, 0, 3, 3]])
def test_attention_transfer(student, teacher, inputs, seen, hard, kind, heads):
    """Layers 0 and 1 imitate layers 1 and 3; the means over heads, or single heads. Layer 0 sees four tokens, its teacher all."""
    (_, _, ours, visible), (_, _, theirs, _) = seen
    is_target = np.asarray(inputs.is_target)
    pick = (lambda m: m.mean(1, keepdims=True)) if heads is None else (lambda m: m)
    pick_teacher = pick if heads is None else (lambda m: m[:, heads])
    distances = [map_distance(pick(ours[i]), pick_teacher(theirs[j]), visible[i], is_target, kind) for i, j in ((0, 1), (1, 3))]
    check(AttentionTransferStrategy(distance=kind, teacher_heads=heads), student, teacher, inputs, hard, np.mean(distances))


def test_attention_projection(student, teacher, inputs, seen, hard):
    """Each teacher head is imitated by its own mixture of the student's four: equal parts at first, softmax weights later."""
    (_, _, ours, visible), (_, _, theirs, _) = seen
    strategy = AttentionProjectionStrategy(student_layers=[1], teacher_layers=[2], distance="mse", alpha=0.9)
    is_target = np.asarray(inputs.is_target)
    first = map_distance(ours[1].mean(1, keepdims=True).repeat(6, 1), theirs[2], visible[1], is_target, "mse")
    check(strategy, student, teacher, inputs, hard, first)
    learned = np.random.default_rng(0).standard_normal((1, 6, 4)).astype(np.float32)
    mixture = np.exp(learned[0]) / np.exp(learned[0]).sum(-1, keepdims=True)
    later = map_distance(np.einsum("jh,bhtk->bjtk", mixture, ours[1]), theirs[2], visible[1], is_target, "mse")
    check(strategy, student, teacher, inputs, hard, later, learned)


def cosine(a, b):
    return 1 - (a * b).sum(-1) / np.sqrt((a**2).sum(-1) * (b**2).sum(-1))


def test_feature_pooling_over_layers_and_width(student, teacher, inputs, seen, hard):
    """Four layers of 32 numbers become two of 16: means of two layers and of two neighbouring numbers."""
    (_, ours, *_), (_, theirs, *_) = seen
    pooled = theirs.reshape(2, 2, *theirs.shape[1:-1], 16, 2).mean((1, -1))
    soft = cosine(ours, pooled)[:, :, :-1][:, np.asarray(inputs.is_target)].mean()
    check(FeaturePoolingStrategy(), student, teacher, inputs, hard, soft)


def test_feature_pooling_of_chosen_layers(student, teacher, inputs, seen, hard):
    (_, ours, *_), (_, theirs, *_) = seen
    pooled = theirs[2].reshape(*theirs.shape[1:-1], 16, 2).mean(-1)
    soft = cosine(ours[1], pooled)[:, :-1][np.asarray(inputs.is_target)].mean()
    check(FeaturePoolingStrategy(student_layers=[1], teacher_layers=[2], alpha=0.25), student, teacher, inputs, hard, soft)


def test_feature_projection(student, teacher, inputs, seen, hard):
    (_, ours, *_), (_, theirs, *_) = seen
    strategy = FeatureProjectionStrategy(student_layers=[0, 1], teacher_layers=[2, 0])
    projection = strategy.initial_projection(student, teacher)
    assert projection.shape == (2, 16, 32) and projection.std() == pytest.approx(0.25, rel=0.1)  # 1 / √16
    errors = [(ours[i] @ projection[n] - theirs[j]) ** 2 for n, (i, j) in enumerate(((0, 2), (1, 0)))]
    soft = np.mean([error.mean(-1)[:, :-1][np.asarray(inputs.is_target)].mean() for error in errors])
    check(strategy, student, teacher, inputs, hard, soft)
    other = FeatureProjectionStrategy(student_layers=[0, 1], teacher_layers=[2, 0], seed=1)
    assert not np.array_equal(other.initial_projection(student, teacher), projection)


def test_logits_of_decoders_are_those_of_their_logits(tiny_decoder, inputs):
    """Slices of hidden states give what whole logits give, soft caps included."""
    ours, theirs = tiny_decoder(0, num_layers=1, final_logit_softcap=2.0), tiny_decoder(1, num_layers=1, final_logit_softcap=3.0)

    class Hidden(nnx.Module):
        """The same model, of which nobody knows that it is a decoder."""

        def __init__(self, model):
            self.model = model

        def __call__(self, *arguments):
            return self.model(*arguments)

    strategy = LogitStrategy(direction="reverse_kl", temperature=1.5)
    expected = strategy.losses(Models(Hidden(ours), Hidden(theirs)), inputs)
    found = strategy.losses(Models(ours, theirs), inputs)
    np.testing.assert_allclose(jax.tree.leaves(found), jax.tree.leaves(expected), rtol=1e-4, atol=1e-5)
    uncapped = strategy.losses(Models(tiny_decoder(0, num_layers=1), theirs), inputs)
    assert abs(float(uncapped[0].mean - found[0].mean)) > 1e-3


def test_directions_and_options_of_logits_differ(table_models, inputs):
    strategies = [
        LogitStrategy(),
        LogitStrategy(direction="reverse_kl"),
        LogitStrategy(direction="jsd"),
        LogitStrategy(direction="jsd", jsd_mixture=0.1),
        LogitStrategy(temperature=1.0),
        LogitStrategy(top_k=3),
        LogitStrategy(top_k=3, top_k_rest="one_class"),
    ]
    values = [float(strategy.losses(table_models, inputs)[1]["soft_loss"].mean) for strategy in strategies]
    assert len({round(value, 4) for value in values}) == len(values)


@pytest.fixture
def table_models(table):
    return Models(table(0), table(1))


EVERY = [
    LogitStrategy(),
    AttentionTransferStrategy(),
    AttentionTransferStrategy(distance="mse", teacher_heads=[0, 1, 2, 3]),
    FeaturePoolingStrategy(),
]


@pytest.mark.parametrize("strategy", EVERY, ids=lambda s: type(s).__name__)
def test_nothing_is_to_be_learned_from_oneself(student, inputs, strategy):
    assert evaluate(strategy, student, student, inputs)[1] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    "strategy", [*EVERY, AttentionProjectionStrategy(), FeatureProjectionStrategy()], ids=lambda s: type(s).__name__
)
def test_padding_and_prompts_count_nowhere(student, teacher, rows, inputs, strategy):
    """Other tokens in the padding, more padding: the same loss."""
    expected = evaluate(strategy, student, teacher, inputs)
    noisy = rows | {"input_tokens": jnp.where(rows["valid"], rows["input_tokens"], 9)}
    wide = {name: jnp.pad(value, ((0, 0), (0, 4))) for name, value in noisy.items()}
    np.testing.assert_allclose(evaluate(strategy, student, teacher, Inputs.of(**wide)), expected, rtol=1e-4, atol=1e-5)
    later = rows | {"input_mask": rows["input_mask"] & (jnp.arange(8) > 3)[None]}
    assert abs(evaluate(strategy, student, teacher, Inputs.of(**later))[1] - expected[1]) > 1e-6


def test_packed_rows_are_texts_of_their_own(student, rows):
    """Two texts in one row: hidden states as if alone, and the first token of the second is no target."""
    first, second = rows["input_tokens"][0, :5], rows["input_tokens"][2, :3]
    packed = Inputs.of(
        jnp.concatenate([first, second])[None], jnp.ones((1, 8), bool), segment_ids=jnp.array([[1, 1, 1, 1, 1, 2, 2, 2]])
    )
    assert packed.is_target.tolist() == [[True] * 4 + [False] + [True] * 2]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2]]
    real = jnp.arange(8)[None] < 3
    alone = Inputs.of(jnp.pad(second, (0, 5))[None], real, real)
    np.testing.assert_allclose(
        run_layers(student, packed.tokens, packed, hidden=(1,)).hidden[1][:, 5:],
        run_layers(student, alone.tokens, alone, hidden=(1,)).hidden[1][:, :2],
        rtol=1e-4,
        atol=1e-5,
    )


# ---- which layers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depths", "pairs"),
    [
        ((3, 6), ((0, 1), (1, 3), (2, 5))),
        ((6, 3), ((0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (5, 2))),
        ((2, 5), ((0, 2), (1, 4))),
        ((3, 3), ((0, 0), (1, 1), (2, 2))),
    ],
)
def test_layers_are_spread_evenly(tiny_config, depths, pairs):
    configs = [tiny_config.replace(num_layers=depth) for depth in depths]
    assert layer_pairs(None, None, *configs) == pairs
    assert layer_pairs([depths[0] - 1], None, *configs) == pairs[-1:]


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (([0], [0, 1]), "1 layers of the student cannot imitate 2 layers of the teacher, one each"),
        ((None, [0]), "2 layers of the student cannot imitate 1 layers"),
        (([], []), "0 layers of the student"),
        (([1, 1], [0, 1]), r"student_layers \[1, 1\] name a layer twice"),
        (([2], [0]), "student_layers: there is no layer 2, only 0 to 1"),
        (([0], [-1]), "teacher_layers: there is no layer -1, only 0 to 3"),
    ],
)
def test_layers_that_do_not_fit(student, teacher, layers, message):
    with pytest.raises(ValueError, match=message):
        FeatureProjectionStrategy(student_layers=layers[0], teacher_layers=layers[1]).check(student, teacher)


def test_what_does_not_fit(student, teacher, table):
    for pair in ((table(0), teacher), (student, table(0))):
        with pytest.raises(ValueError, match="looks inside the models, which must be decoders: got Table"):
            FeaturePoolingStrategy().check(*pair)
    for heads in ([0, 1], [0, 1, 2, 6], [0, 1, 2, -1]):
        with pytest.raises(ValueError, match=r"one of the teacher's heads \(0 to 5\) for each of the student's 4"):
            AttentionTransferStrategy(teacher_heads=heads).check(student, teacher)
    with pytest.raises(ValueError, match="the teacher's width down to the student's, but 16 is less than 32"):
        FeaturePoolingStrategy().check(teacher, student)


def test_pooling_needs_a_deeper_teacher_only_without_chosen_layers(student, tiny_decoder):
    shallow = tiny_decoder(1, num_layers=1)
    with pytest.raises(ValueError, match="number of layers down to the student's, but 1 is less than 2"):
        FeaturePoolingStrategy().check(student, shallow)
    FeaturePoolingStrategy(student_layers=[1]).check(student, shallow)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LogitStrategy(temperature=0.0), "LogitStrategy.temperature must be greater than 0"),
        (lambda: LogitStrategy(alpha=1.1), "LogitStrategy.alpha must be at most 1"),
        (lambda: LogitStrategy(jsd_mixture=1.0), "LogitStrategy.jsd_mixture must be less than 1"),
        (lambda: LogitStrategy(top_k=0), "LogitStrategy.top_k must be greater than 0"),
        (lambda: LogitStrategy(direction="kl"), "direction must be one of 'forward_kl', 'reverse_kl', 'jsd', got 'kl'"),
        (lambda: LogitStrategy(top_k_rest="drop"), "top_k_rest must be one of 'ignore', 'one_class', got 'drop'"),
        (lambda: AttentionTransferStrategy(distance="l2"), "distance must be one of 'kl', 'mse', got 'l2'"),
        (lambda: AttentionProjectionStrategy(alpha=-1.0), "alpha must be at least 0"),
        (lambda: FeaturePoolingStrategy(alpha=2.0), "alpha must be at most 1"),
        (lambda: FeatureProjectionStrategy(alpha=2.0), "alpha must be at most 1"),
    ],
)
def test_values_out_of_bounds(make, message):
    with pytest.raises(ValueError, match=message):
        make()
