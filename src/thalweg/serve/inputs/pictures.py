"""One picture, PNG or JPEG, as an image of the model; its size is read and bounded before it is decoded."""

import io
import math

import numpy as np

from thalweg.serve.errors import HttpError, malformed, unusable
from thalweg.serve.models import ServedModel

MAGIC = {"image/png": b"\x89PNG\r\n\x1a\n", "image/jpeg": b"\xff\xd8\xff"}
FORMATS = {"image/png": "PNG", "image/jpeg": "JPEG"}


def of_picture(model: ServedModel, data: bytes, media: str, *, fit: bool, max_pixels: int) -> dict[str, np.ndarray]:
    """x (1, C, H, W) in [0, 1]. `fit`: another size is resized, by the mean of each pixel's area."""
    if model.servable.content != "image":
        raise unusable(f"must be JSON, npy or CSV, as {model.name} takes no pictures", code="wrong_content")
    channels, height, width = model.inputs[0].shape[1:]
    if channels not in (1, 3):
        raise unusable(f"must be npy, as {model.name} takes images of {channels} channels", code="wrong_content")
    if not data.startswith(MAGIC[media]):
        raise malformed(f"must be {FORMATS[media]}, as the content type says, and begins otherwise")
    picture = decode(data, FORMATS[media], "L" if channels == 1 else "RGB", max_pixels)
    if picture.size != (width, height):
        if not fit:
            text = f"must be {width} x {height} pixels, and is {picture.size[0]} x {picture.size[1]}; fit=true resizes"
            raise unusable(text, code="wrong_size")
        from PIL import Image

        picture = picture.resize((width, height), Image.Resampling.BOX)
    pixels = np.asarray(picture, np.uint8).reshape(1, height, width, channels).transpose(0, 3, 1, 2)
    return {"x": np.ascontiguousarray(pixels, np.float32) / np.float32(255)}


def decode(data: bytes, format: str, mode: str, max_pixels: int):
    """The picture in 8 bits a channel; 413 for one of too many pixels, 400 for what cannot be decoded."""
    from PIL import Image

    too_large = HttpError(413, "too_many_pixels", f"must have at most {max_pixels} pixels")
    try:
        with Image.open(io.BytesIO(data), formats=[format]) as picture:
            if math.prod(picture.size) > max_pixels:
                raise too_large
            if picture.mode.startswith(("I", "F")):
                raise unusable("must have 8 bits a channel")
            return picture.convert(mode)
    except HttpError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise too_large from error
    except Exception as error:  # Pillow's decoders raise almost any kind
        raise malformed(f"must be a whole {format} picture") from error
