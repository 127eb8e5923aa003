"""The trainer: the documented example, call forms, a frozen teacher, exact accumulation and resumption, metrics, vocabularies."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tunix_lab.data.pipeline import eval_batches, train_batches
from tunix_lab.distillation.distillation_trainer import DistillationTrainer
from tunix_lab.distillation.strategies import (
    AttentionProjectionStrategy,
    AttentionTransferStrategy,
    FeatureProjectionStrategy,
    LogitStrategy,
)
from tunix_lab.models.adapters import add_lora
from tunix_lab.models.sharding import make_mesh, place_model
from tunix_lab.ops.weighted import WeightedMean
from tunix_lab.sft.checkpoint_manager import CheckpointManager
from tunix_lab.sft.config import TrainingConfig
from tunix_lab.sft.train_state import digest, flat_params

METRICS = ("loss", "soft_loss", "hard_loss", "kl")


@pytest.fixture(scope="module")
def rows(sft_rows):
    return sft_rows([10, 3, 6, 9])


def bytes_of(model):
    return digest(flat_params(nnx.state(model, nnx.Param)))


def logps(model, rows, temperature=1.0):
    """Next-token log-probabilities of a table, float64, [row, seq − 1, vocab]."""
    positions = np.maximum(np.cumsum(rows["valid"], axis=1) - 1, 0)
    x = np.asarray(model.table[...], np.float64)[rows["input_tokens"]] + 0.1 * positions[..., None]
    logits = (x @ np.asarray(model.out[...], np.float64))[:, :-1] / temperature
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


# ---- the documented example --------------------------------------------------------------------------------------------------


def test_knowledge_distillation_as_documented(table, rows, history):
    """Example 3 of the documentation, word for word but for its models and its size."""
    from tunix_lab.distillation import DistillationTrainer

    teacher = table(1)
    student = table(0)

    # Simple logit distillation loss
    def distillation_loss(student_logits, teacher_logits, labels, temperature=2.0):
        # Soft targets from teacher
        teacher_probs = jax.nn.softmax(teacher_logits / temperature, axis=-1)
        student_log_probs = jax.nn.log_softmax(student_logits / temperature, axis=-1)

        # KL divergence
        kl_loss = -jnp.sum(teacher_probs * student_log_probs, axis=-1).mean()

        # Hard label loss
        ce_loss = optax.softmax_cross_entropy_with_integer_labels(student_logits, labels).mean()

        return 0.5 * kl_loss + 0.5 * ce_loss

    log_s, log_t, hard = logps(student, rows, 2.0), logps(teacher, rows, 2.0), logps(student, rows)
    labels = rows["input_tokens"][:, 1:]
    expected = -0.5 * (np.exp(log_t) * log_s).sum(-1).mean()
    expected -= 0.5 * np.take_along_axis(hard, labels[..., None], -1).mean()

    trainer = DistillationTrainer(
        student_model=student,
        teacher_model=teacher,
        optimizer=optax.adamw(3e-2),
        training_config=TrainingConfig(max_steps=10),
    )
    trainer.with_loss_fn(distillation_loss)
    trainer.train([rows] * 20)
    losses = history(trainer, "loss")
    assert losses[0] == pytest.approx(expected, rel=1e-5)
    assert len(losses) == 10 and losses[9] < losses[4] < losses[0]


def test_a_loss_of_ones_own_may_know_the_mask(table, rows, make_distiller, history):
    """The padding of the documented loss can be left out; a WeightedMean is divided once; named values are logged."""

    def loss(student_logits, teacher_logits, labels, mask):
        error = jnp.square(student_logits - teacher_logits).mean(-1)
        return WeightedMean.of(error, mask), {"labels": WeightedMean.of(labels.astype(jnp.float32), mask)}

    found = []
    for noise in (0, 9):
        noisy = rows | {"input_tokens": np.where(rows["valid"], rows["input_tokens"], noise)}
        trainer = make_distiller(table(0), table(1), max_steps=1)
        assert trainer.with_loss_fn(loss, has_aux=True) is trainer
        trainer.train([noisy])
        found.append((history(trainer, "loss"), history(trainer, "labels")))
    assert found[0] == found[1]
    assert found[0][1] == [pytest.approx(rows["input_tokens"][rows["input_mask"]].mean(), rel=1e-6)]


@pytest.mark.parametrize("nested", [False, True])
def test_a_batch_of_ones_own(table, rows, make_distiller, nested):
    own = {"ids": rows["input_tokens"], "learn": rows["input_mask"], "real": rows["valid"]}

    def read(batch):
        inputs = {"input_tokens": batch["ids"], "input_mask": batch["learn"], "valid": batch["real"]}
        return {"inputs": inputs} if nested else inputs

    trainer = make_distiller(table(0), table(1))
    assert trainer.with_gen_model_input_fn(read) is trainer
    assert trainer.get_eval_loss(own) == make_distiller(table(0), table(1)).get_eval_loss(rows)


def test_call_forms(table, rows):
    """The documented one, the original's with a strategy in third place, and keywords."""
    config, optimizer, hard = TrainingConfig(pbar_description=None), optax.sgd(0.1), LogitStrategy(alpha=0.0)
    trainers = [
        DistillationTrainer(table(0), table(1), hard, optimizer, config),
        DistillationTrainer(table(0), table(1), optimizer, config, strategy=hard),
        DistillationTrainer(
            student_model=table(0), teacher_model=table(1), strategy=hard, optimizer=optimizer, training_config=config
        ),
    ]
    usual = DistillationTrainer(table(0), table(1), optimizer, config)
    assert usual.strategy == LogitStrategy()
    losses = [float(trainer.get_eval_loss(rows)) for trainer in (*trainers, usual)]
    assert losses[0] == losses[1] == losses[2] != losses[3]
    with pytest.raises(TypeError, match="with one strategy"):
        DistillationTrainer(table(0), table(1), hard, optimizer, config, strategy=hard)
    with pytest.raises(TypeError, match="with one strategy"):
        DistillationTrainer(table(0), table(1), hard, optimizer)
    with pytest.raises(TypeError, match="a strategy before the optimizer"):
        DistillationTrainer(table(0), table(1), optimizer, config, None)


# ---- loss and metrics --------------------------------------------------------------------------------------------------------


def test_loss_and_metrics_by_hand(table, rows, make_distiller, history):
    """Over the target tokens alone: 0.3 · 2² · KL(T‖S at τ = 2) + 0.7 · cross-entropy; the same in training and evaluation."""
    student, teacher, mask = table(0), table(1), rows["input_mask"][:, 1:]
    log_s, log_t = logps(student, rows, 2.0), logps(teacher, rows, 2.0)
    soft = 4 * (np.exp(log_t) * (log_t - log_s)).sum(-1)[mask].mean()
    log_s, log_t = logps(student, rows), logps(teacher, rows)
    hard = -np.take_along_axis(log_s, rows["input_tokens"][:, 1:, None], -1)[..., 0][mask].mean()
    kl = (np.exp(log_t) * (log_t - log_s)).sum(-1)[mask].mean()
    trainer = make_distiller(student, teacher, LogitStrategy(alpha=0.3), max_steps=1)
    trainer.train([rows], [rows])
    for mode in ("train", "eval"):
        found = [history(trainer, name, mode) for name in METRICS]
        np.testing.assert_allclose(found, np.array([[0.3 * soft + 0.7 * hard, soft, hard, kl]]).T, rtol=1e-5)


def test_the_student_becomes_the_teacher(table, rows, make_distiller, history):
    trainer = make_distiller(table(0), table(1), LogitStrategy(alpha=1.0, temperature=1.0), optax.adam(0.05), max_steps=60)
    trainer.train([rows] * 60)
    assert history(trainer, "kl")[-1] < 0.05 * history(trainer, "kl")[0]
    assert history(trainer, "soft_loss") == [pytest.approx(kl, rel=1e-5) for kl in history(trainer, "kl")]


def test_losses_of_one_batch(table, rows, make_distiller):
    """Evaluation has no dropout, training has; neither changes anything."""
    student = table(0, dropout=0.5)
    trainer = make_distiller(student, table(1))
    before = bytes_of(student)
    plain = float(make_distiller(table(0), table(1)).get_eval_loss(rows))
    assert trainer.get_eval_loss(rows) == pytest.approx(plain, rel=1e-6)
    assert abs(float(trainer.get_train_loss(rows)) - plain) > 1e-3
    assert trainer.train_steps == 0 and bytes_of(trainer.model) == before
    trainer.train([rows])
    assert trainer.get_eval_loss(rows) != pytest.approx(plain, rel=1e-6)  # of the parameters as they are now


@pytest.mark.parametrize("size", [1, 3])
def test_eval_batch_invariance(table, rows, make_distiller, history, size):
    examples = [{k: v[i] for k, v in rows.items()} for i in range(4)]
    trainer = make_distiller(table(0), table(1), max_steps=1)
    trainer.train([rows], eval_batches(examples, size))
    for name in METRICS:
        assert history(trainer, name, "eval") == [pytest.approx(history(trainer, name)[0], rel=1e-5)]


def test_all_masked_noop(table, rows, make_distiller, history):
    student = table(0)
    trainer = make_distiller(student, table(1))
    trainer.train([rows | {"input_mask": np.zeros_like(rows["input_mask"])}])
    assert bytes_of(student) == bytes_of(table(0))
    assert history(trainer, "loss") == [0.0] and history(trainer, "empty_batches") == [1.0]


def test_masked_nan_stays_masked(table, rows, make_distiller, history):
    """Padding has a token of its own, of which the teacher says NaN."""
    found = []
    for value in (0.0, np.nan):
        teacher = table(1)
        teacher.table[...] = teacher.table[...].at[0].set(value)
        trainer = make_distiller(table(0), teacher, optimizer=optax.clip_by_global_norm(1.0), max_steps=1)
        trainer.train([rows])
        found.append([history(trainer, name) for name in (*METRICS, "grad_norm")])
    assert found[0] == found[1]


# ---- the teacher ---------------------------------------------------------------------------------------------------------------


def test_reference_frozen(table, rows, make_distiller, history):
    """After twenty updates the teacher has the same bytes, though it runs without its dropout in each of them."""
    student, teacher, plain = table(0), table(1, dropout=0.5), table(1)
    before = bytes_of(teacher)
    trainer = make_distiller(student, teacher)
    trainer.train([rows] * 20)
    assert bytes_of(teacher) == before and bytes_of(student) != bytes_of(table(0))
    twin = make_distiller(table(0), plain)
    twin.train([rows] * 20)
    assert history(trainer, "loss") == history(twin, "loss")


def test_one_model_as_student_and_teacher(table, rows, make_distiller, history):
    """Training moves the student away from what it was, which the teacher still is; neither takes the other's memory."""
    model = table(0)
    trainer = make_distiller(model, model, LogitStrategy(alpha=0.5))
    trainer.train([rows] * 2)
    trainer.train([rows] * 4)  # the model object holds the trained parameters by now, the teacher not
    kl = history(trainer, "kl")
    assert kl[0] == pytest.approx(0, abs=1e-6) and 1e-4 < kl[1] < kl[2] < kl[3]


def test_student_may_hold_the_teachers_arrays(table, rows, make_distiller, history):
    student, teacher = table(0), table(1)
    student.table[...] = teacher.table[...]
    make_distiller(student, teacher, max_steps=2).train([rows] * 2)
    assert bytes_of(teacher) == bytes_of(table(1))


# ---- vocabularies --------------------------------------------------------------------------------------------------------------


def test_vocabulary_mismatch_raises(table, tiny_decoder, rows, make_distiller):
    message = "the student knows 64 ids, the teacher 70: if they mean the same tokens, say which by vocab_mapping"
    with pytest.raises(ValueError, match=message):
        make_distiller(tiny_decoder(num_layers=1), tiny_decoder(num_layers=1, vocab_size=70))
    with pytest.raises(ValueError, match=message):
        make_distiller(table(0), table(1, vocab=70)).get_eval_loss(rows)
    with pytest.raises(ValueError, match=message):
        make_distiller(table(0), table(1, vocab=70)).with_loss_fn(lambda s, t, y: s.mean()).get_eval_loss(rows)


def renumbered(table, mapping):
    """The teacher `table(1)` whose id i is called `mapping.index(i)`; further ids mean nothing."""
    teacher, plain = table(1, vocab=len(mapping)), table(1)
    known = np.flatnonzero(mapping >= 0)
    teacher.table[...] = teacher.table[...].at[known].set(plain.table[...][mapping[known]])
    teacher.out[...] = teacher.out[...].at[:, known].set(plain.out[...][:, mapping[known]])
    return teacher


def test_vocab_mapping(table, rows, make_distiller, history):
    """Another order and six ids more that no token of the data has: the same losses as those of the teacher it was made from."""
    mapping = np.concatenate([[-1] * 6, np.random.default_rng(0).permutation(64)])
    for loss_fn in (None, lambda s, t, y: jnp.abs(jax.nn.softmax(s) - jax.nn.softmax(t)).mean()):
        found = []
        for teacher, given in ((table(1), None), (renumbered(table, mapping), mapping)):
            trainer = make_distiller(table(0), teacher, vocab_mapping=given, max_steps=2)
            if loss_fn is not None:
                trainer.with_loss_fn(loss_fn)
            trainer.train([rows] * 2)
            found.append(history(trainer, "loss"))
        assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_tokens_that_the_teacher_lacks(table, sft_rows, make_distiller):
    """They may stand in the student's vocabulary, and are left out of both distributions, but not in the data."""
    mapping = np.where(np.arange(64) < 60, np.arange(64), -1)
    rows = {"input_tokens": np.full((2, 5), 3, np.int32), "input_mask": np.ones((2, 5), bool)}
    student, teacher = table(0), table(1)
    trainer = make_distiller(student, teacher, LogitStrategy(alpha=1.0, temperature=1.0), vocab_mapping=mapping)
    valid = rows | {"valid": np.ones((2, 5), bool)}
    log_s, log_t = (logps(model, valid)[..., :60] for model in (student, teacher))
    log_s, log_t = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (log_s, log_t))
    assert trainer.get_eval_loss(rows) == pytest.approx((np.exp(log_t) * (log_t - log_s)).sum(-1).mean(), rel=1e-4)
    rows["input_tokens"][1, 2] = 61
    with pytest.raises(ValueError, match="token 61 of the data has no id in the teacher's vocabulary"):
        trainer.train([rows])


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (np.arange(63), "has 63 entries, the teacher has 64 ids"),
        (np.full(64, -1), "maps no id"),
        (np.arange(64) + 1, "maps to id 64, the student has ids 0 to 63"),
        (np.minimum(np.arange(64), 62), "maps 2 ids of the teacher to id 62 of the student"),
        (np.arange(64.0), "must be one row of integers"),
        (np.arange(64)[None], "must be one row of integers"),
    ],
)
def test_a_vocab_mapping_that_is_none(tiny_decoder, make_distiller, mapping, message):
    model = tiny_decoder(num_layers=1)
    with pytest.raises(ValueError, match=message):
        make_distiller(model, model, vocab_mapping=mapping)


def test_vocab_mapping_of_decoders(tiny_decoder, rows, make_distiller):
    """The rows of the teacher's head are taken in the order of the shared ids; its embeddings are read under its own."""
    mapping = np.concatenate([[-1] * 6, np.random.default_rng(0).permutation(64)])
    student, plain = tiny_decoder(0, num_layers=1), tiny_decoder(1, num_layers=1)
    teacher = tiny_decoder(1, num_layers=1, vocab_size=70)
    for path, variable in nnx.to_flat_state(nnx.state(plain)):
        if "input_embedding" not in path:
            nnx.update(teacher, nnx.from_flat_state([(path, variable)]))
    known = mapping >= 0
    embedding = np.zeros((70, 16), np.float32)
    embedding[known] = np.asarray(plain.embedder.input_embedding[...])[mapping[known]]
    teacher.embedder.input_embedding[...] = jnp.asarray(embedding)
    losses = [
        make_distiller(student, model, vocab_mapping=given).get_eval_loss(rows)
        for model, given in ((plain, None), (teacher, mapping))
    ]
    assert losses[1] == pytest.approx(float(losses[0]), rel=1e-5)


# ---- accumulation, adapters, resumption, meshes, scans -------------------------------------------------------------------------


def inside(kind):
    return kind(alpha=0.5, student_layers=[0], teacher_layers=[1])


def teacher_of(tiny_decoder):
    """Deeper, wider, and with more heads than the student."""
    return tiny_decoder(1, num_layers=2, embed_dim=24, num_heads=6)


@pytest.mark.parametrize("kind", [LogitStrategy, FeatureProjectionStrategy, AttentionProjectionStrategy])
def test_ga_invariance(table, tiny_decoder, rows, split_rows, make_distiller, history, kind):
    found = []
    for size, accumulate in ((4, 1), (1, 4)):
        if kind is LogitStrategy:
            student, teacher, strategy = table(0), table(1), LogitStrategy(direction="jsd", top_k=5, top_k_rest="one_class")
        else:
            student, teacher, strategy = tiny_decoder(0, num_layers=1), teacher_of(tiny_decoder), inside(kind)
        trainer = make_distiller(student, teacher, strategy, gradient_accumulation_steps=accumulate)
        trainer.train(split_rows(rows, size))
        found.append((history(trainer, "loss"), history(trainer, "soft_loss"), jax.device_get(trainer.state.params)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *found)


def test_only_adapters_and_the_projection_move(tiny_decoder, rows, make_distiller, numpy_params):
    base = tiny_decoder(0, num_layers=1)
    student = add_lora(base, rank=2, alpha=4.0, targets=".*q_einsum|.*down_proj", seed=0)
    trainer = make_distiller(student, teacher_of(tiny_decoder), inside(FeatureProjectionStrategy), optax.adam(0.01))
    start = jax.device_get(trainer.state.params)
    trainer.train([rows] * 4)  # the trainer's own check of adapters runs here too
    assert {name.rpartition(".")[2] for name in start} == {"projection", "w_lora_a", "w_lora_b"}
    for name, value in trainer.state.params.items():
        assert np.any(np.asarray(value) != start[name]), name
    assert trainer.model is student
    after = numpy_params(student)
    for name, value in numpy_params(tiny_decoder(0, num_layers=1)).items():
        np.testing.assert_array_equal(after[name], value)


def test_resume_bitwise(tiny_decoder, rows, make_distiller, history, tmp_path):
    """Four updates, or two, a new trainer on other random weights and another projection, and two more."""
    examples = [{k: v[i] for k, v in rows.items()} for i in range(4)]
    batches = lambda: train_batches(examples, batch_size=4, micro_batch_size=2, seed=1)  # noqa: E731
    config = {"optimizer": optax.adam(0.02), "gradient_accumulation_steps": 2}

    def trainer(seed, steps, manager=None):
        strategy = FeatureProjectionStrategy(student_layers=[0], teacher_layers=[1], seed=seed)
        student = tiny_decoder(seed, num_layers=1)
        return make_distiller(student, teacher_of(tiny_decoder), strategy, manager=manager, max_steps=steps, **config)

    whole = trainer(0, 4)
    whole.train(batches())
    logged = []
    for seed, steps in ((0, 2), (7, 4)):
        part = trainer(seed, steps, CheckpointManager(tmp_path, every=100))
        part.train(batches())
        part.close()
        logged += history(part, "loss")
    assert logged == history(whole, "loss")
    assert part.state.params.keys() >= {"projection", "student.final_norm.scale"}
    jax.tree.map(np.testing.assert_array_equal, *(jax.device_get((t.state.params, t.state.opt_state)) for t in (part, whole)))
    assert bytes_of(part.model) == bytes_of(whole.model)


@pytest.mark.parametrize(
    "strategy",
    [LogitStrategy(), pytest.param(AttentionProjectionStrategy(), marks=pytest.mark.slow)],
    ids=["logits", "attention"],
)
def test_dp_invariance(tiny_decoder, sft_rows, make_distiller, history, strategy):
    """On eight devices as on one, though the teacher was left where it was made."""
    batch = sft_rows([10, 3, 3, 3, 9, 10, 4, 5])
    found = []
    for mesh in (None, (2, 4)):
        student, teacher = tiny_decoder(0, num_layers=1), tiny_decoder(1, num_layers=1)
        if mesh is not None:
            place_model(student, make_mesh(*mesh))
        trainer = make_distiller(student, teacher, strategy, max_steps=2)
        trainer.train([batch] * 2, [batch])
        found.append((history(trainer, "loss"), history(trainer, "soft_loss", "eval"), jax.device_get(trainer.state.params)))
        assert len(teacher.embedder.input_embedding[...].devices()) == 1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), *found)


def test_stacked_layers(tiny_decoder, rows, make_distiller):
    """Logits can be learned by a student whose layers run as a scan; what the layers compute is not to be had from one."""
    config = {"scan_layers": True, "remat": "block"}
    student, teacher = tiny_decoder(0, num_layers=2), tiny_decoder(1, num_layers=1)
    losses = [make_distiller(student, teacher, **more).get_eval_loss(rows) for more in (config, {})]
    assert losses[0] == pytest.approx(float(losses[1]), rel=1e-5)
    for more in ({"scan_layers": True}, {"remat": "dots"}):
        with pytest.raises(ValueError, match="AttentionTransferStrategy needs what the layers compute: scan_layers and remat"):
            make_distiller(student, teacher, AttentionTransferStrategy(), **more)


def test_close_saves_and_closes(table, rows, make_distiller, tmp_path):
    """A closed trainer has left its checkpoint, and its logger takes no more."""
    closed = []

    class Backend:
        def log_scalar(self, event, value, **kwargs):
            del event, value, kwargs

        def close(self):
            closed.append(True)

    from tunix_lab.sft.config import MetricsLoggerOptions

    options = MetricsLoggerOptions(backend_factories=[Backend])
    trainer = make_distiller(
        table(0), table(1), max_steps=2, checkpoint_root_directory=str(tmp_path), metrics_logging_options=options
    )
    trainer.train([rows] * 2)
    trainer.close()
    assert closed == [True]
    again = make_distiller(table(0), table(1), checkpoint_root_directory=str(tmp_path))
    assert again.train_steps == 2 and bytes_of(again.model) == bytes_of(trainer.model)
