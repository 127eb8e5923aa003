"""A folder of spec files to make mistakes in."""

import textwrap
from pathlib import Path

import pytest

from tunix_lab.spec import LoadedSpec, SpecError, load

GOOD = """\
name: good
model:
  family: gemma3
  size: nano
  init: {kind: random}
tokenizer: {path: data/tokenizer}
algorithm:
  kind: sft
data:
  kind: chat
  train: train.jsonl
  validation: validation.jsonl
  max_length: 64
optimizer:
  learning_rate: 1e-3
  schedule:
    kind: cosine
    warmup_steps: 2
training:
  max_steps: 10
  batch_size: 8
tracking:
  experiment: test
"""


class SpecFolder:
    """Writes spec files and loads them; the paths in messages are relative to the folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, name: str, text: str | bytes) -> None:
        """Writes the file `name`; text is dedented."""
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text if isinstance(text, bytes) else textwrap.dedent(text).encode())

    def load(self, *overrides: str, name: str = "spec.yaml", devices: int | None = None) -> LoadedSpec:
        """The spec in the file `name`."""
        return load(name, overrides, self.path, devices=devices)

    def mistakes(self, *overrides: str, name: str = "spec.yaml", devices: int | None = None) -> list[str]:
        """The lines of the message about the file `name`."""
        with pytest.raises(SpecError) as caught:
            self.load(*overrides, name=name, devices=devices)
        assert caught.value.exit_code == 2
        return str(caught.value).splitlines()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SpecFolder:
    """An empty folder, which is the current one; `good.yaml` in it has no mistake."""
    monkeypatch.chdir(tmp_path)
    made = SpecFolder(tmp_path)
    made.write("good.yaml", GOOD)
    return made
