"""Typed errors: what a caller can catch, and what the command line turns into one line and an exit code.

`UserError` means the input is wrong (exit code 2); any other `ThalwegError` means the work failed (exit code 1).
Messages say what is wrong, where, and how to mend it, in one line.
"""


class ThalwegError(Exception):
    """The base of every error that this package raises on purpose."""


class UserError(ThalwegError, ValueError):
    """The user's input is wrong: a file, a shape, a value, a key."""


class DamagedFile(UserError):
    """A stored file is truncated, altered, or not what its name says; the message names it."""


class NotNormalised(UserError):
    """A log-probability was asked of a model whose energy has an unknown additive constant."""


class Diverged(ThalwegError):
    """Training met a non-finite loss or gradient, or trouble that came back; the message names the tensor or signal,
    the step and the last good checkpoint. `advice` says what to change.
    """

    def __init__(self, message: str, advice: str = "lower train.learning_rate or raise the objective's regularisation"):
        super().__init__(message)
        self.advice = advice


class DiskFull(ThalwegError, OSError):
    """A file could not be written; what was there before is intact."""


class RankLost(ThalwegError):
    """Another process of a distributed run has died or does not answer; the newest checkpoint is intact."""


class OutOfMemory(ThalwegError):
    """Training asked for more memory than there is; the message names the batch size. The last checkpoint is intact."""
