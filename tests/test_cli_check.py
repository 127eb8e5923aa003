"""`tunix-lab check` and `tunix-lab schema`: what they print, how they exit, and what they do not load."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from tunix_lab.cli.check import check
from tunix_lab.cli.schema import schema
from tunix_lab.spec import SpecError

ROOT = Path(__file__).parents[1]
HEAVY = ("jax", "flax", "optax", "orbax", "qwix", "grain", "mlflow", "dvc", "tokenizers", "transformers", "numpy")


@pytest.fixture
def app(monkeypatch):
    monkeypatch.chdir(ROOT)
    app = typer.Typer()
    app.command()(check)
    app.command()(schema)
    return app


def run(app, *arguments):
    return CliRunner().invoke(app, arguments)


def test_good_files(app):
    result = run(app, "check", "experiments/sft_gemma.yaml", "experiments/dpo_gemma.yaml")
    assert result.exit_code == 0, result.output
    assert result.stdout == "experiments/sft_gemma.yaml: ok\nexperiments/dpo_gemma.yaml: ok\n"


def test_mistakes_of_all_files_are_one_user_error(app, tmp_path):
    (tmp_path / "bad.yaml").write_text("seed: x\n")
    result = run(app, "check", "experiments/dpo_gemma.yaml", str(tmp_path / "bad.yaml"), str(tmp_path / "none.yaml"))
    assert isinstance(result.exception, SpecError) and result.exception.exit_code == 2
    assert result.stdout == "experiments/dpo_gemma.yaml: ok\n"
    lines = str(result.exception).splitlines()
    assert f"{tmp_path}/bad.yaml:1:7: seed: must be an integer, got 'x'" in lines
    assert f"{tmp_path}/none.yaml: no such file" in lines


def test_resolved_says_where_each_value_comes_from(app):
    result = run(app, "check", "experiments/dpo_gemma.yaml", "--resolved", "--set", "algorithm.beta=0.3")
    lines = {tuple(part.strip() for part in line.split("  # ")) for line in result.stdout.splitlines()[1:]}
    places = {name.partition(":")[0]: place for name, place in lines}
    assert ("algorithm.beta: 0.3", "--set #1") in lines
    assert ("training.micro_batch_size: null", "default") in lines
    assert ('model.size: "nano"', "experiments/base/nano.yaml:4") in lines
    assert places["algorithm.kind"].startswith("experiments/dpo_gemma.yaml:")


def test_devices(app):
    assert run(app, "check", "experiments/dpo_gemma.yaml", "--devices", "8").exit_code == 0
    result = run(app, "check", "experiments/dpo_gemma.yaml", "--devices", "3")
    assert "rows cannot be split evenly over 3 devices" in str(result.exception)
    assert run(app, "check", "experiments/dpo_gemma.yaml", "--devices", "0").exit_code == 2


def test_json(app, tmp_path):
    (tmp_path / "bad.yaml").write_text("extends: nowhere.yaml\n")
    result = run(app, "check", "experiments/dpo_gemma.yaml", str(tmp_path / "bad.yaml"), "--json", "--resolved")
    assert result.exit_code == 2
    good, bad = json.loads(result.stdout)
    assert good["ok"] and good["problems"] == [] and good["name"] == "dpo_gemma" and len(good["spec_hash"]) == 64
    assert good["resolved"]["adapter.kind"] == {"value": "none", "origin": "default"}
    (problem,) = bad["problems"]
    assert not bad["ok"] and (problem["line"], problem["column"], problem["field"]) == (1, 10, "extends")
    assert problem["source"] == f"{tmp_path}/bad.yaml" and "no such file" in problem["message"]


def test_schema_is_json(app):
    printed = json.loads(run(app, "schema").stdout)
    assert "extends" in printed["properties"] and printed["additionalProperties"] is False


def test_no_engine_is_loaded():
    """The same holds for `--help`, which loads less; numpy too would cost a tenth of a second."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tunix_lab.cli.check import check\n"
        "from tunix_lab.cli.schema import schema\n"
        "assert 'pydantic' not in sys.modules, 'even pydantic waits for a command'\n"
        "check([Path('experiments/dpo_gemma.yaml')], [], resolved=True)\n"
        "schema()\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
