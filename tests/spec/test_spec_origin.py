"""What a spec starts from: names of the hub's repositories, and the tokenizer that comes with the weights."""

import pytest
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from tunix_lab.models.hub import is_hub_id

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    "init",
    [
        f"{{kind: hub, repo: google/gemma-3-1b-it, revision: {COMMIT}}}",
        "{kind: path, path: models/gemma}",
        "{kind: experiment, name: other}",
    ],
)
def test_weights_may_bring_their_tokenizer(folder, init):
    assert folder.load(f"model.init={init}", "tokenizer.path=null", name="good.yaml").spec.tokenizer.path is None
    assert folder.load(f"model.init={init}", name="good.yaml").spec.tokenizer.path == "data/tokenizer"


def test_the_section_may_be_left_out(folder):
    text = (folder.path / "good.yaml").read_text().replace("tokenizer: {path: data/tokenizer}\n", "")
    folder.write("spec.yaml", text.replace("{kind: random}", "{kind: path, path: models/gemma}"))
    assert folder.load().spec.tokenizer.path is None
    folder.write("spec.yaml", text)
    (line,) = folder.mistakes()
    assert "tokenizer.path: missing: random weights come without a tokenizer" in line


@pytest.mark.parametrize(
    ("repo", "good"),
    [
        ("google/gemma-3-1b-it", True),
        ("Qwen/Qwen2.5-0.5B", True),
        ("org_1/a_b", True),
        ("gpt2", False),
        ("org/", False),
        ("org/-name", False),
        ("./name", False),
        ("a/b/c", False),
        ("org/na me", False),
    ],
)
def test_names_of_repositories_are_those_of_the_hub(folder, repo, good):
    """The spec, `is_hub_id` and the hub's own client agree, except that the client also takes names without an organisation."""
    override = f"model.init={{kind: hub, repo: '{repo}', revision: {COMMIT}}}"
    if good:
        validate_repo_id(repo)
        assert folder.load(override, name="good.yaml").spec.model.init.repo == repo
    else:
        (line,) = folder.mistakes(override, name="good.yaml")
        assert "model.init.repo: must look like organisation/name" in line
        if "/" in repo:
            with pytest.raises(HFValidationError):
                validate_repo_id(repo)
    assert is_hub_id(repo) is good
