"""Exports: written, read back, proved; and never there under their name when something is not the same."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from export_models import CASES, PARITY, FakeRun, make_run, make_spec, make_tokenizer, model_folder
from flax import nnx
from safetensors.numpy import load_file, save_file

from tunix_lab.cli.export import parse_size
from tunix_lab.data.tokenizer import Tokenizer
from tunix_lab.errors import Mismatch, UserError
from tunix_lab.lab.export.export import RECEIPT, Export, export
from tunix_lab.lab.outputs import write_adapter
from tunix_lab.models.catalog import load_model, read_config
from tunix_lab.sft.train_state import digest, flat_params


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory) -> Path:
    """A Llama as others publish one: licence, sampling settings, ids."""
    folder = model_folder("llama3_untied", tmp_path_factory.mktemp("model"), tokenizer)
    (folder / "LICENSE").write_text("be kind")
    settings = {"temperature": 0.7, "do_sample": True, "eos_token_id": 4, "_from_model_config": True}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def nobody(tmp_path_factory) -> str:
    """An interpreter without packages, whatever is installed here."""
    script = tmp_path_factory.mktemp("python") / "python"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    script.chmod(0o755)
    return str(script)


@pytest.fixture
def run(tokenizer, tmp_path) -> FakeRun:
    return make_run(tmp_path / "project", tokenizer)


@pytest.fixture
def send(tmp_path, nobody):
    """`send(source, …)`: the receipt and the folder of an export."""

    def call(source, home: Path | None = None, *, to: str = "export", after_writing=None, **options):
        wanted = Export(str(source), tmp_path / to, nobody, **options)
        return export(wanted, home or tmp_path, after_writing=after_writing), tmp_path / to

    return call


def results(receipt) -> dict[str, bool | None]:
    return {check["name"]: check["passed"] for check in receipt["checks"]}


def value_of(receipt, name: str) -> float:
    return next(check["value"] for check in receipt["checks"] if check["name"] == name)


def params_of(folder: Path, **dtypes: str):
    return flat_params(nnx.state(load_model(folder, **dtypes)))


@pytest.mark.parametrize("case", CASES)
def test_every_family_comes_back(case, tokenizer, tmp_path, send):
    source = model_folder(case, tmp_path / "model", tokenizer)
    receipt, folder = send(source)
    expected = {"tensors": True, "config": True, "logits": True, "greedy": True, "tokenizer": True, "transformers": None}
    assert receipt["passed"] and results(receipt) == expected
    assert read_config(folder) == read_config(source)
    assert (
        receipt["params_digest"] == receipt["source"]["params_digest"] == digest(params_of(folder)) == digest(params_of(source))
    )
    assert json.loads((folder / RECEIPT).read_text()) == receipt and not (tmp_path / "export.incomplete").exists()


def test_what_lies_in_the_folder(folder, tokenizer, send):
    _, out = send(folder)
    names = {path.name for path in out.iterdir()}
    assert names == {path.name for path in folder.iterdir()} | {RECEIPT}
    assert (out / "LICENSE").read_text() == "be kind"
    generation = json.loads((out / "generation_config.json").read_text())
    # <eos> 1 and <end_of_turn> 5 of the tokenizer, 4 of the source's file, whose other settings stay
    ids = {"bos_token_id": 2, "eos_token_id": [1, 4, 5], "pad_token_id": 0}
    assert generation == ids | {"temperature": 0.7, "do_sample": True}
    config = json.loads((out / "config.json").read_text())
    assert ids.items() <= config.items() and config["architectures"] == ["LlamaForCausalLM"]
    assert Tokenizer.load(out).stop_ids == {1, 4, 5} and Tokenizer.load(out).chat_template == tokenizer.chat_template


def test_several_files(folder, send):
    receipt, out = send(folder, max_file_bytes=20_000)
    places = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    files = sorted(out.glob("model-*.safetensors"))
    assert len(files) > 2 and set(places.values()) == {path.name for path in files} and not (out / "model.safetensors").exists()
    assert receipt["passed"] and digest(params_of(out)) == digest(params_of(folder))


def test_another_dtype(folder, send):
    receipt, out = send(folder, dtype="bfloat16")
    tensors = load_file(out / "model.safetensors")
    assert {str(tensor.dtype) for tensor in tensors.values()} == {"bfloat16"} and read_config(out).dtype == "bfloat16"
    logits = next(check for check in receipt["checks"] if check["name"] == "logits")
    assert receipt["dtype"] == "bfloat16" and (logits["value"], logits["tolerance"]) == (0, 0)
    assert digest(params_of(out)) == digest(params_of(folder, dtype="bfloat16", param_dtype="bfloat16"))
    _, back = send(out, to="back", dtype="float32")
    assert {str(tensor.dtype) for tensor in load_file(back / "model.safetensors").values()} == {"float32"}


def test_a_folder_without_a_tokenizer(send):
    receipt, out = send(PARITY / "gemma3_multimodal")
    assert receipt["passed"] and results(receipt)["tokenizer"] is None
    assert json.loads((out / "generation_config.json").read_text()) == {"bos_token_id": 2, "eos_token_id": [1], "pad_token_id": 0}
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == 1


# ---- what goes wrong -----------------------------------------------------------------------------------------------------


def bump(folder: Path, name: str = "model.layers.1.mlp.up_proj.weight", file: str = "model.safetensors") -> None:
    """Changes one number of one tensor by a hundredth."""
    tensors = load_file(folder / file)
    tensors[name] = tensors[name].copy()
    tensors[name][0, 0] += np.float32(0.01)
    save_file(tensors, folder / file)


def set_field(file: str, **fields):
    def change(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


FAULTS = {
    "a tensor": (bump, {"tensors", "logits"}),
    "the base of the rotary embedding": (set_field("config.json", rope_theta=400.0), {"config", "logits", "greedy"}),
    "a norm's constant": (set_field("config.json", rms_norm_eps=1e-3), {"config", "logits"}),
    "a stop id": (set_field("generation_config.json", eos_token_id=[1, 5, 7]), {"tokenizer"}),
    "the chat template": (lambda f: (f / "chat_template.jinja").write_text("{{ bos_token }}hi<end_of_turn>"), {"tokenizer"}),
    "a missing tensor": (lambda folder: (folder / "model.safetensors").unlink(), {"loads"}),
    "a missing tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), {"tokenizer"}),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault, folder, send, tmp_path):
    change, blamed = FAULTS[fault]
    with pytest.raises(Mismatch) as error:
        send(folder, after_writing=change)
    assert error.value.exit_code == 5
    receipt = json.loads((tmp_path / "export.incomplete" / RECEIPT).read_text())
    assert receipt["passed"] is False and not (tmp_path / "export").exists()
    failed = {name for name, passed in results(receipt).items() if passed is False}
    assert blamed - {"greedy"} <= failed <= blamed  # a changed weight need not change the likeliest token
    assert all(name in str(error.value) for name in failed) and "export.incomplete" in str(error.value)


def test_after_a_fault_the_same_command_works(folder, send, tmp_path):
    with pytest.raises(Mismatch):
        send(folder, after_writing=bump)
    receipt, out = send(folder)
    assert receipt["passed"] and out.is_dir() and not (tmp_path / "export.incomplete").exists()


def test_nothing_but_an_earlier_export_is_replaced(folder, send, tmp_path):
    (tmp_path / "export").mkdir()
    (tmp_path / "export/thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="is no earlier export"):
        send(folder, overwrite=True)
    (tmp_path / "other.incomplete").mkdir()
    with pytest.raises(UserError, match="other.incomplete exists and is no earlier export"):
        send(folder, to="other")
    _, out = send(folder, to="third")
    with pytest.raises(UserError, match="replace it with --overwrite"):
        send(folder, to="third")
    (out / "leftover").touch()
    with pytest.raises(Mismatch):  # the good one stays until a better one is proved
        send(folder, to="third", overwrite=True, after_writing=bump)
    assert (out / "leftover").exists() and json.loads((out / RECEIPT).read_text())["passed"]
    send(folder, to="third", overwrite=True)
    assert not (out / "leftover").exists()


def test_no_model_there(send, tmp_path):
    with pytest.raises(UserError, match="no run|no model"):
        send("nowhere")
    assert list(tmp_path.iterdir()) == []


def test_an_interpreter_that_is_none(folder, tmp_path):
    with pytest.raises(Mismatch, match="transformers: loads"):
        export(Export(str(folder), tmp_path / "export", str(tmp_path / "python")), tmp_path)


@pytest.mark.parametrize(("text", "size"), [("5GB", 5 * 10**9), ("500mb", 5 * 10**8), ("1.5 GiB", 3 * 2**29), ("12", 12)])
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "5TB", "-1GB", "0", "big"])
def test_no_sizes(text):
    with pytest.raises(UserError, match="write 500MB or 5GB"):
        parse_size(text)


# ---- runs with an adapter ------------------------------------------------------------------------------------------------

ADAPTER_CHECKS = {"weights of the run": True, "base + adapter = weights": True, "differs from the base": True}


def test_a_run_with_an_adapter(run, send):
    receipt, out = send(run.out, run.home)
    assert results(receipt).items() >= ADAPTER_CHECKS.items() and receipt["passed"]
    assert value_of(receipt, "logits") < 1e-4 < 0.1 < value_of(receipt, "differs from the base")
    assert receipt["source"]["run_id"] == "tuned-1" and receipt["source"]["step"] == 7
    base = {"name": "models/base", "revision": None, "params_digest": digest(params_of(run.base))}
    assert receipt["base"] == base != receipt["params_digest"]
    assert digest(params_of(out)) == digest(params_of(run.out / "final"))
    assert (out / "LICENSE.txt").read_text() == "be kind"  # from base to run to export


@pytest.mark.parametrize("case", ["gemma3", "qwen3_moe"])
def test_the_adapter_alone(case, tokenizer, tmp_path, send):
    run = make_run(tmp_path / "project", tokenizer, case)
    receipt, out = send(run.out, run.home, format="peft")
    expected = ADAPTER_CHECKS | {"tensors": True, "config": True, "logits of base + adapter": True, "greedy": True}
    assert receipt["passed"] and results(receipt) == expected | {"tokenizer": True, "transformers": None}
    assert value_of(receipt, "logits of base + adapter") < 1e-4 < 0.1 < value_of(receipt, "differs from the base")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (out / name).read_bytes() == (run.out / "adapter" / name).read_bytes()
    assert {"tokenizer.json", "chat_template.jinja", "LICENSE.txt"} <= {path.name for path in out.iterdir()}
    assert not list(out.glob("model*.safetensors")) and not (out / "config.json").exists()


@pytest.mark.parametrize("format", ["hf", "peft"])
def test_a_run_in_bfloat16(tokenizer, tmp_path, send, format):
    run = make_run(tmp_path / "project", tokenizer, dtype="bfloat16")
    receipt, _ = send(run.out, run.home, format=format)
    assert receipt["passed"] and receipt["dtype"] == "bfloat16" and value_of(receipt, "differs from the base") > 0.1


def test_an_adapter_in_another_dtype(run, send):
    receipt, out = send(run.out, run.home, format="peft", dtype="bfloat16")
    tensors = load_file(out / "adapter_model.safetensors")
    assert receipt["passed"] and {str(tensor.dtype) for tensor in tensors.values()} == {"bfloat16"}


def test_a_quantized_base(tokenizer, tmp_path, send):
    """What was trained ran on an int8 base: measured, not judged; the merged weights are what is proved."""
    run = make_run(tmp_path / "project", tokenizer, kind="qlora")
    for format in ("hf", "peft"):
        receipt, _ = send(run.out, run.home, format=format, to=format)
        assert receipt["passed"] and results(receipt)["quantization"] is None
        assert 1e-3 < value_of(receipt, "quantization") < value_of(receipt, "differs from the base")


def test_a_fault_in_an_adapter(run, send, tmp_path):
    name, file = "base_model.model.model.layers.1.self_attn.o_proj.lora_B.weight", "adapter_model.safetensors"
    with pytest.raises(Mismatch, match="tensors, logits of base \\+ adapter"):
        send(run.out, run.home, format="peft", after_writing=lambda folder: bump(folder, name, file))
    with pytest.raises(Mismatch, match="config"):
        send(run.out, run.home, format="peft", after_writing=set_field("adapter_config.json", lora_alpha=7))
    with pytest.raises(Mismatch, match="loads"):
        send(run.out, run.home, format="peft", after_writing=lambda folder: (folder / file).unlink())
    assert not (tmp_path / "export").exists()


def test_an_adapter_that_learnt_nothing(tokenizer, tmp_path, send):
    run = make_run(tmp_path / "project", tokenizer, size=0.0)
    with pytest.raises(Mismatch, match="failed: differs from the base"):
        send(run.out, run.home)
    with pytest.raises(Mismatch, match="failed: differs from the base"):
        send(run.out, run.home, format="peft")


def test_a_base_that_has_changed(run, send):
    bump(run.base)
    with pytest.raises(Mismatch, match="base \\+ adapter = weights"):
        send(run.out, run.home)


def test_weights_that_have_changed(run, send):
    bump(run.out / "final")
    with pytest.raises(Mismatch, match="failed: weights of the run"):
        send(run.out, run.home)


def test_no_adapter_to_export(folder, send, tmp_path):
    with pytest.raises(UserError, match="has no adapter.*use --format hf"):
        send(folder, format="peft")
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_on_random_weights(tokenizer, tmp_path, send):
    run = make_run(tmp_path / "project", tokenizer, init="random")
    with pytest.raises(UserError, match="random weights.*use --format hf"):
        send(run.out, run.home, format="peft")
    receipt, _ = send(run.out, run.home)
    assert receipt["passed"] and results(receipt)["differs from the base"] is None


@pytest.mark.parametrize(("path", "message"), [
    ("models/base/config.json", "base, the model that the adapter was trained on, is gone"),
    ("outputs/tuned/adapter/adapter_config.json", "no adapter_config.json"),
])  # fmt: skip
def test_something_is_gone(run, send, path, message):
    (run.home / path).unlink()
    with pytest.raises(UserError, match=message):
        send(run.out, run.home)


def test_the_adapter_folder_is_gone(run, send):
    (run.out / "adapter").rename(run.out / "elsewhere")
    with pytest.raises(UserError, match="run tuned-1 trained an adapter, and .*adapter is gone"):
        send(run.out, run.home)


def test_a_run_from_before_adapters_were_kept(run, send):
    record = json.loads((run.out / "run.json").read_text())
    del record["adapter"]
    (run.out / "run.json").write_text(json.dumps(record))
    receipt, _ = send(run.out, run.home)
    assert receipt["passed"] and receipt["base"] is None


def test_a_run_without_an_adapter_leaves_no_stale_one(run):
    spec = make_spec({"kind": "none"}, {"kind": "path", "path": "models/base"})
    assert write_adapter(spec, run.home, load_model(run.base), run.base, run.out / "adapter") is None
    assert not (run.out / "adapter").exists()


@pytest.mark.parametrize(("init", "base", "revision"), [
    ({"kind": "hub", "repo": "google/gemma-3-270m", "revision": "c" * 40}, "google/gemma-3-270m", "c" * 40),
    ({"kind": "experiment", "name": "sft"}, "outputs/sft/final", None),
    ({"kind": "random"}, None, None),
])  # fmt: skip
def test_the_name_of_the_base(run, tmp_path, init, base, revision):
    from tunix_lab.models.adapters import add_lora

    spec = make_spec({"kind": "lora", "rank": 3, "targets": ".*q_einsum"}, init)
    model = add_lora(load_model(run.base), rank=3, alpha=16.0, targets=".*q_einsum", seed=0)
    write_adapter(spec, run.home, model, run.base, tmp_path / "adapter")
    described = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert (described["base_model_name_or_path"], described["revision"]) == (base, revision)
    assert described["target_modules"] == ["q_proj"] and (described["r"], described["lora_alpha"]) == (3, 16)
