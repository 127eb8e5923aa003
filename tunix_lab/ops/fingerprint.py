"""Hashes of arrays, computed where the arrays lie: two equal fingerprints mean, for all practical purposes, equal bits.

Sums modulo 2**32 do not depend on their order, so a fingerprint is the same on one device and on many, and reading the array
once is all it costs. It finds accidents (another bit, a lost or swapped element), not attacks.
"""

import zlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

Words = UInt32[Array, " 2"]


def fingerprint(array: Array) -> Words:
    """Two sums, 64 bits in all, over the elements' bits mixed with their places.

    The mixing is that of MurmurHash3 (https://github.com/aappleby/smhasher/blob/master/src/MurmurHash3.cpp, fmix32). It is
    invertible, so changing any single element always changes both sums. Without it two flipped signs would cancel.
    """
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    words = _words(array)
    place = jnp.zeros(words.shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(words.ndim)):  # no reshape, which would move a sharded array
        place += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    first = _mixed(words ^ _mixed(place))
    second = _mixed(words ^ _mixed(place + jnp.uint32(0x9E3779B9)))
    return jnp.stack([jnp.sum(first, dtype=jnp.uint32), jnp.sum(second, dtype=jnp.uint32)])


def _mixed(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def fingerprints(arrays: Mapping[str, Array], groups: Mapping[str, str]) -> dict[str, Words]:
    """Fingerprints of groups of arrays.

    Args:
      arrays: by name.
      groups: the group of each name; a group's fingerprint depends on the names in it too.

    Returns:
      By group, in the order in which the groups first come.
    """
    sums: dict[str, Array] = {}
    for name, array in arrays.items():
        part = fingerprint(array) * jnp.uint32(_odd(name))
        group = groups[name]
        sums[group] = sums[group] + part if group in sums else part
    return sums


def to_hex(words: np.ndarray) -> str:
    """A fingerprint as 16 hex digits."""
    return "".join(f"{int(word):08x}" for word in words)


def _odd(name: str) -> int:
    return zlib.crc32(name.encode()) | 1


def _words(array: Array) -> UInt32[Array, "..."]:
    """The bits of every element as 32-bit words; elements of 64 bits get one more axis."""
    if array.dtype == jnp.bool_ or array.dtype.itemsize < 1:
        return array.astype(jnp.uint32)
    if jnp.issubdtype(array.dtype, jnp.integer) and array.dtype.name in ("int4", "uint4", "int2", "uint2"):
        return array.astype(jnp.int32).astype(jnp.uint32)
    match array.dtype.itemsize:
        case 1:
            return jax.lax.bitcast_convert_type(array, jnp.uint8).astype(jnp.uint32)
        case 2:
            return jax.lax.bitcast_convert_type(array, jnp.uint16).astype(jnp.uint32)
        case _:
            return jax.lax.bitcast_convert_type(array, jnp.uint32)
