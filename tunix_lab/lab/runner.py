"""Executes one spec: plan, run directory, training, outputs; whatever happens, the record says so."""

import contextlib
import dataclasses
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from tunix_lab.data.tokenizer import Tokenizer
from tunix_lab.errors import EnvironmentProblem, Stopped, UserError
from tunix_lab.lab import build, origin
from tunix_lab.lab.devices import hardware
from tunix_lab.lab.environment import command_line
from tunix_lab.lab.git_state import git_state
from tunix_lab.lab.journal import Journal, list_runs, new_run_id, read_manifest
from tunix_lab.lab.journal_logger import JournalLogger
from tunix_lab.lab.manifest import Inputs, digest_inputs, make_manifest, write_manifest
from tunix_lab.lab.mlflow_sync import start_follower, wait_follower
from tunix_lab.lab.outputs import ADAPTER, write_adapter, write_model, write_records
from tunix_lab.lab.plan import missing_upstream
from tunix_lab.lab.redaction import Redactor
from tunix_lab.lab.run_hooks import RunHooks
from tunix_lab.lab.sources import project_paths
from tunix_lab.lab.system_metrics import SystemMetrics
from tunix_lab.lab.versioning import make_upstream, output_folder
from tunix_lab.models.adapters import has_adapters, parameter_table
from tunix_lab.models.config import ModelConfig
from tunix_lab.models.decoder import Decoder
from tunix_lab.sft.peft_trainer import PeftTrainer
from tunix_lab.spec import ExperimentSpec, LabSettings, LoadedSpec, resolved_yaml, tracking_uri, upstream, upstreams


@dataclasses.dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
      run_id: of the run.
      out: folder with `final/`, metrics.json, the curves and run.json.
      metrics: last value of every train and eval metric.
      synced: whether the tracking store has everything; None if nothing was to be sent.
    """

    run_id: str
    out: Path
    metrics: dict[str, float]
    synced: bool | None


def run(loaded: LoadedSpec, home: Path, settings: LabSettings, *, out: Path | None = None, fresh: bool = False) -> RunResult:
    """Runs an experiment, or goes on with its interrupted run.

    Args:
      loaded: the spec.
      home: the project folder.
      settings: tracking address, cache folder.
      out: where the outputs go; None is the run directory.
      fresh: start anew even where an interrupted run could be continued.

    Raises:
      UserError: spec, data or upstream cannot be used.
      TrainingFailed: the loss stopped being a number.
      Stopped: SIGINT or SIGTERM came; a checkpoint was saved.
    """
    spec = loaded.spec
    _make_missing(spec, home)
    use_compilation_cache(settings)
    mesh = build.build_mesh(spec)
    tokenizer = Tokenizer.load(origin.tokenizer_folder(spec, home))
    data = build.build_data(spec, home, tokenizer, settings.cache_dir / "tokenised")
    base_folder = origin.base_folder(spec, home)  # last: a mistake in the data is told before gigabytes are fetched
    teacher_folder = origin.teacher_folder(spec, home)
    inputs = digest_inputs(spec, home, base_folder, tokenizer, teacher_folder)
    run_id = None if fresh else interrupted_run(home, spec, inputs)
    if run_id is not None:
        _say(f"continuing interrupted run {run_id} (--fresh starts anew)")
    run_id = run_id or new_run_id(spec.name)
    run_dir = home / "runs" / run_id
    given_out, out = out, out or run_dir
    with Journal.open(run_dir) as journal:
        if journal.attempt == 1:
            git = git_state(home)
            manifest = make_manifest(
                spec,
                inputs,
                home=home,
                run_id=run_id,
                parent_run_id=_parent(base_folder),
                rows={part.file.key: len(part.rows) for split in (data.train, data.validation) for part in split.parts},
                hardware=hardware(),
                git=git,
                command=command_line(home, given_out, Redactor.of_process()),
                chat_template=tokenizer.template_digest,
            )
            write_manifest(run_dir, manifest, loaded.source_text, resolved_yaml(spec), git)
            for part in (*data.train.parts, *data.validation.parts):
                journal.event("ledger", source=part.file.key, **part.ledger.summary())
        _say(f"run {run_id}")
        follower = start_follower(run_dir, tracking_uri(settings, home)) if settings.replicates else None
        folders = Folders(home, settings.cache_dir, base_folder, teacher_folder, out)
        metrics = _execute(spec, folders, journal, mesh, tokenizer, data, inputs)
    synced = None if follower is None else wait_follower(follower, settings.sync_drain_seconds)
    return RunResult(run_id, out, metrics, synced)


@dataclasses.dataclass(frozen=True)
class Folders:
    """Where a run reads and writes.

    Attributes:
      home: the project folder.
      cache: what may be thrown away.
      base: of the starting weights; None from random ones.
      teacher: of the teacher; None without one.
      out: of the outputs.
    """

    home: Path
    cache: Path
    base: Path | None
    teacher: Path | None
    out: Path


def _execute(
    spec: ExperimentSpec,
    folders: Folders,
    journal: Journal,
    mesh: Any,
    tokenizer: Tokenizer,
    data: build.Data,
    inputs: Inputs,
) -> dict[str, float]:
    """Trains and writes the outputs; returns the last metrics."""
    base = build.build_base(spec, folders.base, mesh, tokenizer)
    model = build.build_model(spec, base, mesh)
    teacher = build.build_teacher(spec, folders.teacher, mesh, tokenizer)
    data = build.with_reference(spec, data, model, base, folders.cache / "reference")
    identity = inputs.identity(spec)
    checkpoints = folders.home / "checkpoints" / identity[:16] / journal.run_id

    def on_saved(step: int, path: Path, digest: str) -> None:
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        journal.checkpoint(step, path.relative_to(folders.home).as_posix(), digest, size)

    logger = JournalLogger(journal, log_every=spec.training.log_every, last_step=spec.training.max_steps)
    trainer = build.build_trainer(
        spec, model, base, teacher, tokenizer, checkpoints=checkpoints, identity=identity, logger=logger, on_saved=on_saved
    )
    if trainer.train_steps:
        journal.event("resumed", step=trainer.train_steps)
        _say(f"resuming after step {trainer.train_steps} of {spec.training.max_steps}")
    _tell_parameters(model, journal)
    trainer.with_training_hooks(RunHooks(spec, folders.home, journal, model, tokenizer, data))
    # Where the base was quantized for an adapter, nobody needs it in full any more.
    config = base.config
    del base
    with SystemMetrics(journal, device_memory=_device_memory), _stop_on_signals(trainer) as received:
        trainer.train(data.train_batches, data.eval_batches)
        trainer.close()
    if trainer.stopped_early:
        raise Stopped(received[0])
    return _write_outputs(spec, folders, journal, trainer, config, mesh, tokenizer)


def _write_outputs(
    spec: ExperimentSpec,
    folders: Folders,
    journal: Journal,
    trainer: PeftTrainer,
    config: ModelConfig,
    mesh: Any,
    tokenizer: Tokenizer,
) -> dict[str, float]:
    """Model, adapter, run.json, metrics and curves; returns the last metrics."""
    out = folders.out
    out.mkdir(parents=True, exist_ok=True)
    params = build.final_params(spec, trainer, folders.base, mesh, tokenizer)
    digest = write_model(params, config, tokenizer, out / "final", folders.base)
    adapter = write_adapter(spec, folders.home, trainer.model, folders.base, out / ADAPTER)
    journal.event("output", path=_relative(out / "final", folders.home), digest=digest)
    record = {"run_id": journal.run_id, "name": spec.name, "params_digest": digest, "step": trainer.train_steps}
    record |= {"model": _relative(out / "final", folders.home)}
    if adapter is not None:
        record |= {"adapter": adapter | {"path": _relative(out / ADAPTER, folders.home)}}
    (journal.run_dir / "run.json").write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
    return write_records(journal.run_dir, out, record)


def _tell_parameters(model: Decoder, journal: Journal) -> None:
    """Says what is trained: with adapters each kind of them, else how many parameters."""
    adapted = has_adapters(model)
    table = parameter_table(model, nnx.LoRAParam if adapted else nnx.Param)
    total, trained = sum(row[2] for row in table), sum(row[3] for row in table)
    columns = ("name", "shapes", "count", "trained")
    rows = [dict(zip(columns, row, strict=True)) for row in table if row[3]]
    journal.event("parameters", total=total, trained=trained, rows=rows)
    _say(f"trains {trained:,} of {total:,} parameters ({trained / total:.2%})")
    for row in rows if adapted else ():
        _say(f"  {row['name']:<40}{row['trained']:>14,}  {row['shapes']}")


def use_compilation_cache(settings: LabSettings) -> None:
    """Keeps compiled programs on disk, the quick ones too: a resumed or repeated run starts without compiling."""
    jax.config.update("jax_compilation_cache_dir", str(settings.cache_dir / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def interrupted_run(home: Path, spec: ExperimentSpec, inputs: Inputs) -> str | None:
    """The newest run of this very experiment that has not finished; a changed input makes it another experiment."""
    identity = inputs.identity(spec)
    for state in list_runs(home):
        if state.status == "finished" or not (state.run_dir / "manifest.json").is_file():
            continue
        manifest = read_manifest(state.run_dir)
        if manifest["name"] != spec.name or manifest.get("identity") is None:
            continue
        if manifest["identity"] == identity:
            if state.status == "running":
                raise EnvironmentProblem(
                    f"this experiment is running already as {state.run_id} (pid {state.pid} on {state.host}): "
                    "wait for it or stop it, or start another with --fresh"
                )
            return state.run_id
    return None


def _make_missing(spec: ExperimentSpec, home: Path) -> None:
    """Makes the outputs of upstream experiments that are not there, and says so first."""
    for name in upstreams(spec):
        plan = missing_upstream(home, name)
        if plan or not output_folder(home, name).is_dir():
            role = "starts from" if name == upstream(spec) else "learns from"
            _say(f"{spec.name} {role} the output of {name}, which is missing")
            _say(f"plan: dvc repro {name} ({' → '.join(plan)}), then {spec.name}")
            make_upstream(home, name)
    optional = [spec.tokenizer.path, None if spec.samples is None else spec.samples.prompts]
    for path in (home / name for name in (*optional, *project_paths(spec)) if name is not None):
        if not path.exists():
            raise UserError(
                f"{path} does not exist: `dvc repro {spec.name}` makes what the experiment needs, or mend its path in the spec"
            )


def _parent(base: Path | None) -> str | None:
    """The run that made the starting weights, if they came with their record."""
    record = None if base is None else base.parent / "run.json"
    return json.loads(record.read_text())["run_id"] if record is not None and record.is_file() else None


@contextlib.contextmanager
def _stop_on_signals(trainer: PeftTrainer) -> Iterator[list[int]]:
    """The first SIGINT or SIGTERM asks the trainer to stop after its update and save; a second one ends at once."""
    received: list[int] = []

    def stop(signum: int, frame: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(signum)
        _say(f"{signal.Signals(signum).name}: stopping after this step; once more ends at once")
        trainer.request_stop()

    before = {signum: signal.signal(signum, stop) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _device_memory() -> dict[str, float]:
    """Memory in use by device, where the backend can tell (a CPU cannot)."""
    used = {}
    for device in jax.local_devices():
        stats = device.memory_stats()
        if stats:
            used[f"{device.platform}_{device.id}_memory_usage_megabytes"] = stats["bytes_in_use"] / 1e6
    return used


def _relative(path: Path, home: Path) -> str:
    path = path.absolute()
    return path.relative_to(home).as_posix() if path.is_relative_to(home) else str(path)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
