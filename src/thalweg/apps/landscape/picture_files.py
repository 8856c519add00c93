"""The landscape as a file: a figure (.png), an animation (.gif) or a page (.html); and the picture of a report."""

import logging
import math
from pathlib import Path

from torch import Tensor

from thalweg.apps.landscape.figures import figure
from thalweg.apps.landscape.film import film
from thalweg.apps.landscape.gif import gif
from thalweg.apps.landscape.html_page import page
from thalweg.apps.landscape.survey import Survey, survey
from thalweg.bundle.bundle import Bundle
from thalweg.core.errors import UserError
from thalweg.core.store import write_bytes
from thalweg.evaluate.pictures import png

log = logging.getLogger("thalweg")


def _title(bundle: Bundle) -> str:
    """A heading: whose energy, and by which recipe."""
    name = Path(bundle.config["run"]["data"]["name"]).name
    steps = bundle.config.get("training", {}).get("steps")
    return f"The energy of {name}" + (f" after {steps:,} updates" if steps else "")


def write(path: str | Path, bundle: Bundle, found: Survey, *, seed: int = 0) -> None:
    """Write `path`: .png the whole figure, .gif chains descending, .html a surface that turns. UserError for others."""
    path = Path(path)
    ending = path.suffix.lower()
    if ending == ".png":
        data = png(figure(found, title=_title(bundle)))
    elif ending == ".gif":
        moving = None if found.kind == "image" else film(bundle, found, seed=seed)
        data = gif(found, moving, title=_title(bundle))
    elif ending == ".html":
        data = page(found, film(bundle, found, seed=seed), title=_title(bundle))
    else:
        raise UserError("must end in .png, .gif or .html", argument=str(path))
    write_bytes(path, data)


def of_report(bundle: Bundle, held_out: Tensor, labels: Tensor | None, *, seed: int = 0) -> dict[str, bytes]:
    """The figure under its heading in a report; nothing for data of one column, or fewer than three rows."""
    if math.prod(bundle.shape) < 2 or len(held_out) < 3:
        return {}
    try:
        found = survey(bundle, held_out, labels=labels, brief=bundle.kind == "image", seed=seed)
        return {"The landscape": png(figure(found))}
    except UserError as error:  # rows on a line, say: no reason to go without a report
        log.warning("no landscape in the report: %s", error)
        return {}
