"""Bad files, folders and addresses through the command line: one message with place and remedy, an exit code, nothing lost.

Each case is run in a project that has outputs of an earlier run, and whatever the project held before it holds afterwards.
"""

import dataclasses
import gzip
import io
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_hub import TOKEN, FakeHub, serve
from flax import nnx

from tunix_lab.cli.main import main
from tunix_lab.data.files import read_rows
from tunix_lab.data.tokenizer_training import train_tokenizer
from tunix_lab.errors import EnvironmentProblem, unwritable, writing
from tunix_lab.tasks.arithmetic import write

SPEC = """
name: bad
model: {family: gemma3, size: nano, init: {kind: random}}
tokenizer: {path: data/tokenizer}
algorithm: {kind: sft}
data: {kind: chat, train: data/good.jsonl, validation: data/good.jsonl, max_length: 128}
optimizer: {learning_rate: 1.0e-3}
training: {max_steps: 2, batch_size: 8}
tracking: {experiment: bad}
"""
GOOD = b'{"prompt": "1 + 1", "completion": "2"}\n'
PAIRS = ("algorithm={kind: dpo, max_prompt_length: 64, max_response_length: 64}", "model.init={kind: path, path: model}")
TEXT = "data={{kind: text, train: {0}, validation: {0}, max_length: 64}}"
PROMPTED = (
    "algorithm={kind: grpo, rollout: {max_new_tokens: 8, max_prompt_length: 24}, "
    "rewards: {functions: [{function: 'tunix_lab.tasks.arithmetic:exact_match'}]}}",
    "data={{kind: prompts, train: {0}, validation: data/good.jsonl}}",
    "tracking.primary_metric=eval/reward",
)
PREFERENCE = "data={{kind: preference, train: {0}, validation: {0}}}"

Cli = Callable[..., tuple[int, str]]


def parquet(**columns) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


@dataclasses.dataclass(frozen=True)
class Case:
    """A bad file, and what must be said of it.

    Attributes:
      name: of the file.
      content: of the file; None makes none.
      said: what the message says, each on a line of its own, after the file's path where it begins with ":".
      sets: overrides of the spec in place of `data.train=FILE`; {0} is the file.
      unsaid: what the message does not say.
    """

    name: str
    content: bytes | None
    said: tuple[str, ...]
    sets: tuple[str, ...] = ("data.train={0}",)
    unsaid: tuple[str, ...] = ()


DATA = {
    "bad JSON lines": Case(
        "rows.jsonl",
        GOOD + b"{oops\n" * 7,
        (*(f":{line}:2: not JSON: " for line in range(2, 7)), ": and 2 more lines like these"),
        unsaid=("rows.jsonl:7", "rows.jsonl:8"),
    ),
    "JSON that is no object": Case("rows.jsonl", GOOD + b"[1]\n3\n", (":2: a row must be a JSON object", ":3: a row must be")),
    "one JSON document": Case("rows.json", b'[\n{"prompt": "a"},\n', (":1:2: not JSON", "one whole JSON object must stand on")),
    "wrong columns": Case(
        "rows.jsonl",
        b'{"question": "a", "answer": "b"}\n{"promt": "a", "completion": "b"}\n',
        (
            ":1: column 'prompt' is missing; the row has 'question', 'answer'",
            ":2: column 'prompt' is missing; the row has 'promt', 'completion' (did you mean 'promt'?)",
        ),
    ),
    "a column that is only in some rows": Case(
        "rows.jsonl", GOOD * 3 + b'{"prompt": "a"}\n', (":4: column 'completion' is miss",)
    ),
    "columns of the spec that are not there": Case(
        "rows.jsonl",
        b'{"question": "a", "answer": "b"}\n',
        (":1: column 'answr' is missing; the row has 'question', 'answer' (did you mean 'answer'?)",),
        ("data.train={{path: {0}, columns: {{prompt: question, completion: answr}}}}",),
    ),
    "wrong types": Case(
        "rows.jsonl",
        GOOD + b'{"prompt": 5, "completion": "b"}\n{"prompt": "a", "completion": ["b"]}\n{"prompt": "a", "completion": null}\n',
        (
            ":2: column 'prompt' must be text or a list of messages, got int",
            ":3: column 'completion' must be text, got list",
            ":4: column 'completion' must be text, got null",
        ),
    ),
    "a type that a whole column has": Case(
        "rows.parquet",
        parquet(prompt=["a"] * 9, completion=[1] * 9),
        (":row 1: column 'completion' must be text, got int (and so in ",),
    ),
    "empty values": Case(
        "rows.jsonl",
        b'{"prompt": "", "completion": "a"}\n{"prompt": "a", "completion": " "}\n{}\n',
        (
            ":1: column 'prompt' is empty; fill it, or take the row out",
            ":2: column 'completion' is empty; fill it, or take the row out",
            ":3: column 'prompt' is missing; the row has none",
        ),
    ),
    "empty texts": Case("rows.jsonl", b'{"text": "a b"}\n{"text": ""}\n', (":2: column 'text' is empty",), (TEXT,)),
    "no file": Case("none.jsonl", None, (" does not exist: `dvc repro bad` makes what the experiment needs, or mend",)),
    "an empty file": Case("rows.jsonl", b"", (": the file is empty; it must hold one JSON object a line",)),
    "blank lines alone": Case("rows.jsonl", b"\n \n", (": the file is empty",)),
    "no UTF-8": Case("rows.jsonl", GOOD + b'{"prompt": "\xff"}\n', (":2: byte 13 is not UTF-8; save the file as UTF-8",)),
    "UTF-16": Case("rows.jsonl", GOOD.decode().encode("utf-16"), (": the file is UTF-16; save it as UTF-8",)),
    "gzip": Case("rows.jsonl", gzip.compress(GOOD), (": the file is compressed with gzip; unpack it (`gunzip FILE`)",)),
    "Parquet by another name": Case("rows.jsonl", parquet(prompt=["a"]), (": the file is a Parquet file; name it .parquet",)),
    "a suffix of no format": Case("rows.txt", GOOD, (": the suffix '.txt' names no format that is read; there are .jsonl, ",)),
    "a chat without an answer": Case(
        "rows.jsonl",
        b'{"messages": "hello"}\n{"messages": [{"role": "user", "content": "a"}]}\n{"messages": [{"role": "bot"}]}\n',
        (
            ":1: column 'messages' must be a list, got str",
            ":2: chat: no message has the role assistant",
            ":3: chat: a message is",
        ),
    ),
    "ragged CSV": Case(
        "rows.csv",
        b"prompt,completion\na,b\na\na,b,c\n",
        (":3: 1 values for 2 columns (prompt, completion); put", ":4: 3 values for 2 columns (prompt, completion); put"),
    ),
    "CSV without a header": Case("rows.csv", b"why,7\nhow,8\n", (":1: the first line of a CSV file must name its columns",)),
    "CSV of a header": Case("rows.csv", b"prompt,completion\n", (": the file has no rows; it must hold",)),
    "CSV in Latin 1": Case("rows.csv", b"prompt,completion\na,\xe9\n", (":2: byte 0xe9 is not UTF-8; save the file as UTF-8",)),
    "an open quote in CSV": Case("rows.csv", b'prompt,completion\na,"b\n', ("not CSV: unexpected end of data; mend the quotes",)),
    "cut Parquet": Case(
        "rows.parquet",
        parquet(prompt=["a"] * 50, completion=["b"] * 50)[:200],
        (": not a Parquet file", "write it anew"),
    ),
    "Parquet by its name alone": Case("rows.parquet", GOOD, (": not a Parquet file",)),
    "Parquet without rows": Case("rows.parquet", parquet(prompt=pa.array([], pa.string())), (": the file has no rows",)),
    "nulls": Case(
        "rows.parquet",
        parquet(prompt=["a", None], completion=["b", "c"]),
        (":row 2: column 'prompt' is missing; the row",),
    ),
    "preferences": Case(
        "rows.jsonl",
        b'{"prompt": "a", "chosen": "b", "reject": "c"}\n{"prompt": "a", "chosen": "", "rejected": ""}\n',
        (
            ":1: column 'rejected' is missing; the row has 'prompt', 'chosen', 'reject' (did you mean 'reject'?)",
            ":2: column 'chosen' is empty",
        ),
        (*PAIRS, PREFERENCE),
    ),
    "prompts that are none": Case(
        "rows.jsonl",
        b'{"question": "a", "answer": "b"}\n{"prompt": []}\n{"prompt": " "}\n',
        (
            ":1: column 'prompt' is missing; the row has 'question', 'answer'",
            ":2: column 'prompt' must be text or a list of messages, got an empty list",
            ":3: column 'prompt' is empty; fill it, or take the row out",
        ),
        PROMPTED,
    ),
    "prompts that are too long": Case(
        "rows.jsonl",
        b'{"prompt": "1 + 1"}\n{"prompt": "%s"}\n' % (b"x" * 99),
        (":2). Set algorithm.rollout.max_prompt_length to ",),
        PROMPTED,
        unsaid=("truncate",),
    ),
    "too long": Case("rows.jsonl", GOOD + b'{"prompt": "a", "completion": "%s"}\n' % (b"x" * 999), (":2",), unsaid=(":1:",)),
}


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """A project with data, a tokenizer, and the outputs of an earlier run."""
    home = tmp_path_factory.mktemp("template")
    write(home / "arithmetic", seed=0, train=20, validation=4, test=4)
    train_tokenizer(read_rows(home / "arithmetic/pretrain/train.jsonl"), 300, home / "data/tokenizer")
    (home / "data/good.jsonl").write_bytes(GOOD * 8)
    (home / "spec.yaml").write_text(SPEC)
    (home / "out/final").mkdir(parents=True)
    (home / "out/final/model.safetensors").write_bytes(b"of an earlier run")
    (home / "out/run.json").write_text("{}")
    (home / "a_file").write_text("not a folder")
    return home


@pytest.fixture
def home(template, tmp_path, monkeypatch) -> Path:
    """A copy of it, which is the current folder and the project of the command line."""
    home = Path(shutil.copytree(template, tmp_path / "project"))
    for name in list(os.environ):
        if name.startswith("TUNIX_LAB_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TUNIX_LAB_HOME", str(home))
    monkeypatch.setenv("TUNIX_LAB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(home)
    return home


@pytest.fixture
def cli(home, monkeypatch, capsys) -> Cli:
    """Runs a command in this process; returns exit code and what it printed. The project is as it was before."""
    settings = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: jax.config.values[name] for name in settings}

    def call(*arguments: str, **environment: str) -> tuple[int, str]:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["tunix-lab", *arguments])
        held = contents(home)
        with pytest.raises(SystemExit) as ended:
            main()
        assert contents(home) == held
        printed = "".join(capsys.readouterr())
        assert "Traceback" not in printed
        return ended.value.code, printed

    yield call
    for name, value in before.items():
        jax.config.update(name, value)


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file with its bytes, and every folder."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def overridden(*sets: str) -> list[str]:
    return [part for text in sets for part in ("--set", text)]


# ---- data ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["run", "show-data"])
@pytest.mark.parametrize("case", DATA.values(), ids=DATA.keys())
def test_data(case, verb, home, cli):
    path = home / case.name
    if case.content is not None:
        path.write_bytes(case.content)
    sets = overridden(*(text.format(case.name) if "{0}" in text else text for text in case.sets))
    if verb == "show-data" and case.content is None:
        pytest.skip("said in other words: tests/data/test_files.py")
    code, printed = cli(verb, "spec.yaml", *sets, *(["--out", "out"] if verb == "run" else []))
    assert code == 2
    lines = printed.splitlines()
    for said in case.said:
        wanted = f"{path}{said}" if said[0] in ": " else said
        assert any(wanted in line for line in lines), f"{wanted!r} is not said in\n{printed}"
    assert not [text for text in case.unsaid if text in printed]


PROMPTS = {
    "no prompt": (b'{"question": "a"}\n', (":1: column 'prompt' is missing; the row has 'question'",)),
    "no text": (
        b'{"prompt": "a"}\n{"prompt": 5}\n{"prompt": []}\n',
        (":2: column 'prompt' must be text or a list of messages, got int", ":3: column 'prompt' must be text or a"),
    ),
    "text that is none": (b'{"text": ["a"]}\n', (":1: column 'text' must be text, got list",)),
    "a message alone": (b'{"messages": [{"role": "user", "content": "a"}]}\n', (":1: chat: the messages before the last one",)),
    "an answer alone": (b'{"messages": [{"role": "assistant", "content": "a"}]}\n', (":1: chat: the messages before the",)),
    "messages that are none": (
        b'{"messages": "a"}\n{"messages": null}\n{"messages": ["a", "b"]}\n',
        (":1: column 'messages' must be a list of messages (and so in 2 more rows)",),
    ),
    "messages of another shape": (
        b'{"messages": [{"role": "user"}, {"role": "assistant", "content": "b"}]}\n{"prompt": [{"from": "human"}]}\n',
        (":1: chat: a message is", ":2: chat: a message is"),
    ),
}


@pytest.mark.parametrize(("content", "said"), PROMPTS.values(), ids=PROMPTS.keys())
def test_prompts_of_samples(content, said, home, cli):
    """Told before there is a run, and before weights are read."""
    path = home / "prompts.jsonl"
    path.write_bytes(content)
    code, printed = cli("run", "spec.yaml", "--set", "samples={every: 1, prompts: prompts.jsonl}")
    assert code == 2
    for mistake in said:
        assert any(f"{path}{mistake}" in line for line in printed.splitlines()), f"{mistake!r} is not said in\n{printed}"


def test_a_folder_in_place_of_a_file(home, cli):
    (home / "rows.jsonl").mkdir()
    assert cli("run", "spec.yaml", "--set", "data.train=rows.jsonl") == (
        2,
        f"{home}/rows.jsonl: cannot be read: Is a directory\n",
    )


def test_the_corpus_of_a_tokenizer(home, cli):
    (home / "rows.jsonl").write_bytes(b"{oops\n")
    code, printed = cli("data", "tokenizer", "--corpus", "rows.jsonl", "--out", "tokenizer")
    assert code == 2 and printed.startswith("rows.jsonl:1:2: not JSON")


# ---- what a spec names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "model.init={kind: experiment, name: nowhere}",
            "no DVC stage 'nowhere' to make it: add one to dvc.yaml",
        ),
        (
            "model.init={kind: path, path: nowhere}",
            "nowhere: no config.json; give a folder in the layout of the",
        ),
        ("model.init={kind: path, path: broken}", "broken/config.json: not valid JSON"),
        (
            "model.init={kind: path, path: strange}",
            "strange/config.json: architecture ['Nope'] is not served; there are",
        ),
        ("samples={every: 1, prompts: nowhere.jsonl}", "nowhere.jsonl does not exist: `dvc repro bad` makes what"),
        ("tokenizer.path=nowhere", "nowhere does not exist"),
        ("tokenizer.path=broken", "broken: no tokenizer here (tokenizer.json or tokenizer.model is missing); make one with"),
        ("tokenizer.path=torn", "torn: the tokenizer files cannot be read"),
        ("samples={every: 1, scorer: 'nowhere:score'}", "samples.scorer"),
    ],
)
def test_what_a_spec_names(override, said, home, cli):
    for folder, text in (("broken", "{oops"), ("strange", '{"architectures": ["Nope"]}')):
        (home / folder).mkdir()
        (home / folder / "config.json").write_text(text)
    shutil.copytree(home / "data/tokenizer", home / "torn")
    torn = home / "torn/tokenizer.json"
    torn.write_bytes(torn.read_bytes()[:500])
    code, printed = cli("run", "spec.yaml", "--set", override, "--out", "out")
    assert code == 2 and said in printed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "spce.yaml"), "spce.yaml: no such file (did you mean 'spec.yaml'?)"),
        (("sweep", "spce.yaml", "--seeds", "2"), "spce.yaml: no such file (did you mean 'spec.yaml'?)"),
        (("sweep", "spec.yaml"), "nothing to sweep: give --grid field=a,b or --seeds N"),
        (("sweep", "--grid", "seed=1,2"), "sweep: give a spec file, or --join SWEEP"),
        (("sweep", "spec.yaml", "--grid", "seed=1,2", "--random", "seed=1..2"), "sweep: choose one of --grid and --random"),
        (("sweep", "--join", "x", "--seeds", "2"), "sweep: --join takes its values from the sweep"),
        (("sweep", "--join", "nowhere"), "no run 'nowhere'"),
        (
            ("sweep", "spec.yaml", "--grid", "training.batch_size=0,8"),
            "--grid training.batch_size=0: training.batch_size: ",
        ),
        (("evaluate", "nowhere", "--prompts", "none.jsonl"), "evaluate: no such file"),
        (("evaluate", "nowhere", "--prompts", "data/good.jsonl"), "no run 'nowhere'"),
        (("sample", "nowhere", "-p", "a"), "no run 'nowhere'"),
        (("export", "nowhere", "--to", "exported"), "no run 'nowhere'"),
        (("sync", "nowhere"), "no run 'nowhere'"),
        (("data", "gsm8k", "--source", "nowhere"), "nowhere/train.jsonl: no such file"),
    ],
)
def test_arguments(arguments, said, cli):
    code, printed = cli(*arguments)
    assert code == 2 and said in printed


# ---- places that cannot be written ---------------------------------------------------------------------------------------

_FILE = "cannot be written: Not a directory; a file stands where a folder is needed: move it away, or choose another place"


@pytest.mark.parametrize("verb", [("run", "spec.yaml"), ("sweep", "spec.yaml", "--seeds", "2")], ids=["run", "sweep"])
@pytest.mark.parametrize("folder", ["runs", "checkpoints"])
def test_a_file_in_place_of_a_folder_of_the_project(folder, verb, home, cli):
    (home / folder).write_text("not a folder")
    code, printed = cli(*verb)
    assert code == 3 and f"{home}/{folder} (" in printed and _FILE in printed


@pytest.mark.parametrize("out", ["a_file", "a_file/below"])
def test_a_file_in_place_of_the_outputs(out, home, cli):
    assert cli("run", "spec.yaml", "--out", out) == (3, f"{home}/a_file (--out): {_FILE}\n")
    for command in (("data", "arithmetic"), ("data", "tokenizer", "--corpus", "data/good.jsonl")):
        code, printed = cli(*command, "--out", out)
        assert code == 3 and "a_file" in printed and "a file stands where a folder is needed" in printed


def test_a_file_in_place_of_the_cache(home, cli):
    code, printed = cli("run", "spec.yaml", TUNIX_LAB_CACHE_DIR=str(home / "a_file"))
    assert code == 3 and f"{home}/a_file (TUNIX_LAB_CACHE_DIR, or the default cache): {_FILE}" in printed


def test_no_project(home, cli):
    code, printed = cli("run", "spec.yaml", TUNIX_LAB_HOME=str(home / "nowhere"))
    assert code == 2 and printed == f"TUNIX_LAB_HOME: no such folder: {home}/nowhere\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_folders_of_another_user():
    """Permissions do not bind root, so the places are looked at as nobody, in a project that root alone may write."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to others
        Path(folder).chmod(0o755)
        program = (
            "import os, sys; from pathlib import Path; import tempfile; tempfile.gettempdir()\n"
            "from tunix_lab.errors import EnvironmentProblem; from tunix_lab.spec import LabSettings\n"
            "from tunix_lab.lab.preflight import check_folder, check_places\n"
            "home, settings = Path(sys.argv[1]), LabSettings()\n"
            "os.setgid(65534); os.setuid(65534)\n"
            "try: check_places(home, settings)\n"
            "except EnvironmentProblem as problem: print(problem)\n"
        )
        done = subprocess.run([sys.executable, "-c", program, folder], capture_output=True, text=True, check=False)
    remedy = "make it writable for this user, or choose another place"
    said = f"{folder} (runs are recorded there): cannot be written: Permission denied; {remedy}\n"
    assert (done.stdout, done.stderr) == (said, "")


# ---- tracking ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("ftp://host/x", "tracking address 'ftp://host/x' cannot be used: it must be sqlite:///FILE or http(s)://HOST[:PORT]"),
        ("mysql://me:secret@host/x", "tracking address 'mysql://host/x' cannot be used"),
        ("http://", "tracking address 'http://' cannot be used"),
        ("http://host:99999", "tracking address 'http://host:99999' cannot be used"),
        ("./mlruns", "tracking address './mlruns' cannot be used"),
        ("file:///tmp/mlruns", "cannot be used"),
        ("sqlite://mlflow.db", "cannot be used"),
        ("databricks", "cannot be used"),
        ("sqlite:///{home}", "tracking store {home} is a folder, not a database; mend TUNIX_LAB_TRACKING_URI"),
        ("sqlite:///{home}/a_file/mlflow.db", "{home}/a_file is not a folder"),
        ("sqlite:///{home}/spec.yaml", "tracking store {home}/spec.yaml is not a database"),
    ],
)
@pytest.mark.parametrize(
    "verb", [("run", "spec.yaml", "--out", "out"), ("sweep", "spec.yaml", "--seeds", "2")], ids=["run", "sweep"]
)
def test_the_address_of_the_tracking_store_is_looked_at_before_the_run(address, said, verb, home, cli):
    code, printed = cli(*verb, TUNIX_LAB_TRACKING_URI=address.format(home=home))
    assert code == 3 and said.format(home=home) in printed and "secret" not in printed


# ---- the hub -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hub():
    with serve() as hub:
        yield hub


COMMIT = "f" * 40
MODEL = "model.init={{kind: hub, repo: {repo}, revision: {commit}}}"
DATASET = "data.train={{kind: hub, repo: {repo}, revision: {commit}, file: train.jsonl}}"


@pytest.mark.parametrize(
    ("access", "token", "commit", "code", "model", "dataset"),
    [
        ("gated", TOKEN, None, 3, "lab/it is gated: accept its licence on https", "lab/it is gated: accept its terms on https"),
        (
            "public",
            "hf_wrong",
            None,
            3,
            "lab/it: the hub refuses the token (status 401)",
            "the hub refuses the token (status 401)",
        ),
        ("private", "", None, 2, "lab/it: the hub has no such repository, or it is private", "needs `hf auth login` or HF_TOKEN"),
        ("public", "", COMMIT, 2, f"lab/it has no revision '{COMMIT}'", f"the dataset lab/it has no revision '{COMMIT}'"),
        ("offline", "", None, 3, "HF_HUB_OFFLINE is set", "or name a file of the project, {path: FILE}"),
    ],
    ids=["gated", "wrong token", "private", "wrong revision", "offline"],
)
@pytest.mark.parametrize("kind", ["model", "dataset"])
@pytest.mark.slow
def test_the_hub(kind, access, token, commit, code, model, dataset, home, hub: FakeHub, tmp_path):
    """In a process of its own: the hub's library reads its settings when it is imported."""
    hub.repos.clear()
    prefix = "" if kind == "model" else "datasets/"
    made = hub.add(f"{prefix}lab/it", {"config.json": b"{}", "train.jsonl": GOOD}, access)
    override = (MODEL if kind == "model" else DATASET).format(repo="lab/it", commit=commit or made)
    more = {"HF_TOKEN": token} if token else {}
    more |= {"HF_HUB_OFFLINE": "1"} if access == "offline" else {}
    held = contents(home)
    program = "from tunix_lab.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "run", "spec.yaml", "--set", override, "--out", "out"],
        env=hub.environment(tmp_path, **more) | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    printed = done.stdout + done.stderr
    assert done.returncode == code and (model if kind == "model" else dataset) in printed
    assert "Traceback" not in printed and "hf_" not in printed and contents(home) == held


# ---- the end of the disk -------------------------------------------------------------------------------------------------


def test_no_room_for_the_cache(home, tmp_path):
    """A limit on the size of files stands for the end of the disk: the same error of a write, with another number."""
    program = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))\n"
    program += "from tunix_lab.cli.main import main; main()"
    held = contents(home)
    command = [sys.executable, "-c", program, "run", "spec.yaml", "--out", "out"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"}, timeout=120)
    cache = tmp_path / "cache/tokenised"
    assert done.returncode == 3 and done.stderr == (
        f"{cache}: tokenised data cannot be kept there: File too large; make room, or set TUNIX_LAB_CACHE_DIR\n"
    )
    assert contents(home) == held and list(cache.iterdir()) == []


def test_a_full_disk_in_the_words_of_each_library(tmp_path):
    """Python, safetensors and tensorstore say it differently. The first two in a process that may write no large file."""
    program = (
        "import resource, sys; from pathlib import Path; import numpy as np; from safetensors.numpy import save_file\n"
        "from tunix_lab.errors import EnvironmentProblem, writing\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); folder = Path(sys.argv[1])\n"
        "for write in (\n"
        "    lambda: (folder / 'a').write_bytes(b'x' * 9999), lambda: save_file({'a': np.zeros(9999)}, folder / 'b')\n"
        "):\n"
        "    try:\n"
        "        with writing('here'): write()\n"
        "    except EnvironmentProblem as problem: print(problem)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    said = "here: cannot be written: File too large; the disk or a limit of this process takes no larger file"
    assert done.stdout.splitlines() == [said, said]
    tensorstore = ValueError("RESOURCE_EXHAUSTED: Failed to write 4 bytes: No space left on device [os_error_code='28']")
    for error in (OSError(28, "No space left on device"), tensorstore):
        problem = unwritable(error, "here")
        assert str(problem) == "here: cannot be written: No space left on device; make room there, or choose another disk"
        assert problem.exit_code == 3


@pytest.mark.parametrize("bug", [FileNotFoundError(2, "No such file", "x"), ValueError("28"), KeyError("x")])
def test_other_errors_stay_what_they_are(bug):
    assert unwritable(bug) is None
    with pytest.raises(type(bug)), writing("here"):
        raise bug


def test_what_was_there_stays_when_a_file_cannot_be_replaced(tmp_path):
    from tunix_lab.lab.record.jsonl import write_atomically

    (tmp_path / "state.json").write_text("old")
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10)); from pathlib import Path\n"
        "from tunix_lab.lab.record.jsonl import write_atomically\n"
        "try: write_atomically(Path(sys.argv[1]), b'x' * 100)\n"
        "except OSError as error: print(error.errno, error.filename)\n"
    )
    path = tmp_path / "state.json"
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == f"27 {path}\n" and path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 10
    write_atomically(path, b"new")
    assert path.read_text() == "new"


class _FullDisk:
    """A tokenizer that cannot be saved."""

    def save(self, folder: Path) -> None:
        raise OSError(28, "No space left on device")


def test_the_model_of_an_earlier_run_stays_when_the_next_cannot_be_written(home, tiny_decoder):
    from tunix_lab.lab.outputs import write_model

    model = tiny_decoder()
    params = {".".join(map(str, path)): v.get_value() for path, v in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    held = contents(home)
    with pytest.raises(EnvironmentProblem, match="out/final: cannot be written: No space left on device; make room there"):
        write_model(params, model.config, _FullDisk(), home / "out/final")
    assert contents(home) == held
