"""One run as lines of a terminal: progress, signals, the monitor's figures, verdicts, the newest preview."""

import math
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from rich.cells import set_cell_size
from rich.panel import Panel
from rich.text import Text

from thalweg.cli.terminal import picture
from thalweg.cli.terminal.curve import curve
from thalweg.monitor.history import Look
from thalweg.run.status import STOPPED, Status

FIRST = (
    "loss",
    "gap",
    "space",
    "time",
    "gradient_norm",
    "spread",
    "lineages",
    "overlap",
    "acceptance",
)
PLAIN = ("step", "seconds", "learning_rate")  # of a row of the log: no signals
SIGNALS, VERDICTS = 6, 3  # at most, where the height is not limited
PREVIEW = 8, 18  # lines: least, and where the height is not limited
WIDE = 110  # columns from which the preview stands beside the text
COLOURS = {"running": "cyan", "finished": "green", "stopped": "yellow", "diverged": "bold red", "gone": "yellow"}
MARKS = {"calm": "green", "suspicious": "yellow", "alarm": "bold red"}
SOFT = "bright_black"


class DrawingArea(NamedTuple):
    """What a panel is drawn on."""

    width: int  # columns of the panel, its border included
    height: int | None  # lines of it; None: as many as it takes
    ascii_only: bool = False
    colours: bool = True


def panel(status: Status, paper: DrawingArea) -> Panel:
    """The panel of a run."""
    inner = max(paper.width - 4, 20)
    height = None if paper.height is None else max(paper.height - 2, 1)
    beside = inner >= WIDE and status.preview is not None
    left = inner * 11 // 20 if beside else inner
    text = _text(status, paper, left, height, beside)
    if beside:
        preview = _preview(status, inner - left - 2, height or max(len(text), PREVIEW[1]), paper)
        text = _side_by_side(text, preview, left)
    name = plain(status.folder.absolute().name or str(status.folder))
    alarm = bool(status.looks) and status.looks[-1].alarm is not None
    title = Text.assemble((name, "bold"), ("  ", ""), (status.state, COLOURS[status.state]))
    return Panel(
        Text("\n", no_wrap=True, overflow="crop", end="").join(text),
        title=title,
        title_align="left",
        border_style="red" if alarm else SOFT,
        width=paper.width,
        height=paper.height,
    )


def _text(status: Status, paper: DrawingArea, width: int, height: int | None, beside: bool) -> list[Text]:
    """The sections that fit, in their order on the screen; what matters most gets lines first."""
    head = [*_progress(status, width, paper.ascii_only), *_told(status, width)]
    signals, figures = _signals(status, width, paper.ascii_only), _figures(status, width, paper.ascii_only)
    verdicts = _verdicts(status.looks, width)
    wants_preview = status.preview is not None and not beside
    if height is None:
        preview = _preview(status, width, PREVIEW[1], paper) if wants_preview else []
        return _joined([head, signals[:SIGNALS], figures, verdicts, preview])
    room = max(height - len(head), 0)
    if wants_preview and room >= 2 * PREVIEW[0]:
        room -= PREVIEW[0]
    sections, sizes = (signals, figures, verdicts), [0, 0, 0]
    for i, least, most in ((0, 1, 1), (2, 1, 3), (1, 2, len(figures)), (2, 1, len(verdicts)), (0, 1, SIGNALS)):
        apart = not sizes[i]  # a line between it and what is above
        more = min(len(sections[i]), most) - sizes[i]
        more = min(more, room - apart)
        if more >= least:
            sizes[i] += more
            room -= more + apart
    shown = [head[:height], *(section[:size] for section, size in zip(sections, sizes, strict=True))]
    rest = height - len(_joined(shown)) - 1
    preview = _preview(status, width, rest, paper) if wants_preview and rest > 3 else []
    return _joined([*shown, preview])


def _joined(sections: Sequence[Sequence[Text]]) -> list[Text]:
    found: list[Text] = []
    for section in sections:
        if section:
            found += [*([Text()] if found else []), *section]
    return found


def _side_by_side(left: list[Text], right: list[Text], width: int) -> list[Text]:
    blank = Text()
    found = []
    for i in range(max(len(left), len(right))):
        one, two = (part[i] if i < len(part) else blank for part in (left, right))
        one = one.copy()
        one.truncate(width, pad=True)
        found.append(Text.assemble(one, "  ", two))
    return found


def _progress(status: Status, width: int, ascii_only: bool) -> list[Text]:
    """The bar, and the speed with the time left."""
    count = f"{status.step:,} of {status.total:,} steps" if status.total else f"{status.step:,} steps, no plan yet"
    room = max(width - len(count) - 2, 5)
    done = round(room * min(status.step / status.total, 1.0)) if status.total else 0
    full, empty = ("#", "-") if ascii_only else ("█", "░")
    bar = Text.assemble((full * done, COLOURS[status.state]), (empty * (room - done), SOFT), "  ", count)
    parts = []
    if status.speed and status.state == "running":
        parts.append(f"{status.speed:,.3g} steps a second")
        parts.append("at the last step" if not status.left else f"{duration(status.left)} left")
    if status.seconds:
        parts.append(f"{duration(status.seconds)} trained")
    what = plain(f"{status.data}, {status.recipe}" if status.recipe else status.data)
    line = "  ".join(parts)
    if len(what) + 2 + len(line) > width:  # the name of the data gives way
        what = what[: max(width - 2 - len(line), 0)]
    return [bar, Text("  ".join(filter(None, [what, line]))[:width])]


def _told(status: Status, width: int) -> list[Text]:
    """What the state means for the reader, and the guard's rollbacks."""
    at = f"at step {status.step:,}, {duration(status.age)} ago"
    saved = "no checkpoint" if status.saved is None else f"the newest checkpoint is of step {status.saved:,}"
    monitor = status.looks and status.looks[-1].action == STOPPED
    why = "by the monitor" if monitor else "with figures that are not finite or beyond the guard's limits"
    told = {
        "running": "no step is logged yet" if not status.rows else "",
        "finished": "",
        "stopped": f"stopped {at}; {saved}; --resume goes on",
        "diverged": f"ended {at}, {why}; {saved}",
        "gone": "the folder holds no run any more",
    }[status.state]
    found = _wrapped(told, width, COLOURS[status.state])
    if status.rollbacks:
        times = "once" if status.rollbacks == 1 else f"{status.rollbacks} times"
        text = f"the guard rolled back {times}, last at step {status.rolled_back:,} (as of checkpoint {status.saved:,})"
        found += _wrapped(text, width, "yellow")
    return found


def _signals(status: Status, width: int, ascii_only: bool) -> list[Text]:
    """A curve of each signal of the log, the best known first."""
    found: dict[str, list[float]] = {}
    for row in status.rows:
        for name, value in row.items():
            if name not in PLAIN and isinstance(value, int | float):
                found.setdefault(name, []).append(float(value))
    names = sorted(found, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    label = min(max((len(name) for name in names), default=0), 16)
    return [
        Text.assemble(
            set_cell_size(plain(name).replace("_", " "), label),
            f" {number(found[name][-1]):>9} ",
            (curve(found[name], max(width - label - 11, 1), ascii_only=ascii_only), "cyan"),
        )
        for name in names
    ]


def _figures(status: Status, width: int, ascii_only: bool) -> list[Text]:
    """The monitor's figures of its last look, beside those of real data, with a mark in words."""
    if not status.looks:
        return []
    last = status.looks[-1]
    label = min(max(map(len, last.figures), default=0), 14)
    room = width - label - 40
    between = " ± " if not ascii_only else " +- "
    head = f"{'samples':{label}} {'now':>9} {'real data':^17} step {last.step:,}"
    found = [Text(head[:width], SOFT)]
    for name, value in last.figures.items():
        mean, deviation = last.reference.get(name, (math.nan, math.nan))
        real = f"{number(mean, 7, 3):>7}{between}{number(deviation, 7, 2)}" if name in last.reference else ""
        history = [look.figures[name] for look in status.looks if name in look.figures]
        mark = last.mark(name)
        found.append(
            Text.assemble(
                set_cell_size(plain(name).replace("_", " "), label),
                f" {number(value):>9} {set_cell_size(real, 17)} ",
                (f"{curve(history, max(room, 0), ascii_only=ascii_only):{max(room, 0)}}", "cyan"),
                (f" {mark}", MARKS.get(mark, "")),
            )
        )
    return found


def _verdicts(looks: Sequence[Look], width: int) -> list[Text]:
    """The last sentences of the monitor, newest first: alarms and actions, or else that of the last look."""
    told = [look for look in looks if look.alarm or look.action or look.opinion][-VERDICTS:] or list(looks[-1:])
    found: list[Text] = []
    for look in reversed(told):
        style = "red" if look.alarm else ""
        alarm = f"alarm ({look.alarm}): " if look.alarm else ""
        action = f" Done: {_sentence(look.action)}" if look.action else ""
        found += _wrapped(f"step {look.step:,}: {alarm}{_sentence(look.sentence)}{action}", width, style)
        if look.opinion and look.opinion.get("sentence"):
            found += _wrapped(f"step {look.step:,}: the vision judge: {look.opinion['sentence']}", width, "magenta")
    return found


def _sentence(text: str) -> str:
    return text if not text or text.endswith((".", "!", "?")) else f"{text}."


def _preview(status: Status, width: int, height: int, paper: DrawingArea) -> list[Text]:
    """The newest picture, or texts, under a line that says what it is."""
    path = status.preview
    if path is None or height < 3:
        return []
    which = f"samples at step {status.preview_step:,}" if status.preview_step is not None else path.name
    if path.suffix == ".txt":
        try:
            text = path.read_text("utf-8", "replace").splitlines()
        except OSError:
            return []
        drawn = [Text(set_cell_size(plain(line), width)) for line in text[: height - 1]]
    else:
        drawn = picture.lines(path, width, height - 1, colours=paper.colours and not paper.ascii_only)
    return [Text(which[:width], SOFT), *drawn] if drawn else []


def _wrapped(text: str, width: int, style: str) -> list[Text]:
    return [Text(line, style) for line in textwrap.wrap(plain(text), max(width, 10))]


def plain(text: str) -> str:
    """A text of a file without what would control the terminal."""
    return "".join(c if c.isprintable() else " " for c in text)


def number(value: float, width: int = 9, digits: int = 4) -> str:
    """A figure of at most so many characters, with fewer digits where it needs more."""
    texts = [f"{value:.{n}g}" for n in range(digits, 0, -1)]
    return next((text for text in texts if len(text) <= width), texts[-1])


def duration(seconds: float) -> str:
    """A time in words: `42 s`, `3 min 5 s`, `2 h 10 min`, `3 days`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min" if whole < 2 * 86400 else f"{whole // 86400} days"
