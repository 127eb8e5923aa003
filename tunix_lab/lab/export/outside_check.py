"""An export as others see it: read by `transformers` (and `peft`) in a process of its own, and compared with what JAX computed.

`look_from_outside` starts this very file in an interpreter that may be another environment's; there it imports nothing of this
package. So torch never enters a process that trains, and the package does not depend on it.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

# ---- in the process that exports -----------------------------------------------------------------------------------------


def look_from_outside(python: str, folder: Path, base: Path | None, case: dict[str, Any], logits: "np.ndarray") -> dict[str, Any]:
    """Reads a folder in another process and compares.

    Args:
      python: interpreter to start.
      folder: the export.
      base: folder of the model that an adapter belongs to; None for a whole model.
      case: `rows`, `prompts`, `greedy`, `stop_ids`, `new_tokens`, `tolerance`, and `texts`, `chats` and `pad` of the tokenizer.
      logits: of all tokens of the rows, one after the other.

    Returns:
      `versions` and `checks`, each with name, passed, value, tolerance, note; or `absent`, the packages that are not installed.
    """
    import numpy as np

    with tempfile.TemporaryDirectory() as temporary:
        np.save(Path(temporary) / "logits.npy", logits)
        (Path(temporary) / "case.json").write_text(json.dumps(case))
        # -P: the folder of this file holds modules with everyday names, which must not hide others'.
        command = [python, "-P", str(Path(__file__).absolute()), str(folder.absolute()), temporary]
        command += [] if base is None else ["--base", str(base.absolute())]
        quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
        try:
            done = subprocess.run(command, env=os.environ | quiet, capture_output=True, text=True, check=False)
        except OSError as error:
            return _broken(f"{python} cannot be started: {error.strerror or error}")
        answer = Path(temporary) / "answer.json"
        if done.returncode or not answer.is_file():
            return _broken((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
        return json.loads(answer.read_text())


def _broken(reason: str) -> dict[str, Any]:
    return {"versions": {}, "checks": [_check("transformers: loads", False, note=reason)]}


# ---- in the other process ------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> None:
    """Compares, and writes answer.json beside the case."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("case", type=Path)
    parser.add_argument("--base", type=Path)
    given = parser.parse_args(arguments)
    needed = ["torch", "transformers", *([] if given.base is None else ["peft"])]
    absent = [name for name in needed if importlib.util.find_spec(name) is None]
    if absent:
        answer: dict[str, Any] = {"absent": absent}
    else:
        import numpy as np

        case = json.loads((given.case / "case.json").read_text())
        versions = {name: importlib.metadata.version(name) for name in needed}
        checks = [*_model(given.folder, given.base, case, np.load(given.case / "logits.npy")), *_tokenizer(given.folder, case)]
        answer = {"versions": versions, "checks": checks}
    (given.case / "answer.json").write_text(json.dumps(answer))


def _check(name: str, passed: bool, value: float | None = None, tolerance: float | None = None, note: str = "") -> dict[str, Any]:
    return {"name": name, "passed": passed, "value": value, "tolerance": tolerance, "note": note}


def _model(folder: Path, base: Path | None, case: dict[str, Any], logits: "np.ndarray") -> list[dict[str, Any]]:
    import numpy as np
    import torch

    model, checks = _load(folder, base)
    with torch.inference_mode():
        rows = [model(input_ids=torch.tensor([row])).logits[0].float().numpy() for row in case["rows"]]
        difference = float(np.abs(np.concatenate(rows) - logits).max())
        note = f"{logits.size} logits; float32: sums in another order"
        checks.append(_check("transformers: logits", difference <= case["tolerance"], difference, case["tolerance"], note))
        checks.append(_greedy(model, case, base is not None))
    return checks


def _load(folder: Path, base: Path | None) -> tuple[Any, list[dict[str, Any]]]:
    """The model in float32, attention written out (some fused kernels leave soft caps out), and whether all tensors were used."""
    import torch
    import transformers

    options = {"dtype": torch.float32, "attn_implementation": "eager", "output_loading_info": True}
    model, info = transformers.AutoModelForCausalLM.from_pretrained(base or folder, **options)
    wrong = [
        f"{kind} {name}"
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        for name in sorted(map(str, info[kind]))
    ]
    if base is not None:
        import peft

        # Of the base, what matters is that the adapter finds its modules; a multimodal one has more than is used.
        model = peft.PeftModel.from_pretrained(model, folder)
        stored, there = _adapter_names(folder), peft.get_peft_model_state_dict(model).keys()
        wrong = [f"missing {name}" for name in sorted(there - stored)] + [f"unexpected {name}" for name in sorted(stored - there)]
    note = "; ".join(wrong[:3]) or type(model).__name__
    return model.eval(), [_check("transformers: loads" if base is None else "peft: loads", not wrong, len(wrong), 0, note)]


def _adapter_names(folder: Path) -> set[str]:
    import safetensors

    with safetensors.safe_open(folder / "adapter_model.safetensors", "numpy") as file:
        return set(file.keys())


def _greedy(model: Any, case: dict[str, Any], is_adapter: bool) -> dict[str, Any]:
    """Greedy decoding with its own cache, stopping where the folder says.

    Two tokens whose logits are closer than both computations can be off may change places: where the texts part, ours must be
    that close to their likeliest.
    """
    import torch
    import transformers

    wrong, ties = 0, 0
    stops = _as_set(model.generation_config.eos_token_id)
    # The folder's own settings, of sampling and the like, stay out; those of an adapter's base say nothing about it.
    ends = case["stop_ids"] if is_adapter else sorted(stops)
    model.generation_config = transformers.GenerationConfig(
        do_sample=False, max_new_tokens=case["new_tokens"], eos_token_id=ends or None, pad_token_id=case["pad"]
    )
    for prompt, ours in zip(case["prompts"], case["greedy"], strict=True):
        given = torch.tensor([prompt])
        out = model.generate(input_ids=given, attention_mask=torch.ones_like(given))
        theirs = out[0, len(prompt) :].tolist()
        if theirs == ours:
            continue
        at = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
        if at is None:  # one goes on where the other stops
            wrong += 1
            continue
        last = model(input_ids=torch.tensor([[*prompt, *ours[:at]]])).logits[0, -1]
        is_tie = float(last.max() - last[ours[at]]) <= 2 * case["tolerance"]
        ties, wrong = ties + is_tie, wrong + (not is_tie)
    note = f"of {len(case['prompts'])} prompts" + (f"; {ties} part at a tie" if ties else "")
    if not is_adapter and stops != set(case["stop_ids"]):
        return _check("transformers: greedy", False, wrong, 0, f"stops at {sorted(stops)}, not at {case['stop_ids']}")
    return _check("transformers: greedy", wrong == 0, wrong, 0, note)


def _as_set(ids: int | list[int] | None) -> set[int]:
    return set(ids) if isinstance(ids, list) else set() if ids is None else {ids}


def _tokenizer(folder: Path, case: dict[str, Any]) -> list[dict[str, Any]]:
    import transformers

    if case["texts"] is None:
        return []
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = {text: tokenizer.encode(text, add_special_tokens=False) for text in case["texts"]}
    wrong = [text for text, ours in case["texts"].items() if ids[text] != ours]
    checks = [
        _check("transformers: tokens", not wrong, len(wrong), 0, f"of {len(ids)} texts" + "".join(f"; {t!r}" for t in wrong))
    ]
    if case["chats"]:
        options = {"add_generation_prompt": True, "tokenize": True, "return_dict": False}
        rendered = [tokenizer.apply_chat_template(chat["messages"], **options, **chat["variables"]) for chat in case["chats"]]
        n_wrong = sum(theirs != chat["ids"] for theirs, chat in zip(rendered, case["chats"], strict=True))
        checks.append(_check("transformers: chats", n_wrong == 0, n_wrong, 0, f"of {len(rendered)} chats"))
    return checks


if __name__ == "__main__":
    main(sys.argv[1:])
