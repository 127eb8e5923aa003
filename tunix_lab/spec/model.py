"""The model of an experiment: architecture, starting weights, tokenizer, and what is trained of it."""

import re
from typing import Annotated, Literal, TypeAlias

from annotated_types import Gt
from pydantic import Field, ValidationInfo, field_validator

from tunix_lab.models.config import ModelConfig
from tunix_lab.models.sizes import SIZES
from tunix_lab.spec.errors import did_you_mean
from tunix_lab.spec.section import HUB_PATTERN, Name, Section, Text

DType: TypeAlias = Literal["float32", "bfloat16"]


class RandomInit(Section):
    """Start from random weights, drawn from the seed."""

    kind: Literal["random"] = "random"


class ExperimentInit(Section):
    """Start from the output of another experiment."""

    kind: Literal["experiment"] = "experiment"
    name: Name
    """Name of the upstream experiment."""


class PathInit(Section):
    """Start from a folder of safetensors."""

    kind: Literal["path"] = "path"
    path: Text
    """Folder of weights, relative to the project."""


class HubInit(Section):
    """Start from a model of the Hugging Face hub, fetched once into the hub's cache."""

    kind: Literal["hub"] = "hub"
    repo: Annotated[str, Field(pattern=HUB_PATTERN)]
    """The repository, as organisation/name."""
    revision: str
    """Full hash of a commit, by which the run can be made again; a branch or a tag may hold other weights tomorrow."""

    @field_validator("revision")
    @classmethod
    def _is_a_commit(cls, revision: str, info: ValidationInfo) -> str:
        if re.fullmatch("[0-9a-f]{40}", revision):
            return revision
        repo = info.data.get("repo", "REPO")
        raise ValueError(
            "must be the full hash of a commit (40 digits of 0-9a-f), since branches and tags move and short hashes become "
            f"ambiguous; got {revision!r}: `hf models info {repo} --revision {revision or 'main'} --expand sha` shows its hash, "
            f"and so does https://huggingface.co/{repo}/commits/{revision or 'main'}"
        )


Init: TypeAlias = Annotated[RandomInit | ExperimentInit | PathInit | HubInit, Field(discriminator="kind")]


class ModelSpec(Section):
    """Which decoder, at which size, from which weights."""

    family: Annotated[str, Field(json_schema_extra={"enum": sorted(SIZES)})]
    """Architecture."""
    size: Annotated[str, Field(json_schema_extra={"enum": sorted({size for sizes in SIZES.values() for size in sizes})})]
    """Size within the family."""
    init: Init
    """Where the starting weights come from."""
    num_layers: Annotated[int, Gt(0)] | None = None
    """Only so many layers, of random weights, to try a spec out; null: all."""
    dtype: DType = "float32"
    """Type of activations."""
    param_dtype: DType = "float32"
    """Type of parameters and of the optimizer's moments."""

    @field_validator("family")
    @classmethod
    def _known_family(cls, family: str) -> str:
        if family not in SIZES:
            raise ValueError(f"no family {family!r}; there are {', '.join(SIZES)}{did_you_mean(family, SIZES)}")
        return family

    @field_validator("size")
    @classmethod
    def _known_size(cls, size: str, info: ValidationInfo) -> str:
        family = info.data.get("family")
        if family in SIZES and size not in SIZES[family]:
            known = SIZES[family]
            raise ValueError(f"{family} has no size {size!r}; there are {', '.join(known)}{did_you_mean(size, known)}")
        return size

    def decoder_config(self) -> ModelConfig:
        """The decoder's configuration, with the dtypes of this section."""
        config = SIZES[self.family][self.size]().replace(dtype=self.dtype, param_dtype=self.param_dtype)
        return config if self.num_layers is None else config.replace(num_layers=self.num_layers)


class TokenizerSpec(Section):
    """The tokenizer, with its chat template."""

    path: Text | None = None
    """Folder of tokenizer files, relative to the project; null: the tokenizer that lies with the starting weights."""


class NoAdapter(Section):
    """Train all weights."""

    kind: Literal["none"] = "none"


class _LowRank(Section):
    rank: Annotated[int, Gt(0)] = 8
    """Rank of the update of each matrix."""
    alpha: Annotated[float, Gt(0)] = 16.0
    """The update is scaled by alpha / rank."""
    targets: Text = ".*q_einsum|.*kv_einsum|.*gate_proj|.*up_proj|.*down_proj|.*attn_vec_einsum"
    """Regular expression that the path of an adapted module matches."""

    @field_validator("targets")
    @classmethod
    def _compiles(cls, targets: str) -> str:
        try:
            re.compile(targets)
        except re.error as error:
            raise ValueError(f"is not a regular expression: {error}") from None
        return targets


class LoraAdapter(_LowRank):
    """Train low-rank updates of frozen weights, https://arxiv.org/abs/2106.09685."""

    kind: Literal["lora"] = "lora"


class QloraAdapter(_LowRank):
    """Train low-rank updates of frozen, quantized weights, https://arxiv.org/abs/2305.14314."""

    kind: Literal["qlora"] = "qlora"
    weight_qtype: Literal["nf4", "int8", "int4"] = "nf4"
    """Type of the frozen weights."""
    tile_size: Annotated[int, Gt(0)] = 32
    """Weights that share one scale."""


Adapter: TypeAlias = Annotated[NoAdapter | LoraAdapter | QloraAdapter, Field(discriminator="kind")]
