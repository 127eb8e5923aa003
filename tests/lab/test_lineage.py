"""`tunix-lab lineage`: both ways through pretrain → sft → dpo → evaluate, by content, locally and from the tracking store."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from lineage_project import COMMIT, DATA, IDS, TEST, LineageProject
from typer.testing import CliRunner

from tunix_lab.cli.lineage import lineage
from tunix_lab.errors import UserError
from tunix_lab.lab.lineage.graph import Graph, Node
from tunix_lab.lab.lineage.records import read_run_records

pytestmark = [pytest.mark.filterwarnings(f"ignore:::{package}") for package in ("mlflow", "alembic", "sqlalchemy")]
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path) -> LineageProject:
    project = LineageProject(tmp_path / "project")
    for name in DATA:
        project.train(name)
    project.evaluate("dpo")
    project.lock()
    return project


@pytest.fixture
def ask(monkeypatch, tmp_path):
    """`ask(text)`: the JSON answer; `ask(text, "--mermaid")`: what is printed. In the project unless `home` says otherwise."""

    def call(what, *options, home=tmp_path / "project", code=0):
        monkeypatch.setenv("TUNIX_LAB_HOME", str(home))
        monkeypatch.chdir(home)
        app = typer.Typer()
        app.command()(lineage)
        result = CliRunner().invoke(app, [str(what), *(options or ["--json"])])
        if isinstance(result.exception, UserError):
            raise result.exception
        assert result.exit_code == code, (result.stdout, result.exception)
        return result.stdout if options and "--json" not in options else json.loads(result.stdout)

    return call


def behind(branches) -> list[dict]:
    """All branches of an answer, flat."""
    return [branch for top in branches for branch in (top, *behind(top.get("branches", [])))]


def paths(branches) -> set[str]:
    return {branch["path"] for branch in behind(branches)}


def find(branches, path) -> dict:
    """The first mention of something."""
    return next(branch for branch in behind(branches) if branch["path"] == path)


def test_what_made_a_model_back_to_the_data_code_and_tokenizer(project, ask):
    answer = ask("outputs/dpo/final")
    assert answer["node"]["id"] == f"md5:{project.digest('outputs/dpo/final')}" and answer["mismatch"] is None
    [made] = answer["made_from"]
    assert (made["role"], made["path"]) == ("made", IDS["dpo"])
    assert (made["node"]["commit"], made["node"]["dirty"], made["node"]["stage"]) == (COMMIT, True, "dpo")
    assert made["node"]["metrics"] == {"eval/exact_match": 0.875, "train/loss": 0.5}
    roles = {branch["path"]: branch["role"] for branch in made["branches"]}
    assert roles == {
        DATA["dpo"][0]: "train",
        DATA["dpo"][1]: "validation",
        "data/tokenizer": "tokenizer",
        "outputs/sft/final": "base",
    }
    sft = find(made["branches"], "outputs/sft/final")["branches"]
    assert [branch["path"] for branch in sft] == [IDS["sft"]]
    wanted = {*DATA["pretrain"], DATA["sft"][0], "data/tokenizer", "data/arithmetic", "data", "tokenizer", IDS["pretrain"]}
    assert wanted <= paths(answer["made_from"])
    assert TEST not in paths(answer["made_from"])


def test_what_was_made_from_data_down_to_the_evaluation(project, ask):
    answer = ask(DATA["pretrain"][0])
    used = {(branch["path"], branch["role"]) for branch in behind(answer["used_by"])}
    for name in ("pretrain", "sft", "dpo"):
        assert (f"outputs/{name}/final", "made") in used and IDS[name] in paths(answer["used_by"])
    assert (IDS["evaluate"], "model") in used
    assert ("outputs/evaluate/dpo.json", "record") in used
    assert find(answer["used_by"], IDS["evaluate"])["node"]["stage"] == "evaluate@dpo"
    # What was not made from it is not there.
    assert {branch["path"] for branch in behind(ask(TEST)["used_by"])} == {IDS["evaluate"], "outputs/evaluate/dpo.json"}


def test_a_run_is_asked_for_by_any_part_of_its_name(project, ask):
    for name in (IDS["dpo"], "dpo-2026", "cccc", f"runs/{IDS['dpo']}", f"runs/{IDS['dpo']}/manifest.json", "outputs/dpo"):
        assert ask(name)["node"]["id"] == f"run:{IDS['dpo']}"
    assert ask(project.digest("outputs/dpo/final")[:10])["node"]["id"] == f"md5:{project.digest('outputs/dpo/final')}"
    project.train("dpo", "dpo-20261125-080000-ffff", out=False)
    with pytest.raises(UserError, match="'dpo-2026' may be .*cccc, .*ffff: give more of it"):
        ask("dpo-2026")
    with pytest.raises(UserError, match="no file, run or hash 'nothing'"):
        ask("nothing")


def test_a_file_of_a_model_belongs_to_its_run_also_where_it_was_copied_to(project, ask, tmp_path):
    answer = ask("outputs/dpo/final/model.safetensors")
    assert find(answer["made_from"], "outputs/dpo/final")["role"] == "part"
    assert IDS["dpo"] in paths(answer["made_from"])
    assert IDS["evaluate"] in paths(answer["used_by"])  # the evaluation read the folder
    project.cache_listing("outputs/dpo/final")
    copied = shutil.copy(project.home / "outputs/dpo/final/model.safetensors", tmp_path / "copy")
    elsewhere = ask(copied)
    assert elsewhere["node"]["id"] == answer["node"]["id"]
    assert elsewhere["notes"] == ["the same content as outputs/dpo/final/model.safetensors"]
    folder = shutil.copytree(project.home / "outputs/sft/final", tmp_path / "folder")
    assert ask(folder)["notes"] == ["the same content as outputs/sft/final"]


def test_a_file_that_was_changed_is_not_what_the_records_speak_of(project, ask, tmp_path):
    was = project.digest("outputs/dpo/final")
    project.write("outputs/dpo/final/model.safetensors", "other weights")
    for path in ("outputs/dpo/final", "outputs/dpo/final/model.safetensors", "outputs/dpo/final/config.json"):
        answer = ask(path, code=5)
        now = project.digest("outputs/dpo/final")
        assert f"its hash is {now[:8]}, theirs {was[:8]}" in answer["mismatch"]
        assert answer["node"]["id"] == f"md5:{was}"
    assert "is not what the records say" in ask("outputs/dpo/final", "--mermaid", code=5)
    # Another content that is known: identity is content, whatever the path.
    shutil.rmtree(project.home / "outputs/dpo/final")
    shutil.copytree(project.home / "outputs/sft/final", project.home / "outputs/dpo/final")
    answer = ask("outputs/dpo/final")
    assert answer["node"]["id"] == f"md5:{project.digest('outputs/sft/final')}"
    assert answer["notes"] == [
        f"this path held {was[:8]} when it was recorded; what lies there now is the content of outputs/sft/final"
    ]
    (project.home / "strange").write_text("nobody knows this")
    with pytest.raises(UserError, match="no record speaks of"):
        ask("strange")


def test_data_that_several_runs_used_over_time_names_them_all(project, ask):
    path = DATA["sft"][0]
    old = project.digest(path)
    again = project.train("sft", "sft-20261124-080000-eeee", out=False)
    project.write(path, "newer rows")
    newer = project.train("sft", "sft-20261125-080000-ffff", out=False)
    users = lambda answer: {branch["path"] for branch in answer["used_by"] if branch["node"]["kind"] == "run"}  # noqa: E731
    assert users(ask(old)) == {IDS["sft"], again}
    assert users(ask(path)) == {newer}
    (project.home / path).unlink()
    gone = ask(path)
    assert gone["notes"][0].endswith("is not there any more; this is what the records say of it")
    assert "also held" in gone["notes"][1]


def test_a_trial_names_its_sweep_and_a_distilled_model_its_teacher(project, ask):
    teacher = project.digest("outputs/dpo/final")
    trial = project.train("sft", "sft-20261124-080000-eeee", out=False, **{"lab.trial": "sweep-sft-1/3", "dvc.teacher": teacher})
    roles = {branch["path"]: branch["role"] for branch in ask(trial)["made_from"]}
    assert (roles["sweep-sft-1"], roles["outputs/dpo/final"]) == ("trial of", "teacher")
    assert find(ask("outputs/dpo/final")["used_by"], trial)["role"] == "teacher"


def test_parts_are_told_by_content_where_the_listing_is_known(project, ask):
    path = DATA["dpo"][0]
    assert find(ask(path)["made_from"], "data/arithmetic/preference")["role"] == "part, by its path alone"
    project.cache_listing("data/arithmetic")  # DVC keeps it of outputs; it tells of the folders in it as well
    answer = ask(path)
    assert find(answer["made_from"], "data/arithmetic/preference")["role"] == "part"
    assert find(answer["made_from"], "data/arithmetic")["role"] == "part"
    # A run on other rows at that path: they are not of the folder that the lock knows.
    project.write(path, "newer rows")
    project.train("dpo", "dpo-20261125-080000-ffff", out=False)
    assert ask(path)["made_from"] == []


def test_a_checkpoint_by_its_folder(project, ask):
    for path in (f"checkpoints/0123456789abcdef/{IDS['sft']}/10", f"checkpoints/0123456789abcdef/{IDS['sft']}/10/params/data"):
        answer = ask(path)
        assert answer["node"]["id"] == f"checkpoint:{IDS['sft']}@10"
        assert [branch["path"] for branch in answer["made_from"]] == [IDS["sft"]]
        assert find(answer["used_by"], "outputs/sft/final")["role"] == "same weights"
        assert IDS["dpo"] in paths(answer["used_by"])


def test_a_checkpoint_that_was_removed_is_still_known(project, ask):
    shutil.rmtree(project.home / "checkpoints")
    answer = ask(f"checkpoints/0123456789abcdef/{IDS['sft']}/10")
    assert answer["node"]["id"] == f"checkpoint:{IDS['sft']}@10" and "not there any more" in answer["notes"][0]


def test_exports(project, ask, tmp_path):
    folder = tmp_path / "shared"
    (folder / "sub").mkdir(parents=True)
    (folder / "model.safetensors").write_text("the exported weights")
    receipt = {
        "passed": True,
        "exported_at": "2026-11-23T12:00:00Z",
        "format": "hf",
        "dtype": "float32",
        "params_digest": "e" * 64,
    }
    source = {"run_id": IDS["dpo"], "params_digest": f"{IDS['dpo']:x<64}"}
    (folder / "export_receipt.json").write_text(json.dumps(receipt | {"source": source}))
    answer = ask(folder / "model.safetensors")
    assert answer["node"]["kind"] == "export" and "not hashed again" in answer["notes"][0]
    assert [branch["path"] for branch in answer["made_from"]] == ["outputs/dpo/final"]
    # The same where the run knows of it: then the content tells.
    from tunix_lab.lab.export.export import _remember

    _remember(project.home, folder, receipt | {"source": source})
    assert find(ask(IDS["dpo"])["used_by"], str(folder))["role"] == "exported"
    answer = ask(folder / "model.safetensors")
    assert IDS["dpo"] in paths(answer["made_from"])
    (folder / "model.safetensors").write_text("changed")
    assert "is not what the records say" in ask(folder / "model.safetensors", code=5)["mismatch"]


def test_the_lock_alone_tells_of_runs_that_lie_elsewhere(project, ask):
    project.move_runs_away()
    answer = ask("outputs/dpo/final")
    assert {IDS[name] for name in DATA} <= paths(answer["made_from"])
    assert "evaluate@dpo" in paths(answer["used_by"])
    (project.home / "outputs/dpo/run.json").write_text('{"run_id": "another"}')  # not what the lock has: it names nobody
    assert "dpo" in paths(ask("outputs/dpo/final")["made_from"])


def test_a_run_names_its_parent_when_all_else_is_gone(project, ask):
    (project.home / "dvc.lock").unlink()
    shutil.rmtree(project.home / "runs" / IDS["sft"])
    shutil.rmtree(project.home / "outputs")
    made = find(ask(IDS["dpo"])["made_from"], "outputs/sft/final")
    assert (made["role"], [branch["path"] for branch in made["branches"]]) == ("base", [IDS["sft"]])


def test_a_colleague_s_runs_come_from_the_tracking_store(project, ask, tracking_uri, monkeypatch, tmp_path):
    from tunix_lab.lab.tracking.sync import push

    for run_id in IDS.values():
        assert push(project.home / "runs" / run_id, tracking_uri).outcome == "complete"
    (project.home / "dvc.lock").unlink()
    local = {name: ask(name) for name in (IDS["dpo"], DATA["pretrain"][0])}
    monkeypatch.setenv("TUNIX_LAB_TRACKING_URI", tracking_uri)
    mine = tmp_path / "mine"
    (mine / "data").mkdir(parents=True)
    shutil.copytree(project.home / "data", mine / "data", dirs_exist_ok=True)
    with pytest.raises(UserError, match="--remote"):
        ask(IDS["dpo"], home=mine)
    for name, expected in local.items():
        answer = ask(name, "--json", "--remote", home=mine)
        tree = lambda given: [(b["role"], b["path"], b["node"]["id"]) for b in behind(given)]  # noqa: E731
        assert sorted(tree(answer["made_from"])) == sorted(tree(expected["made_from"]))
        assert sorted(tree(answer["used_by"])) == sorted(tree(expected["used_by"]))
    run = ask(IDS["dpo"], "--json", "--remote", home=mine)["node"]
    assert (run["commit"], run["dirty"], run["metrics"]["train/loss"]) == (COMMIT, True, 0.5) and run["place"].startswith(
        "sqlite"
    )


def test_mlflow_s_own_records_lead_from_data_to_checkpoint_to_run(project, tracking_uri):
    from mlflow import MlflowClient

    from tunix_lab.lab.tracking.sync import push

    uuids = {name: push(project.home / "runs" / run_id, tracking_uri).mlflow_run_id for name, run_id in IDS.items()}
    client = MlflowClient(tracking_uri)
    data, base = project.digest(DATA["sft"][0]), project.digest("outputs/sft/final")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    # Which checkpoints were made from this data, and by which code? Which run started from that checkpoint?
    [saved] = client.search_logged_models(experiments, filter_string=f"tags.`dvc.base` = '{base}'")
    assert (saved.source_run_id, saved.tags["lab.parent_run_id"]) == (uuids["dpo"], IDS["sft"])
    assert saved.tags["mlflow.source.git.commit"] == COMMIT
    [run] = client.search_runs(experiments, f"dataset.digest = '{data}'")
    assert run.info.run_id == uuids["sft"]
    dpo = client.get_run(uuids["dpo"])
    assert [client.get_logged_model(given.model_id).source_run_id for given in dpo.inputs.model_inputs] == [uuids["sft"]]
    assert dpo.data.tags["dvc.output"] == project.digest("outputs/dpo/final")
    assert dpo.data.tags["lab.output"] == "outputs/dpo/final"
    assert client.get_run(uuids["pretrain"]).inputs.model_inputs == []


def _record(home: Path, name: str) -> str:
    return (home / f"outputs/{name}/run.json").read_text()


def test_the_lock_of_this_repository(ask, tmp_path):
    home = tmp_path / "copy"
    for file in (REPOSITORY / "dvc.lock", *REPOSITORY.glob("outputs/*/run.json")):
        (home / file.relative_to(REPOSITORY)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, home / file.relative_to(REPOSITORY))
    run_id = json.loads(_record(home, "dpo_gemma"))["run_id"]
    answer = ask("dpo_gemma", home=home)
    assert answer["node"]["id"] == f"run:{run_id}"
    made = {branch["node"].get("stage") for branch in behind(answer["made_from"])}
    assert {"sft_gemma", "pretrain_gemma"} <= made and "lora_gemma" not in made
    stages = paths(ask("data/arithmetic/sft/test.jsonl", home=home)["used_by"])
    assert {"evaluate@sft_gemma", "evaluate@distill_gemma", "evaluate_preference@dpo_gemma"} <= stages
    # All that the lock knows of that stage is that it read the whole folder; it says so.
    whole = find(ask("data/arithmetic/sft/test.jsonl", home=home)["used_by"], json.loads(_record(home, "sft_gemma"))["run_id"])
    assert whole["role"] == "read in data/arithmetic/sft"
    teacher = {b["path"] for b in behind(ask("outputs/sft_gemma/final", home=home)["used_by"])}
    assert {"outputs/dpo_gemma/final", "outputs/distill_gemma/final", "evaluate@sft_gemma"} <= teacher


def test_the_answer_as_a_drawing(project, ask):
    lines = ask("outputs/dpo/final", "--mermaid").splitlines()
    declared = {line.split("(")[0].split("[")[0].strip() for line in lines[1:] if '"]' in line}
    drawn = [line.split() for line in lines if "-->" in line]
    assert lines[0] == "flowchart LR" and len(drawn) >= 10
    assert {name for line in drawn for name in (line[0], line[-1])} <= declared
    label = f'"outputs/dpo/final<br/>{project.digest("outputs/dpo/final")[:8]}"'
    [model] = [line.split("[")[0].strip() for line in lines if label in line]
    [run] = [line.split("(")[0].strip() for line in lines if IDS["dpo"] in line]
    assert f'  {run} -->|"made"| {model}' in lines


def test_the_answer_for_people(project, monkeypatch):
    monkeypatch.setenv("TUNIX_LAB_HOME", str(project.home))
    monkeypatch.chdir(project.home)
    app = typer.Typer()
    app.command()(lineage)
    said = CliRunner().invoke(app, ["outputs/dpo/final"]).stdout
    up, down = said.split("used by")
    assert said.startswith(f"outputs/dpo/final  {project.digest('outputs/dpo/final')[:8]}\nmade from\n")
    assert f"made {IDS['dpo']}  stage dpo  eval/exact_match 0.875  train/loss 0.5" in up
    assert "code commit c0ffee00 with uncommitted changes" in up
    assert f"train {DATA['dpo'][0]}  {project.digest(DATA['dpo'][0])[:8]}" in up and "(above)" in up
    assert f"model {IDS['evaluate']}  stage evaluate@dpo" in down and "code commit" not in down
    project.write("outputs/dpo/final/config.json", "[]")
    result = CliRunner().invoke(app, ["outputs/dpo/final"])
    assert result.exit_code == 5 and "is not what the records say" in result.stdout.splitlines()[0]


def test_a_graph_tells_every_thing_once_and_ends_in_a_circle():
    graph = Graph()
    for name in "abc":
        graph.add(Node(name, "content", name))
    for source, target in ("ab", "bc", "ca"):
        graph.link(source, target, "made")
    assert [(branch.label, branch.shown_above) for branch in graph.made_from("c").walk()] == [
        *[("c", False), ("b", False), ("a", False), ("c", True)]
    ]


def test_asking_imports_neither_mlflow_nor_jax_nor_dvc():
    program = "import sys, tunix_lab.cli.lineage, tunix_lab.lab.lineage.query as q, pathlib; q.Lineage(pathlib.Path('.'))\n"
    program += "heavy = {'mlflow', 'jax', 'dvc', 'numpy'} & set(sys.modules); assert not heavy, heavy"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_damaged_run_hides_no_other(project, ask, capsys):
    damaged = project.home / "runs/bad-20261123-080000-dead"
    damaged.mkdir()
    (damaged / "manifest.json").write_text("{")
    assert len(read_run_records(project.home)) == len(list((project.home / "runs").iterdir())) - 1
    assert "left out: bad-20261123-080000-dead" in capsys.readouterr().err
    assert ask(IDS["dpo"])
