"""Methods that yield, for one who can only call: the iterator is kept under a key, and gives an item a call."""

from functools import partial
from typing import Any

from thalweg.serve.engine.items import END, ItemStream
from thalweg.serve.engine.rejected import WorkerLost
from thalweg.serve.engine.scoring import InThread


class ScoringWithIterators(InThread):
    """`InThread` in a process that computes for another one.

    Args:
        models: By name.
    """

    def __init__(self, models: Any):
        super().__init__(models)
        self._iterators: dict[int, ItemStream] = {}

    def open_iterator(self, key: int, model: str, name: str, *values: Any, **options: Any) -> None:
        """Keep the iterator that a method returns; it begins with its first item."""
        self._iterators[key] = ItemStream(partial(self.iterate, model, name, *values, **options))

    def next_item(self, key: int) -> Any:
        """The next item, or None after the last one. WorkerLost where another process began it."""
        if key not in self._iterators:
            raise WorkerLost("the process that computed these items has ended")
        item = self.call(self._iterators[key])
        return None if item is END else item

    def close_iterator(self, key: int) -> None:
        """Let the iterator end."""
        items = self._iterators.pop(key, None)
        if items is not None:
            self.call(items.close)
