"""The models, batches and prompts that both sides get; numbers and text alone, so that either side's Python can read them."""

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
