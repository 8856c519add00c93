"""Where memory runs out, one typed error names the batch size, and the run resumes with the same bits (trust R13)."""

import os
import re
import resource
import shutil

import pytest
import torch

from thalweg.core import store
from thalweg.core.errors import OutOfMemory
from thalweg.training.plan import Plan
from thalweg.training.trainer import Interrupted

from .runs import STEPS, Wrapped, assert_same, in_child, leftovers, newest, stop_at, trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

CPU = "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
ERRORS = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.\nand more"),
    RuntimeError(CPU),
    RuntimeError("std::bad_alloc"),
    MemoryError(),
]


def failing(run, error, at):
    def check(*result):
        if run.state.step == at:
            raise error
        return result

    run.update.objective = Wrapped(run.update.objective, check)
    return run


@pytest.mark.parametrize("error", ERRORS, ids=["cuda", "cpu", "bad_alloc", "python"])
def test_r13_out_of_memory_is_typed_names_the_batch_and_the_run_resumes_exactly(wholes, tmp_path, error):
    with pytest.raises(OutOfMemory) as caught:
        failing(trainer("pcd-vector", tmp_path), error, 12).fit()
    said = str(caught.value)
    for part in ("at step 13 ", "a batch of 16 ", "train.batch_size=8", str(newest(tmp_path))):
        assert part in said
    assert "\n" not in said
    assert newest(tmp_path).name == "step-00000010"
    again = trainer("pcd-vector", tmp_path)
    again.fit()
    assert_same(again, wholes("pcd-vector"))


def test_r13_other_errors_stay_what_they_are_and_a_batch_of_one_is_not_halved(tmp_path):
    with pytest.raises(RuntimeError, match="shapes differ"):
        failing(trainer("dsm", tmp_path), RuntimeError("shapes differ"), 2).fit()
    with pytest.raises(OutOfMemory, match=r"a batch of 1 .*a smaller energy; no checkpoint yet"):
        failing(trainer("dsm", tmp_path, batch_size=1), MemoryError(), 2).fit()


def test_r13_memory_that_runs_out_in_a_trial_step_is_named_too(tmp_path):
    run = trainer("dsm", tmp_path)
    (tmp_path / "plan.json").unlink()
    run.update.objective = Wrapped(run.update.objective, lambda *result: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(OutOfMemory, match=r"a batch of 16 .*train\.batch_size=8; no checkpoint yet"):
        run.fit()
    assert Plan.load(tmp_path) is None


def address_space():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def test_r13_at_twelve_limits_of_the_address_space_it_is_typed_and_the_checkpoint_is_intact(wholes, tmp_path):
    """A step of 2**22 rows through 16 units wants 256 MB at once, which no limit here nor freed memory has room for."""
    expected = wholes("dsm")
    with pytest.raises(Interrupted):
        trainer("dsm", tmp_path / "base", [stop_at(9)]).fit()
    for number in range(12):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "base", folder)

        def child(folder=folder, room=(number + 1) * 2**20):
            run = trainer("dsm", folder)
            batch = run.update.batch

            def larger(step, progress):
                if step < 12:
                    return batch(step, progress)
                x = torch.zeros(2**22, 2)
                limit = address_space() + room
                resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
                return batch(step, progress)._replace(x=x)

            run.update.batch = larger
            try:
                run.fit()
            except OutOfMemory as error:
                return 7 if re.search(r"at step 13 with a batch of 16 .*train\.batch_size=8", str(error)) else 8
            return 9

        assert in_child(child) == 7
        assert leftovers(folder) == []
        assert newest(folder).name == "step-00000010"
        if number % 4 == 0:
            run = trainer("dsm", folder)
            run.fit()
            assert run.state.step == STEPS
            assert_same(run, expected)
    assert store.newest_valid(folder / "checkpoints")[1] == []
