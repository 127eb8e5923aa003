"""What all sections of a spec have in common: frozen, strictly typed, no unknown fields."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler

# Strict, because YAML has types of its own: `seed: true` and `batch_size: "32"` are mistakes, not 1 and 32.
STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

# Patterns, and how a message says them.
NAME_PATTERN = "^[a-z0-9][a-z0-9_-]*$"
TAG_PATTERN = "^[A-Za-z0-9_/-]+$"
LABEL_PATTERN = "^[A-Za-z0-9_-]+$"
HUB_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*/[A-Za-z0-9_][A-Za-z0-9_.-]*$"
REFERENCE_PATTERN = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"
PATTERN_WORDS = {
    NAME_PATTERN: "may hold a-z, 0-9, '_' and '-' only, and begins with a letter or a digit",
    TAG_PATTERN: "may hold letters, digits, '_', '-' and '/' only",
    LABEL_PATTERN: "may hold letters, digits, '_' and '-' only",
    HUB_PATTERN: "must look like organisation/name, as the hub's page of the model is called",
    REFERENCE_PATTERN: "must look like package.module:function",
}

Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=64)]
"""Names an experiment, its run directories and its output folder."""

Text = Annotated[str, Field(min_length=1)]
"""Any text but none."""


class Section(BaseModel):
    """A section of the spec."""

    # The text under a field becomes its description in the JSON Schema, which editors show.
    model_config = STRICT | ConfigDict(frozen=True, use_attribute_docstrings=True)


class DataclassSection:
    """Mixed into a knobs dataclass, makes it a section as strict as the others."""

    __pydantic_config__ = STRICT

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> Any:
        # Pydantic's strictness would also refuse a mapping in place of an instance; only the fields are to be strict.
        schema = handler.resolve_ref_schema(handler(source))
        schema["strict"] = False
        return schema
