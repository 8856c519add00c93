"""A generator that is advanced in the worker's thread, item by item, between other work."""

from collections.abc import Callable, Generator, Iterator
from typing import Any

import torch

END: Any = object()  # what comes after the last item


class ItemStream:
    """The items of a generator, one a call.

    A generator that yields inside `torch.no_grad()` would leave gradients off for what the thread computes next: each
    call ends with the mode that it began with, and the next one goes on with the generator's.
    """

    def __init__(self, make: Callable[[], Iterator[Any]]):
        self.make = make
        self._items: Iterator[Any] | None = None
        self._grad = True

    def __call__(self) -> Any:
        """The next item, or `END`."""
        outside = torch.is_grad_enabled()
        try:
            if self._items is None:
                self._items = iter(self.make())
            else:
                torch.set_grad_enabled(self._grad)
            item = next(self._items, END)
            self._grad = torch.is_grad_enabled()
            return item
        finally:
            torch.set_grad_enabled(outside)

    @property
    def begun(self) -> bool:
        """Whether there is a generator to close."""
        return isinstance(self._items, Generator)

    def close(self) -> None:
        """Let the generator end."""
        items, self._items = self._items, iter(())
        if isinstance(items, Generator):
            items.close()
