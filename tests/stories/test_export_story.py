"""A LoRA run from its spec to an export that others can load, whole and as an adapter."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from story_project import Project

QUIET = {"TUNIX_LAB_SYNC": "off"}
LORA = ("--set", "adapter={kind: lora, rank: 4, alpha: 8}", "--set", "training.max_steps=8")
SHORT = ("--set", "training.max_steps=2", "--set", "optimizer.schedule.warmup_steps=0")
OUTSIDE = all(importlib.util.find_spec(name) for name in ("torch", "transformers", "peft"))

pytestmark = pytest.mark.slow


def _receipt(folder: Path) -> dict:
    return json.loads((folder / "export_receipt.json").read_text())


def test_a_run_with_an_adapter_is_exported(project: Project, tmp_path: Path) -> None:
    project.cli("run", str(project.write_spec("base")), *SHORT, "--out", "outputs/base", **QUIET)
    spec = project.write_spec("tuned", init="{kind: experiment, name: base}")
    project.cli("run", str(spec), *LORA, **QUIET)
    run = project.runs()[-1]
    record = json.loads((run / "run.json").read_text())
    assert record["adapter"] == {"kind": "lora", "rank": 4, "alpha": 8.0, "path": f"runs/{run.name}/adapter"} | {
        "targets": record["adapter"]["targets"]
    }
    adapter = load_file(run / "adapter/adapter_model.safetensors")
    assert adapter["base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight"].shape == (4, 96)
    assert json.loads((run / "adapter/adapter_config.json").read_text())["base_model_name_or_path"] == "outputs/base/final"

    whole, alone = tmp_path / "whole", tmp_path / "alone"
    printed = project.cli("export", run.name, "--to", str(whole), "--dtype", "bfloat16", "--max-file-size", "500KB")
    assert "passed" in printed and "FAILED" not in printed and (whole / "model.safetensors.index.json").is_file()
    project.cli("export", run.name, "--to", str(alone), "--format", "peft", "--python", sys.executable)
    for folder in (whole, alone):
        receipt = _receipt(folder)
        assert receipt["passed"] and receipt["source"]["run_id"] == run.name
        assert receipt["source"]["params_digest"] == record["params_digest"] and receipt["base"]["name"] == "outputs/base/final"
        checks = {check["name"]: check["passed"] for check in receipt["checks"]}
        assert checks["differs from the base"] and checks["base + adapter = weights"]
        assert checks.get("transformers: logits") is (True if OUTSIDE else None)
    assert (alone / "adapter_model.safetensors").read_bytes() == (run / "adapter/adapter_model.safetensors").read_bytes()

    assert "replace it with --overwrite" in project.cli("export", run.name, "--to", str(whole), exit_code=2)
    assert "has no adapter" in project.cli("export", "outputs/base", "--to", str(tmp_path / "x"), "--format", "peft", exit_code=2)
    project.cli("export", "outputs/base", "--to", str(whole), "--overwrite")
    assert _receipt(whole)["source"]["name"] == "base"
    # The model is sampled from its export like from any other folder.
    assert "hello" in project.cli("sample", str(whole), "--prompt", "hello", "--max-new-tokens", "2")

    (run / "final/model.safetensors").write_bytes((project.home / "outputs/base/final/model.safetensors").read_bytes())
    printed = project.cli("export", run.name, "--to", str(tmp_path / "wrong"), exit_code=5)
    assert "export: failed: weights of the run" in printed and not (tmp_path / "wrong").exists()
    assert _receipt(tmp_path / "wrong.incomplete")["passed"] is False
