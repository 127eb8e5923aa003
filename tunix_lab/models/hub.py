"""Models of the Hugging Face hub: the files of one commit that are read here, fetched once into the hub's own cache.

The cache is the one of `hf download` and transformers (HF_HOME), so that nothing is fetched or stored twice. A commit says what
every file holds: what is there once is never looked up again, and a run that names a commit needs no network the second time.
"""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from tunix_lab._hub_errors import Wanted, explained
from tunix_lab.errors import UserError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "LICENSE*",
    *TOKENIZER_FILES,
)
# A hub pattern's * also matches "/": folders hold the weights once more, in other formats (original/, onnx/), and so does
# Mistral's consolidated.safetensors.
_IGNORED = ("*/*", "consolidated*.safetensors")
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


@dataclasses.dataclass(frozen=True)
class HubFolder:
    """A repository's files on disk.

    Attributes:
      folder: where they lie, in the cache.
      repo: "organisation/name".
      commit: full hash of the commit they are of.
    """

    folder: Path
    repo: str
    commit: str


def is_hub_id(text: str) -> bool:
    """Whether `text` names a repository of the hub, "organisation/name"; what exists on disk is a path."""
    return _HUB_ID.fullmatch(text) is not None and not Path(text).exists()


def fetch(repo: str, revision: str | None = None, *, files: Sequence[str] = MODEL_FILES) -> HubFolder:
    """Fetches what the cache lacks of a repository.

    Args:
      repo: "organisation/name".
      revision: commit, tag or branch; None is the default branch. Only a full commit hash means the same files tomorrow.
      files: patterns of names; those in sub-folders are never fetched.

    Raises:
      UserError: there is no such repository or revision.
      EnvironmentProblem: the repository is gated, the hub cannot be reached, or the disk cannot be written.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError  # HTTPError: of the connection, and base of the hub's own

    try:
        folder = snapshot_download(repo, revision=revision, allow_patterns=list(files), ignore_patterns=list(_IGNORED))
    except HFValidationError:
        raise UserError(f"{repo!r} is no repository of the hub: write it as organisation/name") from None
    except (HTTPError, OSError, RuntimeError) as error:  # RuntimeError: from hf_xet, which fetches large files
        instead = "start from a folder, model.init: {kind: path, path: FOLDER}"
        raise explained(error, Wanted(repo, revision, False, None, instead)) from None
    path = Path(folder)
    return HubFolder(path, repo, path.name)  # the cache keeps a commit in snapshots/<commit>
