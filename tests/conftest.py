"""Eight virtual CPU devices in this process (never in the processes that tests start), and the small decoder that tests share.

`TESTS_ON=cuda pytest …` runs the same tests on a GPU, where those that want several devices fail.
"""

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import pytest

# No module of tunix_lab is imported up here: the shape checks of jaxtyping are installed after this file is read.
PLATFORM = os.environ.get("TESTS_ON", "cpu")
jax.config.update("jax_platforms", PLATFORM)
if PLATFORM == "cpu":
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_disable_most_optimizations", True)  # nearly all of the time of these tests is compilation
else:
    jax.config.update("jax_default_matmul_precision", "highest")  # float32 means float32
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes share the device


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--chaos", type=int, default=0, help="kills of the chaos test; 0 is the few of every day")
    parser.addoption("--chaos-seed", type=int, default=0, help="of when and whom the chaos test kills")


def pytest_configure(config: pytest.Config) -> None:
    """Programs that are compiled once are kept, for the other tests that need the same one and for the next run."""
    jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("jax")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(scope="session")
def tiny_config():
    """Every feature of Gemma 3 in three layers: the window is shorter than the sequences, two query heads share a key head."""
    from tunix_lab.models.gemma3.config import Gemma3Config

    return Gemma3Config(
        vocab_size=64,
        num_layers=3,
        embed_dim=16,
        hidden_dim=24,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        attention_pattern=("local", "global"),
        sliding_window=4,
        query_scale=8**-0.5,
        dtype="float32",
        param_dtype="float32",
    )


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
def tiny_decoder(tiny_config) -> Callable[..., Any]:
    """`tiny_decoder(seed=0, **changes of the config)`: fresh arrays on one device, norm scales random too; compiles nothing."""
    from flax import nnx

    from tunix_lab.models.decoder import Decoder

    abstract = {}

    def make(seed: int = 0, **changes: Any):
        config = tiny_config.replace(**changes)
        if config not in abstract:
            abstract[config] = nnx.split(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))
        graph, shapes = abstract[config]
        rng = np.random.default_rng(seed)
        draw = lambda a: jax.numpy.asarray(0.3 * rng.standard_normal(a.shape), a.dtype)  # noqa: E731
        return nnx.merge(graph, jax.tree.map(draw, shapes))

    return make


@pytest.fixture(scope="session")
def run_model() -> Callable[..., Any]:
    """`run_model(model, tokens, valid=None, cache=None, …)`: a compiled call; positions and causality come from `valid`."""
    from flax import nnx

    from tunix_lab.ops.masks import causal_mask, positions_from_mask

    @functools.partial(jax.jit, static_argnums=(0, 6))
    def run(graph, state, tokens, positions, cache, mask, skip_lm_head):
        return nnx.merge(graph, state)(tokens, positions, cache, mask, skip_lm_head=skip_lm_head)

    def call(model, tokens, valid=None, *, positions=None, cache=None, mask=None, skip_lm_head=False):
        tokens = np.asarray(tokens, np.int32)
        valid = np.ones(tokens.shape, bool) if valid is None else np.asarray(valid)
        positions = positions_from_mask(jax.numpy.asarray(valid)) if positions is None else np.asarray(positions, np.int32)
        mask = causal_mask(jax.numpy.asarray(valid)) if mask is None else np.asarray(mask)
        graph, state = nnx.split(model)
        out, cache_after = run(graph, state, tokens, positions, cache, mask, skip_lm_head)
        return out if cache is None else (out, cache_after)

    return call


@pytest.fixture(scope="session")
def numpy_params() -> Callable[[Any], dict[str, np.ndarray]]:
    """`numpy_params(model)`: a copy of every variable that is an array, by dotted path."""
    from flax import nnx

    def read(model) -> dict[str, np.ndarray]:
        return {".".join(map(str, path)): np.array(v.get_value()) for path, v in nnx.to_flat_state(nnx.state(model, nnx.Param))}

    return read


@dataclasses.dataclass(frozen=True)
class WordTokenizer:
    """A small real tokenizer: "a b c" <-> ids 5 6 7; 0 pads, 1 is EOS, 2 is BOS, letters count from 5, "?" is 4, "<bos>" 2."""

    bos_id: int | None = 2
    eos_id: int = 1
    pad_id: int = 0

    def encode(self, text: str) -> list[int]:
        names = {"<bos>": 2, "<eos>": 1, "?": 4}
        return [names[word] if word in names else 5 + ord(word) - ord("a") for word in re.findall(r"<\w+>|\S", text)]

    def decode(self, ids: list[int]) -> str:
        return " ".join("?" if i == 4 else chr(ord("a") + i - 5) if 5 <= i < 31 else f"<{i}>" for i in ids if i > 2)


@pytest.fixture(scope="session")
def word_tokenizer() -> WordTokenizer:
    return WordTokenizer()


@pytest.fixture(scope="session")
def sft_rows() -> Callable[..., dict[str, np.ndarray]]:
    """`sft_rows(lengths, seed=0, width=10)`: right-padded rows of these lengths whose tokens after the second are targets."""

    def make(lengths, seed: int = 0, width: int = 10) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        at, n = np.arange(width)[None], np.asarray(lengths)[:, None]
        tokens = np.where(at < n, rng.integers(3, 64, (len(lengths), width)), 0).astype(np.int32)
        return {"input_tokens": tokens, "input_mask": (at >= 2) & (at < n), "valid": at < n}

    return make


@pytest.fixture(scope="session")
def pair_rows() -> Callable[..., dict[str, np.ndarray]]:
    """`pair_rows(n, seed=0)`: tokenised preferences with prompts of 1 … 4 tokens and answers of 1 … 5."""

    def make(n: int, seed: int = 0, prompt_width: int = 4, answer_width: int = 5) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        lengths = lambda width: rng.integers(1, width + 1, (n, 1))  # noqa: E731
        batch = {}
        for name, width in (("prompt", prompt_width), ("chosen", answer_width), ("rejected", answer_width)):
            mask = np.arange(width)[None] < lengths(width)
            mask = mask[:, ::-1] if name == "prompt" else mask
            batch |= {f"{name}_ids": np.where(mask, rng.integers(3, 64, (n, width)), 0).astype(np.int32), f"{name}_mask": mask}
        return batch

    return make


@pytest.fixture(scope="session")
def split_rows() -> Callable[..., list[Any]]:
    """`split_rows(batch, size)`: the batch in batches of `size` rows."""

    def split(batch, size: int) -> list[Any]:
        n = len(next(iter(batch.values())))
        return [{k: v[i : i + size] for k, v in batch.items()} for i in range(0, n, size)]

    return split
