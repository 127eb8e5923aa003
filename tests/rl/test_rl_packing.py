"""Packed answers: computed as if each stood alone, a prompt once for its answers, in few shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tunix_lab.models.value_head import value_model
from tunix_lab.rl.experience import fill_up, token_batch
from tunix_lab.rl.forward import completion_logps, completion_logps_and_entropy, completion_values, final_scores
from tunix_lab.rl.packing import packed

TEMPERATURE = 0.7


def answers(seed: int, prompts: list[int], lengths: list[list[int]], max_prompt: int = 16, max_completion: int = 32):
    """Random texts: prompts of these lengths, each with answers of those; their ids, and the batch."""
    draw = lambda n: rng.integers(3, 60, n).astype(np.int32)  # noqa: E731
    rng = np.random.default_rng(seed)
    texts = [(prompt, draw(t)) for p, some in zip(prompts, lengths, strict=True) for prompt in [draw(p)] for t in some]
    logps = [np.zeros(len(ids), np.float32) for _, ids in texts]
    sizes = {"max_prompt": max_prompt, "max_completion": max_completion}
    prompt_ids, ids = zip(*texts, strict=True)
    return texts, token_batch(prompt_ids, ids, logps, np.ones(len(texts), bool), **sizes)


MIXED = answers(0, [9, 5, 16, 8, 3], [[20, 3, 32, 1], [7], [12, 12], [32, 32, 31], [30, 1, 1, 9]])


def inputs_of(batch):
    """The batch packed, on the device."""
    return jax.device_put(packed([batch])[0])


@pytest.fixture(scope="module")
def model(tiny_decoder):
    """Its local layers see fewer tokens than lie between a prompt and the answers behind it."""
    made = tiny_decoder(0, num_layers=2)
    assert made.config.sliding_window < 9 and {made.config.attention_kind(i) for i in range(2)} == {"local", "global"}
    return made


@nnx.jit
def run_alone(model, text):
    return model(text[None], jnp.arange(len(text))[None], None, None)[0][0]


def alone(model, prompt, ids):
    """What the model gives for an answer's text by itself, at the prompt's last token and at the answer's."""
    text = np.concatenate([prompt, ids])
    padded = np.pad(text, (0, 48 - len(text)))  # one width is compiled; no token sees what stands behind it
    return np.asarray(run_alone(model, padded))[len(prompt) - 1 : len(text)]


def test_as_if_each_answer_stood_alone(model):
    texts, batch = MIXED
    inputs = inputs_of(batch)
    assert 1 < len(inputs["packing"].ids) < len(texts)
    logps = completion_logps(model, inputs, TEMPERATURE)
    with_entropy, entropy = completion_logps_and_entropy(model, inputs, TEMPERATURE)
    for i, (prompt, ids) in enumerate(texts):
        z = alone(model, prompt, ids)[:-1] / TEMPERATURE
        expected = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
        for found in (logps, with_entropy):
            np.testing.assert_allclose(found[i, : len(ids)], expected[np.arange(len(ids)), ids], atol=2e-5)
        np.testing.assert_allclose(entropy[i, : len(ids)], -(np.exp(expected) * expected).sum(axis=-1), atol=2e-5)
        assert not np.any(logps[i, len(ids) :])


def test_values_and_scores(model):
    texts, batch = MIXED
    inputs = inputs_of(batch)
    critic = value_model(model)
    critic.head[...] = jax.random.normal(jax.random.key(0), critic.head[...].shape)
    values, scores = completion_values(critic, inputs), final_scores(critic, inputs)
    for i, (prompt, ids) in enumerate(texts):
        expected = alone(critic, prompt, ids)[:, 0]
        np.testing.assert_allclose(values[i, : len(ids) + 1], expected, atol=2e-5)
        np.testing.assert_allclose(scores[i], expected[-1], atol=2e-5)


def test_gradients_are_those_of_rows_that_are_not_packed(model):
    _, batch = MIXED
    weights = np.random.default_rng(1).standard_normal(batch["completion_mask"].shape).astype(np.float32)

    def gradient(inputs):
        total = lambda model: (weights * completion_logps(model, inputs, TEMPERATURE)).sum()  # noqa: E731
        return jax.device_get(nnx.to_pure_dict(nnx.jit(nnx.grad(total))(model)))

    plain, of_packed = gradient(batch), gradient(inputs_of(batch))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), plain, of_packed)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(plain)) > 1


def test_no_answer_hears_of_another(model):
    """What other answers are changes nothing, not by a bit."""
    texts, batch = MIXED
    inputs = inputs_of(batch)
    before = completion_logps(model, inputs, TEMPERATURE)
    changed = {**batch, "completion_ids": batch["completion_ids"].copy()}
    changed["completion_ids"][2] = (changed["completion_ids"][2] + 7) % 60
    after = completion_logps(model, inputs_of(changed), TEMPERATURE)
    for i in set(range(len(texts))) - {2}:
        np.testing.assert_array_equal(before[i], after[i])
    assert (before[2] != after[2]).any()


def test_a_prompt_is_computed_once_for_its_answers():
    """64 tokens of prompt with 4 answers of 64: rows of 320, all full, where single rows would have 16 × 128 tokens."""
    _, batch = answers(0, [64] * 4, [[64] * 4] * 4, 64, 64)
    [inputs] = packed([batch])
    packing = inputs["packing"]
    assert packing.ids.shape == (4, 320) and (packing.segments > 0).all()
    assert packing.reads.shape == (1, 1024) and "prompt_ids" not in inputs


def test_short_answers_fill_rows():
    """Real tokens are at least two thirds of what is computed, lengths spread as they may."""
    for seed in range(10):
        lengths = np.random.default_rng(seed).geometric(1 / 37, (8, 4)).clip(1, 128).tolist()
        _, batch = answers(seed, [64] * 8, lengths, 64, 128)
        packing = packed([batch])[0]["packing"]

        assert np.mean(packing.segments > 0) > 2 / 3
        assert packing.ids.size < 0.5 * 32 * (64 + 128)


def test_rows_that_fill_up_a_batch_have_no_place():
    _, batch = answers(0, [8, 8], [[16], [16]])
    few, filled = packed([batch])[0]["packing"], packed([fill_up(batch, 6)])[0]["packing"]
    np.testing.assert_array_equal(few.ids, filled.ids)
    assert filled.starts.shape == (6,) and not filled.starts[2:].any()
    nobody = {**batch, "is_row": np.zeros(2, bool)}
    assert not packed([nobody])[0]["packing"].segments.any()


def test_batches_of_one_update_have_one_shape_and_rows_for_every_device():
    batches = [answers(seed, [8] * 4, [[n]] * 4)[1] for seed, n in enumerate((32, 2, 9))]
    made = packed(batches, parts=4)
    shapes = [jax.tree.map(np.shape, each) for each in made]
    assert shapes[0] == shapes[1] == shapes[2] and shapes[0]["packing"].ids[0] % 4 == 0


def test_parts_for_devices_change_nothing(model):
    """Each reads in its own rows."""
    _, batch = MIXED
    plain, in_parts = (jax.device_put(packed([batch], parts)[0]) for parts in (1, 3))
    assert in_parts["packing"].reads.shape[0] == 3 and (in_parts["packing"].segments > 0).any(axis=1).sum() > 1
    found = [completion_logps(model, inputs, TEMPERATURE) for inputs in (plain, in_parts)]
    np.testing.assert_allclose(*found, atol=1e-5)


def test_batches_of_chance_lengths_have_few_shapes():
    """Numbers of rows beyond eight are rounded up to four sizes a doubling."""
    shapes = set()
    for seed in range(30):
        lengths = np.random.default_rng(seed).geometric(1 / 37, (32, 4)).clip(1, 128).tolist()
        packing = packed([answers(seed, [32] * 32, lengths, 32, 128)[1]])[0]["packing"]
        shapes.add((packing.ids.shape, packing.reads.shape))
    assert len(shapes) <= 6 and {ids for ids, _ in shapes} == {(10, 512), (12, 512), (14, 512)}


def test_long_texts():
    """Where texts may have thousands of tokens, rows are as long as those that came need; the arrays of answers too."""
    texts, batch = answers(0, [1100, 30], [[50, 9], [20]], 4096, 8192)
    assert batch["completion_ids"].shape == (3, 512)
    packing = packed([batch])[0]["packing"]
    assert packing.ids.shape == (1, 2048) and packing.reads.shape[1] >= 79
    for i, (_, ids) in enumerate(texts):
        np.testing.assert_array_equal(packing.ids.ravel()[packing.starts[i] :][: len(ids)], ids)
        np.testing.assert_array_equal(packing.targets.ravel()[packing.first_reads[i] :][: len(ids)], ids)


def test_lengths_that_vary_compile_little(make_grpo, prompts, metrics, compiled, policy):
    """Eighty rollouts of answers of 1 to 64 tokens share a few programs; nothing else is compiled behind the first of them."""
    rollout = {"max_tokens_to_generate": 64, "eos_tokens": list(range(3, 7))}
    still = {"optimizer": optax.sgd(0.0), "max_steps": 40}  # lengths vary by chance alone
    learner = make_grpo({"beta": 0.1}, reference=policy(5), rollout=rollout, **still)
    learner.train(prompts(8))
    steps = compiled.count("jit(step)")
    compiled.clear()
    learner.trainer.config.max_steps = 80
    learner.train(prompts(8))
    assert 1 <= steps + compiled.count("jit(step)") <= 5
    assert set(compiled) <= {"jit(step)", "jit(<lambda>)"} and len(compiled) <= 2  # at most one more: the update, the reference
    assert len(set(metrics(learner, "answer_tokens"))) > 60
