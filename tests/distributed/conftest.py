"""Forked ranks have none of their parent's threads; a run that nobody disturbed is made once."""

import pytest
import torch

from .processes import outcome, train


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="package")
def whole(one_thread, tmp_path_factory):
    """The outcome of the run of two ranks that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run = train(folder)
    assert run.wait() == [0, 0], run.said(0) + run.said(1)
    return outcome(folder)


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/distributed/" in item.path.as_posix():
            item.add_marker(pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"))
