"""The undisturbed run of each case, made once."""

import pytest
import torch

from .runs import CASES, outcome, trainer


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    """A forked child has none of its parent's worker threads, so nobody may wait for them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="package")
def wholes(one_thread, tmp_path_factory):
    """The outcome of the run of a case that nobody disturbed, as a function of the case."""
    known = {}

    def whole(case):
        if case not in known:
            run = trainer(case, tmp_path_factory.mktemp("whole"))
            run.fit()
            known[case] = outcome(run)
        return known[case]

    return whole


@pytest.fixture(params=CASES)
def whole(request, wholes):
    """(case, outcome of its undisturbed run)."""
    return request.param, wholes(request.param)
