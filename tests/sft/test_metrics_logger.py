"""The logger: names, modes, history, backends, and no traffic between two of them."""

import numpy as np
import pytest

from tunix_lab.sft.config import MetricsLoggerOptions
from tunix_lab.sft.metrics_logger import MetricsLogger, MlflowBackend, Mode


class Notes:
    """A backend that keeps what it is given."""

    def __init__(self):
        self.rows, self.closed = [], False

    def log_scalar(self, event, value, **kwargs):
        self.rows.append((event, value, kwargs["step"]))

    def close(self):
        self.closed = True


def test_names_and_modes():
    logger = MetricsLogger()
    logger.log("loss", 2.0, 1)
    logger.log("loss", 4.0, 2)
    logger.log("loss", 7.0, 2, Mode.EVAL)
    logger.log("loss", 9.0, 4, "eval")
    assert logger.get_metric_history("loss") == [2.0, 4.0] == logger.get_metric_history("loss", "train")
    assert logger.get_metric("loss") == 3.0 and logger.get_metric("loss", Mode.EVAL) == 8.0
    assert logger.metric_exists("loss", "eval") and not logger.metric_exists("perplexity")
    with pytest.raises(KeyError):
        logger.get_metric("perplexity")
    with pytest.raises(ValueError, match="'test' is not a valid Mode"):
        logger.log("loss", 1.0, 1, "test")


def test_backends_get_every_scalar_once():
    first, second = Notes(), Notes()
    options = MetricsLoggerOptions(backend_factories=[lambda: first, lambda: second])
    logger = MetricsLogger(options, prefix="actor/")
    logger.log_all({"loss": np.float32(1.5), "perf/step_s": 0.25}, 3)
    logger.log("loss", 2.5, 4, Mode.EVAL)
    logger.close()
    expected = [("actor/train/loss", 1.5, 3), ("actor/perf/step_s", 0.25, 3), ("actor/eval/loss", 2.5, 4)]
    assert first.rows == second.rows == expected
    assert all(type(value) is float for _, value, _ in first.rows)
    assert first.closed and second.closed
    assert logger.get_metric_history("loss") == [1.5]


def test_both_orders_of_arguments():
    """As documented, and as in the original library with a prefix in front."""
    notes = Notes()
    logger = MetricsLogger(MetricsLoggerOptions(backend_factories=[lambda: notes]))
    logger.log("loss", 1.0, 7)
    logger.log("actor", "loss", 3.0, "train", 7)
    logger.log("", "loss", 5.0, Mode.EVAL, 8)
    logger.log("actor", "loss", 4.0, "train", 9)
    logger.log(metric_name="kl", value=0.5, step=1, mode="eval")
    assert notes.rows[:3] == [("train/loss", 1.0, 7), ("actor/train/loss", 3.0, 7), ("eval/loss", 5.0, 8)]
    assert logger.get_metric("loss", "train") == logger.get_metric("", "loss", "train") == 1.0
    assert logger.get_metric_history("actor", "loss", "train") == [3.0, 4.0]
    assert logger.get_metric("loss", mode="eval") == 5.0 and logger.get_metric_history("kl", Mode.EVAL) == [0.5]
    assert logger.metric_exists("actor", "loss", "train") and not logger.metric_exists("actor", "loss", "eval")


def test_history_is_bounded():
    logger = MetricsLogger()
    for step in range(100_002):
        logger.log("loss", float(step), step)
    assert len(logger.get_metric_history("loss")) == 100_000 and logger.get_metric_history("loss")[0] == 2.0
    assert logger.get_metric("loss") == 100_001 / 2  # the mean is of all


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # mlflow's own
def test_mlflow(tmp_path):
    """Two loggers at once are two runs of one experiment, complete and finished."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    backends = [MlflowBackend(uri, "library", name, flush_every=2) for name in ("a", "b")]
    loggers = [MetricsLogger(MetricsLoggerOptions(backend_factories=[lambda b=b: b])) for b in backends]
    for step in range(1, 4):
        for i, logger in enumerate(loggers):
            logger.log("loss", 10.0 * i + step, step)
    for logger in loggers:
        logger.close()
    client = MlflowClient(uri)
    for i, backend in enumerate(backends):
        history = client.get_metric_history(backend.run_id, "train/loss")
        assert [(m.step, m.value) for m in history] == [(step, 10.0 * i + step) for step in (1, 2, 3)]
        assert client.get_run(backend.run_id).info.status == "FINISHED"


def test_two_loggers_never_mix():
    notes = [Notes(), Notes()]
    loggers = [MetricsLogger(MetricsLoggerOptions(backend_factories=[lambda n=n: n])) for n in notes]
    loggers[0].log("loss", 1.0, 1)
    loggers[1].log("loss", 2.0, 1)
    loggers[0].log("accuracy", 0.5, 1)
    assert [logger.get_metric_history("loss") for logger in loggers] == [[1.0], [2.0]]
    assert not loggers[1].metric_exists("accuracy")
    assert [len(n.rows) for n in notes] == [2, 1]


def test_one_options_object_makes_fresh_backends(tmp_path):
    made = []
    options = MetricsLoggerOptions(backend_factories=[lambda: made.append(Notes()) or made[-1]])
    MetricsLogger(options).log("loss", 1.0, 1)
    MetricsLogger(options)
    assert [len(notes.rows) for notes in made] == [1, 0]


def test_tensorboard(tmp_path):
    logger = MetricsLogger(MetricsLoggerOptions(log_dir=str(tmp_path), flush_every_n_steps=1))
    logger.log("loss", 1.0, 1)
    logger.close()
    (file,) = tmp_path.glob("events.out.tfevents.*")
    assert b"train/loss" in file.read_bytes()


def test_a_trainer_logs_updates_by_number(bigram, sft_rows):
    import optax

    from tunix_lab.sft.config import TrainingConfig
    from tunix_lab.sft.peft_trainer import PeftTrainer

    notes = Notes()
    config = TrainingConfig(
        pbar_description=None,
        eval_every_n_steps=2,
        gradient_accumulation_steps=2,
        metrics_prefix="actor/",
        metrics_logging_options=MetricsLoggerOptions(backend_factories=[lambda: notes]),
    )
    trainer = PeftTrainer(bigram(), optax.sgd(0.1), config)
    trainer.train([sft_rows([5, 6])] * 6, [sft_rows([5, 6])])
    trainer.close()
    steps = {name: [step for event, _, step in notes.rows if event == f"actor/{name}"] for name in ("train/loss", "eval/loss")}
    assert steps == {"train/loss": [1, 2, 3], "eval/loss": [0, 2]}
    assert notes.closed and all(event.count("/") == 2 for event, *_ in notes.rows)
