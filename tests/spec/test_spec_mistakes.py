"""Mistakes in the fields of a spec: the message names file, line, column, field and remedy."""

import pytest

from tunix_lab.models.sizes import SIZES
from tunix_lab.spec import SpecError, check_devices

HEAD = "extends: good.yaml\n"
A_DURATION = "must be hours, minutes and seconds, such as 8h30m, 45m or 90s"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        # unknown fields point at the key
        ("seeed: 1", "2:1: seeed: unknown field (did you mean 'seed'?)"),
        ("training: {max_step: 1}", "2:12: training.max_step: unknown field (did you mean 'max_steps'?)"),
        (
            "training: {learning_rate: 1}",
            "2:12: training.learning_rate: unknown field here (did you mean 'algorithm.critic.learning_rate' or "
            "'optimizer.learning_rate'?)",
        ),
        ("mesh: {zzz: 1}", "2:8: mesh.zzz: unknown field; known here: fsdp, tp"),
        # types and values point at the value
        ("seed: one", "2:7: seed: must be an integer, got 'one'"),
        ("seed: true", "2:7: seed: must be an integer, got true"),
        ("seed: '1'", "2:7: seed: must be an integer, got '1' (without quotes)"),
        ("seed: 1e3", "2:7: seed: must be an integer, got 1000.0 (write 1000)"),
        ("seed: 1.5", "2:7: seed: must be an integer, got 1.5"),
        ("seed:", "2:1: seed: must be an integer, got null"),
        ("seed: [1, 2]", "2:7: seed: must be an integer, got a list"),
        ("seed: -1", "2:7: seed: must be at least 0, got -1"),
        ("seed: 4294967296", "2:7: seed: must be less than 4.29497e+09, got 4294967296"),
        ("name: Big Name", "2:7: name: may hold a-z, 0-9, '_' and '-' only, and begins with a letter or a digit; got 'Big Name'"),
        ("name: 7", "2:7: name: must be text, got 7 (put it in quotes)"),
        (f"name: {'a' * 65}", "2:7: name: must have at most 64 characters, got 65"),
        ("training: 3", "2:11: training: must be a mapping, got 3"),
        ("training: [3]", "2:11: training: must be a mapping, got a list"),
        ("model: null", "2:8: model: must be a mapping, got null"),
        ("optimizer: {learning_rate: .inf}", "2:28: optimizer.learning_rate: must be a finite number, got inf"),
        ("optimizer: {learning_rate: .nan}", "2:28: optimizer.learning_rate: must be a finite number, got nan"),
        ("optimizer: {learning_rate: true}", "2:28: optimizer.learning_rate: must be a number, got true"),
        ("optimizer: {learning_rate: 0}", "2:28: optimizer.learning_rate: must be greater than 0, got 0"),
        ("optimizer: {b1: 1}", "2:17: optimizer.b1: must be less than 1, got 1"),
        ("optimizer: {kind: sgd}", "2:19: optimizer.kind: must be one of 'adamw', got 'sgd'"),
        ("optimizer: {schedule: {end_factor: 2}}", "2:36: optimizer.schedule.end_factor: must be at most 1, got 2"),
        (
            "model: {family: lama3}",
            f"2:17: model.family: no family 'lama3'; there are {', '.join(SIZES)} (did you mean 'llama3'?)",
        ),
        (
            "model: {size: nan0}",
            f"2:15: model.size: gemma3 has no size 'nan0'; there are {', '.join(SIZES['gemma3'])} (did you mean 'nano'?)",
        ),
        (
            "model: {dtype: float16}",
            "2:16: model.dtype: must be one of 'float32', 'bfloat16', got 'float16' (did you mean 'bfloat16'?)",
        ),
        ("tokenizer: {path: ''}", "2:19: tokenizer.path: must not be empty"),
        (
            "training: {budget: 8 hours}",
            f"2:20: training.budget: {A_DURATION}; got '8 hours'",
        ),
        (
            "training: {budget: 30m8h}",
            "2:20: training.budget: must be hours, minutes and seconds, such as 8h30m, 45m or 90s; got '30m8h'",
        ),
        (
            "training: {budget: ''}",
            "2:20: training.budget: must be hours, minutes and seconds, such as 8h30m, 45m or 90s; got ''",
        ),
        (
            "checkpoint: {every: 5, keep_best: {metric: train/loss}}",
            "2:44: checkpoint.keep_best.metric: 'train/loss' is of a batch, which says little of a checkpoint: take one of eval/",
        ),
        (
            "checkpoint: {every: 3, keep_best: {metric: eval/loss}}",
            "2:44: checkpoint.keep_best.metric: no checkpoint has a eval/loss: known every 50 steps, saved every 3",
        ),
        (
            "checkpoint: {keep_best: {metric: eval/los}}",
            "2:34: checkpoint.keep_best.metric: this experiment does not produce 'eval/los' (did you mean 'eval/loss'?)",
        ),
        ("mesh: {fsdp: 0}", "2:14: mesh.fsdp: must be at least 1, or -1 for all remaining devices; got 0"),
        ("mesh: {fsdp: -2}", "2:14: mesh.fsdp: must be at least -1, got -2"),
        ("mesh: {fsdp: -1, tp: -1}", "2:7: mesh: fsdp and tp cannot both be -1; say how many devices one of them has"),
        ("samples: {scorer: exact_match}", "2:19: samples.scorer: must look like package.module:function; got 'exact_match'"),
        ("tracking: {tags: {a.b: x}}", "2:19: tracking.tags.a.b: may hold letters, digits, '_', '-' and '/' only; got 'a.b'"),
        ("tracking: {tags: {year: 2026}}", "2:25: tracking.tags.year: must be text, got 2026 (put it in quotes)"),
        ("tracking: {higher_is_better: 1}", "2:30: tracking.higher_is_better: must be true or false, got 1"),
        # inside the variants of a union, whose names are no part of the field
        (
            "algorithm: {kind: dpoo}",
            "2:19: algorithm.kind: must be one of 'sft', 'dpo', 'ipo', 'orpo', "
            "'distill', 'grpo', 'gspo', 'dapo', 'drgrpo', 'rloo', 'ppo', "
            "got 'dpoo' (did you mean 'dpo'?)",
        ),
        (
            "algorithm: {kind: [dpo]}",
            "2:19: algorithm.kind: must be one of 'sft', 'dpo', 'ipo', 'orpo', "
            "'distill', 'grpo', 'gspo', 'dapo', 'drgrpo', 'rloo', 'ppo', "
            "got \"['dpo']\"",
        ),
        ("algorithm: {kind: dpo, beta: 0}", "2:30: algorithm.beta: must be greater than 0, got 0"),
        ("algorithm: {kind: dpo, beta: big}", "2:30: algorithm.beta: must be a number, got 'big'"),
        ("algorithm: {kind: dpo, label_smoothing: 0.5}", "2:41: algorithm.label_smoothing: must be less than 0.5, got 0.5"),
        (
            "algorithm: {kind: dpo, max_prompt_length: 2.0}",
            "2:43: algorithm.max_prompt_length: must be an integer, got 2.0 (write 2)",
        ),
        ("algorithm: {kind: dpo, bета: 1}", "2:24: algorithm.bета: unknown field"),
        ("algorithm: {kind: dpo, dpo: 1}", "2:24: algorithm.dpo: unknown field"),
        ("algorithm: {kind: orpo, beta: 1}", "2:25: algorithm.beta: unknown field"),
        ("algorithm: {kind: sft, bias: 1}", "2:24: algorithm.bias: unknown field"),
        ("adapter: {rank: 4}", "2:1: adapter.kind: missing; one of 'none', 'lora', 'qlora'"),
        ("adapter: {kind: lora, rank: 0}", "2:29: adapter.rank: must be greater than 0, got 0"),
        ("adapter: {kind: lora, targets: '('}", "2:32: adapter.targets: is not a regular expression: "),
        ("adapter: {kind: lora, tile_size: 8}", "2:23: adapter.tile_size: unknown field"),
        (
            "adapter: {kind: qlora, weight_qtype: nf5}",
            "2:38: adapter.weight_qtype: must be one of 'nf4', 'int8', 'int4', got 'nf5'",
        ),
        ("model: {init: {kind: experiment}}", "2:9: model.init.name: missing"),
        ("model: {init: {kind: path}}", "2:9: model.init.path: missing"),
        ("model: {init: {kind: hub, repo: org/name}}", "2:9: model.init.revision: missing"),
        (
            f"model: {{init: {{kind: hub, repo: gemma, revision: {'a' * 40}}}}}",
            "2:33: model.init.repo: must look like organisation/name, as the hub's page of the model is called; got 'gemma'",
        ),
        (
            f"model: {{init: {{kind: hub, repo: https://huggingface.co/org/name, revision: {'a' * 40}}}}}",
            "2:33: model.init.repo: must look like organisation/name",
        ),
        (
            "model: {init: {kind: hub, repo: org/name, revision: v2}}",
            "2:53: model.init.revision: must be the full hash of a commit (40 digits of 0-9a-f), since branches and tags move "
            "and short hashes become ambiguous; got 'v2': `hf models info org/name --revision v2 --expand sha` shows its hash, "
            "and so does https://huggingface.co/org/name/commits/v2",
        ),
        (
            f"model: {{init: {{kind: hub, repo: org/name, revision: {'a' * 39}}}}}",
            "2:53: model.init.revision: must be the full hash of a commit",
        ),
        (
            f"model: {{init: {{kind: hub, repo: org/name, revision: {'A' * 40}}}}}",
            "2:53: model.init.revision: must be the full hash of a commit",
        ),
        ("data: {kind: text, train: a, validation: b}", "2:1: data.max_length: missing"),
        ("optimizer: {schedule: {kind: constant, end_factor: 0.1}}", "2:40: optimizer.schedule.end_factor: unknown field"),
    ],
)
def test_field(folder, lines, message):
    folder.write("spec.yaml", HEAD + lines + "\n")
    (line,) = folder.mistakes()
    assert line.startswith(f"spec.yaml:{message}")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            "model: {init: {kind: experiment, name: good}}",
            "2:40: model.init.name: experiment 'good' cannot start from its own output",
        ),
        (
            "tokenizer: {path: null}",
            "2:19: tokenizer.path: missing: random weights come without a tokenizer (`tunix-lab data tokenizer` makes one)",
        ),
        ("algorithm: {kind: dpo}", "good.yaml:10:9: data.kind: algorithm 'dpo' needs data of kind 'preference', got 'chat'"),
        ("algorithm: {kind: orpo}", "good.yaml:10:9: data.kind: algorithm 'orpo' needs data of kind 'preference', got 'chat'"),
        (
            "data: {kind: preference, train: a, validation: b}",
            "2:14: data.kind: algorithm 'sft' needs data of kind 'text' or 'chat', got 'preference'",
        ),
        ("training: {micro_batch_size: 3}", "2:30: training.micro_batch_size: must divide training.batch_size (8), got 3"),
        ("training: {micro_batch_size: 16}", "2:30: training.micro_batch_size: must divide training.batch_size (8), got 16"),
        (
            "training: {max_steps: 2}",
            "good.yaml:18:19: optimizer.schedule.warmup_steps: must be less than training.max_steps (2), got 2",
        ),
        (
            "tracking: {primary_metric: eval/los}",
            "2:28: tracking.primary_metric: this experiment does not produce 'eval/los' (did you mean 'eval/loss'?)",
        ),
        (
            "tracking: {primary_metric: train/margin}",
            "2:28: tracking.primary_metric: this experiment does not produce 'train/margin'",
        ),
        ("tracking: {primary_metric: eval/exact_match}", "2:28: tracking.primary_metric: this experiment does not produce"),
        ("mesh: {fsdp: 16}", "good.yaml:21:15: training.batch_size: 8 rows cannot be split evenly over 16 devices (mesh.fsdp)"),
        (
            "training: {micro_batch_size: 2}\nmesh: {fsdp: 4}",
            "2:30: training.micro_batch_size: 2 rows cannot be split evenly over 4 devices (mesh.fsdp)",
        ),
        (
            "training: {eval_batch_size: 6}\nmesh: {fsdp: 4}",
            "2:29: training.eval_batch_size: 6 rows cannot be split evenly over 4 devices (mesh.fsdp)",
        ),
        # a default value that does not fit: the place is that of its section
        ("training: {batch_size: 64}\nmesh: {fsdp: 64}", "2:1: training.eval_batch_size: 32 rows cannot be split evenly over 64"),
        ("mesh: {tp: 3}", "2:12: mesh.tp: nano's 4 heads cannot be split evenly over 3 devices"),
        (
            "samples: {scorer: 'nowhere.at:all'}",
            "2:19: samples.scorer: no module 'nowhere', neither installed nor in the project folder",
        ),
    ],
)
def test_combination(folder, lines, message):
    folder.write("spec.yaml", HEAD + lines + "\n")
    lines = folder.mistakes()
    assert any(line.startswith((message, f"spec.yaml:{message}")) for line in lines), lines


def test_kv_heads_may_be_replicated(folder):
    """nano has 2 key-value heads: 4 devices along tp hold each of them twice."""
    assert folder.load("mesh.tp=4", "mesh.fsdp=1", name="good.yaml").spec.mesh.tp == 4


def test_every_mistake_at_once_in_the_order_of_the_file(folder):
    folder.write("spec.yaml", HEAD + "training: {max_steps: 0, batch_size: x}\nmesh: {tp: 1.5}\nnaem: x\n")
    assert [line.split(": ")[1] for line in folder.mistakes("seed=x")] == [
        "seed",
        "training.max_steps",
        "training.batch_size",
        "mesh.tp",
        "naem",
    ]


def test_missing_sections_point_at_the_file(folder):
    folder.write("spec.yaml", "seed: 1\n")
    lines = folder.mistakes()
    assert "spec.yaml:1:1: name: missing" in lines and "spec.yaml:1:1: model: missing" in lines


def test_a_scorer_that_is_missing_is_said_beside_other_mistakes(folder):
    folder.write("spec.yaml", HEAD + "seed: x\nsamples: {scorer: 'json:lods'}\n")
    assert folder.mistakes() == [
        "spec.yaml:2:7: seed: must be an integer, got 'x'",
        "spec.yaml:3:19: samples.scorer: json has no function 'lods' (did you mean 'loads'?)",
    ]


def test_devices(folder):
    assert folder.load(name="good.yaml", devices=8).spec.mesh.shape(8) == (8, 1)
    assert folder.mistakes(name="good.yaml", devices=3) == [
        # eval_batch_size is a default: its section is at line 19
        "good.yaml:19:1: training.eval_batch_size: 32 rows cannot be split evenly over 3 devices (mesh.fsdp)",
        "good.yaml:21:15: training.batch_size: 8 rows cannot be split evenly over 3 devices (mesh.fsdp)",
    ]
    (line,) = folder.mistakes("mesh.tp=4", name="good.yaml", devices=6)
    assert line.startswith("--set #1: mesh: fsdp -1 x tp 4 does not use 6 device(s) exactly")
    (line,) = folder.mistakes("mesh={fsdp: 2, tp: 2}", name="good.yaml", devices=8)
    assert "does not use 8 device(s) exactly" in line
    (line,) = folder.mistakes("mesh={fsdp: 1, tp: -1}", name="good.yaml", devices=8)
    assert line == "--set #1: mesh.tp: nano's 4 heads cannot be split evenly over 8 devices"
    (line,) = folder.mistakes("mesh={fsdp: 8}", name="good.yaml", devices=4)
    assert "fsdp 8 x tp 1 does not use 4 device(s) exactly" in line


def test_check_devices_of_a_spec_without_a_file(folder):
    spec = folder.load(name="good.yaml").spec
    check_devices(spec, 4)
    with pytest.raises(SpecError, match="^training.batch_size: 8 rows cannot be split evenly over 16 devices"):
        check_devices(spec, 16)
