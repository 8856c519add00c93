import pytest
import torch

from thalweg.core.errors import UserError
from thalweg.data.loader import Loader

ROWS = torch.arange(23, dtype=torch.float32)[:, None]


def test_any_order_of_steps_gives_the_same_batches() -> None:
    ahead = Loader(ROWS, None, batch_size=5, seed=3)
    forward = [ahead.batch(step)[0] for step in range(40)]
    jumping = Loader(ROWS, None, batch_size=5, seed=3)
    for step in (39, 0, 7, 38, 4, 5, 3, 21):
        assert torch.equal(jumping.batch(step)[0], forward[step])


@pytest.mark.parametrize("batch_size", [1, 5, 23, 60])
def test_each_epoch_visits_each_row_once(batch_size: int) -> None:
    loader = Loader(ROWS, None, batch_size=batch_size, seed=0)
    steps = 3 * 23
    visited = torch.cat([loader.indices(step) for step in range(steps)])
    assert len(visited) == steps * batch_size
    for epoch in visited.split(23):
        if len(epoch) == 23:
            assert sorted(epoch.tolist()) == list(range(23))
    assert not torch.equal(visited[:23], visited[23:46])


@pytest.mark.parametrize("batch_size", [4, 8, 64])
def test_ranks_share_the_batch_of_one(batch_size: int) -> None:
    labels = torch.arange(23)
    one = Loader(ROWS, labels, batch_size=batch_size, seed=1)
    ranks = [Loader(ROWS, labels, batch_size=batch_size, seed=1, rank=r, world_size=4) for r in range(4)]
    for step in range(20):
        x, y = one.batch(step)
        shares = [loader.batch(step) for loader in ranks]
        assert torch.equal(torch.cat([share[0] for share in shares]), x)
        assert y is not None
        assert torch.equal(y.float(), x[:, 0])
        if batch_size == 4 and (step + 1) * 4 % 23 >= 4:  # within one epoch
            assert len({int(share[0]) for share in shares}) == 4


def test_seeds_differ_and_pixels_become_floats() -> None:
    pixels = torch.full((3, 1, 2, 2), 255, dtype=torch.uint8)
    x, labels = Loader(pixels, batch_size=2, seed=0).batch(0)
    assert x.dtype == torch.float32
    assert bool((x == 1).all())
    assert labels is None
    a, b = (Loader(ROWS, None, batch_size=23, seed=seed).indices(0) for seed in (0, 1))
    assert not torch.equal(a, b)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 5, "world_size": 2}, "multiple of world_size=2"),
        ({"batch_size": 4, "world_size": 2, "rank": 2}, "rank=2"),
        ({"batch_size": 4, "labels": torch.zeros(2)}, "labels: must be one a row"),
    ],
)
def test_settings_that_cannot_work_are_refused(kwargs: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Loader(ROWS, **kwargs, seed=0)
    with pytest.raises(UserError, match="step=-1"):
        Loader(ROWS, batch_size=1, seed=0).indices(-1)
