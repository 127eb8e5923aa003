"""Every family's sizes, as numbers only; a spec's `model` section is checked against this table."""

from collections.abc import Callable, Mapping

from tunix_lab.models.config import ModelConfig
from tunix_lab.models.gemma.config import SIZES as GEMMA
from tunix_lab.models.gemma2.config import SIZES as GEMMA2
from tunix_lab.models.gemma3.config import SIZES as GEMMA3
from tunix_lab.models.llama3.config import SIZES as LLAMA3
from tunix_lab.models.mistral.config import SIZES as MISTRAL
from tunix_lab.models.qwen2.config import SIZES as QWEN2
from tunix_lab.models.qwen3.config import SIZES as QWEN3
from tunix_lab.models.qwen3_moe.config import SIZES as QWEN3_MOE

# family -> size -> its configuration.
SIZES: Mapping[str, Mapping[str, Callable[[], ModelConfig]]] = {
    "gemma": GEMMA,
    "gemma2": GEMMA2,
    "gemma3": GEMMA3,
    "llama3": LLAMA3,
    "mistral": MISTRAL,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "qwen3_moe": QWEN3_MOE,
}
