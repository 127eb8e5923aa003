"""Generation by hand gives what the sampler gives, and a state may be gone on from more than once."""

import numpy as np
import pytest

from tunix_lab.generate.output import left_padded
from tunix_lab.models.sharding import make_mesh, place_model

PROMPTS = [[2, 7, 30], [9], [2, 40, 41, 42, 43, 44, 45, 46]]
INPUT_IDS = left_padded(PROMPTS, 0)
POSITIONS = np.array([[0, 0, 0, 0, 0, 0, 1, 2], [0] * 8, list(range(8))])


@pytest.fixture(scope="module")
def sampler(tiny_decoder, make_sampler):
    return make_sampler(tiny_decoder(seed=1), cache_size=12)


def test_steps_are_what_the_sampler_does(sampler):
    out = sampler.generate_tokens(PROMPTS, 4, stop_ids=[], return_logits=True)
    state = sampler.init_sample_state(INPUT_IDS, POSITIONS)
    for t in range(4):
        np.testing.assert_allclose(state.logits, [logits[t] for logits in out.logits], rtol=1e-4, atol=1e-4)
        state = sampler.step(state, state.logits.argmax(-1))
    np.testing.assert_array_equal(state.tokens, out.tokens)
    assert state.lengths.tolist() == [7, 5, 12]
    with pytest.raises(ValueError, match="the cache of 12 is full"):
        sampler.step(state, [3, 3, 3])


def test_a_state_stays_as_it_is(sampler):
    state = sampler.init_sample_state(INPUT_IDS, POSITIONS)
    one, other, again = (sampler.step(state, [token] * 3) for token in (5, 6, 5))
    np.testing.assert_array_equal(one.logits, again.logits)
    assert np.abs(np.asarray(one.logits - other.logits)).max() > 0.01
    assert state.tokens.shape == (3, 0) and one.tokens.tolist() == [[5]] * 3


def test_on_a_mesh(sampler, tiny_decoder, make_sampler):
    """Three rows on two devices."""
    model = tiny_decoder(seed=1)
    place_model(model, make_mesh(2, 1))
    state = make_sampler(model, cache_size=12).init_sample_state(INPUT_IDS, POSITIONS)
    np.testing.assert_allclose(state.logits, sampler.init_sample_state(INPUT_IDS, POSITIONS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("positions", [[[0, 1, 2, 2]], [[0, 1, 2, 5]], [[1, 2, 3, 4]]])
def test_other_positions_are_refused(sampler, positions):
    with pytest.raises(ValueError, match="positions must count each row's tokens from 0"):
        sampler.init_sample_state(np.array([[2, 7, 30, 31]]), np.array(positions))
