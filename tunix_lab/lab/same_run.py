"""Whether two runs are one and the same, bit for bit: every leaf, batch, key, metric, sample and counter that they left."""

import dataclasses
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from tunix_lab.lab.record.fingerprints import Fingerprint, read_fingerprints
from tunix_lab.lab.record.journal import read_events, read_metrics
from tunix_lab.lab.record.trajectories import trajectory_files
from tunix_lab.sft.train_state import digest as digest_of

SHOWN = 3
_RESULTS = ("train/", "eval/")  # throughput and system metrics are no results
_NOT_COUNTERS = ("sha256", "hashes", "params_digest")  # they follow from what is compared as itself


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run left.

    Attributes:
      leaves: every array of its last checkpoint (parameters, optimizer state, other variables) by name.
      counters: the JSON record of that checkpoint by dotted name: steps, place in the data, identity.
      fingerprints: by step.
      metrics: (step, name) -> value, of training and evaluation.
      samples: lines by step.
      outputs: digests of the weights by what they are of: "final", and the checkpoints by their step.
      trajectories: files of sampled answers by name.
    """

    leaves: Mapping[str, np.ndarray]
    counters: Mapping[str, Any]
    fingerprints: Mapping[int, Fingerprint]
    metrics: Mapping[tuple[int, str], float]
    samples: Mapping[int, bytes]
    outputs: Mapping[str, str]
    trajectories: Mapping[str, bytes] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
      what: is compared.
      compared: how many things, those that only one side has included.
      different: how many are not equal.
      first: the first ones that are not, in words.
    """

    what: str
    compared: int
    different: int
    first: tuple[str, ...] = ()


def read_outcome(run_dir: Path, home: Path) -> Outcome:
    """What the run in `run_dir` left there and in its checkpoints, whose paths are relative to `home`."""
    events = list(read_events(run_dir))
    saved = {event["step"]: event for event in events if event["kind"] == "checkpoint"}
    outputs = {f"step {step}": event["digest"] for step, event in sorted(saved.items())}
    outputs |= dict([("final", event["digest"]) for event in events if event["kind"] == "output"][-1:])
    leaves, counters = read_checkpoint(home / saved[max(saved)]["path"]) if saved else ({}, {})
    metrics = {
        (step, name): value
        for _, step, values in read_metrics(run_dir)
        for name, value in values.items()
        if name.startswith(_RESULTS)
    }
    samples = {int(path.stem.removeprefix("step-")): path.read_bytes() for path in (run_dir / "samples").glob("step-*.jsonl")}
    rollouts = {path.name: path.read_bytes() for path in trajectory_files(run_dir).values()}
    return Outcome(leaves, counters, read_fingerprints(run_dir), metrics, samples, outputs, rollouts)


def read_checkpoint(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Every array of a checkpoint, in the host's memory, and its record by dotted name."""
    leaves = {}
    with ocp.StandardCheckpointer() as reader, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Orbax warns that arrays come without a place on the devices
        for item in ("params", "opt_state", "variables"):
            if (folder / item).is_dir():
                tree = reader.restore(folder / item)
                paths = jax.tree_util.tree_flatten_with_path(tree)[0]
                leaves |= {f"{item}{jax.tree_util.keystr(path)}": np.asarray(leaf) for path, leaf in paths}
    record = json.loads((folder / "record" / "metadata").read_text())
    return leaves, {name: value for name, value in _flat(record) if name not in _NOT_COUNTERS and not name.startswith("hashes.")}


def compare(expected: Outcome, found: Outcome) -> list[Check]:
    """The comparisons that make two runs one; in the order in which a difference would spread."""
    prints = (expected.fingerprints, found.fingerprints)
    checks = [
        _check("batches", *({step: (f.batch, f.rows) for step, f in side.items()} for side in prints), place="step"),
        _check("losses", *({step: (f.loss, f.grad_norm) for step, f in side.items()} for side in prints), place="step"),
        _check("gradients", *({(s, n): h for s, f in side.items() for n, h in f.grads.items()} for side in prints)),
        _check("parameters", *({(s, n): h for s, f in side.items() for n, h in f.params.items()} for side in prints)),
        _check("optimizer and keys", *({step: f.rest for step, f in side.items()} for side in prints), place="step"),
        _check("metrics", _bits(expected.metrics), _bits(found.metrics)),
        _check("samples", expected.samples, found.samples, place="step"),
        _check("trajectories", expected.trajectories, found.trajectories),
        # A run that was asked to stop has saved where it stopped, too.
        _check("weights", expected.outputs, {key: digest for key, digest in found.outputs.items() if key in expected.outputs}),
        _check("counters", expected.counters, found.counters),
    ]
    both = ({name: digest_of({name: leaf}) for name, leaf in side.leaves.items()} for side in (expected, found))
    return [*checks, _check("leaves", *both)]


def _check(what: str, expected: Mapping[Any, Any], found: Mapping[Any, Any], place: str = "") -> Check:
    keys = [*expected, *(key for key in found if key not in expected)]
    wrong = [key for key in keys if key not in expected or key not in found or expected[key] != found[key]]
    return Check(what, len(keys), len(wrong), tuple(_told(key, place, expected, found) for key in wrong[:SHOWN]))


def _told(key: Any, place: str, expected: Mapping[Any, Any], found: Mapping[Any, Any]) -> str:
    name = f"{place} {key}" if place else f"step {key[0]} {key[1]}" if isinstance(key, tuple) else str(key)
    if key not in found:
        return f"{name} is missing"
    if key not in expected:
        return f"{name} is new"
    values = [str(side[key]) for side in (expected, found)]
    return f"{name}: {values[0]} became {values[1]}" if sum(map(len, values)) < 80 else f"{name} differs"


def _bits(metrics: Mapping[tuple[int, str], float]) -> dict[tuple[int, str], str]:
    """Values in a form in which equal bits are equal, also those that are no numbers."""
    return {key: float(value).hex() for key, value in sorted(metrics.items())}


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _flat(inner, f"{prefix}.{name}" if prefix else name)
    else:
        yield prefix, value
