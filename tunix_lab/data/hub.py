"""Files of datasets on the Hugging Face hub: one file of one commit, fetched once into the hub's own cache.

The cache is the one of `hf download` (HF_HOME). A commit says what every file holds, so that what is there is never looked up
again and a run needs no network the second time. Files are read by `data.files`; no library of the hub interprets them.
"""

from pathlib import Path

from tunix_lab._hub_errors import Wanted, explained


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
        instead = "name a file of the project, {path: FILE}"
        raise explained(error, Wanted(repo, revision, True, file, instead)) from None
