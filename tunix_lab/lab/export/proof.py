"""Reads an export back and proves that it is the source: in JAX always, from outside where `transformers` is installed."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from tunix_lab.errors import UserError
from tunix_lab.lab.export import checks
from tunix_lab.lab.export.checks import Answers, Check, Questions
from tunix_lab.lab.export.outside_check import look_from_outside
from tunix_lab.lab.export.source import Source, SourceAdapter, stored_tokenizer
from tunix_lab.models.adapters import add_lora, merge_factors, set_factors, with_params
from tunix_lab.models.catalog import load_model
from tunix_lab.models.decoder import Decoder
from tunix_lab.models.peft_folder import Factors, cast_factors, read_peft
from tunix_lab.sft.train_state import Params, digest, flat_params


@dataclasses.dataclass(frozen=True)
class Proof:
    """What came out.

    Attributes:
      checks: all comparisons.
      source_digest: of the source's parameters.
      export_digest: of the exported ones; of an adapter, of its factors.
      base_digest: of the parameters before an adapter was trained; None without one.
      outside_versions: of the packages that looked from outside; {} if they are not installed.
    """

    checks: list[Check]
    source_digest: str
    export_digest: str
    base_digest: str | None
    outside_versions: dict[str, str]


def params_of(model: Decoder) -> Params:
    """The parameters by dotted path."""
    return flat_params(nnx.state(model))


def prove_model(source: Source, folder: Path, dtype: str | None, python: str) -> Proof:
    """Proves a whole model.

    Args:
      source: what was exported.
      folder: the export.
      dtype: that was asked for; None is the source's.
      python: interpreter for the look from outside.
    """
    dtype = dtype or source.config.param_dtype
    questions = checks.make_questions(source.config, source.tokenizer, source.ids["eos_token_id"])
    found, source_digest, base_digest = _prove_source(source, questions)
    model = load_model(source.folder, dtype=dtype, param_dtype=dtype)
    expected, tensors, config = checks.ask(model, questions), checks.tensor_digests(model), model.config
    try:
        model = load_model(folder)
    except UserError as error:
        return Proof([*found, Check("loads", False, note=str(error))], source_digest, "", base_digest, {})
    got = checks.ask(model, questions)
    found += [
        checks.compare_tensors(tensors, checks.tensor_digests(model)),
        checks.compare_config(config, model.config),
        checks.compare_logits("logits", expected, got, dtype),
        checks.compare_greedy(expected, got),
        checks.compare_tokenizers(source.tokenizer, stored_tokenizer(folder)),
    ]
    export_digest = digest(params_of(model))
    base = None if source.adapter is None else source.adapter.load_base(dtype)
    if base is not None:
        found.append(checks.check_effect("differs from the base", got, checks.ask(base, questions)))
    del model, base
    in_float32 = got if dtype == "float32" else checks.ask(load_model(folder, dtype="float32", param_dtype="float32"), questions)
    seen, versions = _from_outside(python, folder, None, source, questions, in_float32)
    return Proof([*found, *seen], source_digest, export_digest, base_digest, versions)


def prove_adapter(source: Source, folder: Path, dtype: str | None, python: str) -> Proof:
    """Proves an adapter in PEFT's layout on its base; arguments as of `prove_model`."""
    adapter, stored = source.demand_adapter(), source.config.param_dtype
    questions = checks.make_questions(source.config, source.tokenizer, source.ids["eos_token_id"])
    found, source_digest, base_digest = _prove_source(source, questions)
    try:
        lora, factors = read_peft(folder, source.config)
    except UserError as error:
        return Proof([*found, Check("loads", False, note=str(error))], source_digest, "", base_digest, {})
    expected_factors = cast_factors(adapter.factors, dtype)
    found.append(checks.compare_tensors(_digests(expected_factors), _digests(factors)))
    found.append(Check("config", lora == adapter.lora, int(lora != adapter.lora), 0, "rank, alpha and base"))
    base = adapter.load_base(stored)
    got = checks.ask(_merged(base, factors, lora.scale), questions)
    # Where nothing is rounded this is the model that the run left; else the roundings of both must be the same.
    is_exact = dtype in (None, "float32") and stored == "float32"
    model = load_model(source.folder) if is_exact else _merged(base, expected_factors, lora.scale)
    expected = checks.ask(model, questions)
    found += [
        checks.compare_logits("logits of base + adapter", expected, got, stored),
        checks.compare_greedy(expected, got),
        checks.check_effect("differs from the base", got, checks.ask(base, questions)),
        checks.compare_tokenizers(source.tokenizer, stored_tokenizer(folder)),
    ]
    del model
    if stored != "float32":
        base = adapter.load_base("float32")
    in_float32 = checks.ask(_merged(base, factors, lora.scale), questions)
    seen, versions = _from_outside(python, folder, adapter.base, source, questions, in_float32)
    return Proof([*found, *seen], source_digest, digest(_flat(factors)), base_digest, versions)


def _prove_source(source: Source, questions: Questions) -> tuple[list[Check], str, str | None]:
    """Whether the source is what its run left, and its adapter belongs to it; digests of its parameters and of its base's."""
    dtype = source.config.param_dtype
    model = load_model(source.folder, dtype=dtype, param_dtype=dtype)
    final = params_of(model)
    source_digest, recorded = digest(final), source.model.params_digest
    found = []
    if recorded is not None:
        same = source_digest == recorded
        found.append(Check("weights of the run", same, int(not same), 0, "digest of the parameters as in run.json"))
    if source.adapter is None:
        return found, source_digest, None
    base = source.adapter.load_base(dtype)
    if base is None:
        found.append(Check("differs from the base", None, note="the run began from random weights, which were not kept"))
        return found, source_digest, None
    merged = merge_factors(base, source.adapter.factors, source.adapter.lora.scale)
    found.append(checks.check_merge(merged, final))
    if source.adapter.spec["kind"] == "qlora":
        found.append(_quantization(source.adapter, base, checks.ask(model, questions), questions))
    return found, source_digest, digest(params_of(base))


def _quantization(adapter: SourceAdapter, base: Decoder, merged: Answers, questions: Questions) -> Check:
    """How far the model that was trained, on a quantized base, is from the merged one: measured, not judged."""
    names = ("rank", "alpha", "targets", "weight_qtype", "tile_size")
    trained = add_lora(base, seed=0, **{name: adapter.spec[name] for name in names})
    set_factors(trained, adapter.factors)
    value = checks.largest_difference(checks.ask(trained, questions), merged)
    note = f"of logits of the trained model, on a base in {adapter.spec['weight_qtype']}, to the merged one: measured only"
    return Check("quantization", None, value, None, note)


def _merged(base: Decoder, factors: Factors, scale: float) -> Decoder:
    return with_params(base, merge_factors(base, factors, scale))


def _flat(factors: Factors) -> dict[str, np.ndarray]:
    return {f"{name}.{letter}": array for name, pair in factors.items() for letter, array in zip("ab", pair, strict=True)}


def _digests(factors: Factors) -> dict[str, str]:
    return {name: digest({name: array}) for name, array in _flat(factors).items()}


def _from_outside(
    python: str, folder: Path, base: Path | None, source: Source, questions: Questions, answers: Answers
) -> tuple[list[Check], dict[str, str]]:
    """The look from outside, as checks, and the versions of who looked."""
    tokenizer = source.tokenizer
    case: dict[str, Any] = {
        **dataclasses.asdict(questions),
        "greedy": answers.greedy,
        "new_tokens": checks.NEW_TOKENS,
        "tolerance": checks.FLOAT32_TOLERANCE,
        "texts": None if tokenizer is None else {text: tokenizer.encode(text) for text in checks.TEXTS},
        "chats": [] if tokenizer is None else [dataclasses.asdict(chat) for chat in checks.render_chats(tokenizer)],
        "pad": source.ids["pad_token_id"] or 0,
    }
    answer = look_from_outside(python, folder, base, case, answers.logits)
    if "absent" in answer:
        note = f"not installed: {', '.join(answer['absent'])} (pip install 'tunix_lab[parity]', or --python of an environment)"
        return [Check("transformers", None, note=note)], {}
    return [Check(**check) for check in answer["checks"]], answer["versions"]
