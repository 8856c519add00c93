"""Bundles on the Hugging Face Hub, by names such as owner/bundle."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from thalweg.core.errors import UserError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)  # anything else can only be a path
PATTERNS = ["*.json", "*.safetensors", "*.md"]


def download(name: str, revision: str | None = None) -> Path:
    """The folder, in the Hub's own cache, of the bundle's files at a revision: a branch, tag or commit; else main.

    The cache has a folder for each commit, so that no file of another revision lies in it; without a network it answers
    with what it has. UserError where the name can only be a path, or is one into a folder that is here, which the Hub
    is not asked for; and where the Hub has none or cannot be reached.
    """
    owner = name.partition("/")[0]
    if not HUB_ID.fullmatch(name) or Path(owner).exists():
        hint = "check the spelling and the working directory"
        raise UserError("no such folder", argument=name, hint=hint)
    from huggingface_hub import snapshot_download

    at = "" if revision is None else f" at revision {revision}"
    with _hub_errors(name, f"no such folder here, nor a bundle of this name on the Hub{at}"):
        return Path(snapshot_download(name, revision=revision, allow_patterns=PATTERNS))


def upload(
    folder: Path,
    name: str,
    revision: str | None,
    own: Sequence[str],
    *,
    token: str | bool | None = None,
    private: bool | None = None,
    commit_message: str | None = None,
) -> str:
    """Upload a folder, and drop from the repository those of the bundle's `own` files that the folder has not."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with _hub_errors(name, "must be a repository that can be written to"):
        url = api.create_repo(name, exist_ok=True, private=private)
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        api.upload_folder(
            repo_id=name,
            folder_path=folder,
            revision=revision,
            commit_message=commit_message,
            delete_patterns=list(own),
        )
    return str(url)


@contextmanager
def _hub_errors(name: str, message: str) -> Iterator[None]:
    """Turn what the Hub's library raises for a name, a revision, a right or a connection into a UserError."""
    from huggingface_hub.errors import HfHubHTTPError

    client: type[BaseException] = HfHubHTTPError.__bases__[0]  # of its HTTP client, which differs by version
    try:
        yield
    except (OSError, ValueError, client) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{message} ({reason})", argument=name) from error
