"""The data of an experiment: JSONL files, what their rows hold, and what to do with a row that is too long."""

from typing import Annotated, Literal, TypeAlias

from annotated_types import Ge
from pydantic import Field

from tunix_lab.spec.section import Section, Text


class _Files(Section):
    train: Text
    """JSONL file of training rows, relative to the project."""
    validation: Text
    """JSONL file of held-out rows, relative to the project."""
    overlong: Literal["error", "drop", "truncate"] = "error"
    """What happens to a row that does not fit its length."""


class _Sequences(_Files):
    max_length: Annotated[int, Ge(2)]
    """Tokens of a row; shorter rows are padded to it."""


class TextData(_Sequences):
    """Rows {"text"}; every token is a target."""

    kind: Literal["text"] = "text"


class ChatData(_Sequences):
    """Rows {"prompt", "completion"} or {"messages"}; the tokens of the assistant are targets."""

    kind: Literal["chat"] = "chat"


class PreferenceData(_Files):
    """Rows {"prompt", "chosen", "rejected"}; their lengths are the algorithm's."""

    kind: Literal["preference"] = "preference"


Data: TypeAlias = Annotated[TextData | ChatData | PreferenceData, Field(discriminator="kind")]
