"""What an export starts from: the model of a run or folder, its tokenizer and special ids, and the adapter if one was trained."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from tunix_lab.data.tokenizer import Tokenizer
from tunix_lab.errors import UserError
from tunix_lab.lab.outputs import ModelFolder, find_model
from tunix_lab.models.catalog import load_model, read_config
from tunix_lab.models.config import ModelConfig
from tunix_lab.models.config_json import read_config_json
from tunix_lab.models.decoder import Decoder
from tunix_lab.models.hub import fetch
from tunix_lab.models.peft_folder import Factors, Lora, read_peft

GENERATION = "generation_config.json"
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclasses.dataclass(frozen=True)
class SourceAdapter:
    """The adapter of a run.

    Attributes:
      lora: rank, scale and base.
      factors: of every adapted module.
      spec: as run.json has it.
      base: folder of the base; None if it was drawn from a seed and kept nowhere.
    """

    lora: Lora
    factors: Factors
    spec: dict[str, Any]
    base: Path | None

    def load_base(self, dtype: str) -> Decoder | None:
        """The model before training; None if it is kept nowhere."""
        return None if self.base is None else load_model(self.base, dtype=dtype, param_dtype=dtype)


@dataclasses.dataclass(frozen=True)
class Source:
    """A model on disk, ready to be exported.

    Attributes:
      model: its folder and what its run says.
      config: its shape and dtype.
      tokenizer: None for a folder without one.
      ids: `bos_token_id`, `eos_token_id` (a list) and `pad_token_id`, as the tokenizer says, else the folder's own files.
      generation: other fields of generation_config.json.
      adapter: None where all weights were trained, or nothing is known of a run.
    """

    model: ModelFolder
    config: ModelConfig
    tokenizer: Tokenizer | None
    ids: dict[str, Any]
    generation: dict[str, Any]
    adapter: SourceAdapter | None

    @property
    def folder(self) -> Path:
        """The files of the model."""
        return self.model.folder

    def demand_adapter(self) -> SourceAdapter:
        """The adapter.

        Raises:
          UserError: there is none, or nobody has its base.
        """
        if self.adapter is None:
            raise UserError(f"export: {self.folder} has no adapter, all of its weights are its own: use --format hf")
        if self.adapter.base is None:
            raise UserError("export: this adapter was trained on random weights, which nobody else has: use --format hf")
        return self.adapter


def read_source(home: Path, text: str) -> Source:
    """The source that `text` names, a run id or a folder.

    Raises:
      UserError: there is no such model, or its files or the base of its adapter cannot be used.
    """
    found = find_model(home, text)
    config = read_config(found.folder)
    tokenizer = stored_tokenizer(found.folder)
    generation = _read_generation(found.folder)
    # transformers would make such a file anew from config.json
    left = {name: value for name, value in generation.items() if name not in (*_IDS, "_from_model_config")}
    return Source(
        found, config, tokenizer, _special_ids(found.folder, tokenizer, generation), left, _adapter(home, found, config)
    )


def stored_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer of a model folder; None if it has none."""
    has_one = any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))
    return Tokenizer.load(folder) if has_one else None


def _special_ids(folder: Path, tokenizer: Tokenizer | None, generation: dict[str, Any]) -> dict[str, Any]:
    if tokenizer is not None:
        return dict(zip(_IDS, (tokenizer.bos_id, sorted(tokenizer.stop_ids), tokenizer.pad_id), strict=True))
    stored = read_config_json(folder)
    stored = stored.get("text_config", {}) | stored | generation
    bos, eos, pad = (stored.get(name) for name in _IDS)
    return dict(zip(_IDS, (bos, eos if isinstance(eos, list) else [] if eos is None else [eos], pad), strict=True))


def _read_generation(folder: Path) -> dict[str, Any]:
    path = folder / GENERATION
    try:
        return json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None


def _adapter(home: Path, found: ModelFolder, config: ModelConfig) -> SourceAdapter | None:
    if found.adapter is None:
        return None
    if not found.adapter_folder.is_dir():
        raise UserError(f"run {found.run_id} trained an adapter, and {found.adapter_folder} is gone: train it again")
    lora, factors = read_peft(found.adapter_folder, config)
    return SourceAdapter(lora, factors, found.adapter, _base_folder(home, lora))


def _base_folder(home: Path, lora: Lora) -> Path | None:
    if lora.base is None:
        return None
    if lora.revision is not None:
        return fetch(lora.base, lora.revision).folder
    folder = home / lora.base
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}, the model that the adapter was trained on, is gone: put it back, or make it again")
    return folder
