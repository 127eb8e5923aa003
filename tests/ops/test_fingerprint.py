"""Hashes of arrays: every bit counts, and so do places and names; devices do not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tunix_lab.ops.fingerprint import fingerprint, fingerprints, to_hex

DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16, jnp.int32, jnp.uint8, jnp.int8, jnp.bool_)


def hexes(array) -> str:
    return to_hex(np.asarray(fingerprint(array)))


def mixed(x: int) -> int:
    """MurmurHash3's fmix32 in plain integers."""
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) % 2**32
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) % 2**32
    return x ^ (x >> 16)


def test_by_hand():
    """The elements 1 and 2 at places 0 and 1, in integers of Python."""
    first = (mixed(1 ^ mixed(0)) + mixed(2 ^ mixed(1))) % 2**32
    second = (mixed(1 ^ mixed(0x9E3779B9)) + mixed(2 ^ mixed(0x9E3779BA))) % 2**32
    assert np.asarray(fingerprint(jnp.asarray([1, 2], jnp.int32))).tolist() == [first, second]
    assert np.asarray(fingerprint(jnp.asarray([[1], [2]], jnp.int32))).tolist() == [first, second]
    assert mixed(1) == 0x514E28B7  # the reference implementation's value
    assert to_hex(np.asarray([1, 255], np.uint32)) == "00000001000000ff"


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_element_and_every_place_count(dtype):
    rng = np.random.default_rng(0)
    array = jnp.asarray(rng.integers(0, 2, (3, 5)), dtype)
    seen = {hexes(array)}
    for index in range(15):
        flat = np.asarray(array).reshape(-1).copy()
        flat[index] = not flat[index] if dtype is jnp.bool_ else 1 - flat[index]
        seen.add(hexes(jnp.asarray(flat.reshape(3, 5))))
    assert len(seen) == 16
    assert hexes(array) != hexes(array[::-1]) or bool((array == array[::-1]).all())


def test_the_smallest_change_of_a_float_and_the_sign_of_zero_count():
    one = jnp.ones(4, jnp.float32)
    assert hexes(one) != hexes(one.at[2].set(np.nextafter(np.float32(1), np.float32(2))))
    assert hexes(jnp.zeros(2)) != hexes(-jnp.zeros(2))


def test_empty_arrays_scalars_and_keys():
    assert hexes(jnp.zeros((0, 3))) == "0" * 16
    assert hexes(jnp.asarray(3, jnp.int32)) != hexes(jnp.asarray(4, jnp.int32))
    assert hexes(jax.random.key(1)) != hexes(jax.random.key(2))


def test_groups_depend_on_names_and_not_on_the_order():
    a, b = jnp.arange(3.0), jnp.arange(4.0) + 1
    groups = {"x.a": "x", "x.b": "x", "y": "y"}
    one = fingerprints({"x.a": a, "x.b": b, "y": a}, groups)
    other = fingerprints({"y": a, "x.b": b, "x.a": a}, groups)
    swapped = fingerprints({"x.a": b, "x.b": a, "y": a}, groups)
    same = lambda left, right: np.array_equal(left, right)  # noqa: E731
    assert list(one) == ["x", "y"] and same(one["x"], other["x"]) and not same(one["x"], swapped["x"])


def test_sharding_does_not_matter():
    devices = np.asarray(jax.devices())
    if len(devices) < 8:
        pytest.skip("needs 8 devices")
    mesh = Mesh(devices[:8].reshape(4, 2), ("fsdp", "tp"))
    array = jnp.asarray(np.random.default_rng(0).standard_normal((8, 6)), jnp.float32)
    sharded = jax.device_put(array, NamedSharding(mesh, PartitionSpec("fsdp", "tp")))
    assert hexes(sharded) == hexes(array)
