"""Batches on a mesh: rows are split, and rows that do not divide are refused."""

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from tunix_lab.models.decoder import init_decoder
from tunix_lab.models.sharding import make_mesh, place_batch
from tunix_lab.sft.train_state import flat_params


def test_rows_are_split_over_fsdp():
    batch = {"ids": np.arange(24).reshape(4, 6), "mask": np.ones((4,), bool), "scale": np.float32(2)}
    placed = place_batch(batch, make_mesh(2, 4), leading=0)
    assert placed["ids"].sharding.spec == PartitionSpec(("fsdp",), None)
    assert placed["ids"].addressable_shards[0].data.shape == (2, 6)
    assert placed["scale"].sharding.is_fully_replicated
    jax.tree.map(np.testing.assert_array_equal, placed, batch)


def test_micro_batches_stay_whole():
    placed = place_batch({"ids": np.zeros((3, 4, 6))}, make_mesh(4, 2), leading=1)
    assert placed["ids"].addressable_shards[0].data.shape == (3, 1, 6)


def test_rows_that_do_not_divide_are_an_error():
    with pytest.raises(ValueError, match="a batch of 6 rows cannot be split over 4 devices.*make the batch a multiple of 4"):
        place_batch({"ids": np.zeros((6, 3))}, make_mesh(4, 2), leading=0)


@pytest.mark.parametrize("shape", [(1, 1), (2, 4)])
def test_fresh_weights_do_not_depend_on_the_mesh(tiny_config, numpy_params, shape):
    config, mesh = tiny_config.replace(num_layers=1), make_mesh(*shape)
    alone, spread = init_decoder(config, 0), init_decoder(config, 0, mesh)
    jax.tree.map(np.testing.assert_array_equal, numpy_params(alone), numpy_params(spread))
    assert {array.sharding.mesh for array in flat_params(nnx.state(spread)).values()} == {mesh}
