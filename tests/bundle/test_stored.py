"""What `load` reads of a folder: each file once, nothing heavy, and no more memory than the folder itself fills."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
import torch

from thalweg.apps.anomaly.detector import EnergyDetector
from thalweg.apps.anomaly.saved import DetectorBundle
from thalweg.apps.rerank.density_ratio import RatioSettings
from thalweg.apps.rerank.reranker import EnergyReranker
from thalweg.bundle import from_config as stored
from thalweg.bundle.files import FILES, load, write_bundle
from thalweg.core import store, temporary
from thalweg.core.errors import DamagedFile, UserError
from thalweg.core.weights import LEAST_BYTES, Stored, Unfit, require_fit
from thalweg.energy.networks.mlp import MLPEnergy

QUICK = RatioSettings(ensemble=2, steps=2, hidden=4, channels=(4,), batch=8, view="pixels", noise=0.3)


@pytest.fixture(scope="module")
def folders(digits, chains, tmp_path_factory):
    """One folder of each kind: an energy, an unfinished run, a detector, a re-ranker."""
    place = tmp_path_factory.mktemp("kinds")
    digits.save_pretrained(place / "energy")
    store.write_json(place / "run.json", chains.config)
    (place / "unfinished" / "checkpoints").mkdir(parents=True)
    (place / "run.json").rename(place / "unfinished" / "config.json")
    weights = chains.model.state_dict()
    store.save_folder(
        place / "unfinished" / "checkpoints" / "step-1",
        lambda folder: store.write_tensors(folder / "model.safetensors", weights),
    )
    detector = EnergyDetector(kind="table").fit(np.random.default_rng(0).normal(size=(60, 3)))
    DetectorBundle(detector).save_pretrained(place / "detector")
    x = torch.rand(40, 1, 8, 8)
    EnergyReranker(settings=QUICK).fit(x, 0.6 * x).save_pretrained(place / "reranker")
    return place


@pytest.mark.parametrize("kind", ["energy", "unfinished", "detector", "reranker"])
def test_each_file_is_hashed_once_and_the_config_is_read_once(folders, kind, monkeypatch):
    hashed, read, sha256, read_json = Counter(), Counter(), store._sha256, store.read_json
    monkeypatch.setattr(store, "_sha256", lambda path: hashed.update([path.name]) or sha256(path))
    monkeypatch.setattr(store, "read_json", lambda path: read.update([path.name]) or read_json(path))
    load(folders / kind)
    assert hashed["model.safetensors"] == 1
    assert set(hashed.values()) == {1}
    assert read["config.json"] == 1


def test_loading_imports_nothing_heavy(folders):
    """Of 5.5 s that the import took, torch's own were 2.4; the meta device would bring torch's compiler along."""
    heavy = ["sklearn", "scipy", "pandas", "matplotlib", "pyarrow", "huggingface_hub", "torch._dynamo", "sympy"]
    code = (
        "import sys; from thalweg.bundle.files import load; load(sys.argv[1]); load(sys.argv[2]);"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    words = [sys.executable, "-c", code, folders / "energy", folders / "unfinished"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.stdout == "[]\n", done.stderr


def _edit(folder, where, value):
    """Change a config at a dotted key and seal it again, as a stranger would."""
    config = json.loads((folder / "config.json").read_text())
    *keys, last = where.split(".")
    node = config
    for key in keys:
        node = node[key]
    node[last] = value
    store.write_json(folder / "config.json", config)
    store.seal(folder, [name for name in FILES if (folder / name).exists()])


UNET = "thalweg.energy.noise_conditional.unet:UNetEnergy"
LARGE = {
    "wide": ("run.energy.widths", [8, 10**6]),
    "very wide": ("run.energy.widths", [10**9, 10**9]),
    "wider than any number": ("run.energy.widths", [10**30, 16]),
    "a little wide": ("run.energy.widths", [8, 17]),
    "deep": ("run.energy.num_blocks", [10**9, 1]),
    "embedded": ("run.energy.embed", 10**7),
    "of large images": ("data.shape", [1, 10**5, 10**5]),
    "of huge images": ("data.shape", [1, 2**62, 2**62]),
    "of many channels": ("data.shape", [10**7, 8, 8]),
    "another network": ("run.energy", {"type": "thalweg.energy.networks.mlp:MLPEnergy", "width": 10**6}),
    "a chain of layers": ("run.energy", {"type": "thalweg.energy.networks.resnet:ResNetEnergy", "num_blocks": 10**9}),
    "spectral": ("run.energy", {"type": "thalweg.energy.networks.conv:ConvEnergy", "channels": [10**5, 10**5]}),
    "an autoencoder": (
        "run.energy",
        {"type": "thalweg.energy.networks.autoencoder:AutoencoderEnergy", "widths": [10**6] * 9},
    ),
    "less than nothing": ("run.energy.widths", [-8, 16]),
    "nothing": ("run.energy.widths", []),
}


@pytest.mark.parametrize("name", LARGE)
def test_r15_weights_that_do_not_fit_are_refused_before_memory_is_taken(copy, name, monkeypatch):
    """Nothing but the meta device is ever asked for the energy; and it does not take long. Mutant: built on the CPU."""
    devices, energy_of = [], stored.energy_of
    monkeypatch.setattr(
        stored, "energy_of", lambda config: devices.append(torch.empty(0).device.type) or energy_of(config)
    )
    monkeypatch.setattr(store, "read_tensors", lambda path: pytest.fail("the weights were read"))
    _edit(copy, *LARGE[name])
    start = time.process_time()
    with pytest.raises(UserError) as caught:
        load(copy)
    assert time.process_time() - start < 30  # a bound on a loop without end, not on speed
    assert "\n" not in str(caught.value)
    assert str(copy) in str(caught.value) or str(caught.value.argument).startswith("run.energy")
    assert set(devices) <= {"meta"}


STRANGE = [None, True, -1, 0, 2.5, 10**30, "", "x", [], [1], [[]], {}, {"a": 1}, {"type": UNET}, "nan"]
KEYS = [
    *("run", "run.energy", "run.energy.type", "run.energy.widths", "run.energy.embed", "run.energy.sigma_min"),
    *("run.sampler", "run.sampler.num_steps", "run.sampler.eta", "run.transform", "run.transform.type"),
    *("data", "data.shape", "data.kind", "normalised", "format", "app", "precision"),
]
OTHERS = [
    *(
        "thalweg.energy.wrappers:Tempered",
        "thalweg.energy.density.kde:KernelDensityEnergy",
        "thalweg.energy.base:EnergyFn",
    ),
    *(
        "thalweg.energy.networks.classifier:ClassifierEnergy",
        "thalweg.energy.density.factor_mixture:PrincipalMixture",
        "thalweg.energy.linear_observation:Given",
    ),
    *(
        "thalweg.energy.density.feature_kde:FeatureKernelEnergy",
        "thalweg.energy.rbm:RBMEnergy",
        "thalweg.energy.engine.double_backward.passes:SiLU",
    ),
    *("thalweg.data.loader:Loader", "thalweg.data.catalog:Dataset", "thalweg.sampler.chain:_Checked"),
    *("thalweg.data.toy:Toy", "thalweg.sampler.precision:AtPrecision", "thalweg.run.run_folder:Place"),
]


def _outcome(folder):
    """(the type of the error, its text), of the errors that may be."""
    try:
        load(folder)
    except UserError as error:
        return type(error).__name__, str(error)
    return "loads", ""


def test_r15_whatever_a_config_says_is_a_typed_error_or_loads(copy):
    """Sealed by its own manifest, so that only the config's meaning is wrong."""
    config = json.loads((copy / "config.json").read_text())
    edits = [*itertools.product(KEYS, STRANGE)]
    edits += [(f"run.{part}.type", name) for part in ("energy", "sampler", "transform") for name in OTHERS]
    edits += [(f"run.{part}", {"type": name}) for part in ("energy", "sampler", "transform") for name in OTHERS]
    kinds = Counter()
    for where, value in edits:
        _edit(copy, where, value)
        kind, text = _outcome(copy)
        assert "\n" not in text, (where, value)
        kinds[kind] += 1
        store.write_json(copy / "config.json", config)
    assert kinds["DamagedFile"] > 40
    assert kinds["UserError"] > 40
    assert kinds["loads"] < len(edits) / 3


def test_tensors_beside_the_weights_are_bounded_too():
    """A buffer that is not stored, or a constructor's own working memory, is no way round."""

    class Hidden(torch.nn.Module):
        def __init__(self, size):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(3))
            self.register_buffer("table", torch.zeros(size), persistent=False)

    require_fit(lambda: Hidden(LEAST_BYTES // 8), {"weight": Stored("F32", (3,))})
    with pytest.raises(Unfit):
        require_fit(lambda: Hidden(LEAST_BYTES), {"weight": Stored("F32", (3,))})


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        (lambda stored: stored.pop("net.0.weight"), "net.0.weight"),
        (lambda stored: stored.update({"net.0.bias": Stored("F32", (6,))}), "net.0.bias"),
        (lambda stored: stored.update({"net.0.bias": Stored("F32", ())}), "net.0.bias"),
        (lambda stored: stored.update({"more": Stored("F32", (1,))}), "more"),
    ],
)
def test_the_first_weight_that_differs_is_named(change, argument):
    stored = {name: Stored("F32", tuple(value.shape)) for name, value in MLPEnergy.example().state_dict().items()}
    require_fit(MLPEnergy.example, stored)
    change(stored)
    with pytest.raises(Unfit) as caught:
        require_fit(MLPEnergy.example, stored)
    assert caught.value.argument == argument


def test_a_header_says_what_the_file_holds(tmp_path):
    tensors = {"a": torch.zeros(2, 3), "b": torch.tensor(1), "c": torch.zeros(0, 4, dtype=torch.bfloat16)}
    store.write_tensors(tmp_path / "t", tensors, {"by": "test"})
    assert store.read_header(tmp_path / "t") == {
        "a": Stored("F32", (2, 3)),
        "b": Stored("I64", ()),
        "c": Stored("BF16", (0, 4)),
    }
    good = (tmp_path / "t").read_bytes()
    for bad in (b"", good[:7], good[:30], (2**62).to_bytes(8, "little") + good[8:], good[:8] + b"[" + good[9:]):
        (tmp_path / "t").write_bytes(bad)
        with pytest.raises(DamagedFile):
            store.read_header(tmp_path / "t")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_what_a_killed_write_leaves_in_the_folder_is_gone_after_the_next(digits, copy, name):
    """Fault: the folder in which the files are written, of a process that was killed, was never removed."""
    pid = os.fork()
    if pid == 0:
        replace = os.replace

        def killed(source, target):
            if os.path.basename(target) == name and os.path.dirname(target) == str(copy):
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target)

        os.replace = killed
        write_bundle(copy, digits.config, digits.model.state_dict(), digits.held_out_energies, digits.mixture_prior)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    left = [path for path in copy.iterdir() if temporary.is_temporary(path)]
    assert len(left) == 1
    digits.save_pretrained(copy)
    assert {path.name for path in copy.iterdir()} == {*FILES, "manifest.json", "card.md"}
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(load(copy).energy(x), digits.energy(x))


def test_what_a_killed_write_of_the_bundle_left_goes_when_its_run_goes_on(tmp_path):
    left = temporary.name("new", tmp_path / "bundle")
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    temporary.clean(tmp_path)  # as the trainer does when it goes on
    assert not list(tmp_path.iterdir())


def test_an_extra_file_that_is_a_link_out_of_the_folder_is_not_copied(copy, tmp_path):
    """Else a stranger's bundle, saved or pushed again, would carry a file of the user's along."""
    secret = tmp_path / "secret"
    secret.write_text("mine")
    (copy / "README.md").symlink_to(secret)
    with pytest.raises(DamagedFile) as caught:
        load(copy).save_pretrained(tmp_path / "again")
    assert caught.value.argument == str(copy / "README.md")
