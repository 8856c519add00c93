"""A damaged checkpoint is met and passed over, a full disk is one typed error; the last whole one resumes (R5, R6)."""

import errno
import os
import random
import resource

import pytest

from thalweg.core.errors import DiskFull
from thalweg.training.state import FOLDER
from thalweg.training.trainer import Interrupted

from .runs import STEPS, assert_same, in_child, leftovers, newest, stop_at, trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.mark.parametrize("damage", ["truncate", "flip"])
@pytest.mark.parametrize("keep", [1, 2])
def test_r5_a_damaged_newest_checkpoint_falls_back_with_a_warning(wholes, tmp_path, caplog, damage, keep):
    expected = wholes("pcd-vector")
    run = trainer("pcd-vector", tmp_path, [stop_at(16)])
    with pytest.raises(Interrupted):
        run.fit()
    file = tmp_path / FOLDER / "step-00000017" / "state.safetensors"
    data = bytearray(file.read_bytes())
    if damage == "truncate":
        del data[-7:]
    else:
        data[len(data) // 2] ^= 4
    file.write_bytes(data)
    seen = []

    def look(state, plan):
        if state.step == 16:  # a step behind the checkpoint of step 15
            seen.append(True)
        if state.step in (20, 21):
            seen.append(newest(tmp_path).name)

    again = trainer("pcd-vector", tmp_path, [look], keep=keep)
    again.fit()
    assert seen == [True, "step-00000020", "step-00000020"]
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert str(file) in warnings[0]
    assert_same(again, expected)


def test_r5_with_one_kept_a_damaged_later_checkpoint_does_not_push_the_good_one_out(tmp_path):
    run = trainer("dsm", tmp_path, keep=1)
    run.fit()
    last = tmp_path / FOLDER / f"step-{STEPS:08d}"
    (last / "state.json").write_text("{}")
    run.state.step = 20
    run.state.save(tmp_path, 1)
    assert newest(tmp_path).name == "step-00000020"


def test_r5_a_damaged_checkpoint_is_not_counted_among_those_kept(tmp_path):
    """Were it, the next save would keep it and the new one, and drop the good one that the run came from."""
    run = trainer("dsm", tmp_path)
    run.fit()
    middle, last = 20, STEPS
    (tmp_path / FOLDER / f"step-{last:08d}" / "state.json").write_text("{}")
    again = trainer("dsm", tmp_path)
    again._restore()
    assert again.state.step == middle
    again.state.step = last + 1
    path = again.state.save(tmp_path, 2)
    (path / "state.json").write_text("{}")
    assert newest(tmp_path).name == f"step-{middle:08d}"


@pytest.mark.parametrize(("cuts", "flips"), [(8, 24), pytest.param(50, 200, marks=pytest.mark.slow)])
def test_r5_every_truncation_and_every_flipped_bit_is_met_and_named(tmp_path, caplog, cuts, flips):
    run = trainer("pcd-vector", tmp_path)
    run.fit()
    best = newest(tmp_path)
    files = sorted(best.iterdir())
    assert [file.name for file in files] == ["manifest.json", "model.safetensors", "state.json", "state.safetensors"]
    again, rng, met = trainer("pcd-vector", tmp_path), random.Random(5), 0
    for number in range(cuts + flips):
        file = files[number % len(files)]
        good = file.read_bytes()
        bad = bytearray(good)
        if number < cuts:
            del bad[rng.randrange(len(bad)) :]
        else:
            bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        file.write_bytes(bad)
        caplog.clear()
        again.state.step = -1
        again._restore()
        (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        # a flipped name in the manifest is reported as the file that it now names, or under the manifest's own path
        assert str(best if file.name == "manifest.json" else file) in warning
        assert "\n" not in warning
        met += again.state.step == 20
        file.write_bytes(good)
    assert met == cuts + flips
    again._restore()
    assert again.state.step == STEPS


def real_limit(bytes_left):
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, bytes_left))


def quota(bytes_left):
    """A disk with so much room in all: what does not fit is cut, as the system does, then refused."""
    left, write = [bytes_left], os.write

    def limited(descriptor, data):
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        number = write(descriptor, data[: left[0]])
        left[0] -= number
        return number

    os.write = limited


@pytest.mark.parametrize("limit", [real_limit, quota])
def test_r6_at_twenty_sizes_a_full_disk_is_a_typed_error_and_the_previous_is_intact(tmp_path, limit):
    run = trainer("pcd-vector", tmp_path)
    run.fit()
    best = newest(tmp_path)
    files = [file.stat().st_size for file in best.iterdir()]
    most = max(files) if limit is real_limit else sum(files)
    run.state.step += 1
    for size in [most * k // 20 for k in range(20)]:

        def child(size=size):
            limit(size)
            try:
                run.state.save(tmp_path, 2)
            except DiskFull as error:
                text = str(error)
                good = f"step-{STEPS + 1:08d}" in text and " bytes to " in text and "\n" not in text
                return 7 if good else 8
            return 9

        assert in_child(child) == 7
        assert leftovers(tmp_path) == []
        assert newest(tmp_path) == best
    again = trainer("pcd-vector", tmp_path)
    again._restore()
    assert again.state.step == STEPS


def test_r6_a_run_on_a_full_disk_ends_with_the_error_and_resumes_exactly(wholes, tmp_path):
    def fill(state, plan):
        if state.step == 6:
            size = (tmp_path / FOLDER / "step-00000005" / "state.safetensors").stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size - 100, size - 100))

    def child():
        try:
            trainer("dual-vector", tmp_path, [fill]).fit()
        except DiskFull as error:
            return 7 if "step-00000010" in str(error) and "no room" in str(error) else 8
        return 9

    assert in_child(child) == 7
    assert newest(tmp_path).name == "step-00000005"
    run = trainer("dual-vector", tmp_path)
    run.fit()
    assert_same(run, wholes("dual-vector"))
    assert leftovers(tmp_path) == []
