"""Files of datasets on the Hugging Face hub: one file of one commit, fetched once into the hub's own cache.

The cache is the one of `hf download` (HF_HOME). A commit says what every file holds, so that what is there is never looked up
again and a run needs no network the second time. Files are read by `data.files`; no library of the hub interprets them.
"""

import re
from pathlib import Path

from tunix_lab.errors import EnvironmentProblem, UserError


def fetch_file(repo: str, revision: str, file: str) -> Path:
    """The path of a dataset's file, fetched if the cache lacks it.

    Args:
      repo: "organisation/name" of the dataset.
      revision: full hash of a commit.
      file: its path in the repository.

    Raises:
      UserError: there is no such repository, revision or file.
      EnvironmentProblem: the repository is gated, the hub cannot be reached, or the disk cannot be written.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HTTPError  # of the connection, and base of the hub's own

    try:
        return Path(hf_hub_download(repo, file, repo_type="dataset", revision=revision))
    except (HTTPError, OSError, RuntimeError) as error:  # RuntimeError: from hf_xet, which fetches large files
        raise explained(error, repo, revision, file) from None


def explained(error: Exception, repo: str, revision: str, file: str) -> UserError:
    """What went wrong and what to do. A gated repository is also one that was not found, to the hub's classes: it comes first."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"https://huggingface.co/datasets/{repo}"
    # The cache was looked at only because the hub failed, so that "not in the cache" hides the reason.
    cause = error.__cause__ or error if isinstance(error, LocalEntryNotFoundError) else error
    match cause:
        case GatedRepoError():
            return EnvironmentProblem(
                f"the dataset {repo} is gated: accept its terms on {page}, then log in to that account with `hf auth login` or "
                "HF_TOKEN (a fine-grained token also needs the permission to read gated repositories)"
            )
        case RepositoryNotFoundError():
            return UserError(
                f"the hub has no dataset {repo}, or it is private: check the spelling (models are no datasets); a private one "
                "needs `hf auth login` or HF_TOKEN"
            )
        case RevisionNotFoundError():
            return UserError(f"the dataset {repo} has no revision {revision!r}: {page}/commits/main lists them")
        case RemoteEntryNotFoundError():
            return UserError(f"the dataset {repo} has no file {file!r} at {revision}: {page}/tree/{revision} lists them")
        case HfHubHTTPError(response=response) if response.status_code in (401, 403):
            return EnvironmentProblem(
                f"the dataset {repo}: the hub refuses the token (status {response.status_code}): `hf auth login` again, or mend "
                "HF_TOKEN"
            )
        case OSError(errno=int(), strerror=reason):
            return EnvironmentProblem(
                f"the dataset {repo} cannot be written to {HF_HUB_CACHE}: {reason}; make room, or set HF_HOME to another disk"
            )
    return EnvironmentProblem(
        f"{file} of the dataset {repo} is not in the cache {HF_HUB_CACHE} and cannot be fetched: {_reason(cause)}. Try again "
        f"later; or run `hf download {repo} {file} --repo-type dataset --revision {revision}` where the hub can be reached and "
        "bring its cache here (HF_HOME); or name a file of the project, {path: FILE}"
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
