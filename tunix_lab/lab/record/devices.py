"""The devices that a run computes on and JAX's own settings, for its manifest. Loads JAX."""

from typing import Any

import jax


def hardware() -> dict[str, Any]:
    """Kind and number of devices and processes, and the settings of JAX that change numbers."""
    first = jax.devices()[0]
    return {
        "platform": first.platform,
        "device_kind": first.device_kind,
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
        "jax": {
            "enable_x64": jax.config.jax_enable_x64,
            "default_matmul_precision": jax.config.jax_default_matmul_precision,
            "threefry_partitionable": jax.config.jax_threefry_partitionable,
            "default_prng_impl": jax.config.jax_default_prng_impl,
            "numpy_dtype_promotion": jax.config.jax_numpy_dtype_promotion,
        },
    }
