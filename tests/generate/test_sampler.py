"""The sampler: what a prompt gives does not depend on its company, ends where it should, and scores as a trainer would."""

import jax
import numpy as np
import pytest
from flax import nnx

from tunix_lab.models.adapters import add_lora
from tunix_lab.models.sharding import make_mesh, place_model

PROMPTS = [[2, 7, 30], [2, 11], [2, 40, 41, 42, 43, 44, 45, 46], [9]]
BUDGET = 12
# Outside the vocabulary: nothing stops
NEVER = [1000]
NUCLEUS = {"temperature": 1.0, "top_k": 30, "top_p": 0.95, "seed": 5}


@pytest.fixture(scope="module")
def model(tiny_decoder):
    return tiny_decoder(seed=1)


@pytest.fixture(scope="module")
def sampler(model, make_sampler):
    return make_sampler(model)


@pytest.fixture(scope="module")
def greedy(sampler):
    return sampler.generate_tokens(PROMPTS, BUDGET, stop_ids=NEVER)


def full_logps(run_model, model, prompt, tokens, temperature=1.0):
    """log-probabilities [len(tokens), vocab] of each next token, by one forward pass over the whole text, float64."""
    text = np.concatenate([prompt, tokens])
    padded = np.zeros((1, 32), np.int32)  # one shape for all
    padded[0, : len(text)] = text
    logits = np.asarray(run_model(model, padded, np.arange(32)[None] < len(text)), np.float64)[0]
    logits = logits[len(prompt) - 1 : len(text) - 1] / temperature
    return logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True)) - logits.max(-1, keepdims=True)


def same(row, other):
    """Row i of one output against row j of another: the same tokens, log-probabilities but for rounding."""
    (out, i), (other_out, j) = row, other
    np.testing.assert_array_equal(out.tokens[i], other_out.tokens[j])
    np.testing.assert_allclose(out.logprobs[i], other_out.logprobs[j], rtol=1e-4, atol=1e-5)
    assert out.finish_reason[i] == other_out.finish_reason[j] and out.text[i] == other_out.text[j]


def test_a_model_with_adapters_is_sampled(model, greedy, make_sampler):
    """As runs do while they train; fresh adapters change nothing."""
    adapted = add_lora(model, rank=2, alpha=4.0, targets=".*q_einsum|.*gate_proj", seed=0)
    sampler = make_sampler(adapted)
    out = sampler.generate_tokens(PROMPTS, BUDGET, stop_ids=NEVER)
    for i in range(len(PROMPTS)):
        same((out, i), (greedy, i))
    assert sampler.beam_search_tokens(PROMPTS[:1], 3, 2, stop_ids=NEVER).lengths.tolist() == [3]


def test_a_quantized_model_with_adapters_is_sampled(model, make_sampler, run_model):
    """Its log-probabilities are its own, not those of the weights that were quantized."""
    adapted = add_lora(model, rank=2, alpha=4.0, targets=".*gate_proj", seed=0, weight_qtype="int8", tile_size=None)
    out = make_sampler(adapted).generate_tokens(PROMPTS[:1], BUDGET, stop_ids=NEVER)
    logps = full_logps(run_model, adapted, PROMPTS[0], out.tokens[0])[np.arange(BUDGET), out.tokens[0]]
    np.testing.assert_allclose(out.logprobs[0], logps, rtol=1e-4, atol=1e-4)
    plain = full_logps(run_model, model, PROMPTS[0], out.tokens[0])[np.arange(BUDGET), out.tokens[0]]
    assert np.abs(plain - logps).max() > 1e-3


def test_greedy_takes_the_most_probable_token(greedy, model, run_model):
    for prompt, tokens in zip(PROMPTS, greedy.tokens, strict=True):
        np.testing.assert_array_equal(tokens, full_logps(run_model, model, prompt, tokens).argmax(-1))
    assert len({tuple(tokens) for tokens in greedy.tokens}) == len(PROMPTS)  # the prompts matter


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_sampler_trainer_logprob(sampler, model, run_model, temperature):
    out = sampler.generate_tokens(PROMPTS, BUDGET, stop_ids=NEVER, temperature=temperature, top_k=40, top_p=0.99, seed=0)
    for prompt, tokens, logps in zip(PROMPTS, out.tokens, out.logprobs, strict=True):
        expected = full_logps(run_model, model, prompt, tokens, temperature)[np.arange(BUDGET), tokens]
        np.testing.assert_allclose(logps, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", [{}, NUCLEUS], ids=["greedy", "sampled"])
def test_sampler_batch_invariance(sampler, settings):
    """Alone, in other order, among longer prompts (so more padding), in a larger batch: the same continuation."""
    run = lambda prompts, ids: sampler.generate_tokens(prompts, BUDGET, stop_ids=NEVER, sample_ids=ids, **settings)  # noqa: E731
    together = run(PROMPTS, [0, 1, 2, 3])
    for i in (0, 2):
        same((run([PROMPTS[i]], [i]), 0), (together, i))
    backwards = run(PROMPTS[::-1], [3, 2, 1, 0])
    crowd = run([*PROMPTS, list(range(3, 31))], [0, 1, 2, 3, 4])  # 28 tokens: prompts padded to 32, rows to 8
    for i in range(4):
        same((backwards, 3 - i), (together, i))
        same((crowd, i), (together, i))


def test_a_longer_budget_only_adds(sampler):
    short, long = (sampler.generate_tokens(PROMPTS, n, stop_ids=NEVER, **NUCLEUS) for n in (BUDGET, 20))
    for i in range(4):
        assert len(long.tokens[i]) == 20
        np.testing.assert_array_equal(long.tokens[i][:BUDGET], short.tokens[i])


def test_key_by_sample(sampler):
    def run(**options):
        out = sampler.generate_tokens(PROMPTS, BUDGET, stop_ids=NEVER, temperature=1.0, **options)
        return [tokens.tolist() for tokens in out.tokens]

    first = run(seed=0)
    assert run(seed=0) == first != run(seed=1)
    assert run(seed=0, sample_ids=[0, 1, 2, 3]) == first
    other = run(seed=0, sample_ids=[0, 1, 2, 99])
    assert other[:3] == first[:3] and other[3] != first[3]
    assert run(seed=None) != run(seed=None)


def test_equal_prompts_are_sampled_apart(sampler):
    out = sampler.generate_tokens([PROMPTS[0]] * 4, BUDGET, stop_ids=NEVER, temperature=1.0, seed=0)
    assert len({tuple(tokens) for tokens in out.tokens}) == 4


def first_seen(tokens, at):
    """A token of this row that does not occur before place `at`."""
    return next(int(t) for i, t in enumerate(tokens) if i >= at and t not in tokens[:i])


@pytest.fixture(scope="module")
def sampled(sampler):
    """Rows that repeat themselves little, never stopped."""
    return sampler.generate_tokens(PROMPTS, BUDGET, stop_ids=NEVER, **NUCLEUS)


def test_all_stop_tokens(sampler, sampled):
    """Each of several ids ends its row; the terminator is included; who never meets one is cut by the budget."""
    stops = [first_seen(sampled.tokens[0], 3), first_seen(sampled.tokens[1], 5)]
    out = sampler.generate_tokens(PROMPTS, BUDGET, stop_ids=stops, **NUCLEUS)
    for full, tokens, logps, reason in zip(sampled.tokens, out.tokens, out.logprobs, out.finish_reason, strict=True):
        hits = np.flatnonzero(np.isin(full, stops))
        end = hits[0] + 1 if len(hits) else BUDGET
        np.testing.assert_array_equal(tokens, full[:end])
        assert len(logps) == end and reason == ("stop" if len(hits) else "length")
    assert [out.tokens[i][-1] for i in (0, 1)] == stops
    assert set(out.finish_reason) == {"stop", "length"}


def test_stopping_at_the_first_and_at_the_last_place(sampler, sampled):
    run = lambda budget, stop: sampler.generate_tokens(PROMPTS, budget, stop_ids=[stop], **NUCLEUS)  # noqa: E731
    first = int(sampled.tokens[0][0])
    out = run(BUDGET, first)
    assert out.tokens[0].tolist() == [first] and out.finish_reason[0] == "stop"
    stop = first_seen(sampled.tokens[0], 3)
    at = sampled.tokens[0].tolist().index(stop)
    assert run(at + 1, stop).finish_reason[0] == "stop"
    cut = run(at, stop)
    assert cut.finish_reason[0] == "length" and len(cut.tokens[0]) == at


@pytest.mark.parametrize("budget", [1, 2, 16])
def test_budget(sampler, greedy, budget):
    out = sampler.generate_tokens(PROMPTS, budget, stop_ids=NEVER)
    assert [len(tokens) for tokens in out.tokens] == [budget] * 4
    assert [tokens[:BUDGET].tolist() for tokens in out.tokens] == [tokens[:budget].tolist() for tokens in greedy.tokens]


def test_no_recompile(sampler, sampled, compiled):
    """Temperature and its kin, stop ids, seeds, budgets and lengths within a bucket are values, not shapes."""
    for settings in ({}, {"temperature": 0.7}, {"top_k": 5}, {"top_p": 0.5}, {"temperature": 1.3, "top_k": 9, "top_p": 0.9}):
        sampler.generate_tokens(PROMPTS, BUDGET, stop_ids=[7, 3], **settings)
    sampler.generate_tokens(PROMPTS[1:], 3, stop_ids=[1], seed=9)
    sampler.generate_tokens([[2] * n for n in (16, 1, 9, 4)], 16, stop_ids=[1])
    assert compiled == []
    sampler.generate_tokens(PROMPTS, 40, stop_ids=[1])  # in larger buckets: the count would show it
    assert compiled != []


def test_strings(sampler, word_tokenizer):
    prompts = ["a b c", "d"]
    out = sampler(prompts, BUDGET, temperature=0.0, eos_tokens=NEVER)
    ids = sampler.generate_tokens([[2, 5, 6, 7], [2, 8]], BUDGET, stop_ids=NEVER)
    for i in range(2):
        same((out, i), (ids, i))
        assert out.text[i] == word_tokenizer.decode(out.tokens[i].tolist())
    echoed = sampler(prompts, BUDGET, temperature=0.0, eos_tokens=NEVER, echo=True)
    assert echoed.text == [prompt + text for prompt, text in zip(prompts, out.text, strict=True)]
    assert sampler("d", BUDGET, temperature=0.0, eos_tokens=NEVER).text == out.text[1:]


def test_single_bos(sampler, word_tokenizer, model, make_sampler):
    for text in ("a", "<bos> a", "<bos> <bos> a"):
        assert sampler.tokenize(text).tolist() == [2, 5]
    without = make_sampler(model, type(word_tokenizer)(bos_id=None))
    assert without.tokenize("a").tolist() == [5]
    zero = make_sampler(model, type(word_tokenizer)(bos_id=0))
    assert zero.tokenize("a").tolist() == [0, 5]  # an id of 0 is an id


def test_eos_of_the_tokenizer_stops_by_default(model, word_tokenizer, sampled, make_sampler):
    eos = first_seen(sampled.tokens[0], 3)
    out = make_sampler(model, type(word_tokenizer)(eos_id=eos))("c z", BUDGET, **NUCLEUS)  # PROMPTS[0] as text
    np.testing.assert_array_equal(out.tokens[0], sampled.tokens[0][: len(out.tokens[0])])
    assert out.tokens[0][-1] == eos and out.finish_reason == ["stop"]


def test_bos_alone_is_a_prompt(sampler):
    assert len(sampler("", 3, temperature=0.0, eos_tokens=NEVER).tokens[0]) == 3


def test_other_weights_without_compiling(model, tiny_decoder, make_sampler, greedy, compiled):
    sampler = make_sampler(tiny_decoder(seed=9))
    before = sampler.generate_tokens(PROMPTS, BUDGET, stop_ids=NEVER)
    assert not np.array_equal(before.tokens[0], greedy.tokens[0])
    compiled.clear()
    sampler.transformer_state = nnx.state(model)
    after = sampler.generate_tokens(PROMPTS, BUDGET, stop_ids=NEVER)
    assert compiled == []
    for i in range(4):
        same((after, i), (greedy, i))
    jax.tree.map(np.testing.assert_array_equal, nnx.state(sampler.transformer), nnx.state(model))


def test_on_a_mesh(tiny_decoder, make_sampler, greedy, compiled):
    """Two rows on four "fsdp" devices: filling rows make them four."""
    model = tiny_decoder(seed=1)
    place_model(model, make_mesh(4, 2))
    sampler = make_sampler(model)
    out = sampler.generate_tokens(PROMPTS[:2], BUDGET, stop_ids=NEVER)
    for i in range(2):
        same((out, i), (greedy, i))
    compiled.clear()
    sampler.generate_tokens(PROMPTS[1:3], BUDGET, stop_ids=NEVER)
    assert compiled == []  # what one program leaves, the other takes as it lies


def test_many_rows_on_a_mesh(tiny_decoder, make_sampler, sampler):
    """Groups, a queue, and a cache that is refilled, where rows lie on four devices."""
    model = tiny_decoder(seed=1)
    place_model(model, make_mesh(4, 2))
    options = {"stop_ids": [5, 9], "num_generations": 3, **NUCLEUS}
    out = make_sampler(model).generate_tokens(PROMPTS, BUDGET, max_rows=4, **options)
    expected = sampler.generate_tokens(PROMPTS, BUDGET, **options)
    for i in range(12):
        same((out, i), (expected, i))


def test_another_models_weights_are_refused(sampler, tiny_decoder, model):
    with pytest.raises(ValueError, match=r"\d variables differ: .*input_embedding.* is float32\[65, 16\], not float32\[64, 16\]"):
        sampler.transformer_state = nnx.state(tiny_decoder(vocab_size=65))
    with pytest.raises(ValueError, match=r"lora_a.* is float32\[16, 2\], not there"):
        sampler.transformer_state = nnx.state(add_lora(model, rank=2, alpha=4.0, targets=".*gate_proj", seed=0))


def test_forbidden_tokens(sampler, sampled, model, run_model):
    """What was drawn before is never drawn; log-probabilities are those without the rule."""
    forbidden = sorted({int(token) for tokens in sampled.tokens for token in tokens})
    for settings in (NUCLEUS, {}):
        out = sampler.generate_tokens(PROMPTS, BUDGET, stop_ids=NEVER, forbidden_tokens=forbidden, **settings)
        assert not np.isin(np.concatenate(out.tokens), forbidden).any()
        logps = full_logps(run_model, model, PROMPTS[0], out.tokens[0])
        np.testing.assert_allclose(out.logprobs[0], logps[np.arange(BUDGET), out.tokens[0]], rtol=1e-4, atol=1e-4)
    allowed = np.delete(np.arange(64), forbidden)
    np.testing.assert_array_equal(out.tokens[0], allowed[logps[:, allowed].argmax(-1)])


def test_logits(sampler, sampled, model, run_model):
    """Of every token that was drawn, as the model gives them."""
    assert sampled.logits is None
    out = sampler.generate_tokens(PROMPTS, BUDGET, stop_ids=[int(sampled.tokens[0][3])], return_logits=True, **NUCLEUS)
    for prompt, tokens, logits in zip(PROMPTS, out.tokens, out.logits, strict=True):
        assert logits.shape == (len(tokens), 64)
        logps = np.asarray(logits, np.float64) - np.log(np.exp(np.asarray(logits, np.float64)).sum(-1, keepdims=True))
        np.testing.assert_allclose(logps, full_logps(run_model, model, prompt, tokens), rtol=1e-4, atol=1e-4)


def test_padded_output(sampler):
    free = sampler(["a b c", "d"], 4, temperature=0.0, eos_tokens=NEVER)
    stop = [int(free.tokens[0][1])]
    plain = sampler(["a b c", "d"], 4, temperature=0.0, eos_tokens=stop)
    options = {"pad_output": True, "return_logits": True, "max_prompt_length": 6}
    out = sampler(["a b c", "d"], 4, temperature=0.0, eos_tokens=stop, **options)
    assert plain.lengths[0] < 4
    np.testing.assert_array_equal(out.lengths, [len(tokens) for tokens in plain.tokens])
    for i, n in enumerate(out.lengths):
        assert out.tokens[i].shape == out.logprobs[i].shape == (4,) and out.logits[i].shape == (4, 64)
        np.testing.assert_array_equal(out.tokens[i], [*plain.tokens[i], *[0] * (4 - n)])
        assert not out.logprobs[i][n:].any() and not out.logits[i][n:].any()
    assert out.padded_prompt_tokens.tolist() == [[0, 0, 2, 5, 6, 7], [0, 0, 0, 0, 2, 8]]
    assert plain.padded_prompt_tokens.tolist() == [[2, 5, 6, 7], [0, 0, 2, 8]]
    with pytest.raises(ValueError, match="a prompt has 4 tokens, more than max_prompt_length 3"):
        sampler("a b c", 4, max_prompt_length=3)


def test_what_does_not_fit_is_refused(sampler):
    with pytest.raises(ValueError, match="a prompt of 8 tokens and 89 new ones do not fit a cache of 96"):
        sampler.generate_tokens(PROMPTS, 89, stop_ids=[1])
    with pytest.raises(ValueError, match="a prompt has no tokens"):
        sampler.generate_tokens([[2], []], 3, stop_ids=[1])
    with pytest.raises(ValueError, match="temperature must be"):
        sampler("a", 3, temperature=-1.0)
