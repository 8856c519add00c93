"""A run that is interrupted, killed or starved ends with the bits of one that was not (trust R1-R6, R9, R10, R17)."""

import json
import os
import pickle
import random
import resource
import shlex
import signal
import subprocess
import sys

import pytest
import torch

from thalweg.core import store
from thalweg.core.errors import DiskFull, Diverged
from thalweg.core.rng import generator
from thalweg.data.loader import Loader
from thalweg.data.toy import two_moons
from thalweg.data.transform import Identity, Standardize
from thalweg.energy.conv import ConvEnergy
from thalweg.energy.mlp import MLPEnergy
from thalweg.energy.residual import ResidualEnergy
from thalweg.energy.unet import UNetEnergy
from thalweg.objective.contrastive import ContrastiveDivergence
from thalweg.objective.dual import DualScoreMatching
from thalweg.objective.score import DenoisingScoreMatching
from thalweg.sampler.langevin import ULA
from thalweg.train.plan import Plan
from thalweg.train.settings import TrainSettings
from thalweg.train.track import read_metrics
from thalweg.train.trainer import Interrupted, Trainer

STEPS, EVERY, ROWS = 24, 5, 90  # 24 batches of 16 are four epochs of 90 rows
PCD = {"sampler": ULA(step_size=0.01), "num_steps": (1, 3), "buffer_size": 48}

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """A forked child has none of its parent's worker threads, so nobody may wait for them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _vectors():
    return two_moons(ROWS, generator(0, "moons"))


def _images():
    from sklearn.datasets import load_digits

    return torch.from_numpy(load_digits().data[:ROWS] / 16).float().reshape(-1, 1, 8, 8)


CASES = {
    "dual-vector": (_vectors, lambda: ResidualEnergy(shape=(2,), width=16, num_blocks=1, embed=8)),
    "dual-image": (_images, UNetEnergy.example),
    "pcd-vector": (_vectors, lambda: MLPEnergy(shape=(2,), width=16, depth=2)),
    "pcd-image": (_images, lambda: ConvEnergy(shape=(1, 8, 8))),
    "dsm": (_vectors, lambda: MLPEnergy(shape=(2,), width=16, depth=2)),
}
OBJECTIVES = {"dual": DualScoreMatching(), "dsm": DenoisingScoreMatching()}


def trainer(case, folder, hooks=(), **changes):
    data, energy = CASES[case]
    x = data()
    transform = Standardize().fit(x) if x.ndim == 2 else Identity()
    torch.manual_seed(0)
    net = energy()
    if hasattr(net, "fit"):
        net.fit(transform.forward(x))
    kind = case.partition("-")[0]
    objective = OBJECTIVES.get(kind) or ContrastiveDivergence(**PCD, initial="normal" if x.ndim == 2 else "uniform")
    folder.mkdir(exist_ok=True)
    if not (folder / "plan.json").exists():
        plan = Plan(num_steps=STEPS, precision="fp32", threads=1, step_seconds=0.01, checkpoint_every=EVERY)
        plan.save(folder)
    given = {"steps": STEPS, "batch_size": 16, "warmup": 5, "log_every": 1, **changes}
    return Trainer(
        energy=net,
        objective=objective,
        loader=Loader(x, batch_size=16, seed=3),
        transform=transform,
        settings=TrainSettings.model_validate(given),
        folder=folder,
        seed=3,
        hooks=hooks,
        tensorboard=False,
    )


def outcome(run):
    """All tensors of the final state, by name, and the logged rows without their times."""
    tensors, structure = store.flatten(run.state._tree())
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(run.folder)]
    return tensors, json.dumps(structure), rows


def assert_same(run, expected):
    tensors, structure, rows = outcome(run)
    assert run.state.step == STEPS
    assert structure == expected[1]
    assert tensors.keys() == expected[0].keys()
    different = [name for name, value in tensors.items() if not torch.equal(value, expected[0][name])]
    assert not different
    assert rows == expected[2]


@pytest.fixture(scope="module", params=CASES)
def whole(request, tmp_path_factory):
    """(case, outcome of the run that nobody disturbed)."""
    run = trainer(request.param, tmp_path_factory.mktemp("whole"))
    run.fit()
    return request.param, outcome(run)


def in_child(work):
    """Run `work` in a forked process; its wait status."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = work() or 0
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1]


def die_at_step(step):
    def hook(state, plan):
        if state.step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    return hook


def die_at_sync(number):
    """SIGKILL at the number-th call that puts something on the disk: most of these calls lie inside a save."""
    left = [number]

    def counted(call):
        def wrapped(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return wrapped

    for name in ("fsync", "replace", "rename", "mkdir"):
        setattr(os, name, counted(getattr(os, name)))


def leftovers(folder):
    return [path for path in folder.rglob("*") if path.name.startswith(".thalweg-")]


def test_the_runs_have_what_must_be_remembered(whole):
    case, (tensors, _, rows) = whole
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert len({row["loss"] for row in rows}) == STEPS
    if case.startswith("pcd"):
        assert len(tensors["objective/x"]) == 48
        assert int(tensors["objective/age"].max()) > 1
    assert any(name.startswith("optimizer/") and "exp_avg_sq" in name for name in tensors)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_r9_a_signal_saves_at_once_and_the_run_resumes_exactly(whole, tmp_path, signum):
    case, expected = whole
    rng = random.Random(f"{case}{signum}")
    at = rng.randrange(1, STEPS - 1)
    run = trainer(case, tmp_path, [lambda state, plan: state.step == at and os.kill(os.getpid(), signum)])
    with pytest.raises(Interrupted, match=f"stopped at step {at + 1} of {STEPS}, saved in ") as caught:
        run.fit()
    assert caught.value.signum == signum
    assert (tmp_path / "checkpoints" / f"step-{at + 1:08d}").is_dir()
    again = trainer(case, tmp_path)
    again.fit()
    assert_same(again, expected)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # the handlers were put back


def test_r1_r2_r4_killed_anywhere_it_resumes_exactly_and_leaves_no_orphans(whole, tmp_path):
    case, expected = whole
    rng = random.Random(case)
    reached, inside = set(), 0
    for kill in range(6):

        def child(in_save=kill % 2 == 0):
            hooks = []
            if in_save:
                die_at_sync(rng.randrange(2, 30))
            else:
                hooks = [die_at_step(rng.randrange(1, STEPS))]
            trainer(case, tmp_path, hooks).fit()

        status = in_child(child)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
        inside += bool(leftovers(tmp_path))
        newest, _ = store.newest_valid(tmp_path / "checkpoints")
        reached.add(newest and newest.name)
        assert len(list((tmp_path / "checkpoints").glob("step-*"))) <= 3  # keep + 1
        rng.random()  # the child's draws do not advance this generator
    assert inside >= 1  # of six kills: these left a half-written save behind
    assert len(reached) >= 2
    run = trainer(case, tmp_path)
    run.fit()
    assert_same(run, expected)
    assert leftovers(tmp_path) == []


def test_a_resume_that_lost_a_step_is_met(tmp_path):
    """The mutant of the tests above: they would see a run that takes one batch twice."""
    whole = trainer("dsm", tmp_path / "a")
    whole.fit()
    slips = [9]

    def slip(state, plan):
        if state.step in slips:
            state.step = slips.pop() - 1

    run = trainer("dsm", tmp_path / "b", [slip])
    run.fit()
    with pytest.raises(AssertionError):
        assert_same(run, outcome(whole))


@pytest.mark.parametrize("damage", ["truncate", "flip"])
@pytest.mark.parametrize("keep", [1, 2])
def test_r5_a_damaged_newest_checkpoint_falls_back_with_a_warning(tmp_path, caplog, damage, keep):
    whole = trainer("pcd-vector", tmp_path / "a")
    whole.fit()
    run = trainer("pcd-vector", tmp_path / "b", [lambda state, plan: state.step == 16 and os.kill(os.getpid(), 15)])
    with pytest.raises(Interrupted):
        run.fit()
    newest = tmp_path / "b" / "checkpoints" / "step-00000017"
    file = newest / "state.safetensors"
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
            seen.append(store.newest_valid(tmp_path / "b" / "checkpoints")[0].name)

    again = trainer("pcd-vector", tmp_path / "b", [look], keep=keep)
    again.fit()
    assert seen == [True, "step-00000020", "step-00000020"]
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert str(file) in warnings[0]
    assert_same(again, outcome(whole))


def test_r5_with_one_kept_a_damaged_later_checkpoint_does_not_push_the_good_one_out(tmp_path):
    run = trainer("dsm", tmp_path, keep=1)
    run.fit()
    last = tmp_path / "checkpoints" / f"step-{STEPS:08d}"
    (last / "state.json").write_text("{}")
    run.state.step = 20
    run.state.save(tmp_path, 1)
    assert store.newest_valid(tmp_path / "checkpoints")[0].name == "step-00000020"


def test_r6_a_full_disk_is_one_typed_error_and_the_earlier_checkpoint_resumes(tmp_path):
    whole = trainer("dual-vector", tmp_path / "a")
    whole.fit()
    folder = tmp_path / "b"

    def child():
        size = (tmp_path / "a" / "checkpoints" / f"step-{STEPS:08d}" / "state.safetensors").stat().st_size

        def fill(state, plan):
            if state.step == 6:
                resource.setrlimit(resource.RLIMIT_FSIZE, (size - 100, size - 100))

        try:
            trainer("dual-vector", folder, [fill]).fit()
        except DiskFull as error:
            text = str(error)
            return 7 if "step-00000010" in text and "no room" in text and "\n" not in text else 8
        return 9

    status = in_child(child)
    assert os.WEXITSTATUS(status) == 7
    assert store.newest_valid(folder / "checkpoints")[0].name == "step-00000005"
    run = trainer("dual-vector", folder)
    run.fit()
    assert_same(run, outcome(whole))
    assert leftovers(folder) == []


def _poison_loss(run, step):
    objective = run.objective

    class Poisoned:
        def __getattr__(self, name):
            return getattr(objective, name)

        def loss(self, *args):
            loss, state, metrics = objective.loss(*args)
            return loss * (float("nan") if run.state.step == step - 1 else 1.0), state, metrics

    run.objective = Poisoned()


def _poison_gradient(run, step):
    last = list(run.state.energy.parameters())[-1]
    last.register_hook(lambda g: g + float("inf") if run.state.step == step - 1 else g)


def _poison_data(run, step):
    batch = run.loader.batch

    def poisoned(k):
        x, labels = batch(k)
        if k == step - 1:
            x[3].view(-1)[0] = float("nan")
        return x, labels

    run.loader.batch = poisoned


POISONS = {"loss": _poison_loss, "gradient": _poison_gradient, "data": _poison_data}


@pytest.mark.parametrize("name", POISONS)
@pytest.mark.parametrize("case", ["dual-image", "pcd-vector", "dsm"])
def test_r10_under_stop_a_value_that_is_not_finite_ends_the_run_before_the_update(tmp_path, case, name):
    step = random.Random(f"{case}{name}").randrange(7, STEPS)
    before = {}

    def remember(state, plan):
        before.update({key: value.clone() for key, value in state.energy.named_parameters()})

    run = trainer(case, tmp_path, [remember], guard={"policy": "stop"})
    POISONS[name](run, step)
    with pytest.raises(
        Diverged, match=rf"^{name} is not finite at step {step}; last good checkpoint .*step-0"
    ) as caught:
        run.fit()
    assert "\n" not in str(caught.value)
    assert run.state.step == step - 1
    assert all(torch.equal(value, before[key]) for key, value in run.state.energy.named_parameters())
    newest, warnings = store.newest_valid(tmp_path / "checkpoints")
    assert warnings == []
    assert newest.name == f"step-{(step - 1) // EVERY * EVERY:08d}"
    assert str(newest) in str(caught.value)
    assert not leftovers(tmp_path)


def test_r10_weights_that_are_not_finite_are_never_written(tmp_path):
    def spoil(state, plan):
        if state.step == EVERY * 2 - 1:
            state.average.net[0].weight.data[0, 0] = float("inf")

    run = trainer("dsm", tmp_path, [spoil], guard={"policy": "stop"})
    with pytest.raises(Diverged, match=r"average/.*is not finite at step 10; last good checkpoint .*step-00000005"):
        run.fit()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000005"]


def test_r10_a_bad_step_is_skipped_and_the_run_ends_well(tmp_path, caplog):
    """Fifty places, three kinds of poison: each is met at its step, before the update, and no file gets it."""
    rng = random.Random(10)
    for number in range(50):
        name, step = rng.choice(list(POISONS)), rng.randrange(1, STEPS + 1)
        before = {}

        def remember(state, plan, before=before):
            before[state.step] = {key: value.clone() for key, value in state.energy.named_parameters()}

        run = trainer("pcd-vector", tmp_path / str(number), [remember])
        POISONS[name](run, step)
        caplog.clear()
        run.fit()
        said = [record.getMessage() for record in caplog.records]
        assert said == [f"{name} is not finite at step {step}; the step was skipped before it touched the weights"]
        if step > 1:
            assert all(torch.equal(value, before[step][key]) for key, value in before[step - 1].items())
        assert [row["step"] for row in read_metrics(run.folder)] == [n for n in range(1, STEPS + 1) if n != step]
        for path in (run.folder / "checkpoints").iterdir():
            assert all(value.isfinite().all() for value in store.read_tensors(path / "state.safetensors").values())


def test_r10_an_average_that_is_not_finite_is_not_written_and_the_run_goes_back(tmp_path, caplog):
    def spoil(state, plan):
        if state.step == EVERY * 2 - 1:
            state.average.net[0].weight.data[0, 0] = float("inf")

    run = trainer("dsm", tmp_path, [spoil])
    run.fit()
    assert run.state.guard.rollbacks == 1
    assert all(value.isfinite().all() for value in run.state.average.state_dict().values())
    assert "not finite at step 10; went back to" in caplog.text


def test_r1_a_run_that_rolls_back_resumes_with_the_same_bits(tmp_path):
    """The snapshots travel in the checkpoint: killed between a snapshot and the trouble, the answer is the same."""

    def troubled(folder, hooks=()):
        run = trainer("pcd-vector", folder, hooks, guard={"every": 3, "patience": 2})
        loss = run.objective.loss

        def bad(*args):
            value, state, metrics = loss(*args)
            return value * (float("nan") if run.state.step in (13, 14) else 1.0), state, metrics

        object.__setattr__(run.objective, "loss", bad)
        return run

    whole = troubled(tmp_path / "a")
    whole.fit()
    assert whole.state.guard.rollbacks == 1
    for at in (7, 10, 12, 13, 14, 18):
        folder = tmp_path / str(at)
        stopped = troubled(folder, [lambda state, plan, at=at: state.step == at and os.kill(os.getpid(), 15)])
        with pytest.raises(Interrupted):
            stopped.fit()
        again = troubled(folder)
        again.fit()
        assert_same(again, outcome(whole))


def test_r17_a_run_saves_and_resumes_without_pickle(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("pickle")

    whole = trainer("pcd-vector", tmp_path / "a")
    whole.fit()
    for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "save", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    run = trainer("pcd-vector", tmp_path / "b", [lambda state, plan: state.step == 7 and os.kill(os.getpid(), 15)])
    with pytest.raises(Interrupted):
        run.fit()
    again = trainer("pcd-vector", tmp_path / "b")
    again.fit()
    assert_same(again, outcome(whole))
    suffixes = {path.suffix for path in (tmp_path / "b").rglob("*") if path.is_file()}
    assert suffixes == {".json", ".jsonl", ".safetensors"}


COMMAND = """
import os, sys, thalweg.cli as cli, thalweg.train.trainer as trainer
report = trainer.Trainer._report
def stop(self, tracker, metrics, plan):
    report(self, tracker, metrics, plan)
    if self.state.step == {step}:
        os.kill(os.getpid(), {signum})
trainer.Trainer._report = stop
cli.main()
"""


def _cli(arguments, *, signum=0, step=-1, cwd):
    code = COMMAND.format(signum=int(signum), step=step)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=cwd, env=env, timeout=120
    )


TRAIN = ["train", "two-moons", "--steps", "15", "--no-report", "-o", "my run", "train.batch_size=16", "data.limit=99"]
TRAIN += ["energy.width=16", "energy.num_blocks=1", "train.log_every=1"]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_r9_the_command_says_how_to_resume_and_that_works(tmp_path, signum):
    stopped = _cli(TRAIN, signum=signum, step=6, cwd=tmp_path)
    assert stopped.returncode == 128 + signum, stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert stopped.stdout == ""
    *_, said, how = stopped.stderr.splitlines()
    assert said.startswith("thalweg: stopped at step 6 of 15, saved in my run")
    assert how.startswith("to go on: thalweg train two-moons --steps 15")
    assert how.endswith("--resume")
    if signum == signal.SIGINT:
        return
    words = shlex.split(how.removeprefix("to go on: thalweg "))
    resumed = _cli(words, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    rows = read_metrics(tmp_path / "my run")
    assert [row["step"] for row in rows] == list(range(1, 16))
    whole = _cli([*TRAIN[:5], "-o", "whole", *TRAIN[7:]], cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    a, b = (tmp_path / name / "model.safetensors" for name in ("my run", "whole"))
    assert a.read_bytes() == b.read_bytes()
