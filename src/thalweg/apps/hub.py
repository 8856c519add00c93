"""Bundles on the Hugging Face Hub, by names such as owner/bundle."""

import re
from pathlib import Path

from thalweg.core.errors import UserError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)  # anything else can only be a path


def fetched(name: str) -> Path:
    """A local folder with the files of the bundle of this name. UserError where the name can only be a path, or is one
    into a folder that is here, which the Hub is not asked for; and where the Hub has none or cannot be reached.
    """
    owner = name.partition("/")[0]
    if not HUB_ID.fullmatch(name) or Path(owner).exists():
        raise UserError(f"{name}: no such folder; check the spelling and the working directory")
    from huggingface_hub import constants, snapshot_download

    # A folder of plain files: the Hub's own cache is made of links, which the store refuses.
    local = Path(constants.HF_HOME) / "thalweg" / name.replace("/", "--")
    try:
        return Path(snapshot_download(name, local_dir=local, allow_patterns=["*.json", "*.safetensors", "*.md"]))
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{name}: no such folder here, nor a bundle of this name on the Hub ({reason})") from error
