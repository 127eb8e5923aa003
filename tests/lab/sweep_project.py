"""A project whose trials are small real processes, for tests of sweeps."""

import json
import time

from tunix_lab.lab.sweeps.queue import Queue
from tunix_lab.lab.sweeps.space import Space
from tunix_lab.lab.sweeps.sweep import prepare
from tunix_lab.spec import LabSettings

SPEC = """
name: small
model: {family: gemma3, size: nano, init: {kind: random}}
tokenizer: {path: data/tokenizer}
algorithm: {kind: sft}
data: {kind: chat, train: data/train.jsonl, validation: data/validation.jsonl, max_length: 64}
optimizer: {learning_rate: 1.0e-3}
training: {max_steps: 4, batch_size: 8}
tracking: {experiment: sweeps}
"""
# A trial: says when it begins and ends, saves on a signal, and leaves what a run leaves. `control/` holds what tests want of it.
TRIAL = """
import json, os, signal, sys, time
from pathlib import Path

arguments = sys.argv[1:]
values = dict(text.split("=", 1) for flag, text in zip(arguments, arguments[1:]) if flag == "--set")
out, control = Path(arguments[arguments.index("--out") + 1]), Path("control")
number = os.environ["TUNIX_LAB_TRIAL"].rpartition("/")[2]

def say(what):
    with open(control / "log", "a") as log:
        log.write(json.dumps([number, what, os.getpid(), time.monotonic()]) + "\\n")

def stop(signum, frame):
    time.sleep(1.0 if (control / "slow").exists() else 0.0)
    (out / "saved").write_text("")
    say("saved")
    print(f"stopped by {signal.Signals(signum).name}: step 3 is saved", flush=True)
    sys.exit(128 + signum)

signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGUSR1, stop)
say("goes on" if (out / "saved").exists() else "begins")
print("working", os.environ.get("XLA_FLAGS"), os.environ.get("HF_TOKEN"))
if (control / f"fail-{number}").exists():
    print("loss is nan", flush=True)
    sys.exit(4)
if (control / f"budget-{number}").exists():
    print("stopped by its time budget (8h): step 3 is saved", flush=True)
    (out / "saved").write_text("")
    sys.exit(75)
if (control / f"die-{number}").exists():
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(float((control / "seconds").read_text()))
while (control / f"hold-{number}").exists():
    time.sleep(0.02)
loss = (float(values.get("optimizer.learning_rate", 0)) - 2) ** 2 + 0.01 * int(values.get("seed", 0))
(out / "metrics.json").write_text(json.dumps({"eval": {"loss": loss}}))
(out / "run.json").write_text(json.dumps({"run_id": f"small-{number}"}))
say("ends")
"""
RATES = ("optimizer.learning_rate=1.0,2.0,3.0",)


def make_home(tmp_path, monkeypatch):
    """A project whose trials take no time."""
    monkeypatch.setenv("TUNIX_LAB_SYNC", "off")
    monkeypatch.setenv("TUNIX_LAB_HOME", str(tmp_path))
    (tmp_path / "data/tokenizer").mkdir(parents=True)
    for name in ("train", "validation"):
        (tmp_path / f"data/{name}.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "spec.yaml").write_text(SPEC)
    (tmp_path / "control").mkdir()
    (tmp_path / "control/seconds").write_text("0")
    return tmp_path


def make(home, axes=RATES, *, method="grid", seeds=1, settings=None, **options):
    return prepare(home / "spec.yaml", [], Space(method, axes, settings, seeds), home, LabSettings(), **options)


def log(home):
    file = home / "control/log"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def said(home, what):
    return [number for number, said, *_ in log(home) if said == what]


def statuses(sweep_dir):
    return [entry.status for entry in Queue(sweep_dir).entries()]


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
