"""Groups and continuous batching: who shares a batch with whom, and when, changes nothing in what a row says."""

import numpy as np
import pytest

from tunix_lab.generate import engine as engine_module

PROMPTS = [[2, 7, 30], [2, 11], [2, 40, 41, 42, 43, 44, 45, 46], [9], [2, 7, 31], [3] * 17, [2, 8, 8, 8], [50, 51], [2, 60]]
BUDGET = 25
STOPS = [4, 9, 23, 50]
SAMPLED = {"temperature": 1.5, "top_p": 0.98, "seed": 3}


@pytest.fixture(scope="module")
def sampler(tiny_decoder, make_sampler):
    return make_sampler(tiny_decoder(seed=1), cache_size=1024)


def run(sampler, prompts=PROMPTS, budget=BUDGET, stop_ids=STOPS, **options):
    return sampler.generate_tokens(prompts, budget, stop_ids=stop_ids, **{**SAMPLED, **options})


@pytest.fixture(scope="module")
def at_once(sampler):
    """Nine rows of different lengths, all decoded side by side to the end."""
    return run(sampler)


@pytest.fixture
def used(sampler, monkeypatch):
    """Shapes of the arguments with which each of the engine's programs is called."""
    calls = {"prefill": [], "decode": [], "grow": [], "keep": []}

    def watch(name, shape):
        program = getattr(sampler._programs, name)

        def call(*args):
            calls[name].append(shape(args))
            return program(*args)

        monkeypatch.setattr(sampler._programs, name, call)

    watch("prefill", lambda args: args[1].shape)
    watch("decode", lambda args: args[1].cache["layer_0"]["k"].shape[::2])
    watch("grow", lambda args: args[1])
    watch("keep", lambda args: len(args[1]))
    return calls


def assert_same(out, expected, rows=None):
    for i, j in enumerate(range(len(out.tokens)) if rows is None else rows):
        np.testing.assert_array_equal(out.tokens[i], expected.tokens[j])
        np.testing.assert_allclose(out.logprobs[i], expected.logprobs[j], rtol=1e-4, atol=1e-5)
        assert out.finish_reason[i] == expected.finish_reason[j]


def test_rows_end_at_different_lengths(at_once):
    """What the tests below rest on."""
    lengths = [len(tokens) for tokens in at_once.tokens]
    assert len(set(lengths)) > 5 and set(at_once.finish_reason) == {"stop", "length"}
    for tokens, logps, reason in zip(at_once.tokens, at_once.logprobs, at_once.finish_reason, strict=True):
        assert len(logps) == len(tokens) and np.isfinite(logps).all()
        assert not np.isin(tokens[:-1], STOPS).any()
        assert reason == ("stop" if tokens[-1] in STOPS else "length")
        assert reason == "stop" or len(tokens) == BUDGET


@pytest.mark.parametrize("max_rows", [1, 2, 3])
def test_rows_that_wait_say_the_same(sampler, at_once, used, max_rows):
    assert_same(run(sampler, max_rows=max_rows), at_once)
    assert {rows for rows, _ in used["decode"]} == {max_rows}


def test_the_device_decodes_few_dead_rows(sampler, at_once, used):
    """With two places, a place is empty only where nobody waits: decoding is left whenever one row of two has ended."""
    run(sampler, max_rows=2)
    assert len(used["decode"]) >= len(PROMPTS) - 2


def test_a_group_is_its_rows(sampler):
    """Prompt-major, with the sample ids that were given; as if each had been asked alone."""
    ids = [70, 3, 5, 11, 12, 2**31 + 1, 8, 0, 9]
    out = run(sampler, PROMPTS[:3], num_generations=3, sample_ids=ids)
    for i, sample_id in enumerate(ids):
        assert_same(run(sampler, [PROMPTS[i // 3]], sample_ids=[sample_id]), out, rows=[i])
    assert len({tuple(tokens) for tokens in out.tokens}) == 9


def test_sample_ids_are_indices_by_default(sampler):
    out = run(sampler, PROMPTS[:2], num_generations=2)
    assert_same(run(sampler, PROMPTS[:2], num_generations=2, sample_ids=[0, 1, 2, 3]), out)
    with pytest.raises(ValueError, match="2 prompts with num_generations 2 do not make 3 sample_ids"):
        run(sampler, PROMPTS[:2], num_generations=2, sample_ids=[0, 1, 2])


@pytest.mark.parametrize("max_rows", [None, 3])
def test_each_prompt_is_prefilled_once(sampler, used, max_rows):
    """Four answers to each of three prompts; with three places a group is spread over several batches."""
    run(sampler, PROMPTS[:3], num_generations=4, max_rows=max_rows)
    assert used["prefill"] == ([(4, 16)] if max_rows is None else [(1, 16)] * 3)


def test_the_same_call_gives_the_same_bits(sampler):
    first, second = (run(sampler, num_generations=2, max_rows=4) for _ in range(2))
    for i in range(18):
        np.testing.assert_array_equal(first.tokens[i], second.tokens[i])
        np.testing.assert_array_equal(first.logprobs[i], second.logprobs[i])


def test_the_batch_shrinks(sampler, used):
    """16 rows of which few go on: they are decoded by fours, the last one (on a CPU) alone, and say what they say alone."""
    prompts, budget = [*PROMPTS, *PROMPTS][:16], 100
    out = run(sampler, prompts, budget, stop_ids=STOPS[:3])
    assert used["keep"] == [8, 4, 1] and [rows for rows, _ in used["decode"]] == [16, 8, 4, 1]
    for i in np.argsort([len(tokens) for tokens in out.tokens])[[0, 8, 14, 15]].tolist():
        assert_same(run(sampler, [prompts[i]], budget, stop_ids=STOPS[:3], sample_ids=[i]), out, rows=[i])


def test_the_cache_grows(sampler, used, monkeypatch):
    expected = run(sampler, PROMPTS[:3], 40, stop_ids=[])
    monkeypatch.setattr(engine_module, "_FIRST_SLOTS", 16)
    monkeypatch.setattr(engine_module, "MIN_SLOTS", 16)
    for calls in used.values():
        calls.clear()
    assert_same(run(sampler, PROMPTS[:3], 40, stop_ids=[]), expected)
    assert used["grow"] == [32, 64]
    assert [slots for _, slots in used["decode"]] == [16, 32, 64]


def test_decoding_ends_with_the_last_row(tiny_decoder, make_sampler):
    """A budget that would take minutes."""
    out = run(make_sampler(tiny_decoder(seed=1), cache_size=10**6), PROMPTS[:2], 60_000, stop_ids=range(64))
    assert [len(tokens) for tokens in out.tokens] == [1, 1]


def test_no_recompile_over_lengths(sampler, used, compiled):
    """After one call in each bucket, calls of any lengths in them compile nothing."""
    rng = np.random.default_rng(0)
    prompts = lambda n, longest: [rng.integers(3, 64, k).tolist() for k in rng.integers(1, longest + 1, n)]  # noqa: E731
    for n in (4, 5, 6):  # the last prompts are prefilled by fours, alone, by twos
        run(sampler, prompts(n, 17), max_rows=4, stop_ids=[])
    compiled.clear()
    for n in (4, 6, 7, 5, 8, 9, 12, 13):
        run(sampler, prompts(n, 17), int(rng.integers(17, 33)), stop_ids=rng.integers(3, 64, 5).tolist(), seed=n, max_rows=4)
    assert compiled == []
