"""What tests of generation share."""

from collections.abc import Iterator

import jax
import pytest

from tunix_lab.generate.config import CacheConfig
from tunix_lab.generate.sampler import Sampler


@pytest.fixture
def compiled() -> Iterator[list[str]]:
    """Grows by one entry for every program that is lowered, whoever does it."""
    seen: list[str] = []

    def listen(event: str, duration: float, **details: object) -> None:
        if event == "/jax/core/compile/jaxpr_to_mlir_module_duration":
            seen.append(str(details.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(scope="session")
def make_sampler(word_tokenizer):
    """`make_sampler(model, tokenizer=…, cache_size=96)`."""

    def make(model, tokenizer=word_tokenizer, cache_size=96):
        config = model.config
        return Sampler(model, tokenizer, CacheConfig(cache_size, config.num_layers, config.num_kv_heads, config.head_dim))

    return make
