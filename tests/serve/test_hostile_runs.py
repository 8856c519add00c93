"""R15 at the server: hostile folders as RUN of `thalweg serve`, and their bytes as bodies of requests."""

import json
import random
import resource
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from starlette.testclient import TestClient

from thalweg.apps.anomaly.detector import EnergyDetector
from thalweg.apps.anomaly.saved import DetectorBundle
from thalweg.bundle.files import load
from thalweg.cli import main as cli
from thalweg.core import store
from thalweg.core.errors import DamagedFile, UserError
from thalweg.serve import server

from .hostile_runs import FILES, MODULE, Runs, arrays, bombs, cases, mutations, tensors
from .service import npy, posted, serving

CPU, WALL = 5, 60  # seconds of a case; the wall is of a machine with other work
GROWTH = 256  # MiB
ROW = {"instances": [{"flow": 0.5, "heat": 1.0, "site": "u"}]}
WATCHED = {"pickle.find_class", "exec", "compile", "os.system", "os.exec", "os.posix_spawn", "os.fork", "code.__new__"}
WATCHED |= {"os.forkpty", "subprocess.Popen", "ctypes.dlopen"}
SHORT, MUTATIONS = 7, 300
ONCE_WRONG = (
    "config ('features', 2) = 1180591620717411303424",
    "config ('features',) = [[[[]]]]",
    "model.safetensors leads to itself",
)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A detector of three columns, and all imported that serving it imports late."""
    random = np.random.default_rng(0)
    columns = {"flow": random.normal(size=60), "heat": random.exponential(size=60), "site": random.choice([*"uvw"], 60)}
    folder = tmp_path_factory.mktemp("good") / "run"
    fitted = EnergyDetector(random_state=0).fit(pd.DataFrame(columns))
    DetectorBundle(fitted, {"header": True, "ignored": []}).save_pretrained(folder)
    return folder


def asked(app, settings, *, listener, **how):
    """In place of a server: the service starts, and answers once."""
    listener.close()
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        answer = client.post("/v1/score", json=ROW)
    return 0 if answer.status_code in (200, 400, 422) else 70


def watched(place, run=asked, cpu=CPU):
    """What a process does before the command: it is limited and watched, and writes at its end what was seen."""
    seen, watching, real = [], [True], cli.main

    def watch(event, args):
        if not watching or event not in WATCHED:
            return
        frame = sys._getframe(1)
        while frame is not None:  # a module of ours that is imported late is compiled and run
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                return
            frame = frame.f_back
        seen.append([event, str(args)[:200]])

    def memory(name):
        return int(Path("/proc/self/status").read_text().partition(f"{name}:")[2].split()[0]) / 1024

    def main():
        before = memory("VmRSS")
        try:
            real()
        finally:
            watching.clear()
            place.write_text(json.dumps({"seen": seen, "growth": memory("VmHWM") - before}))

    cli.main, server.run = main, run
    warnings.simplefilter("ignore")
    sys.path.insert(0, ".")
    used = resource.getrusage(resource.RUSAGE_SELF)
    spent = int(used.ru_utime + used.ru_stime)
    resource.setrlimit(resource.RLIMIT_CPU, (spent + cpu, spent + cpu + 1))
    sys.addaudithook(watch)


def served(forked, folder, run=asked, cpu=CPU):
    """(exit code, last line of standard error, what was seen) of `thalweg serve FOLDER`."""
    place = folder.parent / "seen.json"
    place.unlink(missing_ok=True)
    words = ("serve", folder.name, "--name", "m", "--port", "0", "--no-page", "--threads", "1")
    code, _, err = forked(*words, cwd=folder.parent, change=lambda: watched(place, run, cpu)).wait(WALL)
    return code, err, json.loads(place.read_text()) if place.exists() else None


def judged(forked, good, tmp_path, chosen):
    """What is wrong with how cases end, and how many end in which way."""
    (tmp_path / f"{MODULE}.py").write_text("import os; os.system('touch canary')\nclass Evil: pass\n")
    troubles, codes = [], {}
    for case in chosen:
        folder = tmp_path / "run"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, folder)
        case.make(folder)
        code, err, seen = served(forked, folder)
        codes[code] = codes.get(code, 0) + 1
        told = err.strip().splitlines()
        if (
            code not in (0, 1, 2)
            or seen is None
            or seen["seen"]
            or seen["growth"] > GROWTH
            or (code and (len(told) != 1 or len(told[0]) > 2000 or "Traceback" in err))
            or (tmp_path / "canary").exists()
        ):
            troubles.append((case.name, code, err[-600:], seen, (tmp_path / "canary").exists()))
    return troubles, codes


@pytest.mark.parametrize("count", [SHORT, pytest.param(None, marks=pytest.mark.slow)])
def test_folders_that_mean_harm_are_refused_in_a_line(forked, good, tmp_path, count):
    """R15: no code is run, nothing hangs, memory stays, and each has an error of ours."""
    every = list(cases(good))
    assert len(every) >= 300
    assert len({case.name for case in every}) == len(every)
    chosen = every if count is None else random.Random(0).sample(every, count)
    chosen += [case for case in every if case.name in ONCE_WRONG and case not in chosen]
    troubles, codes = judged(forked, good, tmp_path, chosen)
    sys.stderr.write(f"R15: {len(chosen)} folders, exit codes {codes}\n")
    assert troubles == []
    assert codes[2] > (0.6 * len(chosen) if count is None else 0)


@pytest.mark.parametrize("name", FILES[1:])
@pytest.mark.parametrize("what", ["all NaN", "all infinite"])
def test_numbers_that_are_not_finite_are_no_detector(good, tmp_path, name, what):
    folder = tmp_path / "run"
    shutil.copytree(good, folder)
    (folder / name).write_bytes(tensors((good / name).read_bytes())[what])
    store.seal(folder)
    with pytest.raises(DamagedFile) as caught:
        load(folder)
    assert caught.value.argument == str(folder / name)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("what", ["all huge", "all tiny"])
def test_numbers_with_which_nothing_can_be_computed_are_told(good, tmp_path, what):
    """Whole files of the right form."""
    folder = tmp_path / "run"
    shutil.copytree(good, folder)
    (folder / "model.safetensors").write_bytes(tensors((good / "model.safetensors").read_bytes())[what])
    store.seal(folder)
    row = {name: np.array([value]) for name, value in ROW["instances"][0].items()}
    with pytest.raises(UserError, match="must be rows whose energy can be computed"):
        load(folder).servable().score(row)


@pytest.mark.slow
def test_random_mutations_of_good_files(forked, good, tmp_path):
    """R15: a mutation is refused, or the model scores."""
    troubles, codes = judged(forked, good, tmp_path, mutations(good, MUTATIONS))
    sys.stderr.write(f"R15: {MUTATIONS} mutations, exit codes {codes}\n")
    assert troubles == []


def test_the_watch_sees_what_it_should(forked, good, tmp_path):
    """The mutants: a service that unpickles, that imports what a folder names, that takes memory, that hangs."""
    (tmp_path / f"{MODULE}.py").write_text("import os; os.system('touch canary')\nclass Evil: pass\n")
    shutil.copytree(good, tmp_path / "run")

    def unpickles(app, settings, *, listener, **how):
        import pickle

        return pickle.loads(pickle.dumps(Runs()))

    def imports(app, settings, *, listener, **how):
        import importlib

        return importlib.import_module(MODULE) and 0

    def takes(app, settings, *, listener, **how):
        return len(np.ones(40_000_000)) and 0

    def hangs(app, settings, *, listener, **how):
        while True:
            pass

    code, _, seen = served(forked, tmp_path / "run", unpickles)
    assert {event for event, _ in seen["seen"]} >= {"pickle.find_class", "os.system"}
    assert (tmp_path / "canary").exists()
    (tmp_path / "canary").unlink()
    served(forked, tmp_path / "run", imports)
    assert (tmp_path / "canary").exists()
    assert served(forked, tmp_path / "run", takes)[2]["growth"] > GROWTH
    code, _, seen = served(forked, tmp_path / "run", hangs, 1)
    assert (code < 0, seen) == (True, None)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("count", [SHORT, pytest.param(None, marks=pytest.mark.slow)])
def test_their_bytes_as_bodies(good, tmp_path, count):
    """R15: what the folders hold, and mutated arrays, sent under each content type: an error of ours, or a score."""
    bodies = [*arrays().values(), *bombs().values()]
    for number, case in enumerate(cases(good)):
        folder = tmp_path / str(number)
        shutil.copytree(good, folder)
        case.make(folder)
        own = [path for path in folder.iterdir() if path.is_file() and not path.is_symlink()]
        bodies += [path.read_bytes() for path in own if path.name not in FILES or "pickle" in case.name]
        shutil.rmtree(folder)
        if len(bodies) > 300:
            break
    draw, array = random.Random(1), npy(np.ones((2, 2)))
    for _ in range(300):
        body = bytearray(array)
        body[draw.randrange(len(body))] = draw.randrange(256)
        bodies.append(bytes(body))
    codes = {}
    with serving("numbers", "pictures") as client:
        for body in bodies if count is None else draw.sample(bodies, count):
            for media in ("application/x-npy", "application/json", "text/csv", "image/png"):
                answer = posted(
                    client, f"/v1/score?model={draw.choice(['numbers', 'pictures'])}", body[:9_000_000], media
                )
                codes[answer.status_code] = codes.get(answer.status_code, 0) + 1
                assert answer.status_code in (200, 400, 413, 422), (body[:60], media)
                assert answer.status_code == 200 or answer.json().keys() == {"code", "field", "message"}
    sys.stderr.write(f"R15: {len(bodies)} bodies, answers {codes}\n")
    assert codes[400] > codes.get(200, 0)
