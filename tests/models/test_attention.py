"""Attention kernels: which is used where, and that they agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tunix_lab.models import attention
from tunix_lab.models.attention import attend
from tunix_lab.ops.masks import causal_mask, segment_causal_mask, window_mask

HOW = {"scale": 0.25, "softcap": None}


def arrays(length, heads=4, kv_heads=2, dim=32, rows=3):
    """Queries, keys, values, float32, and a mask: padding in front, whose queries see nothing; two texts in one row; a window."""
    q, k, v = (jax.random.normal(jax.random.key(i), (rows, length, n, dim)) for i, n in enumerate((heads, kv_heads, kv_heads)))
    at = np.arange(length)
    mask = jnp.stack(
        [
            causal_mask(jnp.asarray(at >= 3)[None])[0],
            segment_causal_mask(jnp.asarray(1 + (at >= length // 2))[None])[0],
            causal_mask(jnp.ones((1, length), bool))[0] & window_mask(jnp.asarray(at), jnp.asarray(at), 5),
        ]
    )
    return q, k, v, mask


def out_and_gradients(q, k, v, mask, dtype):
    seen = mask.any(axis=-1)[:, :, None, None]  # what a query gives that sees nothing is nobody's business

    def total(q, k, v):
        out = attend(q.astype(dtype), k.astype(dtype), v.astype(dtype), mask, **HOW)
        return jnp.sum(jnp.where(seen, jnp.sin(out.astype(jnp.float32)), 0.0)), jnp.where(seen, out, 0)

    gradients, out = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    return [np.asarray(a, np.float32) for a in (out, *gradients)]


@pytest.mark.parametrize("length", [16, 64, 17])
@pytest.mark.parametrize("dim", [32, 64, 256])
def test_half_precision_is_near_to_single(length, dim):
    """On a GPU the one is cuDNN's kernel and the other XLA's."""
    given = arrays(length, dim=dim)
    for exact, half in zip(out_and_gradients(*given, jnp.float32), out_and_gradients(*given, jnp.bfloat16), strict=True):
        assert np.linalg.norm(half - exact) < 0.02 * np.linalg.norm(exact)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN is of GPUs")
def test_cudnn_is_used(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    q, k, v, mask = arrays(64)

    def program():
        call = lambda q, k, v: attend(q, k, v, mask, **HOW)  # noqa: E731
        return jax.jit(call).lower(*(a.astype(jnp.bfloat16) for a in (q, k, v))).as_text()

    assert "cudnn" in program()
    monkeypatch.setattr(attention, "_cudnn_serves", lambda *_: False)
    assert "cudnn" not in program()


@pytest.mark.parametrize(
    ("dtype", "dim", "capability", "expected"),
    [
        ("bfloat16", 128, "8.0", True),
        ("bfloat16", 256, "8.9", False),
        ("bfloat16", 256, "9.0", True),
        ("bfloat16", 264, "9.0", False),
        ("bfloat16", 128, "12.0", True),
        ("bfloat16", 256, "10.0", False),
        ("bfloat16", 20, "9.0", False),
        ("bfloat16", 64, "7.5", False),
        ("float32", 64, "9.0", False),
    ],
)
def test_where_cudnn_serves(monkeypatch, dtype, dim, capability, expected):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    backend = type("Backend", (), {"platform_version": "PJRT C API\ncuda 13000"})
    device = type("Device", (), {"compute_capability": capability})
    monkeypatch.setattr(attention, "get_backend", backend)
    monkeypatch.setattr(attention.jax, "local_devices", lambda: [device()])
    monkeypatch.setattr(attention.jax, "device_count", lambda: 4)
    query = lambda length: jnp.zeros((2, length, 4, dim), dtype)  # noqa: E731
    assert attention._cudnn_serves(query(8), query(10)) is expected
    assert not attention._cudnn_serves(query(8), query(9))
    with monkeypatch.context() as demanded:
        demanded.setenv("XLA_FLAGS", "--xla_gpu_deterministic_ops=true")
        assert not attention._cudnn_serves(query(8), query(10))
    monkeypatch.setattr(attention.jax, "device_count", lambda: 8)  # they might split the queries' heads and not the keys'
    assert not attention._cudnn_serves(query(8), query(10))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("", False),
        ("--xla_dump_to=x --xla_gpu_deterministic_ops=false", False),
        ("--xla_gpu_deterministic_ops=0", False),
        ("--xla_gpu_deterministic_ops=true", True),
        ("--xla_gpu_deterministic_ops --xla_dump_to=x", True),
        ("--xla_gpu_exclude_nondeterministic_ops=1", True),
    ],
)
def test_who_demands_the_same_bits(monkeypatch, flags, expected):
    monkeypatch.setenv("XLA_FLAGS", flags)
    assert attention._same_bits_are_demanded() is expected
