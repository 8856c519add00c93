"""One picture, PNG or JPEG, as an image of the model; its size is read and bounded before it is decoded."""

import io
import math

import numpy as np

from thalweg.core.errors import UserError
from thalweg.data.formats.images import as_pixels, require_shown
from thalweg.serve.errors import HttpError, malformed, unusable
from thalweg.serve.models import ServedModel

MAGIC = {"image/png": b"\x89PNG\r\n\x1a\n", "image/jpeg": b"\xff\xd8\xff"}
FORMATS = {"image/png": "PNG", "image/jpeg": "JPEG"}


def of_picture(model: ServedModel, data: bytes, media: str, *, fit: bool, max_pixels: int) -> dict[str, np.ndarray]:
    """x (1, C, H, W) in [0, 1]. `fit`: another size is resized, and the middle kept."""
    if model.servable.content != "image":
        raise unusable(f"must be JSON, npy or CSV, as {model.name} takes no pictures", code="wrong_content")
    channels, height, width = model.inputs[0].shape[1:]
    if channels not in (1, 3):
        raise unusable(f"must be npy, as {model.name} takes images of {channels} channels", code="wrong_content")
    if not data.startswith(MAGIC[media]):
        raise malformed(f"must be {FORMATS[media]}, as the content type says, and begins otherwise")
    shown = decode(data, FORMATS[media], channels, (width, height), fit, max_pixels)
    if shown.shape[1:] != (height, width):
        text = f"must be {width} x {height} pixels, and is {shown.shape[2]} x {shown.shape[1]}; fit=true resizes"
        raise unusable(text, code="wrong_size")
    return {"x": shown[None].astype(np.float32) / np.float32(255)}


def decode(data: bytes, format: str, channels: int, size: tuple[int, int], fit: bool, max_pixels: int) -> np.ndarray:
    """The picture as uint8 (C, H, W), by the rule of `data.formats.images`, with `fit` of a size (width, height).

    413 for one of too many pixels, 422 for one that the rule refuses, 400 for what cannot be decoded.
    """
    from PIL import Image

    too_large = HttpError(413, "too_many_pixels", f"must have at most {max_pixels} pixels")
    try:
        with Image.open(io.BytesIO(data), formats=[format]) as picture:
            if math.prod(picture.size) > max_pixels:
                raise too_large
            require_shown(picture, "the picture")
            return as_pixels(picture, channels=channels, size=size if fit else None)
    except HttpError:
        raise
    except UserError as error:
        raise unusable(error.message) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise too_large from error
    except Exception as error:  # Pillow's decoders raise almost any kind
        raise malformed(f"must be a whole {format} picture") from error
