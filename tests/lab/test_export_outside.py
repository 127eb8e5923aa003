"""Exports as `transformers` and `peft` read them: every family whole, and adapters on their bases."""

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from export_models import PARITY, make_run, make_tokenizer, model_folder

from tunix_lab.data.tokenizer import Tokenizer
from tunix_lab.errors import Mismatch
from tunix_lab.lab.export import checks
from tunix_lab.lab.export.export import RECEIPT, Export, export
from tunix_lab.lab.export.outside_check import look_from_outside
from tunix_lab.models.catalog import load_model

ABSENT = [package for package in ("torch", "transformers", "peft") if importlib.util.find_spec(package) is None]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(ABSENT), reason=f"not installed: {', '.join(ABSENT)}")]
WHOLE = {"transformers: loads", "transformers: logits", "transformers: greedy"}
TEXT = {"transformers: tokens", "transformers: chats"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def send(source: Path, home: Path, to: Path, record, after_writing=None, **options) -> dict[str, float]:
    """The checks from outside, all passed: name -> largest difference."""
    receipt = export(Export(str(source), to, sys.executable, **options), home, after_writing=after_writing)
    outside = {c["name"]: c["value"] for c in receipt["checks"] if c["name"].startswith(("transformers", "peft"))}
    assert receipt["passed"] and {"torch", "transformers"} <= receipt["versions"].keys()
    record("largest_difference", outside["transformers: logits"])
    print(f"{to.name}: largest difference of logits {outside['transformers: logits']:.2g}")
    return outside


# one of each family, tied heads and untied ones, windows, experts, the text part of a multimodal one
FAMILIES = "gemma gemma2 gemma3_multimodal llama3_untied mistral_window qwen2_windows qwen3_tied qwen3_moe".split()


@pytest.mark.parametrize("case", FAMILIES)
def test_export_roundtrip(case, tokenizer, tmp_path, record_property):
    source = model_folder(case, tmp_path / "model", tokenizer)
    outside = send(source, tmp_path, tmp_path / case, record_property)
    assert outside.keys() == WHOLE | TEXT and outside["transformers: logits"] < 1e-4


@pytest.mark.parametrize("case", ["gemma2", "qwen3_moe"])
def test_bfloat16_in_several_files(case, tokenizer, tmp_path, record_property):
    source = model_folder(case, tmp_path / "model", tokenizer)
    send(source, tmp_path, tmp_path / case, record_property, dtype="bfloat16", max_file_bytes=20_000)


@pytest.mark.parametrize("case", ["gemma3", "llama3_untied", "qwen2_tied"])
def test_peft_roundtrip(case, tokenizer, tmp_path, record_property):
    """PEFT puts the adapter on the base and computes what the run's own weights compute."""
    run = make_run(tmp_path / "project", tokenizer, case)
    outside = send(run.out, run.home, tmp_path / case, record_property, format="peft")
    assert outside.keys() == (WHOLE - {"transformers: loads"}) | TEXT | {"peft: loads"}


def test_an_adapter_of_a_multimodal_base(tokenizer, tmp_path, record_property):
    """The base is the whole model that `transformers` wrote, vision tower included; the adapter is one of its text model."""
    from transformers import AutoConfig, Gemma3ForConditionalGeneration

    config = AutoConfig.from_pretrained(PARITY / "gemma3_multimodal")
    config.text_config.vocab_size = 300
    config.image_token_id, config.boi_token_id, config.eoi_token_id = 297, 298, 299
    Gemma3ForConditionalGeneration(config).float().save_pretrained(tmp_path / "base")
    tokenizer.save(tmp_path / "base")
    run = make_run(tmp_path / "project", tokenizer, base=tmp_path / "base")
    for format in ("hf", "peft"):
        send(run.out, run.home, tmp_path / format, record_property, format=format)


def test_what_only_others_see(tokenizer, tmp_path):
    """Here `architectures` says which model it is, in `transformers` it is `model_type`."""
    source = model_folder("llama3_tied", tmp_path / "model", tokenizer)

    def lie(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "qwen2"}))

    with pytest.raises(Mismatch, match="failed: transformers: loads"):
        send(source, tmp_path, tmp_path / "export", lambda *_: None, after_writing=lie)
    receipt = json.loads((tmp_path / "export.incomplete" / RECEIPT).read_text())
    assert not receipt["passed"] and "missing_keys model.layers.0.self_attn" in str(receipt["checks"])


def test_every_look_can_fail(tokenizer, tmp_path):
    """The same folder, asked with one answer each made wrong."""
    source = model_folder("qwen2_tied", tmp_path / "model", tokenizer)
    write_ids(source, tokenizer)
    model = load_model(source)
    questions = checks.make_questions(model.config, tokenizer, sorted(tokenizer.stop_ids))
    answers = checks.ask(model, questions)
    chats = [dataclasses.asdict(chat) for chat in checks.render_chats(tokenizer)]
    right = dataclasses.asdict(questions) | {
        "greedy": answers.greedy,
        "new_tokens": 16,
        "tolerance": 1e-4,
        "pad": 0,
        "chats": chats,
    }
    right |= {"texts": {text: tokenizer.encode(text) for text in checks.TEXTS}}

    def failed(logits=answers.logits, **wrong) -> set[str]:
        seen = look_from_outside(sys.executable, source, None, right | wrong, logits)
        return {check["name"] for check in seen["checks"] if not check["passed"]}

    shorter, other = [row[:-1] for row in answers.greedy], [[*row[:-1], (row[-1] + 1) % 280] for row in answers.greedy]
    assert failed() == set()
    assert failed(logits=answers.logits + np.float32(2e-4)) == {"transformers: logits"}
    assert failed(greedy=shorter) == failed(greedy=other) == failed(stop_ids=[1]) == {"transformers: greedy"}
    assert failed(texts={"Hello": [7]}) == {"transformers: tokens"}
    assert failed(chats=[chats[0] | {"ids": chats[1]["ids"]}]) == {"transformers: chats"}


def write_ids(folder: Path, tokenizer: Tokenizer) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": sorted(tokenizer.stop_ids)}))


def test_settings_of_sampling_do_not_matter(tokenizer, tmp_path, record_property):
    source = model_folder("llama3_tied", tmp_path / "model", tokenizer)
    settings = {"do_sample": True, "temperature": 0.5, "repetition_penalty": 1.3, "no_repeat_ngram_size": 1}
    (source / "generation_config.json").write_text(json.dumps(settings))
    send(source, tmp_path, tmp_path / "export", record_property)
    assert settings.items() <= json.loads((tmp_path / "export/generation_config.json").read_text()).items()
