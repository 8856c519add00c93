"""Answers on disk, so that the same question is never sent twice, also after a kill.

A file a question, named by the hash of all that makes the question: client, host, model, version and text of the
prompt, temperature, and the images' hashes. Files appear whole or not at all. The key is in none of them.
"""

import hashlib
import io
import json
import logging
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from thalweg.core import store
from thalweg.core.errors import DamagedFile
from thalweg.monitor.vision.questions import Answer

log = logging.getLogger("thalweg")


class Record(BaseModel):
    """What came of a question: an answer, or why there is none; tokens and cost in US dollars."""

    model_config = ConfigDict(extra="forbid")

    question: dict[str, Any]
    answer: Answer | None
    problem: str
    input_tokens: int
    output_tokens: int
    cost: float


class AnswerCache:
    """The answers in a folder, which is made when the first is written."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, question: dict[str, Any]) -> Path:
        """The file of a question."""
        text = json.dumps(question, sort_keys=True, allow_nan=False)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()}.json"

    def read(self, question: dict[str, Any]) -> Record | None:
        """The record of a question; None where it was not asked yet."""
        return _read(self.path(question))

    def write(self, record: Record) -> None:
        """Keep a record."""
        self.folder.mkdir(parents=True, exist_ok=True)
        store.write_json(self.path(record.question), record.model_dump(mode="json"))


def _read(path: Path) -> Record | None:
    if not path.is_file():
        return None
    try:
        return Record.model_validate(store.read_json(path))
    except (DamagedFile, ValidationError):
        log.warning("%s is damaged, so its question counts as not asked", path)
        return None


def image_hash(png: bytes) -> str:
    """The hash of a picture's pixels, which another version of the PNG writer leaves as they are."""
    with Image.open(io.BytesIO(png)) as image:
        return sha256(f"{image.mode} {image.size} ".encode() + image.tobytes())


def sha256(data: bytes) -> str:
    """The hash of bytes."""
    return hashlib.sha256(data).hexdigest()
