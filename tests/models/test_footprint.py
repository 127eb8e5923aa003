"""Parameter counts against published ones and against the decoder itself; memory against real training state."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tunix_lab.models.adapters import add_lora
from tunix_lab.models.config import Experts
from tunix_lab.models.decoder import Decoder
from tunix_lab.models.footprint import active_param_count, footprint, lora_param_count, param_count
from tunix_lab.models.sizes import SIZES

# Counts of the published checkpoints (text part; tied heads once).
PUBLISHED = {
    ("gemma", "2b"): 2_506_172_416,
    ("gemma", "7b"): 8_537_680_896,
    ("gemma2", "2b"): 2_614_341_888,
    ("gemma2", "9b"): 9_241_705_984,
    ("gemma2", "27b"): 27_227_128_320,
    ("gemma3", "270m"): 268_098_176,
    ("gemma3", "1b"): 999_885_952,
    ("llama3", "3.1-8b"): 8_030_261_248,
    ("llama3", "3.1-70b"): 70_553_706_496,
    ("llama3", "3.2-1b"): 1_235_814_400,
    ("llama3", "3.2-3b"): 3_212_749_824,
    ("mistral", "7b-v0.1"): 7_241_732_096,
    ("mistral", "7b-v0.3"): 7_248_023_552,
    ("qwen2", "2.5-0.5b"): 494_032_768,
    ("qwen2", "2.5-1.5b"): 1_543_714_304,
    ("qwen2", "2.5-7b"): 7_615_616_512,
    ("qwen2", "2.5-72b"): 72_706_203_648,
    ("qwen3", "0.6b"): 596_049_920,
    ("qwen3", "8b"): 8_190_735_360,
    ("qwen3", "32b"): 32_762_123_264,
    ("qwen3_moe", "30b-a3b"): 30_532_122_624,
}
TARGETS = ".*q_einsum|.*kv_einsum|.*gate_proj|.*up_proj|.*down_proj|.*attn_vec_einsum"


def size_of(tree) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(("family", "size"), PUBLISHED)
def test_published_counts(family, size):
    assert param_count(SIZES[family][size]()) == PUBLISHED[family, size]


@pytest.mark.parametrize("family", SIZES)
def test_counts_of_the_decoder(family):
    """Two layers of each family's first size, as the decoder declares them."""
    config = next(iter(SIZES[family].values()))().replace(num_layers=2)
    assert param_count(config) == size_of(nnx.state(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))))


def test_active_parameters():
    """Of 4 experts a token sees 3: the fourth's 3 · 16 · 8 weights are idle in each of 2 layers."""
    experts = Experts(count=4, per_token=3, hidden_dim=8, normalize=True)
    config = SIZES["gemma3"]["nano"]().replace(num_layers=2, embed_dim=16, experts=experts)
    assert param_count(config) - active_param_count(config) == 2 * 3 * 16 * 8


def test_memory_of_training_state(tiny_decoder):
    """Weights, gradients and moments of AdamW, counted from the arrays themselves."""
    model = tiny_decoder()
    state, counts = nnx.state(model), 2 * 4  # optax's two step counters
    moments = size_of(optax.adamw(1.0).init(jax.tree.map(jnp.asarray, state))) * 4 - counts // 2
    needs = footprint(model.config, context=7, rank=3)
    assert needs.full == 2 * size_of(state) * 4 + moments  # weights and gradients, in float32
    adapters = size_of(nnx.state(add_lora(model, rank=3, alpha=1.0, targets=TARGETS, seed=0), nnx.LoRAParam))
    assert lora_param_count(model.config, 3) == adapters
    assert needs.lora == 2 * size_of(state) + 4 * 2 * adapters
    assert needs.inference == 2 * size_of(state) + 3 * 2 * 2 * 8 * 7 * 2  # layers · (k, v) · kv heads · head · tokens · bytes


def test_command():
    """One row per size, as a table and as JSON; an unknown family is one message."""

    main = "from tunix_lab.cli.main import main; main()"
    run = lambda *a: subprocess.run([sys.executable, "-c", main, "models", *a], capture_output=True, text=True)  # noqa: E731
    rows = json.loads(run("--json").stdout)
    assert {(row["family"], row["size"]) for row in rows} == {(f, s) for f, sizes in SIZES.items() for s in sizes}
    table = run("qwen3_moe").stdout
    assert "30b-a3b" in table and "30.53 B (3.35 B active)" in table and "llama3" not in table
    wrong = run("qwen9")
    assert wrong.returncode == 2 and "no family 'qwen9'; there are gemma, gemma2" in wrong.stderr
