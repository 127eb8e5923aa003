"""The library face: every public name resolves, and the names, defaults and first example of the documented API hold."""

import ast
import dataclasses
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import optax
import pytest
import qwix
from flax import nnx

import tunix_lab as tunix
from tunix_lab.data.tokenizer import Tokenizer
from tunix_lab.data.tokenizer_training import train_tokenizer
from tunix_lab.models.catalog import save_model
from tunix_lab.models.decoder import init_decoder
from tunix_lab.models.gemma3.config import Gemma3Config
from tunix_lab.sft.train_state import flat_params
from tunix_lab.tasks.arithmetic import preference_rows
from tunix_lab.tasks.word_problems import split_problems

FACES = ["tunix_lab", "tunix_lab.sft", "tunix_lab.distillation"]
# public name -> the class that it is another name of
ALIASES = {
    "DistillationTrainingConfig": "TrainingConfig",
    "RewardFn": "Callable",
    "GSPOConfig": "GspoKnobs",
    "DAPOConfig": "DapoKnobs",
    "DrGRPOConfig": "DrGrpoKnobs",
    "RLOOConfig": "RlooKnobs",
}
# name -> module at which the documentation shows it, `tunix` -> `tunix_lab`
DOCUMENTED = {
    "PeftTrainer": "tunix_lab.sft.peft_trainer",
    "TrainingConfig": "tunix_lab.sft.peft_trainer",
    "DPOTrainer": "tunix_lab.sft.dpo.dpo_trainer",
    "DPOTrainingConfig": "tunix_lab.sft.dpo.dpo_trainer",
    "MetricsLogger": "tunix_lab.sft.metrics_logger",
    "MetricsLoggerOptions": "tunix_lab.sft.metrics_logger",
    "Sampler": "tunix_lab.generate.sampler",
    "CacheConfig": "tunix_lab.generate.sampler",
    "TrainingHooks": "tunix_lab.sft.hooks",
    "DataHooks": "tunix_lab.sft.hooks",
    "CheckpointManager": "tunix_lab.sft.checkpoint_manager",
    "GRPOConfig": "tunix_lab.rl.grpo.grpo_learner",
    "GRPOLearner": "tunix_lab.rl.grpo.grpo_learner",
    "RewardFn": "tunix_lab.rl.grpo.grpo_learner",
    "PPOConfig": "tunix_lab.rl.ppo.ppo_learner",
    "PPOLearner": "tunix_lab.rl.ppo.ppo_learner",
    "RLCluster": "tunix_lab.rl.rl_cluster",
    "ClusterConfig": "tunix_lab.rl.rl_cluster",
    "RLTrainingConfig": "tunix_lab.rl.rl_cluster",
    "Role": "tunix_lab.rl.rl_cluster",
    "RolloutConfig": "tunix_lab.rl.rollout.base_rollout",
    "DistillationTrainer": "tunix_lab.distillation.distillation_trainer",
    "DistillationTrainingConfig": "tunix_lab.distillation.distillation_trainer",
}
NEW = inspect.Parameter.empty


# ---- names ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("face", FACES)
def test_every_name_resolves(face):
    module = importlib.import_module(face)
    names = dir(module)
    assert names == sorted(set(names)) and names
    for name in names:
        assert vars(importlib.import_module(face)).get(name, getattr(module, name)).__name__ == ALIASES.get(name, name)


@pytest.mark.parametrize("face", FACES)
def test_an_unknown_name_is_an_attribute_error(face):
    with pytest.raises(AttributeError, match=f"module '{face}' has no attribute 'PeftTrainr'"):
        importlib.import_module(face).PeftTrainr  # noqa: B018


def test_type_checkers_see_the_lazy_table():
    """The TYPE_CHECKING block and the table say the same: name -> module."""
    tree = ast.parse(Path(tunix.__file__).read_text("utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    typed = {alias.asname: node.module for node in block.body for alias in node.names if alias.asname == alias.name}
    [table] = [ast.literal_eval(node) for node in ast.walk(tree) if isinstance(node, ast.Dict)]
    assert typed == table
    assert len(typed) == sum(len(node.names) for node in block.body)


@pytest.mark.parametrize(("name", "module"), DOCUMENTED.items())
def test_a_class_is_one_object_at_both_its_paths(name, module):
    assert vars(importlib.import_module(module))[name] is getattr(tunix, name)


def test_imports_of_the_documentation():
    from tunix_lab.models.gemma3 import model as gemma_lib
    from tunix_lab.models.gemma3 import params_safetensors as params_lib
    from tunix_lab.perf import trace
    from tunix_lab.sft import PeftTrainer, TrainingConfig
    from tunix_lab.sft.dpo.dpo_trainer import DPOTrainer, DPOTrainingConfig
    from tunix_lab.sft.inflight_throttler import InflightThrottler

    assert (PeftTrainer, TrainingConfig) == (tunix.PeftTrainer, tunix.TrainingConfig)
    assert (DPOTrainer, DPOTrainingConfig) == (tunix.DPOTrainer, tunix.DPOTrainingConfig)
    assert issubclass(DPOTrainer, PeftTrainer) and issubclass(DPOTrainingConfig, TrainingConfig)
    assert parameters(InflightThrottler) == {"max_inflight": NEW}
    assert callable(trace.NoopTracer)

    from tunix_lab.distillation import DistillationTrainer, strategies
    from tunix_lab.distillation import TrainingConfig as Reexported

    assert (DistillationTrainer, Reexported) == (tunix.DistillationTrainer, TrainingConfig)
    assert issubclass(DistillationTrainer, PeftTrainer) and issubclass(strategies.LogitStrategy, strategies.Strategy)
    assert parameters(params_lib.create_model_from_safe_tensors) == {
        "file_dir": NEW,
        "config": NEW,
        "mesh": None,
        "dtype": None,
    }
    # Gemma 3 1B, https://arxiv.org/abs/2503.19786, table 1 and the released config.json.
    one_b = gemma_lib.ModelConfig.gemma3_1b()
    assert (one_b.num_layers, one_b.embed_dim, one_b.hidden_dim) == (26, 1152, 6912)
    assert (one_b.num_heads, one_b.num_kv_heads, one_b.head_dim, one_b.vocab_size) == (4, 1, 256, 262_144)


# ---- names of fields and arguments, and their defaults ---------------------------------------------------------------------


def parameters(function: Callable[..., Any]) -> dict[str, Any]:
    """Argument -> default, in order, `self` and `*more` left out; NEW is none."""
    named = inspect.signature(function).parameters
    return {name: p.default for name, p in named.items() if name != "self" and p.kind is not inspect.Parameter.VAR_POSITIONAL}


def defaults(config: type) -> dict[str, Any]:
    """Field -> default, in order; NEW is none."""

    def default(field: dataclasses.Field) -> Any:
        if field.default_factory is not dataclasses.MISSING:
            return field.default_factory()
        return NEW if field.default is dataclasses.MISSING else field.default

    return {field.name: default(field) for field in dataclasses.fields(config)}


TRAINING = {
    "eval_every_n_steps": 100,
    "max_steps": None,
    "gradient_accumulation_steps": None,
    "checkpoint_root_directory": None,
    "checkpointing_options": None,
    "metrics_logging_options": tunix.MetricsLoggerOptions(),
    "profiler_options": None,
    "data_sharding_axis": ("fsdp",),
    "max_inflight_computations": 2,
    "metrics_prefix": "",
    "pbar_description": "Training",
}
# What this library adds; the documented fields keep their names, order and defaults.
TRAINING_MORE = {
    "master_dtype": "float32",
    "scan_layers": False,
    "remat": "none",
    "skip_nonfinite": False,
    "fingerprint_every_n_steps": None,
}
DPO_MORE = {"precompute_reference": False}
DPO = {
    "algorithm": "dpo",
    "beta": 0.1,
    "label_smoothing": 0.0,
    "lambda_orpo": 0.1,
    "max_prompt_length": 512,
    "max_response_length": 512,
}


def test_training_config():
    found = defaults(tunix.TrainingConfig)
    assert [item for item in found.items() if item[0] not in TRAINING_MORE] == list(TRAINING.items())
    assert found == TRAINING | TRAINING_MORE
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in inspect.signature(tunix.TrainingConfig).parameters.values())
    config = tunix.TrainingConfig(max_steps=3)
    assert (config.get_with_default("max_steps", 9), config.get_with_default("profiler_options", 9)) == (3, 9)


def test_dpo_training_config():
    assert defaults(tunix.DPOTrainingConfig) == TRAINING | TRAINING_MORE | DPO | DPO_MORE
    with pytest.raises(ValueError, match="algorithm must be 'dpo', 'ipo' or 'orpo', got 'kto'"):
        tunix.DPOTrainingConfig(algorithm="kto")


def test_metrics_logger_options():
    assert list(defaults(tunix.MetricsLoggerOptions).items()) == [
        ("log_dir", None),  # documented as required; only the TensorBoard backend needs it, and TrainingConfig() has none
        ("project_name", None),
        ("run_name", None),
        ("flush_every_n_steps", 100),
        ("backend_factories", []),
    ]


def test_cache_config():
    assert defaults(tunix.CacheConfig) == dict.fromkeys(("cache_size", "num_layers", "num_kv_heads", "head_dim"), NEW)
    assert tunix.CacheConfig(1024, 26, 1, 256) == tunix.CacheConfig(cache_size=1024, num_layers=26, num_kv_heads=1, head_dim=256)


def test_trainers():
    trainer = {"model": NEW, "optimizer": NEW, "training_config": NEW, "metrics_logger": None, "perf_tracer": None}
    assert list(parameters(tunix.PeftTrainer).items())[:5] == list(trainer.items())
    documented = ["model", "ref_model", "optimizer", "training_config", "tokenizer"]
    assert list(parameters(tunix.DPOTrainer))[:5] == documented
    documented = ["student_model", "teacher_model", "optimizer", "training_config"]
    assert list(parameters(tunix.DistillationTrainer))[:4] == documented
    assert {"get_train_loss", "get_eval_loss"} <= set(dir(tunix.DistillationTrainer))
    assert tunix.DistillationTrainingConfig is tunix.TrainingConfig
    for face in (tunix.PeftTrainer, tunix.DPOTrainer, tunix.DistillationTrainer):
        assert parameters(face.train) == {"train_ds": NEW, "eval_ds": None, "skip_jit": False, "cache_nnx_graph": False}
        assert parameters(face.with_loss_fn) == {"loss_fn": NEW, "has_aux": False}
        assert parameters(face.with_gen_model_input_fn) == {"gen_model_input_fn": NEW}
        assert parameters(face.with_training_hooks) == {"training_hooks": NEW}
        assert parameters(face.with_data_hooks) == {"data_hooks": NEW}
        assert parameters(face.jit_train_and_eval_step) == {"skip_jit": False, "cache_nnx_graph": False}
        assert {"train_steps", "iter_steps", "custom_checkpoint_metadata", "close", "clear_jit_cache"} <= set(dir(face))
        assert {"_prepare_inputs", "_post_process_train_step", "_post_process_eval_step"} <= set(dir(face))
        assert {"create_train_step_fn", "create_eval_step_fn"} <= set(dir(face))


def test_training_hooks():
    documented = {"on_train_begin", "on_train_end", "on_train_step_begin", "on_train_step_end", "on_eval_begin", "on_eval_end"}
    assert documented <= set(dir(tunix.TrainingHooks))


def test_metrics_logger(tmp_path):
    logger = tunix.MetricsLogger
    assert parameters(logger)["metrics_logger_options"] is None
    assert parameters(logger.log) == {"metric_name": NEW, "value": NEW, "step": NEW, "mode": "train"}
    for method in (logger.get_metric, logger.get_metric_history, logger.metric_exists):
        assert parameters(method) == {"metric_name": NEW, "mode": "train"}
    metrics = logger(tunix.MetricsLoggerOptions(log_dir=str(tmp_path)))
    metrics.log("loss", 2.0, 1)
    metrics.log("loss", 4.0, 2, "train")
    metrics.log("loss", 7.0, 2, "eval")
    assert (metrics.get_metric("loss"), metrics.get_metric("loss", "eval")) == (3.0, 7.0)
    assert metrics.get_metric_history("loss") == [2.0, 4.0]
    assert metrics.metric_exists("loss", "eval") and not metrics.metric_exists("accuracy")
    metrics.close()
    assert list(tmp_path.iterdir())  # TensorBoard's event file


def test_metrics_logger_makes_its_own_backends():
    class Kept:
        def __init__(self):
            self.seen, self.closed = [], False

        def log_scalar(self, event, value, **kwargs):
            self.seen.append((event, value, kwargs["step"]))

        def close(self):
            self.closed = True

    kept = Kept()
    options = tunix.MetricsLoggerOptions(log_dir="unused", backend_factories=[lambda: kept])
    assert options.create_backends() == [kept]
    metrics = tunix.MetricsLogger(options)
    metrics.log("accuracy", 0.5, 3, "eval")
    metrics.close()
    assert kept.seen == [("eval/accuracy", 0.5, 3)] and kept.closed


def test_sampler():
    assert list(parameters(tunix.Sampler)) == ["transformer", "tokenizer", "cache_config"]
    assert list(parameters(tunix.Sampler.__call__).items())[:8] == [
        ("input_strings", NEW),
        ("max_generation_steps", NEW),
        ("temperature", 1.0),
        ("top_k", None),
        ("top_p", None),
        ("echo", False),
        ("seed", None),
        ("eos_tokens", ()),
    ]
    assert parameters(tunix.Sampler.tokenize) == {"input_string": NEW}
    assert parameters(tunix.Sampler.init_sample_state) == {"input_ids": NEW, "positions": NEW}
    assert {"dtype", "transformer", "transformer_state"} <= set(dir(tunix.Sampler))


# ---- the first example -----------------------------------------------------------------------------------------------------

TINY = Gemma3Config.gemma3_nano().replace(
    num_layers=2, embed_dim=16, hidden_dim=32, num_heads=2, num_kv_heads=1, head_dim=8, attention_pattern=("local", "global")
)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    return preference_rows(split_problems(0)["train"], "train", 8, seed=0)


@pytest.fixture(scope="module")
def tokenizer(rows, tmp_path_factory) -> Tokenizer:
    return train_tokenizer(rows, 400, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def local_path(tmp_path_factory) -> str:
    """A folder such as `snapshot_download` gives."""
    folder = tmp_path_factory.mktemp("gemma")
    save_model(flat_params(nnx.state(init_decoder(TINY, seed=0))), TINY, folder)
    return str(folder)


# The example is what people write; one version or another of jax and qwix complains about three of its lines.
@pytest.mark.filterwarnings(
    "ignore:The default axis_types will change:DeprecationWarning",
    "ignore:.with mesh.:DeprecationWarning",
    "ignore:rngs must be provided:UserWarning",
)
def test_dpo_training_with_gemma(rows, tokenizer, local_path):
    """Example 1 of the documentation, word for word but for its size, its data and where the weights come from."""
    from tunix_lab.models.gemma3 import params_safetensors as params_lib
    from tunix_lab.sft.dpo.dpo_trainer import DPOTrainer, DPOTrainingConfig

    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"))
    with mesh:
        gemma = params_lib.create_model_from_safe_tensors(local_path, TINY, mesh)
    lora_provider = qwix.LoraProvider(
        module_path=".*q_einsum|.*kv_einsum|.*gate_proj|.*down_proj|.*up_proj|.*attn_vec_einsum", rank=4, alpha=16.0
    )
    lora_model = qwix.apply_lora_to_model(gemma, lora_provider, **gemma.get_model_input())
    optimizer = optax.chain(
        optax.clip_by_global_norm(max_norm=0.1),
        optax.adamw(
            learning_rate=optax.schedules.warmup_cosine_decay_schedule(
                init_value=0.0, peak_value=1e-2, warmup_steps=1, decay_steps=4
            ),
            b1=0.9,
            b2=0.99,
            weight_decay=0.1,
        ),
    )
    dpo_config = DPOTrainingConfig(beta=0.1, max_prompt_length=80, max_response_length=80, max_steps=3, eval_every_n_steps=2)
    trainer = DPOTrainer(model=lora_model, ref_model=gemma, optimizer=optimizer, training_config=dpo_config, tokenizer=tokenizer)
    train_data = (
        grain.MapDataset.source(rows)
        .map(
            lambda x: {
                "prompts": f"<start_of_turn>user\n{x['prompt']}<end_of_turn>\n<start_of_turn>model\n",
                "chosen_responses": x["chosen"],
                "rejected_responses": x["rejected"],
            }
        )
        .batch(2)
    )
    base = {name: np.array(value) for name, value in flat_params(nnx.state(gemma)).items()}
    with mesh:
        trainer.train(train_data)
    trainer.close()

    assert trainer.train_steps == 3
    losses = trainer.metrics_logger.get_metric_history("loss")
    assert losses[0] == pytest.approx(np.log(2), rel=1e-5)  # untrained adapters add nothing: the margin is 0, -log σ(0)
    assert len(losses) == 3 and losses[2] < losses[0]
    factors = jax.tree.leaves(nnx.state(lora_model, nnx.LoRAParam))
    assert any(np.any(np.asarray(factor) != 0) for factor in factors)
    for name, value in flat_params(nnx.state(gemma)).items():
        np.testing.assert_array_equal(value, base[name], err_msg=name)  # the reference is frozen


def test_sampling_with_gemma(tokenizer, local_path):
    from tunix_lab.models.gemma3 import params_safetensors as params_lib

    gemma = params_lib.create_model_from_safe_tensors(local_path, TINY)
    cache_config = tunix.CacheConfig(
        cache_size=64, num_layers=TINY.num_layers, num_kv_heads=TINY.num_kv_heads, head_dim=TINY.head_dim
    )
    sampler = tunix.Sampler(gemma, tokenizer, cache_config)
    output = sampler(["Ana has 3 pens.", "Ben"], max_generation_steps=8, temperature=0.9, top_k=5, seed=0)
    again = sampler(["Ana has 3 pens.", "Ben"], max_generation_steps=8, temperature=0.9, top_k=5, seed=0)
    assert len(output.text) == 2 and output.text == again.text


def test_peft_trainer_as_documented(local_path, tmp_path):
    """The trainer's part of example 4: `from tunix.sft import …`, a config, `train`."""
    from tunix_lab.models.gemma3 import params_safetensors as params_lib
    from tunix_lab.sft import PeftTrainer, TrainingConfig

    gemma = params_lib.create_model_from_safe_tensors(local_path, TINY)
    tokens = np.arange(2 * 8, dtype=np.int32).reshape(2, 8)
    sft_dataset = [tunix.TrainingInput(input_tokens=tokens, input_mask=np.ones((2, 8), bool))] * 3
    config = TrainingConfig(max_steps=3, eval_every_n_steps=500, checkpoint_root_directory=str(tmp_path / "ckpts"))
    trainer = PeftTrainer(model=gemma, optimizer=optax.adamw(1e-2), training_config=config)
    trainer.train(sft_dataset)
    trainer.close()
    losses = trainer.metrics_logger.get_metric_history("loss")
    assert losses[-1] < losses[0]
    again = PeftTrainer(
        model=params_lib.create_model_from_safe_tensors(local_path, TINY), optimizer=optax.adamw(1e-2), training_config=config
    )
    assert again.train_steps == 3  # restored
    again.close()


@pytest.mark.filterwarnings("ignore:rngs must be provided:UserWarning")
def test_qlora_finetuning_as_documented(local_path):
    """Example 4 of the documentation, but for `qwix.quantize_model(gemma, bits=4)`, a call that qwix does not have."""
    from tunix_lab.models.gemma3 import params_safetensors as params_lib
    from tunix_lab.sft import PeftTrainer, TrainingConfig

    gemma = params_lib.create_model_from_safe_tensors(local_path, TINY)
    with pytest.raises(TypeError):
        qwix.quantize_model(gemma, bits=4)
    qlora_provider = qwix.LoraProvider(
        module_path=".*q_einsum|.*kv_einsum|.*gate_proj|.*down_proj|.*up_proj",
        rank=4,
        alpha=4.0,
        weight_qtype="nf4",
        tile_size=8,
    )
    lora_model = qwix.apply_lora_to_model(gemma, qlora_provider, **gemma.get_model_input())
    tokens = np.arange(2 * 8, dtype=np.int32).reshape(2, 8)
    sft_dataset = [{"input_tokens": tokens, "input_mask": np.ones((2, 8), bool)}] * 4
    trainer = PeftTrainer(model=lora_model, optimizer=optax.adamw(1e-2), training_config=TrainingConfig(max_steps=4))
    trainer.train(sft_dataset)
    trainer.close()
    losses = trainer.metrics_logger.get_metric_history("loss")
    assert losses[-1] < losses[0] and all("lora" in name for name in trainer.state.params)
