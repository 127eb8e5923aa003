"""Small models with a tokenizer, and runs that trained an adapter on one, as they lie on disk."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from tunix_lab.data.tokenizer import Tokenizer
from tunix_lab.data.tokenizer_training import train_tokenizer
from tunix_lab.lab.outputs import write_adapter, write_model
from tunix_lab.models.adapters import adapter_factors, add_lora, merged_params, set_factors
from tunix_lab.models.catalog import load_model, read_config, save_model
from tunix_lab.models.decoder import Decoder
from tunix_lab.sft.train_state import flat_params
from tunix_lab.spec.experiment import ExperimentSpec

PARITY = Path(__file__).parents[1] / "models/parity"
CASES = sorted(path.parent.name for path in PARITY.glob("*/config.json"))
VOCABULARY = 300
ATTENTION = ".*q_einsum|.*kv_einsum|.*attn_vec_einsum"
TARGETS = f"{ATTENTION}|.*gate_proj|.*up_proj|.*down_proj"
_TEXTS = ["What is 12 + 30? Name three colours.", "How many apples are 2 apples and 3 apples? 5", "Why is the sky blue?"]


def make_tokenizer(folder: Path) -> Tokenizer:
    return train_tokenizer([{"text": text} for text in _TEXTS], 280, folder)


def random_decoder(case: str, seed: int = 0, **changes: Any) -> Decoder:
    """The decoder of a parity case with a vocabulary that a tokenizer fits into, every weight felt in the logits."""
    changes = {"vocab_size": VOCABULARY, "dtype": "float32", "param_dtype": "float32"} | changes
    config = read_config(PARITY / case).replace(**changes)
    graph, abstract = nnx.split(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(seed)
    flat = []
    for path, variable in nnx.to_flat_state(abstract):
        shape, dtype = variable.get_value().shape, variable.get_value().dtype
        size = 0.4 if len(shape) == 1 else 1.5 * config.embed_dim**-0.5
        flat.append((path, variable.replace(jnp.asarray(size * rng.standard_normal(shape), dtype))))
    return nnx.merge(graph, nnx.from_flat_state(flat))


def model_folder(case: str, folder: Path, tokenizer: Tokenizer, **changes: Any) -> Path:
    model = random_decoder(case, **changes)
    save_model(flat_params(nnx.state(model)), model.config, folder)
    tokenizer.save(folder)
    return folder


@dataclasses.dataclass(frozen=True)
class FakeRun:
    """A project with one run in `out`, whose adapter was trained on `base`."""

    home: Path
    out: Path
    base: Path

    def record(self, **changes: Any) -> None:
        path = self.out / "run.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def make_run(
    home: Path,
    tokenizer: Tokenizer,
    case: str = "llama3_untied",
    *,
    kind: str = "lora",
    base: Path | None = None,
    init: str = "path",
    size: float = 0.05,
    dtype: str = "float32",
) -> FakeRun:
    """What a run leaves that trained an adapter: factors of this size, instead of hours of training."""
    folder = home / "models/base"
    if base is None:
        model_folder(case, folder, tokenizer, dtype=dtype, param_dtype=dtype)
        (folder / "LICENSE.txt").write_text("be kind")
    else:
        shutil.copytree(base, folder)
    model = load_model(folder, dtype=dtype, param_dtype=dtype)
    adapter = {"kind": kind, "rank": 3, "alpha": 6.0, "targets": ATTENTION if model.config.experts else TARGETS}
    adapter |= {"weight_qtype": "int8", "tile_size": 8} if kind == "qlora" else {}
    arguments = {name: value for name, value in adapter.items() if name != "kind"}
    adapted = add_lora(model, seed=0, **arguments)
    rng = np.random.default_rng(2)
    drawn = {name: tuple(rng.standard_normal(f.shape) for f in pair) for name, pair in adapter_factors(adapted).items()}
    set_factors(adapted, {name: (0.3 * a, size * b) for name, (a, b) in drawn.items()})
    out = home / "outputs/tuned"
    params = merged_params(load_model(folder, dtype=dtype, param_dtype=dtype), adapted, rank=3, alpha=6.0)
    out.mkdir(parents=True)
    found = write_model(params, model.config, tokenizer, out / "final", folder)
    spec = make_spec(adapter, {"path": {"kind": "path", "path": "models/base"}, "random": {"kind": "random"}}[init])
    written = write_adapter(spec, home, adapted, folder if init == "path" else None, out / "adapter")
    record = {"run_id": "tuned-1", "name": "tuned", "params_digest": found, "step": 7, "model": "outputs/tuned/final"}
    (out / "run.json").write_text(json.dumps(record | {"adapter": written | {"path": "outputs/tuned/adapter"}}))
    return FakeRun(home, out, folder)


def make_spec(adapter: dict[str, Any], init: dict[str, Any]) -> ExperimentSpec:
    return ExperimentSpec.model_validate(
        {
            "name": "tuned",
            "model": {"family": "gemma3", "size": "nano", "init": init},
            "tokenizer": {"path": "data/tokenizer"},
            "adapter": adapter,
            "algorithm": {"kind": "sft"},
            "data": {"kind": "chat", "train": "train.jsonl", "validation": "validation.jsonl", "max_length": 64},
            "optimizer": {"learning_rate": 1e-3},
            "training": {"max_steps": 10, "batch_size": 8},
            "tracking": {"experiment": "tests"},
        }
    )
