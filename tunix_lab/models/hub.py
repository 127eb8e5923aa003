"""Models of the Hugging Face hub: the files of one commit that are read here, fetched once into the hub's own cache.

The cache is the one of `hf download` and transformers (HF_HOME), so that nothing is fetched or stored twice. A commit says what
every file holds: what is there once is never looked up again, and a run that names a commit needs no network the second time.
"""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from tunix_lab.errors import EnvironmentProblem, UserError

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
        raise explained(error, repo, revision) from None
    path = Path(folder)
    return HubFolder(path, repo, path.name)  # the cache keeps a commit in snapshots/<commit>


def explained(error: Exception, repo: str, revision: str | None) -> UserError:
    """What went wrong and what to do. A gated repository is also one that was not found, to the hub's classes: it comes first."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    # The cache was looked at only because the hub failed, so that "not in the cache" hides the reason.
    cause = error.__cause__ or error if isinstance(error, LocalEntryNotFoundError) else error
    match cause:
        case GatedRepoError():
            return EnvironmentProblem(
                f"{repo} is gated: accept its licence on https://huggingface.co/{repo}, then log in to that account with "
                "`hf auth login` or HF_TOKEN (a fine-grained token also needs the permission to read gated repositories)"
            )
        case RepositoryNotFoundError():
            return UserError(
                f"{repo}: the hub has no such repository, or it is private: check the spelling; "
                "a private one needs `hf auth login` or HF_TOKEN"
            )
        case RevisionNotFoundError():
            return UserError(f"{repo} has no revision {revision!r}: https://huggingface.co/{repo}/commits/main lists them")
        case HfHubHTTPError(response=response) if response.status_code in (401, 403):
            return EnvironmentProblem(
                f"{repo}: the hub refuses the token (status {response.status_code}): `hf auth login` again, or mend HF_TOKEN"
            )
        case OSError(errno=int(), strerror=reason):
            return EnvironmentProblem(
                f"{repo} cannot be written to {HF_HUB_CACHE}: {reason}; make room there, or set HF_HOME to another disk"
            )
    at = "" if revision is None else f" --revision {revision}"
    return EnvironmentProblem(
        f"{repo} is not in the cache {HF_HUB_CACHE}, or not all of it, and cannot be fetched: {_reason(cause)}. Try again later; "
        f"or run `hf download {repo}{at} --exclude '*/*'` where the hub can be reached and bring its cache here (HF_HOME); "
        "or start from a folder, model.init: {kind: path, path: FOLDER}"
    )


def _reason(error: BaseException) -> str:
    """Why the hub gave nothing, in few words. Errors' own texts may hold addresses with credentials in them."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    match error:
        case OfflineModeIsEnabled():
            return "HF_HUB_OFFLINE is set"
        case HfHubHTTPError(response=response):
            return f"the hub answers with status {response.status_code}"
    text = re.sub(r"\w+://\S+|hf_\w+", "…", str(error)).partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
