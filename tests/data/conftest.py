"""A small tokenizer trained on the spot, and folders like it with one thing changed."""

import json

import pytest

from tunix_lab.data.tokenizer import Tokenizer
from tunix_lab.data.tokenizer_training import train_tokenizer
from tunix_lab.tasks import arithmetic, word_problems


@pytest.fixture(scope="session")
def sft_rows():
    return arithmetic.sft_rows(word_problems.split_problems(0)["train"], "train", 200, seed=0)


@pytest.fixture(scope="session")
def preference_rows():
    return arithmetic.preference_rows(word_problems.split_problems(0)["train"], "train", 40, seed=0)


@pytest.fixture(scope="session")
def tokenizer(sft_rows, tmp_path_factory):
    return train_tokenizer(sft_rows, 400, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def variant(tokenizer, tmp_path):
    """`variant(template=…, **config)`: the same tokenizer with another template or other entries in its config."""

    def make(template: str | None = None, **config: object) -> Tokenizer:
        folder = tmp_path / "variant"
        tokenizer.save(folder)
        if template is not None:
            (folder / "chat_template.jinja").write_text(template, "utf-8")
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | config), "utf-8")
        return Tokenizer.load(folder)

    return make
