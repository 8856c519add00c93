"""What one position of an energy looks like: checks that an energy makes when it is built and when it is called."""

from collections.abc import Sequence
from numbers import Integral

from torch import Tensor

from thalweg.core.errors import UserError


def check_shape(shape: Sequence[int], axes: str | None = None) -> tuple[int, ...]:
    """The shape as a tuple; UserError unless it is whole numbers of 1 or more, one for each letter of `axes`."""
    sizes = tuple(shape) if isinstance(shape, Sequence) else ()
    whole = all(isinstance(size, Integral) and not isinstance(size, bool) and size > 0 for size in sizes)
    if not sizes or not whole or (axes is not None and len(sizes) != len(axes)):
        want = "a tuple" if axes is None else f"({', '.join(axes)})" if len(axes) > 1 else f"({axes},)"
        raise UserError(f"must be {want} of whole numbers, 1 or more each", argument="shape", value=shape)
    return tuple(int(size) for size in sizes)


def check_sizes(**sizes: Sequence[int]) -> None:
    """UserError unless each is one whole number or more, 1 or more each: the widths of layers."""
    for name, values in sizes.items():
        if not values or any(not isinstance(n, Integral) or isinstance(n, bool) or n < 1 for n in values):
            raise UserError("must be whole numbers, 1 or more each", argument=name, value=values)


def check_rows(x: Tensor, shape: Sequence[int]) -> None:
    """UserError unless x is (B, *shape)."""
    if x.ndim == 0 or x.shape[1:] != tuple(shape):
        raise wrong_rows(x, shape)


def wrong_rows(x: Tensor, shape: Sequence[int]) -> UserError:
    """The error of an x that is not (B, *shape)."""
    condition = f"must have the shape (B, {', '.join(map(str, shape))}), one position a row; it has {tuple(x.shape)}"
    return UserError(condition, argument="x")
