"""What the hashes of every update cost: training steps with and without them, in turns, in one process; prints one JSON line.

python benchmarks/fingerprints.py
"""

import json
import statistics
import time

import numpy as np
import optax
from flax import nnx

from tunix_lab.models.decoder import Decoder
from tunix_lab.models.sizes import SIZES
from tunix_lab.sft.config import TrainingConfig
from tunix_lab.sft.peft_trainer import PeftTrainer

ROWS, LENGTH, UPDATES, ROUNDS = 32, 64, 4, 5


def make_trainer(every: int | None) -> PeftTrainer:
    config = SIZES["gemma3"]["nano"]()
    model = Decoder(config, rngs=nnx.Rngs(0))
    options = {"eval_every_n_steps": 10**6, "pbar_description": None, "fingerprint_every_n_steps": every}
    return PeftTrainer(model, optax.adamw(1e-3), TrainingConfig(**options))


def batches(seed: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    mask = np.ones((ROWS, LENGTH), bool)
    make = lambda: {"input_tokens": rng.integers(3, 500, (ROWS, LENGTH)).astype(np.int32), "input_mask": mask, "valid": mask}  # noqa: E731
    return [make() for _ in range(UPDATES)]


def seconds(trainer: PeftTrainer, seed: int) -> float:
    """CPU seconds of an update."""
    trainer._iter_steps = 0  # each round reads its own batches from the start
    data, began = batches(seed), time.process_time()
    trainer.train(data)
    return (time.process_time() - began) / UPDATES


def main() -> None:
    trainers = {"none": make_trainer(None), "batch and gradient": make_trainer(10**6), "all": make_trainer(1)}
    for trainer in trainers.values():
        seconds(trainer, 0)  # compiles
    times: dict[str, list[float]] = {name: [] for name in trainers}
    for i in range(ROUNDS):
        for name, trainer in trainers.items():
            times[name].append(seconds(trainer, i))
    medians = {name: statistics.median(values) for name, values in times.items()}
    base = medians["none"]
    print(json.dumps({"cpu_s_per_update": base} | {f"ratio, {name}": round(value / base, 3) for name, value in medians.items()}))


if __name__ == "__main__":
    main()
