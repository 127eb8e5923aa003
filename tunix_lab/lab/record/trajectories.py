"""The answers that reinforcement learning sampled, as Parquet files of a run directory: one file a rollout, one row an answer.

A rollout that a resumed run makes again replaces its file, whole or not at all, and the same answers are the same bytes.
"""

import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunix_lab.errors import UserError, writing
from tunix_lab.lab.record.journal import Journal
from tunix_lab.lab.record.jsonl import write_atomically
from tunix_lab.lab.record.run_state import TRAJECTORIES
from tunix_lab.rl.trajectories import Trajectories

if TYPE_CHECKING:
    import pyarrow as pa

MODES = ("train", "eval")
_NAME = re.compile(r"(train|eval)-(\d{6,})\.parquet")


def record_trajectories(journal: Journal, trajectories: Trajectories) -> Path:
    """Keeps a rollout in the run directory of `journal` and says so there; returns the file.

    Raises:
      EnvironmentProblem: the disk refuses.
    """
    path = write_trajectories(journal.run_dir, trajectories)
    journal.event(
        TRAJECTORIES,
        step=int(trajectories.step),
        mode=trajectories.mode,
        path=path.relative_to(journal.run_dir).as_posix(),
        answers=len(trajectories),
    )
    return path


def write_trajectories(run_dir: Path, trajectories: Trajectories) -> Path:
    """Writes `trajectories/<mode>-<step>.parquet`; returns it. One of the same mode and step is replaced."""
    import pyarrow.parquet as pq

    path = run_dir / TRAJECTORIES / f"{trajectories.mode}-{trajectories.step:06d}.parquet"
    content = io.BytesIO()
    pq.write_table(_to_table(trajectories), content, compression="zstd")
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content.getvalue())
    return path


def trajectory_files(run_dir: Path) -> dict[tuple[int, str], Path]:
    """The files of a run by step and mode, in the order of steps, training first."""
    found = {}
    for path in (run_dir / TRAJECTORIES).glob("*.parquet"):
        if named := _NAME.fullmatch(path.name):
            found[int(named[2]), named[1]] = path
    return dict(sorted(found.items(), key=lambda entry: (entry[0][0], MODES.index(entry[0][1]))))


def read_trajectories(run_dir: Path, steps: Iterable[int] | None = None, mode: str | None = None) -> Iterator[Trajectories]:
    """The rollouts of a run in the order of steps, read one after the other.

    Args:
      run_dir: of the run.
      steps: only those of these steps; None is all.
      mode: only those of "train" or "eval"; None is both.

    Raises:
      UserError: a file cannot be read.
    """
    wanted = None if steps is None else set(steps)
    for (step, kind), path in trajectory_files(run_dir).items():
        if (wanted is None or step in wanted) and mode in (None, kind):
            yield read_file(path)


def read_file(path: Path) -> Trajectories:
    """The rollout in one file. Raises UserError where it is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        return _from_table(table)
    except (OSError, pa.ArrowException, KeyError) as error:
        raise UserError(f"{path}: cannot be read as trajectories: {error}") from error


def _to_table(trajectories: Trajectories) -> "pa.Table":
    import pyarrow as pa

    ids, logps = pa.list_(pa.int32()), pa.list_(pa.float32())
    count, names = len(trajectories), sorted(trajectories.rewards)
    scores = [{name: float(trajectories.rewards[name][i]) for name in names} for i in range(count)]
    others = sorted(trajectories.columns)
    values = [_json({name: trajectories.columns[name][i] for name in others}) for i in range(count)]
    trainer = trajectories.trainer_logps
    columns: dict[str, tuple[list[Any], pa.DataType]] = {
        "step": ([int(trajectories.step)] * count, pa.int64()),
        "mode": ([trajectories.mode] * count, pa.string()),
        "group": ([int(group) for group in trajectories.groups], pa.int32()),
        "prompt": (_texts(trajectories.prompts), pa.string()),
        "completion": (_texts(trajectories.completions), pa.string()),
        "finish_reason": (list(trajectories.finish_reasons), pa.string()),
        "trained": ([bool(trained) for trained in trajectories.trained], pa.bool_()),
        "reward": ([float(reward) for reward in trajectories.reward], pa.float64()),
        "rewards": (scores, pa.struct([(name, pa.float64()) for name in names])),
        "columns": (values, pa.string()),
        "prompt_ids": (_arrays(trajectories.prompt_ids, np.int32), ids),
        "completion_ids": (_arrays(trajectories.completion_ids, np.int32), ids),
        "sampler_logps": (_arrays(trajectories.sampler_logps, np.float32), logps),
        "trainer_logps": ([None] * count if trainer is None else _arrays(trainer, np.float32), logps),
        "advantages": (_arrays(trajectories.advantages, np.float32), logps),
    }
    return pa.table({name: pa.array(values, kind) for name, (values, kind) in columns.items()})


def _from_table(table: "pa.Table") -> Trajectories:
    rows = {name: table[name].to_pylist() for name in table.column_names}
    scores, others = rows["rewards"], [json.loads(text) for text in rows["columns"]]
    trainer = [_array(values, np.float32) for values in rows["trainer_logps"] if values is not None]
    names = [field.name for field in table.schema.field("rewards").type]
    return Trajectories(
        step=rows["step"][0],
        mode=rows["mode"][0],
        groups=rows["group"],
        prompts=rows["prompt"],
        completions=rows["completion"],
        prompt_ids=[_array(values, np.int32) for values in rows["prompt_ids"]],
        completion_ids=[_array(values, np.int32) for values in rows["completion_ids"]],
        finish_reasons=rows["finish_reason"],
        trained=rows["trained"],
        sampler_logps=[_array(values, np.float32) for values in rows["sampler_logps"]],
        trainer_logps=trainer or None,
        rewards={name: [score[name] for score in scores] for name in names},
        reward=rows["reward"],
        advantages=[_array(values, np.float32) for values in rows["advantages"]],
        columns={name: [other[name] for other in others] for name in (others[0] if others else ())},
    )


def _texts(texts: Sequence[str]) -> list[str]:
    """Half of a character, which a model may well end on, becomes a question mark: no file takes it."""
    return [text.encode("utf-8", "replace").decode("utf-8") for text in texts]


def _arrays(arrays: Sequence[np.ndarray], dtype: type) -> list[np.ndarray]:
    return [np.asarray(array, dtype) for array in arrays]


def _array(values: list[Any], dtype: type) -> np.ndarray:
    return np.asarray(values, dtype)


def _json(values: dict[str, Any]) -> str:
    """A row's other columns; what JSON has no form for is kept as Python writes it."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False, default=repr)
    return text.encode("utf-8", "replace").decode("utf-8")
