"""Real sizes on one accelerator, in bfloat16 from random weights: how near training and decoding come to what the device can do.

    python benchmarks/accelerator.py                             # all rows; a GPU or TPU with 80 GB or more
    python benchmarks/accelerator.py gemma3_1b_sft --rounds 5
    python benchmarks/accelerator.py --tiny                      # the same code on small models, anywhere

Prints a JSON line per row, in seconds on the clock (medians of steps that wait for the device).

Model FLOP/s: 6 · P operations a token where all parameters are trained, 4 · P where they are frozen under adapters (P without
an embedding table that is only looked up), and 12 · heads · head_dim for every key that a token sees in a layer; nothing for
what `remat` computes again. They are divided by `--peak` (bfloat16, dense) and by what a product of two matrices of 8,192 reaches
here. Decoding must read the weights and the filled part of the cache once a token: those bytes a second, divided by what a copy
reaches here (bytes read and written).
"""

import argparse
import functools
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
import peer_ours
import shapes

from tunix_lab.generate.config import CacheConfig
from tunix_lab.generate.sampler import Sampler
from tunix_lab.models.adapters import add_lora
from tunix_lab.models.config import ModelConfig
from tunix_lab.models.decoder import Decoder, init_decoder
from tunix_lab.models.footprint import param_count
from tunix_lab.models.gemma3.config import Gemma3Config
from tunix_lab.models.llama3.config import Llama3Config
from tunix_lab.rl.config import ClusterConfig, GRPOConfig, RLTrainingConfig, Role, RolloutConfig
from tunix_lab.rl.grpo.grpo_learner import GRPOLearner
from tunix_lab.sft.config import TrainingConfig
from tunix_lab.sft.peft_trainer import PeftTrainer

Record = dict[str, Any]
# Dense bfloat16 of an H100 or H200 (SXM), by its data sheet.
PEAK_TFLOPS = 989.0
TINY = {"gemma3_1b": Gemma3Config.gemma3_nano(), "llama3.1_8b": Gemma3Config.gemma3_pico()}
REAL = {"gemma3_1b": Gemma3Config.gemma3_1b(), "llama3.1_8b": Llama3Config.llama3p1_8b()}


class Bench:
    """The rows, for one choice of sizes."""

    def __init__(self, given: argparse.Namespace):
        self.models = TINY if given.tiny else REAL
        self.shrink = 64 if given.tiny else 1
        self.rounds, self.peak = given.rounds, given.peak * 1e12
        self.flops, self.bandwidth = ceilings(given.tiny)

    def sft(self, model: str, rows: int, length: int, **options: Any) -> Iterator[Record]:
        """An update of all parameters; they are kept in float32 and computed with in bfloat16."""
        config = self.models[model].replace(dtype="bfloat16", param_dtype="float32")
        yield self._training(config, init_decoder(config, 0), rows, length, operations=6, **options)

    def lora(self, model: str, rows: int, length: int, **options: Any) -> Iterator[Record]:
        """An update of adapters of rank 16 on all linear maps; the weights under them stay in bfloat16."""
        config = self.models[model].replace(dtype="bfloat16", param_dtype="bfloat16")
        yield self._training(
            config, add_lora(init_decoder(config, 0), **shapes.LORA, seed=0), rows, length, operations=4, **options
        )

    def _training(
        self, config: ModelConfig, model: Decoder, rows: int, length: int, *, operations: int, **options: Any
    ) -> Record:
        length = max(16, length // self.shrink)
        batch = shapes.supervised(0, rows, length, config.vocab_size)
        trainer = PeftTrainer(model, optax.adamw(shapes.LEARNING_RATE), TrainingConfig(**peer_ours.OPTIONS, **options))
        began = time.perf_counter()
        run = peer_ours.stepping(trainer, batch, warm_up=1)
        first = time.perf_counter() - began
        run(1)
        seconds = statistics.median(timed(run, 4) / 4 for _ in range(self.rounds))
        flops = (
            rows
            * length
            * (operations * used_params(config) + 12 * seen_keys(config, length) * config.num_heads * config.head_dim)
        )
        return {
            "seconds_a_step": seconds,
            "tokens_a_second": rows * length / seconds,
            "model_tflops": flops / seconds / 1e12,
            "of_peak": flops / seconds / self.peak,
            "of_matmul_here": flops / seconds / self.flops,
            "first_step_seconds": first,
        }

    def decode(self, model: str, rows: tuple[int, ...], prompt: int, new: int, **sampling: Any) -> Iterator[Record]:
        """Tokens a second, from answers of two lengths that the same programs make."""
        prompt, new = max(8, prompt // self.shrink), max(64, new // self.shrink)
        short = new // 2 + 8
        config = self.models[model].replace(dtype="bfloat16", param_dtype="bfloat16")
        cache = CacheConfig(prompt + new, config.num_layers, config.num_kv_heads, config.head_dim)
        sampler = Sampler(init_decoder(config, 0), shapes.Numbers(), cache)
        slot = config.num_layers * 2 * config.num_kv_heads * config.head_dim * 2
        for n in rows:
            texts = shapes.prompts(0, n, prompt, config.vocab_size)
            call = functools.partial(sampler, texts, seed=0, eos_tokens=[-1], **sampling)
            less, more = (self._median(functools.partial(call, tokens)) for tokens in (short, new))
            seconds = (more - less) / (new - short)
            read = 2 * used_params(config) + n * (prompt + (short + new) / 2) * slot
            yield {
                "rows": n,
                "tokens_a_second": n / seconds,
                "ms_a_token": seconds * 1e3,
                "of_bandwidth_here": read / seconds / self.bandwidth,
            }

    def grpo(self, model: str, prompts: int, answers: int, prompt: int, new: int, micro: int) -> Iterator[Record]:
        """A step of GRPO with its phases; every answer runs to its full length."""
        prompt, new = max(8, prompt // self.shrink), max(8, new // self.shrink)
        config = self.models[model].replace(dtype="bfloat16", param_dtype="float32")
        training = RLTrainingConfig(
            **peer_ours.OPTIONS,
            max_steps=10**9,
            scan_layers=True,
            actor_optimizer=optax.adamw(shapes.LEARNING_RATE),
            train_micro_batch_size=micro,
            compute_logps_micro_batch_size=micro,
            mini_batch_size=prompts,
        )
        rollout = RolloutConfig(
            max_prompt_length=prompt, max_tokens_to_generate=new, kv_cache_size=prompt + new, temperature=1.0, eos_tokens=[-1]
        )
        mesh = jax.sharding.Mesh(jax.devices()[:1], ("fsdp",))
        cluster = Cluster(
            actor=init_decoder(config, 0),
            reference=init_decoder(config.replace(param_dtype="bfloat16"), 1),
            tokenizer=shapes.Numbers(),
            cluster_config=ClusterConfig(
                role_to_mesh={role: mesh for role in Role}, training_config=training, rollout_config=rollout
            ),
        )
        # Between sampler and trainer bfloat16 differs; of random weights in deep models by more than the usual limit.
        learner = GRPOLearner(cluster, GRPOConfig(num_generations=answers, logp_gap_limit=1.0), shapes.reward)
        run = peer_ours.learning(learner, shapes.prompts(0, prompts, prompt, config.vocab_size), warm_up=2)
        found = [{"step": timed(run_and_keep(run, phases := {}), 1), **phases} for _ in range(self.rounds)]
        seconds = {name: statistics.median(one[name] for one in found) for name in ("step", "rollout", "reference")}
        made = prompts * answers * new
        yield {
            "seconds_a_step": seconds["step"],
            "rollout": seconds["rollout"],
            "reference": seconds["reference"],
            "training_and_rest": seconds["step"] - seconds["rollout"] - seconds["reference"],
            "rollout_tokens_a_second": made / seconds["rollout"],
            "tokens_a_second": made / seconds["step"],
        }

    def _median(self, call: Callable[[], Any]) -> float:
        call()
        return statistics.median(timed(lambda _: call(), 1) for _ in range(self.rounds))


def used_params(config: ModelConfig) -> int:
    """Parameters that a token is multiplied with."""
    return param_count(config) - (0 if config.tie_embeddings else config.vocab_size * config.embed_dim)


def seen_keys(config: ModelConfig, length: int) -> float:
    """Keys that a token of a text sees on average, itself included, added over the layers."""
    total = 0.0
    for layer in range(config.num_layers):
        window = min(length, config.sliding_window) if config.attention_kind(layer) == "local" else length
        total += window - window * (window - 1) / (2 * length)
    return total


class Cluster(peer_ours.Cluster):
    """With the phases timed by the clock."""

    clock = staticmethod(time.perf_counter)


def run_and_keep(run: Callable[[int], dict[str, float]], phases: dict[str, float]) -> Callable[[int], None]:
    """`run`, its phases put into `phases`."""
    return lambda n: phases.update({name.removesuffix("_cpu_s"): seconds for name, seconds in run(n).items()})


def timed(function: Callable[[int], Any], n: int) -> float:
    began = time.perf_counter()
    function(n)
    return time.perf_counter() - began


def ceilings(is_tiny: bool) -> tuple[float, float]:
    """Operations a second of a large product in bfloat16, and bytes a second (read and written) of a large copy."""
    size, n = (256, 1 << 16) if is_tiny else (8192, 1 << 30)
    a, b = (jax.random.normal(jax.random.key(i), (size, size), jnp.bfloat16) for i in range(2))
    c = jnp.ones((n,), jnp.float32)
    product, copy = jax.jit(jnp.matmul), jax.jit(lambda x: x + 1.0)
    seconds = []
    for call in (lambda: product(a, b), lambda: copy(c)):
        jax.block_until_ready(call())
        seconds.append(
            min(timed(lambda _, call=call: jax.block_until_ready([call() for _ in range(8)][-1]), 1) / 8 for _ in range(5))
        )
    return 2 * size**3 / seconds[0], 2 * c.nbytes / seconds[1]


ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3_1b_sft": ("sft", {"model": "gemma3_1b", "rows": 8, "length": 2048, "scan_layers": True, "remat": "block"}),
    "gemma3_1b_decode": ("decode", {"model": "gemma3_1b", "rows": (1, 32), "prompt": 64, "new": 128, "temperature": 1.0}),
    "gemma3_1b_grpo": ("grpo", {"model": "gemma3_1b", "prompts": 16, "answers": 8, "prompt": 128, "new": 128, "micro": 2}),
    "llama3.1_8b_lora": ("lora", {"model": "llama3.1_8b", "rows": 4, "length": 2048, "scan_layers": True, "remat": "block"}),
    "llama3.1_8b_decode": ("decode", {"model": "llama3.1_8b", "rows": (1, 32), "prompt": 64, "new": 128, "temperature": 1.0}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}; none given: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peak", type=float, default=PEAK_TFLOPS, help="TFLOP/s of the device (default: H100 and H200)")
    parser.add_argument("--tiny", action="store_true", help="small models, to try the script")
    given = parser.parse_args()
    bench = Bench(given)
    device = jax.devices()[0].device_kind
    say({"row": "ceilings", "device": device, "matmul_tflops": bench.flops / 1e12, "copy_gb_a_second": bench.bandwidth / 1e9})
    for row in given.rows or ROWS:
        job, options = ROWS[row]
        for record in getattr(bench, job)(**options):
            say({"row": row, "device": device, **record, "shape": options})
        gc.collect()  # the models of this row


def say(record: Record) -> None:
    print(json.dumps({k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in record.items()}), flush=True)


if __name__ == "__main__":
    main()
