"""What went wrong between us and the Hugging Face hub, and what to do about it: one text for models and for datasets."""

import dataclasses
import re

from tunix_lab.errors import EnvironmentProblem, UserError


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What was asked of the hub.

    Attributes:
      repo: "organisation/name".
      revision: commit, tag or branch; None is the default branch.
      is_dataset: whether it is a dataset; else a model.
      file: the one file that was asked for; None asks for those of a model.
      instead: what else a user can name, for the end of a message.
    """

    repo: str
    revision: str | None
    is_dataset: bool
    file: str | None
    instead: str

    @property
    def name(self) -> str:
        """The repository, for a message."""
        return f"the dataset {self.repo}" if self.is_dataset else self.repo

    @property
    def page(self) -> str:
        """Its page."""
        return f"https://huggingface.co/{'datasets/' * self.is_dataset}{self.repo}"

    @property
    def download(self) -> str:
        """The command that brings it into the cache elsewhere."""
        at = "" if self.revision is None else f" --revision {self.revision}"
        if self.is_dataset:
            return f"hf download {self.repo} {self.file} --repo-type dataset{at}"
        return f"hf download {self.repo}{at} --exclude '*/*'"


def explained(error: Exception, wanted: Wanted) -> UserError:
    """The error for a person. A gated repository is also one that was not found, to the hub's classes: it comes first."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name, page = wanted.name, wanted.page
    # The cache was looked at only because the hub failed, so that "not in the cache" hides the reason.
    cause = error.__cause__ or error if isinstance(error, LocalEntryNotFoundError) else error
    match cause:
        case GatedRepoError():
            return EnvironmentProblem(
                f"{name} is gated: accept its {'terms' if wanted.is_dataset else 'licence'} on {page}, then log in to that "
                "account with `hf auth login` or HF_TOKEN (a fine-grained token also needs the permission to read gated "
                "repositories)"
            )
        case RepositoryNotFoundError():
            return UserError(
                f"{name}: the hub has no such repository, or it is private: check the spelling"
                f"{' (models are no datasets)' * wanted.is_dataset}; a private one needs `hf auth login` or HF_TOKEN"
            )
        case RevisionNotFoundError():
            return UserError(f"{name} has no revision {wanted.revision!r}: {page}/commits/main lists them")
        case RemoteEntryNotFoundError():
            return UserError(f"{name} has no file {wanted.file!r} at {wanted.revision}: {page}/tree/{wanted.revision} lists them")
        case HfHubHTTPError(response=response) if response.status_code in (401, 403):
            return EnvironmentProblem(
                f"{name}: the hub refuses the token (status {response.status_code}): `hf auth login` again, or mend HF_TOKEN"
            )
        case OSError(errno=int(), strerror=reason):
            return EnvironmentProblem(
                f"{name} cannot be written to {HF_HUB_CACHE}: {reason}; make room there, or set HF_HOME to another disk"
            )
    what = f"{wanted.file} of {name} is not in the cache {HF_HUB_CACHE}" if wanted.file else f"{name} is not in the cache "
    what += "" if wanted.file else f"{HF_HUB_CACHE}, or not all of it,"
    return EnvironmentProblem(
        f"{what} and cannot be fetched: {_reason(cause)}. Try again later; or run `{wanted.download}` where the hub can be "
        f"reached and bring its cache here (HF_HOME); or {wanted.instead}"
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
