"""Drawing one token: the support, the frequencies, the log-probabilities, against a reference that sorts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tunix_lab.generate.sampling import SamplingParams, _inverse, sample

DRAWS = 20_000
PROBABILITIES = np.array([0.05, 0.3, 0.02, 0.2, 0.15, 0.04, 0.14, 0.1])
# χ² at p = 0.001 for 1 … 7 degrees of freedom
CHI_SQUARE = [10.83, 13.82, 16.27, 18.47, 20.52, 22.46, 24.32]

compiled = jax.jit(sample)


def draw(probabilities, temperature=1.0, top_k=None, top_p=None, n=DRAWS, seed=0):
    """Tokens [n] and log-probabilities [n] of n rows with the same logits and keys of their own."""
    logits = jnp.tile(jnp.log(jnp.asarray(probabilities, jnp.float32)), (n, 1))
    keys = jax.random.key_data(jax.random.split(jax.random.key(seed), n))
    return map(np.asarray, compiled(logits, SamplingParams.of(temperature, top_k, top_p), keys))


def reference(probabilities, temperature=1.0, top_k=None, top_p=None):
    """The distribution to draw from, by sorting, float64: temperature, then top-k, then the nucleus of what is left."""
    p = probabilities ** (1 / temperature)
    order = np.argsort(-p)
    p = p / p.sum()
    if top_k is not None:
        p[order[top_k:]] = 0
        p /= p.sum()
    if top_p is not None:
        before = np.concatenate([[0], np.cumsum(p[order])[:-1]])  # mass of the more probable tokens
        p[order[before >= top_p]] = 0
    return p / p.sum()


SETTINGS = [
    {},
    {"temperature": 0.7},
    {"temperature": 2.0},
    {"top_k": 1},
    {"top_k": 3},
    {"top_k": 8},
    {"top_k": 100},
    {"top_p": 1e-6},
    {"top_p": 0.29},
    {"top_p": 0.31},
    {"top_p": 0.9},
    {"top_p": 1.0},
    {"top_k": 3, "top_p": 0.75},
    {"temperature": 0.7, "top_k": 5, "top_p": 0.8},
    {"temperature": 3.0, "top_p": 0.5},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_support_and_frequencies(settings):
    expected = reference(PROBABILITIES, **settings)
    tokens, _ = draw(PROBABILITIES, **settings)
    counts = np.bincount(tokens, minlength=8)
    support = expected > 0
    assert (counts > 0).tolist() == support.tolist()
    freedom = support.sum() - 1
    if freedom:
        chi_square = ((counts - DRAWS * expected)[support] ** 2 / (DRAWS * expected)[support]).sum()
        assert chi_square < CHI_SQUARE[freedom - 1]


def test_nucleus_of_what_top_k_left_by_hand():
    # 0.4 0.3 0.2 0.1: top-3 leaves 4/9 3/9 2/9; 4/9 + 3/9 = 0.78 reaches 0.75, so two tokens; of all four it would be three
    tokens, _ = draw([0.4, 0.3, 0.2, 0.1], top_k=3, top_p=0.75, n=2000)
    assert set(tokens) == {0, 1}
    tokens, _ = draw([0.4, 0.3, 0.2, 0.1], top_p=0.75, n=2000)
    assert set(tokens) == {0, 1, 2}


@pytest.mark.parametrize(("top_k", "top_p"), [(7, None), (None, 0.9), (40, 0.6)])
def test_support_of_random_logits(top_k, top_p):
    """A vocabulary of 300: nothing outside the reference's support is ever drawn, and nearly all inside is."""
    rng = np.random.default_rng(0)
    logits = 2 * rng.standard_normal(300)
    p = np.exp(logits) / np.exp(logits).sum()
    tokens, _ = draw(p, top_k=top_k, top_p=top_p, n=5000)
    support = set(np.flatnonzero(reference(p, top_k=top_k, top_p=top_p)))
    assert set(tokens) <= support
    assert len(set(tokens)) > 0.9 * len(support)


@pytest.mark.parametrize("temperature", [0.0, None])
def test_temperature_zero_is_greedy(temperature):
    rng = np.random.default_rng(1)
    logits = jnp.asarray(rng.standard_normal((50, 8)), jnp.float32)
    keys = jax.random.key_data(jax.random.split(jax.random.key(0), 50))
    tokens, logps = compiled(logits, SamplingParams.of(temperature, 3, 0.5), keys)
    np.testing.assert_array_equal(tokens, np.argmax(logits, axis=-1))
    # where temperature is 0 the log-probability is that of temperature 1
    np.testing.assert_allclose(logps, jax.nn.log_softmax(logits).max(axis=-1), rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_log_probabilities_are_at_temperature_over_the_whole_vocabulary(temperature):
    full = reference(PROBABILITIES, temperature=temperature)
    for limits in ({}, {"top_k": 2}, {"top_p": 0.5}):
        tokens, logps = draw(PROBABILITIES, temperature=temperature, n=100, **limits)
        np.testing.assert_allclose(logps, np.log(full[tokens]), rtol=1e-5, atol=1e-6)


def test_a_row_depends_on_its_key_alone():
    rng = np.random.default_rng(2)
    logits = jnp.asarray(rng.standard_normal((6, 40)), jnp.float32)
    keys = jax.random.key_data(jax.random.split(jax.random.key(0), 6))
    params, order = SamplingParams.of(1.0, 20, 0.9), np.array([3, 0, 5, 1, 2, 4])
    tokens, logps = compiled(logits, params, keys)
    shuffled, shuffled_logps = compiled(logits[order], params, keys[order])
    np.testing.assert_array_equal(shuffled, tokens[order])
    np.testing.assert_array_equal(shuffled_logps, logps[order])
    assert not np.array_equal(compiled(logits, params, keys[::-1])[0], tokens)


def test_impossible_tokens_are_never_drawn():
    tokens, _ = draw([0.5, 0.0, 0.5, 0.0], n=5000)
    assert set(tokens) == {0, 2}
    tokens, logps = draw([0.0, 0.0, 0.0, 1.0], n=5000)
    assert set(tokens) == {3} and not logps.any()


def test_changing_parameters_compiles_nothing():
    list(draw(PROBABILITIES, n=10))
    before = compiled._cache_size()
    for settings in SETTINGS:
        list(draw(PROBABILITIES, n=10, **settings))
    assert compiled._cache_size() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((-0.1, None, None), "temperature"), ((1.0, 0, None), "top_k"), ((1.0, None, 0.0), "top_p"), ((1.0, None, 1.1), "top_p")],
)
def test_parameters_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=f"{message} must be"):
        SamplingParams.of(*arguments)


def test_rounding_reaches_no_impossible_index():
    """The share may be rounded up to the end, and a sum may be rounded up where nothing is added: only positive weights count."""
    weights = jnp.asarray([[0.0, 1.0, 0.0, 2.0, 0.0]] * 4)
    index, before = _inverse(weights, jnp.asarray([0.0, 1.0, 3.0, 9.0]))
    assert index.tolist() == [1, 3, 3, 3]
    assert before.tolist() == [0.0, 1.0, 1.0, 1.0]


def test_of_equal_logits_the_first_is_taken():
    tokens, _ = sample(jnp.asarray([[0.0, 2.0, 2.0, 1.0]]), SamplingParams.of(0.0, None, None), jnp.zeros((1, 2), jnp.uint32))
    assert tokens.tolist() == [1]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_forbidden_tokens_are_as_if_they_were_not_there(temperature):
    """Forbidding 1 and 3: of the rest 0.05 0.02 0.15 0.04 0.14 0.1 the top 3 are 4, 6 and 7; probabilities stay those of all."""
    logits = jnp.tile(jnp.log(jnp.asarray(PROBABILITIES, jnp.float32)), (2000, 1))
    keys = jax.random.key_data(jax.random.split(jax.random.key(0), 2000))
    tokens, logps = sample(logits, SamplingParams.of(temperature, 3, None), keys, jnp.asarray([1, 3, 2**31 - 1]))
    assert set(tokens.tolist()) == ({4} if temperature == 0 else {4, 6, 7})
    np.testing.assert_allclose(logps, np.log(PROBABILITIES[np.asarray(tokens)]), rtol=1e-5)
