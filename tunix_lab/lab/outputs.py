"""What a finished run leaves: the model folder, headline numbers and curves, in the form that DVC versions and diffs."""

import contextlib
import csv
import dataclasses
import json
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunix_lab.data.tokenizer import Tokenizer
from tunix_lab.errors import UserError, writing
from tunix_lab.lab.origin import base_name
from tunix_lab.lab.record.journal import find_run, read_metrics
from tunix_lab.models.adapters import adapter_factors
from tunix_lab.models.catalog import save_model
from tunix_lab.models.config import ModelConfig
from tunix_lab.models.decoder import Decoder
from tunix_lab.models.peft_folder import TEXT_MODEL, Lora, module_prefix, write_peft
from tunix_lab.sft.train_state import Params, digest
from tunix_lab.spec.experiment import ExperimentSpec
from tunix_lab.spec.model import NoAdapter

ADAPTER = "adapter"
"""The adapter's folder, in PEFT's layout, beside the model into which it is merged."""

LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*")
"""Files whose terms go on to hold for what is made of a model."""


@dataclasses.dataclass(frozen=True)
class ModelFolder:
    """A model on disk and where it comes from.

    Attributes:
      folder: its files.
      name: of the experiment that made it, or of the folder.
      run_id: of the run that made it; None if it is from elsewhere.
      step: updates it was trained for by that run; 0 if unknown.
      params_digest: identity of the weights that the run left; None if unknown.
      adapter: the spec of the adapter that was trained, and the `path` where it lies; None without one.
    """

    folder: Path
    name: str
    run_id: str | None = None
    step: int = 0
    params_digest: str | None = None
    adapter: dict[str, Any] | None = None

    @classmethod
    def read(cls, folder: Path, record: Path) -> "ModelFolder":
        """The model in `folder`, which the run.json at `record` describes if it is there."""
        if not record.is_file():
            return cls(folder, folder.name)
        described = json.loads(record.read_text())
        described = {"adapter": None} | described  # records made before adapters were kept have no such line
        return cls(folder, *(described[name] for name in ("name", "run_id", "step", "params_digest", "adapter")))

    @property
    def adapter_folder(self) -> Path:
        """Where a run puts its adapter: beside the model."""
        return self.folder.parent / ADAPTER


def write_model(params: Params, config: ModelConfig, tokenizer: Tokenizer, folder: Path, base: Path | None = None) -> str:
    """Replaces `folder` by model and tokenizer, and returns the parameters' digest; the same model gives the same bytes.

    Args:
      params: the weights.
      config: their shape.
      tokenizer: of the data.
      folder: receives the files.
      base: folder of the starting weights, whose licences are copied; None for random ones.
    """
    with _replacing(folder) as temporary:
        save_model(params, config, temporary)
        tokenizer.save(temporary)
        copy_licences(base, temporary)
    return digest(params)


def write_adapter(spec: ExperimentSpec, home: Path, model: Decoder, base: Path | None, folder: Path) -> dict[str, Any] | None:
    """Replaces `folder` by the trained adapter, and returns what run.json says of it; a run without one leaves no folder.

    Args:
      spec: the experiment.
      home: the project folder.
      model: with its trained adapters.
      base: folder of the starting weights; None for random ones.
      folder: receives the files.
    """
    if isinstance(spec.adapter, NoAdapter):
        shutil.rmtree(folder, ignore_errors=True)
        return None
    name, revision = base_name(spec, home)
    prefix = TEXT_MODEL if base is None else module_prefix(base)
    lora = Lora(spec.adapter.rank, spec.adapter.alpha, name, revision)
    with _replacing(folder) as temporary:
        write_peft(temporary, adapter_factors(model), model.config, lora, prefix)
    return spec.adapter.model_dump()


@contextlib.contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A folder to write, which takes the place of `folder` when the block ends well; else what was there stays."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with writing(folder):
            yield temporary
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def copy_licences(source: Path | None, folder: Path) -> None:
    """Copies the licences of `source`, if it has some, to `folder`; None is no source."""
    found = [] if source is None else [path for pattern in LICENCES for path in source.glob(pattern) if path.is_file()]
    for path in found:
        shutil.copyfile(path, folder / path.name)


def write_records(run_dir: Path, out: Path, record: dict[str, Any]) -> dict[str, float]:
    """Writes metrics.json (last values), train.csv and eval.csv (curves) and run.json into `out`; returns the last values.

    Throughput is left out: it differs from machine to machine, and these files are compared.
    """
    curves: dict[str, dict[int, dict[str, float]]] = {"train": defaultdict(dict), "eval": defaultdict(dict)}
    for _, step, values in read_metrics(run_dir):
        for name, value in values.items():
            group, metric = name.split("/")
            if group in curves:
                curves[group][step][metric] = value
    for group, steps in curves.items():
        _write_csv(out / f"{group}.csv", steps)
    last = {
        f"{group}/{name}": value
        for group, steps in curves.items()
        for step in sorted(steps)
        for name, value in steps[step].items()
    }
    _write_json(out / "metrics.json", _nested(last))
    _write_json(out / "run.json", record)
    return last


def find_model(home: Path, text: str) -> ModelFolder:
    """The model that `text` names: a folder of weights, a folder that holds `final/`, or a run id (or its beginning or end).

    Raises:
      UserError: there is none.
    """
    given = Path(text)
    for folder in (given, given / "final"):
        if (folder / "config.json").is_file():
            return ModelFolder.read(folder, folder.parent / "run.json")
    if given.is_dir():
        raise UserError(f"{text}: no model there (no config.json, and no final/ with one)")
    run_dir = find_run(home, text)
    record = run_dir / "run.json"
    folder = home / json.loads(record.read_text())["model"] if record.is_file() else run_dir / "final"
    if not (folder / "config.json").is_file():
        raise UserError(f"run {run_dir.name} has left no model at {folder}: it has not finished, or the folder was removed")
    return ModelFolder.read(folder, record)


def _write_csv(path: Path, steps: dict[int, dict[str, float]]) -> None:
    names = sorted({name for values in steps.values() for name in values})
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["step", *names])
        writer.writerows([step, *(steps[step].get(name, "") for name in names)] for step in sorted(steps))


def _nested(values: dict[str, float]) -> dict[str, dict[str, float]]:
    """{"train/loss": 1} -> {"train": {"loss": 1}}, as `dvc metrics` likes it."""
    nested: dict[str, dict[str, float]] = defaultdict(dict)
    for name, value in sorted(values.items()):
        group, metric = name.split("/")
        nested[group][metric] = value
    return nested


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
