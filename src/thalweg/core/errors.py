"""The errors of this package, which the command line turns into one line and an exit code.

`UserError` means that the input is wrong (exit code 2), any other `ThalwegError` that the work failed (exit code 1).
A message states the fault, its place and a remedy in one line. A `UserError` has these parts as fields, so that no
caller reads or edits the text of a message.
"""

import re
from collections.abc import Iterable
from copy import copy
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self

SHOWN = 60  # characters of a value
ROW = "{row}"  # in a message, stands for what a row is called
# Names that begin with the sound of a vowel; M in MLP is spelled out, "em", in MALA it is not.
_AN = re.compile(r"[AEIaei]|[Oo](?!ne)|[Uu](?![A-Zs]|ni)|ndarray|[FHLMNRSX](?=[B-DF-HJ-NP-TV-Z])")


class ThalwegError(Exception):
    """The base of every error that this package raises on purpose.

    `already_reported`: another process of the same run prints it, so this one does not.
    """

    already_reported = False
    signum: int | None = None  # the signal that ended the work
    resumable = True  # where a signal ended it: whether the same command with --resume goes on


class StopSignal(KeyboardInterrupt):
    """SIGINT or SIGTERM as an exception, so that both unwind the stack; `signum` says which it was."""

    def __init__(self, signum: int):
        super().__init__()
        self.signum = signum


class UserError(ThalwegError, ValueError):
    """The user's input is wrong: a file, a shape, a value, a key.

    As text it reads `argument=value: message; hint`, without the parts that are not given:

        UserError("must be positive", argument="step_size", value=-1)         step_size=-1: must be positive
        UserError("no such folder", argument="runs/x", hint="check the path")  runs/x: no such folder; check the path

    Args:
        message: The condition that does not hold, in one line without a full stop.
        argument: Where it is: an argument, a dotted key of a recipe, a file, a column.
        value: The value that was found there. None: it says nothing, and is left out.
        hint: The remedy.
        row: The number of the row that it is about, from 0. The message has `ROW` in its place: the number, or what the
            reader of a file calls the row (`in_row`).

    `skippable`: it is about one row or file among others, which `skip_bad` leaves out.
    """

    skippable = False

    def __init__(
        self,
        message: str,
        *,
        argument: str | None = None,
        value: Any = None,
        hint: str | None = None,
        row: int | None = None,
    ):
        self.message = message if row is None else message.replace(ROW, row_from_zero(row))
        super().__init__(self.message)
        self.argument, self.value, self.hint = argument, value, hint
        self.row, self._with_row = row, message

    def __str__(self) -> str:
        """The parts in one line."""
        value = "" if self.value is None else f"={shown(self.value)}"
        where = f"{self.argument or ''}{value}"
        return f"{where}: {self._rest()}" if where else self._rest()

    @property
    def reason(self) -> str:
        """The fault alone, in one line."""
        return " ".join(self.message.split())

    def _rest(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message

    def replace(self, **parts: Any) -> Self:
        """The same error with other parts (`message`, `argument`, `value`, `hint`, `skippable`)."""
        other = copy(self)
        for name, part in parts.items():
            if name not in ("message", "argument", "value", "hint", "skippable"):
                raise TypeError(f"a UserError has no {name}")
            setattr(other, name, part)
        other.args = (other.message,)
        other._with_row = parts.get("message", other._with_row)
        return other

    def in_row(self, name: str) -> Self:
        """The same error, which calls its row so: `line 7`."""
        return self.replace(message=self._with_row.replace(ROW, name))

    def within(self, where: str) -> Self:
        """The same error at a longer address: `width` within `energy` is `energy.width`."""
        return self.replace(argument=f"{where}.{self.argument}" if self.argument else where)


def row_from_zero(row: int) -> str:
    """What messages call row number `row` of an array, a frame or a Parquet file, as numpy and pandas index it."""
    return f"row {row} (counted from 0)"


def shown(value: Any) -> str:
    """A value as a message shows it: in one line of at most 60 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def suggestion(word: str, known: Iterable[str]) -> str:
    """A hint for a misspelt name: the known one that is closest, or all of them."""
    names = sorted(known)
    close = get_close_matches(word, names, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"there are: {', '.join(names)}" if names else "there are none"


def one_line(error: BaseException) -> str:
    """The text of another library's error in one line of at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def kind_of(value: Any) -> str:
    """The type of a value for a message: `an int`, `a Tensor`, `an MLPEnergy`, `the class ULA`, `None`."""
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = type(value).__name__
    return f"{'an' if _AN.match(name.lstrip('_')) else 'a'} {name}"


class DamagedFile(UserError):
    """A stored file is truncated, altered, or not what its name says; `argument` names it."""


class NotTrusted(UserError):
    """A config names a class that may not be built, since nobody trusts its package."""


class NotNormalised(UserError):
    """A log-probability was asked of a model whose energy has an unknown additive constant."""


class Diverged(ThalwegError):
    """Training came to a value that is not finite, or to a health signal beyond its limit.

    Args:
        message: What happened and at which step, in one line.
        what: The tensor or health signal, such as `loss` or `gap`.
        step: The step, counted from 1. None: before any training.
        advice: What to change in another run.
        last_good: The newest checkpoint. None: there is none.
    """

    def __init__(
        self,
        message: str,
        *,
        what: str,
        step: int | None = None,
        advice: str = "lower train.learning_rate or raise the objective's regularisation",
        last_good: Path | None = None,
    ):
        super().__init__(message)
        self.what, self.step, self.advice, self.last_good = what, step, advice, last_good

    def described(self, message: str, **parts: Any) -> "Diverged":
        """The same error with another message and, where given, other parts (`step`, `last_good`)."""
        kept = {"what": self.what, "step": self.step, "advice": self.advice, "last_good": self.last_good}
        return Diverged(message, **{**kept, **parts})


class DiskFull(ThalwegError, OSError):
    """A file could not be written; what was there before is intact."""


class RankLost(ThalwegError):
    """Another process of a distributed run has died or does not answer; the newest checkpoint is intact."""


class OutOfMemory(ThalwegError):
    """Training asked for more memory than there is; the message names the batch size. The last checkpoint is intact."""
