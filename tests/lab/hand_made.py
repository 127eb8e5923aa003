"""A manifest as a run writes it, for run directories made by hand."""

from typing import Any


def manifest(run_id: str, **changes: Any) -> dict[str, Any]:
    name = run_id.split("-")[0]
    return {
        "run_id": run_id,
        "name": name,
        "experiment": "arithmetic",
        "kind": "train",
        "parent_run_id": None,
        "description": "Does beta matter?",
        "params": {"algorithm.kind": "dpo", "optimizer.learning_rate": 3e-4, "seed": 0, "optimizer.clip_norm": None},
        "tags": {"lab.git.dirty": "false"},
        "datasets": [
            {"name": "prefs", "path": "data/train.jsonl", "digest": "a" * 32, "context": "train", "rows": 4000},
            {"name": "prefs-validation", "path": "data/val.jsonl", "digest": "b" * 32, "context": "validation", "rows": 200},
            {"name": "prefs-test", "path": "data/test.jsonl", "digest": "c" * 32, "context": "test", "rows": 300},
        ],
        "primary_metric": "eval/exact_match",
        "higher_is_better": True,
        "algorithm": "dpo",
        "seed": 0,
        **changes,
    }
