"""Noise levels are the energy's alone, and annealed sampling is refused to parts that lack what it asks of them."""

import sys
import types

import pytest
import torch

import thalweg
from thalweg.apps.landscape.paths import denoising
from thalweg.bundle.dataset import data_of
from thalweg.core import store
from thalweg.core.errors import UserError
from thalweg.run.fit import Request, fit
from thalweg.run.preview import draw

TINY = ["train.batch_size=16", "train.precision=fp32", "energy.embed=8", "energy.width=16", "energy.num_blocks=1"]
TINY += ["data.limit=300"]


def run(folder, *overrides):
    return fit(Request(data="two-moons", steps=4, overrides=list(overrides)), folder, tensorboard=False)


def test_the_energy_alone_states_the_noise_levels(tmp_path):
    bundle = run(tmp_path / "a", *TINY, "energy.sigma_min=0.3", "energy.sigma_max=7")
    assert (bundle.t_min, bundle.t_max) == (0.3**2, 7.0**2)
    state = store.read_tensors(next((tmp_path / "a" / "checkpoints").glob("step-*")) / "state.safetensors")
    assert (float(state["objective/t_min"]), float(state["objective/t_max"])) == (0.3**2, 7.0**2)
    assert bundle.sampler.sigma(bundle.model, torch.tensor(0), torch.zeros(())) == pytest.approx(7.0)
    assert bundle.sample(3, num_steps=2).isfinite().all()
    for options in ({"support": "box"}, {"start": torch.zeros(20, 2)}):  # of other energies' constants
        with pytest.raises(UserError) as error:
            bundle.log_z(**options)
        assert error.value.argument == next(iter(options))
    for wrong in ("objective.levels.sigma_min=0.3", "sampler.sigma_max=7", "energy.sigma_min=20"):
        with pytest.raises(UserError, match="sigma_m"):
            run(tmp_path / "b", *TINY, wrong)
        assert not (tmp_path / "b").exists()


OWN = """
from dataclasses import dataclass
from torch import nn
from thalweg.energy.noise_conditional.residual import ResidualEnergy
from thalweg.sampler.langevin import ULA

@dataclass(frozen=True, kw_only=True)
class NoLevels(ULA):
    step_size: float = 0.1
    num_steps: int = 3

class NoPrior(nn.Module):
    def __init__(self, *, shape):
        super().__init__()
        self.inner = ResidualEnergy(shape=shape, width=8, num_blocks=1)
        self.t_min, self.t_max, self.prior_log_prob = self.inner.t_min, self.inner.t_max, self.inner.prior_log_prob

    def forward(self, y, t):
        return self.inner(y, t)
"""


@pytest.fixture
def own(monkeypatch):
    """Modules that somebody has added to the package, their classes without a part that they should have."""
    for name in ("thalweg.energy.own", "thalweg.sampler.own"):
        made = types.ModuleType(name)
        monkeypatch.setitem(sys.modules, name, made)
        exec(OWN, made.__dict__)
    return made


@pytest.mark.parametrize(
    ("override", "argument", "lacks"),
    [
        ("sampler={type: thalweg.sampler.own:NoLevels}", "sampler", "sigma"),
        ("energy={type: thalweg.energy.own:NoPrior}", "energy", "prior"),
        ("sampler={type: thalweg.sampler.langevin:MALA, step_size: 0.1}", "sampler", "num_steps, sigma"),
        ("energy={type: thalweg.energy.networks.mlp:MLPEnergy}", "energy", "t_min, t_max, prior, prior_log_prob"),
    ],
)
def test_parts_that_do_not_make_an_annealed_run_are_refused_before_any_work(tmp_path, own, override, argument, lacks):
    with pytest.raises(UserError, match=f"lacks {lacks}") as caught:
        run(tmp_path / "a", "data.limit=300", override)
    assert caught.value.argument == f"{argument}.type"
    assert not (tmp_path / "a").exists()


def test_a_bundle_whose_sampler_is_not_annealed_says_so(plane, own, tmp_path):
    bundle = thalweg.load(plane.path)
    bundle.sampler = own.NoLevels()
    acts = (
        lambda: bundle.sample(3),
        lambda: bundle.sample(3, num_steps=2),
        lambda: denoising(bundle, bundle.model, 3),
        lambda: draw(bundle.model, bundle.sampler, data_of(bundle), bundle.transform, tmp_path / "preview.png"),
    )
    for act in acts:
        with pytest.raises(UserError, match="lacks sigma") as caught:
            act()
        assert caught.value.argument == "sampler"
