"""`config.json` of the Hugging Face hub: read field by field, so that what was not understood is refused by name."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunix_lab.errors import UserError
from tunix_lab.models.config import AttentionKind, LinearRope, Llama3Rope, ModelConfig, RopeScaling

# Fields that change nothing about the logits: bookkeeping, training settings, the ids that the tokenizer tells.
_WITHOUT_EFFECT = frozenset(
    """
    architectures model_type transformers_version _name_or_path bos_token_id eos_token_id pad_token_id initializer_range
    use_cache cache_implementation attention_dropout pretraining_tp router_aux_loss_coef output_router_logits tokenizer_class
    output_attentions output_hidden_states return_dict is_encoder_decoder chunk_size_feed_forward problem_type id2label label2id
    _attn_implementation _attn_implementation_autoset max_window_layers
    """.split()
)
KINDS: Mapping[str, AttentionKind] = {"sliding_attention": "local", "full_attention": "global"}


class Fields:
    """The fields of one config.json; those that were asked for are known, any other that is set makes `finish` complain."""

    def __init__(self, stored: Mapping[str, Any], place: str, defaults: Mapping[str, Any]):
        """Reads from `stored`.

        Args:
          stored: the parsed file, or a section of it.
          place: where it stands, for messages.
          defaults: values that an absent field has in this family.
        """
        self._stored = stored
        self._place = place
        self._defaults = {"tie_word_embeddings": None, "rope_scaling": None, "rope_parameters": None} | dict(defaults)
        self._known = set(_WITHOUT_EFFECT)

    def take(self, name: str) -> Any:
        """The value of a field, or its family's default where the file leaves it out."""
        self._known.add(name)
        if name in self._stored:
            return self._stored[name]
        if name not in self._defaults:
            raise UserError(f"{self._place}: field {name!r} is missing")
        return self._defaults[name]

    def demand(self, name: str, *served: Any) -> None:
        """Refuses a field whose value is none of `served`; an absent one is well."""
        self._known.add(name)
        value = self._stored.get(name, served[0])
        if value not in served:
            raise UserError(f"{self._place}: {name} = {value!r} is not served, only {' or '.join(map(repr, served))}")

    def finish(self) -> None:
        """Refuses what nobody asked for; what is null or false is a feature that is not there."""
        unknown = sorted(name for name, value in self._stored.items() if name not in self._known and value not in (None, False))
        if unknown:
            shown = ", ".join(f"{name} = {self._stored[name]!r}" for name in unknown)
            raise UserError(f"{self._place}: not understood, and so not loaded: {shown}")

    def shape(self) -> dict[str, Any]:
        """The arguments of `ModelConfig` that every family stores alike."""
        heads, embed = self.take("num_attention_heads"), self.take("hidden_size")
        dtype = self._dtype()
        return {
            "vocab_size": self.take("vocab_size"),
            "num_layers": self.take("num_hidden_layers"),
            "embed_dim": embed,
            "hidden_dim": self.take("intermediate_size"),
            "num_heads": heads,
            "num_kv_heads": self.take("num_key_value_heads") or heads,
            "head_dim": self.take("head_dim") or embed // heads,
            "max_positions": self.take("max_position_embeddings"),
            "rms_norm_eps": float(self.take("rms_norm_eps")),
            "tie_embeddings": self.take("tie_word_embeddings"),
            "dtype": dtype,
            "param_dtype": dtype,
        }

    def _dtype(self) -> str:
        self._known |= {"dtype", "torch_dtype"}
        return self._stored.get("dtype") or self._stored.get("torch_dtype") or "float32"

    def rope(
        self, kind: str = "", *, theta: str = "rope_theta", scaling: str = "rope_scaling"
    ) -> tuple[float, RopeScaling | None]:
        """Base and scaling of the rotary embedding, from the two fields of old files or the one of new ones.

        Args:
          kind: of layer, where the file tells kinds apart.
          theta: the old field of the base.
          scaling: the old field of the scaling.
        """
        given, base, old = self.take("rope_parameters"), self.take(theta), self.take(scaling)
        if given is None:
            given = old
        elif kind in given:
            given = given[kind]
        return _parse_rope({"rope_theta": base} | dict(given or {}), self._place)

    def layer_kinds(self, otherwise: Sequence[AttentionKind]) -> tuple[AttentionKind, ...]:
        """The shortest pattern of the layers' kinds: as `layer_types` says, or `otherwise` where the file has none."""
        self._known.add("layer_types")
        stored = self._stored.get("layer_types")
        if stored is None:
            return shortest_pattern(tuple(otherwise))
        unknown = sorted(set(stored) - KINDS.keys())
        if unknown:
            raise UserError(f"{self._place}: layer_types {', '.join(map(repr, unknown))} are not served, only {', '.join(KINDS)}")
        return shortest_pattern(tuple(KINDS[kind] for kind in stored))


def _parse_rope(given: dict[str, Any], place: str) -> tuple[float, RopeScaling | None]:
    theta = float(given.pop("rope_theta"))
    kind = given.pop("rope_type", None) or given.pop("type", "default")
    given.pop("type", None)
    if given.pop("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(f"{place}: rotary embedding of a part of each head (partial_rotary_factor) is not served")
    takes = {"default": (), "linear": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor", _CONTEXT)}
    if kind not in takes:
        raise UserError(f"{place}: rope type {kind!r} is not served, only {', '.join(takes)}")
    missing, left = [name for name in takes[kind] if name not in given], sorted(set(given) - set(takes[kind]))
    if missing or left:
        raise UserError(f"{place}: rope type {kind!r} with missing fields {missing} and unknown fields {left}")
    match kind:
        case "linear":
            return theta, LinearRope(float(given["factor"]))
        case "llama3":
            factor, low, high = (float(given[name]) for name in takes[kind][:3])
            return theta, Llama3Rope(factor, low, high, int(given[_CONTEXT]))
    return theta, None


_CONTEXT = "original_max_position_embeddings"


def shape_json(config: ModelConfig) -> dict[str, Any]:
    """What every family writes: the inverse of `Fields.shape` and `Fields.rope`, in the form that old and new readers know."""
    match config.rope_scaling:
        case None:
            scaling = None
        case LinearRope(factor=factor):
            scaling = {"rope_type": "linear", "factor": factor}
        case Llama3Rope() as rope:
            scaling = {"rope_type": "llama3", **dataclasses.asdict(rope)}
            scaling[_CONTEXT] = scaling.pop("original_max_positions")
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.embed_dim,
        "intermediate_size": config.hidden_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_dropout": 0.0,
        "torch_dtype": config.param_dtype,
    }


def layer_types(config: ModelConfig) -> list[str]:
    """The kind of each layer in the hub's words."""
    words = {kind: word for word, kind in KINDS.items()}
    return [words[config.attention_kind(i)] for i in range(config.num_layers)]


def shortest_pattern(kinds: tuple[AttentionKind, ...]) -> tuple[AttentionKind, ...]:
    """The shortest tuple that gives `kinds` when repeated, so that a configuration that was written is equal when it is read."""
    n = len(kinds)
    return next(kinds[:size] for size in range(1, n + 1) if all(kinds[i] == kinds[i % size] for i in range(n)))


def read_config_json(folder: Path) -> dict[str, Any]:
    """The folder's `config.json`.

    Raises:
      UserError: there is none, or it is not a JSON object.
    """
    path = folder / "config.json"
    try:
        stored = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{folder}: no config.json; give a folder in the layout of the Hugging Face hub") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(stored, dict):
        raise UserError(f"{path}: must hold a JSON object, got {type(stored).__name__}")
    return stored
