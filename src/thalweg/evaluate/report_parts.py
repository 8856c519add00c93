"""Parts of a report that several sections have."""

import base64
import html
from typing import TYPE_CHECKING, Any

from thalweg.evaluate.pictures import png

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def image(picture: "Figure | bytes", alt: str, caption: str = "", *, pixels: bool = False) -> str:
    """A picture as part of the page."""
    data = base64.b64encode(png(picture)).decode()
    kind = ' class="grid"' if pixels else ""
    note = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f'<figure><img{kind} alt="{html.escape(alt)}" src="data:image/png;base64,{data}">{note}</figure>'


def table(head: list[str], rows: list[list[str]], *, own: tuple[int, ...] = (1,), text: tuple[int, ...] = ()) -> str:
    """An HTML table of ready-made cells; the columns in `own` are the model's, those in `text` hold sentences."""
    kinds = [" class=own" if i in own else " class=text" if i in text else "" for i in range(len(head))]
    top = "".join(f"<th{' class=text' if i in text else ''}>{cell}</th>" for i, cell in enumerate(head))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{c}</td>" for kind, c in zip(kinds, row, strict=True)) + "</tr>" for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def cell(value: Any) -> str:
    """A value of a free table as text."""
    return f"{value:.4g}" if isinstance(value, float) else html.escape(str(value))


def nats(value: float) -> str:
    """Rows of few columns have a log p of a few nats, images of hundreds."""
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.2f}"
