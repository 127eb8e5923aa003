"""Beam search: against all continuations of a tiny vocabulary, and against a search written down in plain Python."""

import itertools

import numpy as np
import pytest

VOCAB, BUDGET, STOP = 5, 3, 4
PROMPTS = [[1, 2], [3, 0, 1, 2, 2], [2]]
# So many that some best beam does not lead all the way, and has to take its cache along.
RNG = np.random.default_rng(0)
MANY = [*PROMPTS, *(RNG.integers(0, VOCAB, n).tolist() for n in RNG.integers(2, 6, 61))]


@pytest.fixture(scope="module")
def model(tiny_decoder):
    """With a head of its own, so that it does not say the same token again and again."""
    return tiny_decoder(seed=5, vocab_size=VOCAB, tie_embeddings=False)


@pytest.fixture(scope="module")
def sampler(model, make_sampler):
    return make_sampler(model)


@pytest.fixture(scope="module")
def score(model, run_model):
    """`score(texts, n_prompt)`: of each text, the log-probabilities of its tokens after the prompt, float64."""

    def run(texts, n_prompt):
        tokens = np.zeros((256, 8), np.int32)  # one shape for all
        tokens[: len(texts), : len(texts[0])] = texts
        logits = np.asarray(run_model(model, tokens), np.float64)[: len(texts)]
        logps = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        at = np.arange(n_prompt, len(texts[0]))
        return np.take_along_axis(logps[:, at - 1], np.asarray(texts)[:, at, None], axis=2)[..., 0]

    return run


def best_of_all(score, prompt, forbidden=()):
    """(tokens, log-probabilities) of the largest sum among all continuations, which end at STOP or after BUDGET tokens."""
    allowed = [token for token in range(VOCAB) if token not in forbidden]
    found = {}
    texts = list(itertools.product(allowed, repeat=BUDGET))
    for text, logps in zip(texts, score([[*prompt, *text] for text in texts], len(prompt)), strict=True):
        n = text.index(STOP) + 1 if STOP in text else BUDGET
        found[text[:n]] = logps[:n]
    return max(found.items(), key=lambda item: item[1].sum())


def test_a_wide_beam_finds_the_best_of_all(sampler, score):
    """25 beams hold every continuation of two tokens, so nothing is cut."""
    out = sampler.beam_search_tokens(MANY, BUDGET, 25, stop_ids=[STOP])
    for i, prompt in enumerate(MANY):
        tokens, logps = best_of_all(score, prompt)
        assert out.tokens[i].tolist() == list(tokens)
        np.testing.assert_allclose(out.logprobs[i], logps, rtol=1e-4, atol=1e-4)
        assert out.finish_reason[i] == ("stop" if tokens[-1] == STOP else "length")
    assert set(out.finish_reason) == {"stop", "length"}  # both kinds are met
    greedy = sampler.generate_tokens(MANY, BUDGET, stop_ids=[STOP])
    assert sum(a[0] != b[0] and len(b) == BUDGET for a, b in zip(greedy.tokens, out.tokens, strict=True)) > 1


def test_forbidden_tokens_are_in_no_beam(sampler, score):
    free = sampler.beam_search_tokens(PROMPTS[:1], BUDGET, 25, stop_ids=[STOP])
    forbidden = [int(free.tokens[0][0])]
    out = sampler.beam_search_tokens(PROMPTS[:1], BUDGET, 25, stop_ids=[STOP], forbidden_tokens=forbidden)
    tokens, logps = best_of_all(score, PROMPTS[0], forbidden)
    assert out.tokens[0].tolist() == list(tokens)
    np.testing.assert_allclose(out.logprobs[0], logps, rtol=1e-4, atol=1e-4)


def plain_search(score, prompt, n_beams, budget, stop):
    """Beams as a list: those that are done stay with their score, the others are continued in every way."""
    beams = [((), 0.0)]
    for _ in range(budget):
        new = [beam for beam in beams if beam[0] and beam[0][-1] == stop]
        going = [beam for beam in beams if not (beam[0] and beam[0][-1] == stop)]
        for (text, total), token in itertools.product(going, range(VOCAB)):
            new.append(((*text, token), total + score([[*prompt, *text, token]], len(prompt) + len(text))[0, 0]))
        beams = sorted(new, key=lambda beam: -beam[1])[:n_beams]
    return beams[0][0]


@pytest.mark.parametrize("n_beams", [2, 3])
def test_a_narrow_beam(sampler, score, n_beams):
    out = sampler.beam_search_tokens(PROMPTS, 6, n_beams, stop_ids=[STOP])
    # A text of 8 tokens fits what is scored at once.
    for prompt, tokens in list(zip(PROMPTS, out.tokens, strict=True))[::2]:
        assert tuple(tokens.tolist()) == plain_search(score, prompt, n_beams, 6, STOP)


def test_one_beam_is_greedy(sampler):
    greedy = sampler.generate_tokens(PROMPTS, BUDGET, stop_ids=[STOP])
    out = sampler.beam_search_tokens(PROMPTS, BUDGET, 1, stop_ids=[STOP])
    for i in range(len(PROMPTS)):
        np.testing.assert_array_equal(out.tokens[i], greedy.tokens[i])
        np.testing.assert_allclose(out.logprobs[i], greedy.logprobs[i], rtol=1e-4, atol=1e-5)


def test_strings(sampler, word_tokenizer):
    out = sampler(["a", ""], BUDGET, eos_tokens=[STOP], beam_size=3, pad_output=True)
    ids = sampler.beam_search_tokens([[2, 5], [2]], BUDGET, 3, stop_ids=[STOP])
    assert out.text == ids.text and [len(row) for row in out.tokens] == [BUDGET] * 2
    with pytest.raises(ValueError, match="a beam search has no top_k, no top_p and no return_logits"):
        sampler("a", BUDGET, beam_size=3, top_k=2)
    with pytest.raises(ValueError, match="beam_size must be at least 1, got 0"):
        sampler("a", BUDGET, beam_size=0)
