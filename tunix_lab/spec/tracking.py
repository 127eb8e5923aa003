"""How a run is filed and found again in the tracking store."""

from typing import Annotated, TypeAlias

from pydantic import Field

from tunix_lab.spec.section import TAG_PATTERN, Section, Text

# No dots, so that a tag can neither be mistaken for a nested field nor for one of the tracker's own tags ("mlflow.…").
Tag: TypeAlias = Annotated[str, Field(pattern=TAG_PATTERN, max_length=250)]


class TrackingSpec(Section):
    """Experiment, headline metric and tags."""

    experiment: Text
    """Runs of one experiment are listed and compared together."""
    primary_metric: Text = "eval/loss"
    """The metric that says how good a run is."""
    higher_is_better: bool = False
    """Which way the primary metric improves."""
    tags: dict[Tag, Annotated[str, Field(max_length=5000)]] = Field(default_factory=dict)
    """Free labels to search by."""
