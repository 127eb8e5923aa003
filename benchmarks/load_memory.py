"""Host memory while a checkpoint is loaded, beside what the parameters themselves take.

    python benchmarks/load_memory.py                       # 2 GB in bfloat16, on one device
    python benchmarks/load_memory.py --devices 8           # the same onto a mesh of 4 x 2 virtual devices
    python benchmarks/load_memory.py --param-dtype float32

Writes a checkpoint of a Llama-shaped decoder with random weights, loads it in a process of its own and prints one JSON line:
`overhead_largest_tensors` is (peak − start − parameters) / largest stored tensor. On a CPU the "devices" are host memory, so that
the peak holds every parameter. Memory is anonymous memory (RssAnon): pages of the mapped files are the kernel's to take back.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np


def config(scale: float):
    """A Llama of about 2 GB in bfloat16 at scale 1, most of it in few large tensors."""
    from tunix_lab.models.llama3.config import Llama3Config

    width = int(2048 * scale) // 128 * 128
    return Llama3Config(
        vocab_size=64_000, num_layers=14, embed_dim=width, hidden_dim=4 * width, num_heads=width // 128,
        num_kv_heads=max(1, width // 512), max_positions=4096,
    )  # fmt: skip


def write(folder: Path, scale: float) -> None:
    """Random weights, one file after the other."""
    import ml_dtypes
    from safetensors.numpy import save_file

    from tunix_lab.models.catalog import FAMILIES
    from tunix_lab.models.footprint import param_count

    shape = config(scale)
    stored = FAMILIES["llama3"].to_config_json(shape)
    (folder / "config.json").write_text(json.dumps(stored))
    rng = np.random.default_rng(0)
    embed, hidden = shape.embed_dim, shape.hidden_dim
    keys = shape.num_kv_heads * shape.head_dim

    def draw(*sizes: int) -> np.ndarray:
        return (rng.standard_normal(sizes, np.float32) * 0.02).astype(ml_dtypes.bfloat16)

    ends = {"model.embed_tokens.weight": draw(shape.vocab_size, embed), "model.norm.weight": draw(embed)}
    save_file(ends, folder / "model-ends.safetensors")
    save_file({"lm_head.weight": draw(shape.vocab_size, embed)}, folder / "model-head.safetensors")
    for i in range(shape.num_layers):
        name = f"model.layers.{i}"
        layer = {f"{name}.{norm}.weight": draw(embed) for norm in ("input_layernorm", "post_attention_layernorm")}
        layer |= {f"{name}.self_attn.{p}_proj.weight": draw(embed, embed) for p in "qo"}
        layer |= {f"{name}.self_attn.{p}_proj.weight": draw(keys, embed) for p in "kv"}
        layer |= {f"{name}.mlp.{p}_proj.weight": draw(hidden, embed) for p in ("gate", "up")}
        layer[f"{name}.mlp.down_proj.weight"] = draw(embed, hidden)
        save_file(layer, folder / f"model-{i}.safetensors")
    assert param_count(shape) * 2 < sum(path.stat().st_size for path in folder.iterdir())


class Watch(threading.Thread):
    """Samples the anonymous memory of this process every millisecond."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = self.now()
        self.ended = False

    @staticmethod
    def now() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0]) * 1024

    def run(self) -> None:
        while not self.ended:
            self.peak = max(self.peak, self.now())
            time.sleep(0.001)


def measure(folder: Path, devices: int, param_dtype: str) -> dict[str, object]:
    """Loads, and says what it took."""
    import jax
    from flax import nnx
    from safetensors import safe_open

    from tunix_lab.models.catalog import load_model
    from tunix_lab.models.sharding import make_mesh

    mesh = None if devices == 1 else make_mesh(devices // 2, 2)
    jax.block_until_ready(jax.numpy.ones(8) + 1)
    largest = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="numpy") as file:
            largest = max(largest, *(int(np.prod(file.get_slice(name).get_shape())) * 2 for name in file.keys()))
    watch = Watch()
    start = watch.now()
    watch.start()
    began = time.perf_counter()
    model = load_model(folder, mesh, param_dtype=param_dtype)
    jax.block_until_ready(nnx.state(model))
    seconds = time.perf_counter() - began
    watch.ended = True
    watch.join()
    leaves = jax.tree.leaves(nnx.state(model))
    on_devices = sum(shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards)
    overhead = watch.peak - start - on_devices
    return {
        "checkpoint_bytes": sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        "parameters_on_devices_bytes": on_devices,
        "largest_tensor_bytes": largest,
        "peak_above_start_bytes": watch.peak - start,
        "overhead_largest_tensors": round(overhead / largest, 3),
        "devices": devices,
        "param_dtype": param_dtype,
        "seconds": round(seconds, 2),
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--devices", type=int, default=1)
    arguments.add_argument("--param-dtype", default="bfloat16")
    arguments.add_argument("--scale", type=float, default=1.0, help="of the width; 1 is about 2 GB")
    arguments.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.folder is not None:
        print(json.dumps(measure(given.folder, given.devices, given.param_dtype)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), given.scale)
        options = ["--devices", str(given.devices), "--param-dtype", given.param_dtype, "--folder", folder]
        flags = f"--xla_force_host_platform_device_count={given.devices}"
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
        subprocess.run([sys.executable, __file__, *options], check=True, env=environment)


if __name__ == "__main__":
    main()
