"""What tests of generation share."""

import pytest

from tunix_lab.generate.config import CacheConfig
from tunix_lab.generate.sampler import Sampler


@pytest.fixture(scope="session")
def make_sampler(word_tokenizer):
    """`make_sampler(model, tokenizer=…, cache_size=96)`."""

    def make(model, tokenizer=word_tokenizer, cache_size=96):
        config = model.config
        return Sampler(model, tokenizer, CacheConfig(cache_size, config.num_layers, config.num_kv_heads, config.head_dim))

    return make
