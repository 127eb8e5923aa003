"""Exports a model or an adapter in the layout of the Hugging Face hub, reads it back, and keeps it only if it is the same model.

What is written lies in DIR.incomplete until every check has passed; `export_receipt.json` in it says what was compared, and how
large the differences were. A folder called DIR is therefore always one that was proved.
"""

import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from tunix_lab.errors import Mismatch, UserError
from tunix_lab.lab.export.proof import Proof, params_of, prove_adapter, prove_model
from tunix_lab.lab.export.source import GENERATION, Source, read_source
from tunix_lab.lab.lineage.records import EXPORTS
from tunix_lab.lab.outputs import copy_licences
from tunix_lab.lab.record.environment import environment
from tunix_lab.lab.record.jsonl import open_for_append, to_line
from tunix_lab.lab.versioning import dvc_digest
from tunix_lab.models.catalog import load_model, save_model
from tunix_lab.models.peft_folder import cast_factors, module_prefix, write_peft
from tunix_lab.models.safetensors import MAX_FILE_BYTES

RECEIPT = "export_receipt.json"


@dataclasses.dataclass(frozen=True)
class Export:
    """What to export.

    Attributes:
      source: a run id, or a folder.
      to: the folder to make.
      python: interpreter with `transformers` for the check from outside.
      format: "hf" the whole model, adapters merged; "peft" the adapter alone.
      dtype: of the tensors; None keeps theirs.
      max_file_bytes: weights that do not fit into one file of this size go to several.
      overwrite: replace an earlier export.
    """

    source: str
    to: Path
    python: str
    format: Literal["hf", "peft"] = "hf"
    dtype: Literal["float32", "bfloat16"] | None = None
    max_file_bytes: int = MAX_FILE_BYTES
    overwrite: bool = False


def export(
    wanted: Export,
    home: Path,
    *,
    report: Callable[[dict[str, Any]], None] | None = None,
    after_writing: Callable[[Path], None] | None = None,
) -> dict[str, Any]:
    """Writes, reads back, compares; returns the receipt.

    Args:
      wanted: what to export.
      home: the project folder.
      report: called with the receipt, passed or not.
      after_writing: called with the folder between writing and checking; for tests, which damage it there.

    Raises:
      UserError: the source cannot be exported so, or something else lies at the target.
      Mismatch: a check failed; the folder stays as DIR.incomplete.
    """
    folder = _target(wanted)
    source = read_source(home, wanted.source)
    if wanted.format == "peft":
        source.demand_adapter()
    _begin(folder)
    write = _write_model if wanted.format == "hf" else _write_adapter
    write(source, folder, wanted)
    if after_writing is not None:
        after_writing(folder)
    prove = prove_model if wanted.format == "hf" else prove_adapter
    proof = prove(source, folder, wanted.dtype, wanted.python)
    receipt = _receipt(wanted, source, proof)
    _write_json(folder / RECEIPT, receipt)
    if report is not None:
        report(receipt)
    failed = [check.name for check in proof.checks if check.passed is False]
    if failed:
        raise Mismatch(f"export: failed: {', '.join(failed)}. {folder} is not what {wanted.source} is; {RECEIPT} there says more")
    if wanted.to.exists():
        shutil.rmtree(wanted.to)
    folder.rename(wanted.to)
    _remember(home, wanted.to, receipt)
    return receipt


def _target(wanted: Export) -> Path:
    """The folder to write in; refuses to replace anything that is no earlier export."""
    to = wanted.to.absolute()
    folder = to.with_name(to.name + ".incomplete")
    for path in (wanted.to, folder):
        if path.exists() and not (path / RECEIPT).is_file():
            raise UserError(f"export: {path} exists and is no earlier export (no {RECEIPT}): take another --to")
    if wanted.to.exists() and not wanted.overwrite:
        raise UserError(f"export: {wanted.to} is an earlier export: replace it with --overwrite, or take another --to")
    return folder


def _begin(folder: Path) -> None:
    """An empty folder with a receipt of nothing, by which a later export knows that it may be removed."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _write_json(folder / RECEIPT, {"passed": False, "checks": []})


def _write_model(source: Source, folder: Path, wanted: Export) -> None:
    """Weights, config.json, generation_config.json, tokenizer and licences."""
    dtype = wanted.dtype or source.config.param_dtype
    model = load_model(source.folder, dtype=dtype, param_dtype=dtype)
    ids = source.ids | {"eos_token_id": _one_or_several(source.ids["eos_token_id"])}
    save_model(params_of(model), model.config, folder, max_file_bytes=wanted.max_file_bytes, **ids)
    _write_tokenizer(source, folder)


def _write_adapter(source: Source, folder: Path, wanted: Export) -> None:
    """The adapter in PEFT's layout, tokenizer and licences."""
    adapter = source.demand_adapter()
    factors = cast_factors(adapter.factors, wanted.dtype)
    write_peft(folder, factors, source.config, adapter.lora, module_prefix(adapter.base))
    _write_tokenizer(source, folder)
    copy_licences(adapter.base, folder)


def _write_tokenizer(source: Source, folder: Path) -> None:
    if source.tokenizer is not None:
        source.tokenizer.save(folder)
    _write_json(folder / GENERATION, source.generation | source.ids)
    copy_licences(source.folder, folder)


def _one_or_several(ids: list[int]) -> int | list[int] | None:
    """As config.json has them: readers that are not of the newest expect one id there where there is one."""
    return ids if len(ids) > 1 else ids[0] if ids else None


def _receipt(wanted: Export, source: Source, proof: Proof) -> dict[str, Any]:
    lora = None if source.adapter is None else source.adapter.lora
    return {
        "passed": all(check.passed is not False for check in proof.checks),
        "exported_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "source": {
            "given": wanted.source,
            "folder": str(source.folder),
            "name": source.model.name,
            "run_id": source.model.run_id,
            "step": source.model.step,
            "params_digest": proof.source_digest,
            "tokenizer_digest": None if source.tokenizer is None else source.tokenizer.digest(),
        },
        "base": None if lora is None else {"name": lora.base, "revision": lora.revision, "params_digest": proof.base_digest},
        "format": wanted.format,
        "dtype": wanted.dtype or source.config.param_dtype,
        "params_digest": proof.export_digest,
        "checks": [dataclasses.asdict(check) for check in proof.checks],
        "versions": environment()["versions"] | proof.outside_versions,
    }


def _remember(home: Path, folder: Path, receipt: dict[str, Any]) -> None:
    """Notes the export beside the run whose model it is, so that the run knows where it went: its content, and where it lay."""
    run_dir = home / "runs" / (receipt["source"]["run_id"] or "")
    if receipt["source"]["run_id"] is None or not run_dir.is_dir():
        return
    to = folder.absolute()
    note = {"to": to.relative_to(home).as_posix() if to.is_relative_to(home) else str(to), "dvc_digest": dvc_digest(folder)}
    note |= {name: receipt[name] for name in ("exported_at", "format", "dtype", "params_digest")}
    with open_for_append(run_dir / EXPORTS) as file:
        file.write(to_line(note))


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
