"""The models, batches and prompts that both sides get; numbers and text alone, so that either side's Python can read them."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

# Gemma 3's architecture, small, with a vocabulary of 32,768: its head dominates, as in real models of a billion parameters.
SMALL = {
    "vocab_size": 32_768,
    "num_layers": 6,
    "embed_dim": 256,
    "hidden_dim": 1024,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 64,
    "sliding_window": 128,
}
# So small that the host's work is nearly all of a step.
TINY = {
    "vocab_size": 512,
    "num_layers": 6,
    "embed_dim": 32,
    "hidden_dim": 64,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "sliding_window": 16,
}
DEEP = TINY | {"num_layers": 26}
MODELS = {"small": SMALL, "tiny": TINY, "deep": DEEP}

# Ids 0 to 2 are padding, BOS and EOS.
PAD, BOS, EOS, FIRST = 0, 1, 2, 3

LORA = {"rank": 16, "alpha": 32.0, "targets": ".*q_einsum|.*kv_einsum|.*attn_vec_einsum|.*gate_proj|.*up_proj|.*down_proj"}
LEARNING_RATE = 1e-5


def tokens(seed: int, rows: int, length: int, vocab_size: int) -> np.ndarray:
    """Random token ids, int32 [rows, length], no special ones among them."""
    return np.random.default_rng(seed).integers(FIRST, vocab_size, (rows, length)).astype(np.int32)


def supervised(seed: int, rows: int, length: int, vocab_size: int) -> dict[str, np.ndarray]:
    """A batch of supervised training without padding."""
    return {"input_tokens": tokens(seed, rows, length, vocab_size), "input_mask": np.ones((rows, length), bool)}


def pairs(seed: int, rows: int, prompt: int, answer: int, vocab_size: int) -> dict[str, np.ndarray]:
    """A batch of preference pairs without padding."""
    ids = tokens(seed, rows, prompt + 2 * answer, vocab_size)
    chosen, rejected = ids[:, prompt : prompt + answer], ids[:, prompt + answer :]
    named = {"prompt": ids[:, :prompt], "chosen": chosen, "rejected": rejected}
    return {f"{name}_ids": array for name, array in named.items()} | {
        f"{name}_mask": np.ones(array.shape, bool) for name, array in named.items()
    }


def prompts(seed: int, rows: int, length: int, vocab_size: int) -> list[str]:
    """Texts of exactly `length` tokens for `Numbers`, BOS included."""
    return [" ".join(map(str, row)) for row in tokens(seed, rows, length - 1, vocab_size)]


class Numbers:
    """A tokenizer whose text is the ids themselves."""

    def encode(self, text: str, **options: object) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: list[int], **options: object) -> str:
        return " ".join(map(str, ids))

    def bos_id(self) -> int:
        return BOS

    def eos_id(self) -> int:
        return EOS

    def pad_id(self) -> int:
        return PAD


def reward(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    """Between 0 and 9, different from answer to answer, and quick."""
    return [float(sum(map(ord, text)) % 10) for text in completions]


def stop_ids(mean_length: float | None, vocab_size: int) -> list[int]:
    """Ids that end an answer: only EOS, or so many that answers of random tokens have this mean length (geometric)."""
    return [EOS] if mean_length is None else list(range(EOS, EOS + round(vocab_size / mean_length)))


class Gate:
    """Batches of prompts for a learner that runs in a thread of its own, let through as `run(n)` asks for them.

    A learner asks for the next batch when it is done with the one before: so `run` returns when n steps are made.
    """

    def __init__(self, batch: dict[str, Any], train: Callable[["Gate"], None]):
        """Starts `train(self)`."""
        self._batch = batch
        self._may_go, self._is_idle = threading.Semaphore(0), threading.Semaphore(0)
        self._failure: BaseException | None = None
        threading.Thread(target=self._train, args=(train,), daemon=True).start()
        self._wait()

    def _train(self, train: Callable[["Gate"], None]) -> None:
        try:
            train(self)
        except BaseException as error:
            self._failure = error
        self._is_idle.release()

    def _wait(self) -> None:
        self._is_idle.acquire()
        if self._failure is not None:
            raise self._failure

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        self._is_idle.release()
        self._may_go.acquire()
        return dict(self._batch)

    def run(self, n: int) -> None:
        for _ in range(n):
            self._may_go.release()
            self._wait()


class Phases:
    """Mixin of a cluster: seconds of sampling and of the reference's log-probabilities; the rest of a step is training."""

    clock = staticmethod(time.process_time)
    taken: dict[str, float]
    wait: Callable[[Any], Any]  # until arrays are computed, so that each phase pays for its own

    def _timed(self, phase: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        began = self.clock()
        try:
            return type(self).wait(function(*args, **options))
        finally:
            self.taken[phase] += self.clock() - began

    def generate(self, *args: Any, **options: Any) -> Any:
        return self._timed("rollout", super().generate, *args, **options)

    def get_ref_per_token_logps(self, *args: Any, **options: Any) -> Any:
        return self._timed("reference", super().get_ref_per_token_logps, *args, **options)


def phases_of(cluster: Phases) -> dict[str, float]:
    """What was taken since the last call."""
    taken = {f"{name}_cpu_s": seconds for name, seconds in cluster.taken.items()}
    cluster.taken = defaultdict(float)
    return taken
