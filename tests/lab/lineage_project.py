"""A project of three runs that start from each other, with data, lock and outputs: real files and hashes, no training."""

import json
import shutil
from pathlib import Path
from typing import Any

from hand_made import manifest
from ruamel.yaml import YAML

from tunix_lab.lab.record.journal import Journal
from tunix_lab.lab.versioning import dvc_digest

DATA = {
    "pretrain": ("data/arithmetic/pretrain/train.jsonl", "data/arithmetic/pretrain/validation.jsonl"),
    "sft": ("data/arithmetic/sft/train.jsonl", "data/arithmetic/sft/validation.jsonl"),
    "dpo": ("data/arithmetic/preference/train.jsonl", "data/arithmetic/sft/validation.jsonl"),
}
TEST = "data/arithmetic/sft/test.jsonl"
IDS = {
    "pretrain": "pretrain-20261123-070000-aaaa",
    "sft": "sft-20261123-080000-bbbb",
    "dpo": "dpo-20261123-090000-cccc",
    "evaluate": "evaluate-dpo-20261123-100000-dddd",
}
UPSTREAM = {"pretrain": None, "sft": "pretrain", "dpo": "sft"}
COMMIT = "c0ffee" + "0" * 34


class LineageProject:
    """The project folder and what makes its parts."""

    def __init__(self, home: Path) -> None:
        self.home = home
        for path in {path for paths in DATA.values() for path in paths} | {TEST, "data/tokenizer/tokenizer.json"}:
            self.write(path, f"the rows of {path}")
        (home / ".dvc").mkdir()
        self.stages: dict[str, Any] = {"data": self._stage("make data", [], ["data/arithmetic"])}
        self.stages["tokenizer"] = self._stage("make tokenizer", [DATA["pretrain"][0]], ["data/tokenizer"])

    def write(self, path: str, text: str) -> Path:
        file = self.home / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def digest(self, path: str) -> str:
        return dvc_digest(self.home / path)

    def train(self, name: str, run_id: str | None = None, *, out: bool = True, **tags: str) -> str:
        """A finished run of `name`, by its stage (`out`) or by hand; returns its id."""
        run_id = run_id or IDS[name]
        parent = UPSTREAM[name]
        folder = f"outputs/{name}" if out else f"runs/{run_id}"
        origin = {"dvc.tokenizer": self.digest("data/tokenizer"), "lab.git.dirty": "true", "mlflow.source.git.commit": COMMIT}
        params = {"tokenizer.path": "data/tokenizer", "algorithm.kind": "sft"}
        if parent is not None:
            origin["dvc.base"] = self.digest(f"outputs/{parent}/final")
            params |= {"model.init.kind": "experiment", "model.init.name": parent}
        self._run(
            run_id, "train", parent and IDS[parent], origin | tags, params, zip(("train", "validation"), DATA[name], strict=True)
        )
        self.write(f"{folder}/final/model.safetensors", f"the weights of {run_id}")
        self.write(f"{folder}/final/config.json", "{}")
        record = {"run_id": run_id, "name": name, "step": 10, "model": f"{folder}/final"}
        record |= {"params_digest": f"{run_id:x<64}", "dvc_digest": self.digest(f"{folder}/final")}
        for place in {folder, f"runs/{run_id}"}:
            self.write(f"{place}/run.json", json.dumps(record))
        if out:
            deps = [str(Path(DATA[name][0]).parent), "data/tokenizer", *([f"outputs/{parent}/final"] if parent else [])]
            self.stages[name] = self._stage(f"tunix-lab run {name}", deps, [f"{folder}/final", f"{folder}/run.json"])
        return run_id

    def evaluate(self, name: str) -> None:
        tags = {"dvc.model": self.digest(f"outputs/{name}/final"), "dvc.stage": f"evaluate@{name}"}
        self._run(IDS["evaluate"], "evaluate", IDS[name], tags, {}, [("test", TEST)])
        self.write(f"outputs/evaluate/{name}.json", '{"exact_match": 0.875}')
        stage = self._stage("tunix-lab evaluate", [f"outputs/{name}/final", TEST], [f"outputs/evaluate/{name}.json"])
        self.stages[f"evaluate@{name}"] = stage

    def lock(self) -> None:
        with open(self.home / "dvc.lock", "w") as file:
            YAML().dump({"schema": "2.0", "stages": self.stages}, file)

    def cache_listing(self, folder: str) -> None:
        """What DVC keeps of a folder that it has versioned."""
        digest = self.digest(folder)
        files = sorted(path for path in (self.home / folder).rglob("*") if path.is_file())
        entries = [{"md5": dvc_digest(file), "relpath": file.relative_to(self.home / folder).as_posix()} for file in files]
        self.write(f".dvc/cache/files/md5/{digest[:2]}/{digest[2:]}", json.dumps(entries))

    def move_runs_away(self) -> None:
        shutil.move(self.home / "runs", self.home.parent / "elsewhere")

    def _run(self, run_id: str, kind: str, parent: str | None, tags: dict, params: dict, data: Any) -> None:
        datasets = [
            {"name": Path(path).parent.name, "path": path, "digest": self.digest(path), "context": context, "rows": 5}
            for context, path in data
        ]
        changes = {"kind": kind, "parent_run_id": parent, "tags": tags, "params": params, "datasets": datasets}
        run_dir = self.home / "runs" / run_id
        self.write(f"runs/{run_id}/manifest.json", json.dumps(manifest(run_id, **changes)))
        for name in ("spec.yaml", "resolved.yaml"):
            self.write(f"runs/{run_id}/{name}", "name: x\n")
        with Journal.open(run_dir) as journal:
            journal.metrics(10, {"eval/exact_match": 0.875, "train/loss": 0.5})
            if kind == "train":
                path = f"checkpoints/0123456789abcdef/{run_id}/10"
                self.write(f"{path}/params/data", "orbax")
                journal.checkpoint(10, path, f"{run_id:x<64}", 5)

    def _stage(self, cmd: str, deps: list[str], outs: list[str]) -> dict[str, Any]:
        entries = lambda paths: [{"path": path, "hash": "md5", "md5": self.digest(path)} for path in paths]  # noqa: E731
        return {"cmd": cmd, "deps": entries(deps), "outs": entries(outs)}
