"""Trained energies as graphs: energy, gradient and sampler step agree with the library's, for any number of rows."""

import numpy as np
import pytest
import torch
from torch import nn

from thalweg.apps.rerank.reranker import EnergyReranker
from thalweg.apps.rerank.settings import RatioSettings
from thalweg.bundle import conformal
from thalweg.bundle.bundle import Bundle
from thalweg.bundle.dataset import data_of
from thalweg.bundle.exportable import Program
from thalweg.bundle.files import load
from thalweg.bundle.servable import TensorSpec
from thalweg.core import store
from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.data.validate import as_float
from thalweg.export.check import check
from thalweg.export.export import export, typical_of
from thalweg.export.formats import loaded, prepared, written
from thalweg.export.tracing import COUNTS, open_rows
from thalweg.sampler.replica_exchange import ReplicaExchange
from thalweg.sampler.underdamped import UnderdampedLangevin

ROWS = 200


def test_energy_gradient_and_step_of_chains_in_onnx_runtime(chains, tmp_path, elsewhere):
    bundle = load(chains.path, device="cpu")
    found = export(bundle, tmp_path / "out", format="onnx", rows=ROWS)
    assert [graph["graph"] for graph in found["graphs"]] == ["energy", "gradient", "step"]
    store.verify(tmp_path / "out")
    manifest = store.read_json(tmp_path / "out" / "manifest.json")
    assert manifest["graphs"][2]["outputs"][0]["name"] == "next_x"
    assert manifest["graphs"][0]["check"]["random_rows"] == ROWS
    x = bundle.servable().typical_rows(9, 3)
    ours, theirs = bundle.servable().score(x), elsewhere(tmp_path / "out" / "energy.onnx", x)
    assert set(theirs) == set(ours)
    assert np.allclose(theirs["energy"], ours["energy"], rtol=1e-4, atol=1e-4)
    at = torch.from_numpy(x["x"]).requires_grad_(True)
    (g,) = torch.autograd.grad(bundle.energy(at).sum(), at)
    assert np.allclose(elsewhere(tmp_path / "out" / "gradient.onnx", x)["energy_gradient"], g.numpy(), atol=1e-4)


def test_rows_that_tie_with_the_calibration_have_the_librarys_p_values(chains, tmp_path, elsewhere, monkeypatch):
    """The held-out rows in ONNX Runtime and one by one, but for a few; without room for float32 many differ."""
    bundle = load(chains.path, device="cpu")
    servable, x = bundle.servable(), as_float(data_of(bundle).held_out).numpy()
    export(bundle, tmp_path / "energy.onnx", format="onnx", rows=ROWS)
    theirs, ours = elsewhere(tmp_path / "energy.onnx", {"x": x}), servable.score({"x": x})
    alone = np.array([servable.score({"x": row[None]})["energy"][0] for row in x[:500]])
    few = 0.004  # of the rows, one in a thousand being right above the room of another

    def differing(energies):
        ranked = conformal.raised(bundle.held_out_energies.numpy())
        p, wanted = (conformal.p_values(ranked, u) for u in (energies, ours["energy"][: len(energies)]))
        return (p != wanted).mean()

    for name in ("p_value", "flag"):
        assert (theirs[name].astype(ours[name].dtype) != ours[name]).mean() <= few
    energies = theirs["energy"].astype(np.float32)
    assert max(differing(energies), differing(alone)) <= few
    monkeypatch.setattr(conformal, "SINGLE", 0.0)
    assert differing(energies) > 5 * few


def test_an_energy_of_images_as_pt2_with_any_number_of_rows(digits, tmp_path):
    bundle = load(digits.path, device="cpu")
    file = tmp_path / "digits.pt2"
    found = export(bundle, file, format="pt2", rows=ROWS)
    assert [graph["graph"] for graph in found["graphs"]] == ["energy"]
    module = torch.export.load(file).module()
    for rows in (1, 2, 6):
        x = torch.rand(rows, *bundle.shape, generator=generator(rows, "pt2"))
        assert torch.allclose(module(x)[0], bundle.energy(x), rtol=1e-4)


def sampled_by(bundle, sampler):
    """The servable of the same energy with another sampler."""
    return Bundle(bundle.config, bundle.model, bundle.held_out_energies, bundle.path, sampler).servable()


def test_a_step_that_disagrees_is_told_by_its_row(chains):
    servable = chains.servable()
    step = servable.plan().programs[2]
    with pytest.raises(UserError) as error:
        check(
            step,
            lambda rows: {n: x + 1 for n, x in step.reference(rows).items()},
            servable,
            typical_of(servable),
            (9, 9),
        )
    assert error.value.argument == "graph 'step'"
    assert "i=3" in error.value.message


def test_a_test_of_large_energies_may_turn_by_their_rounding(chains):
    """A Metropolis test of a difference of two energies in float32: of 1e14 nats it is off by millions."""
    servable = sampled_by(chains, UnderdampedLangevin.example())
    step = servable.plan().programs[2]

    def rounded(rows):
        return step.reference({**rows, "u": rows["u"] * np.float32(1 + 2e-7)})

    assert check(step, rounded, servable, typical_of(servable), (400, 40)).at_steps


def test_a_step_whose_state_is_nested_is_left_out(chains):
    plan = sampled_by(chains, ReplicaExchange.example()).plan()
    assert [program.name for program in plan.programs] == ["energy", "gradient"]
    assert "ReplicaExchange" in plan.left_out["step"]


class Joined(nn.Module):
    """An output that is an input, twice, beside one that torch calls `cat` on its way."""

    def forward(self, a, b):
        return a, torch.cat([a[:, None], b[:, None]], 1).cos().sum(1), a


def test_columns_may_have_the_names_that_torch_gives():
    names = [("cat", "val_0"), ("next_cat", "/cat", "again")]
    inputs, outputs = ([TensorSpec(name, "FP32", (-1,)) for name in part] for part in names)
    program = Program(name="odd", module=Joined(), inputs=inputs, outputs=outputs, reference=lambda rows: rows)
    rows = {name: np.arange(3, dtype=np.float32) + i for i, name in enumerate(names[0])}
    module = prepared(program, "onnx", lambda n: {name: np.ones(n, np.float32) for name in names[0]})
    found = loaded(written(program, module, "onnx", rows, {}), program, "onnx")(rows)
    for name, part in zip(names[1], Joined()(*map(torch.from_numpy, rows.values())), strict=True):
        assert np.allclose(found[name], part)


def test_the_energy_of_a_reranker(tmp_path):
    draws = generator(0, "rerank")
    real, generated = torch.randn(300, 2, generator=draws), torch.randn(300, 2, generator=draws) + 1
    reranker = EnergyReranker(settings=RatioSettings(ensemble=2, hidden=8, steps=30), device="cpu")
    reranker.fit(real, generated)
    found = export(reranker, tmp_path / "out", format="onnx", rows=ROWS)
    assert [graph["graph"] for graph in found["graphs"]] == ["energy"]


class Loop(nn.Module):
    def forward(self, x):
        return (torch.stack([row.sum() for row in x]),)


class Branch(nn.Module):
    def forward(self, x):
        return (x.sum(1) if bool(x.sum() > 0) else -x.sum(1),)


@pytest.mark.parametrize("module", [Loop(), Branch()], ids=["loop over rows", "branch on a value"])
def test_what_depends_on_the_number_of_rows_or_on_a_value_is_refused_by_name(module):
    """A trace with one number of rows would keep that number, and the branch, for ever."""
    specs = [TensorSpec("x", "FP32", (-1, 3))], [TensorSpec("energy", "FP32", (-1,))]
    program = Program(name="odd", module=module, inputs=specs[0], outputs=specs[1], reference=lambda rows: rows)
    with pytest.raises(UserError) as error:
        open_rows(program, [[torch.ones(n, 3)] for n in COUNTS])
    assert error.value.argument == "graph 'odd'"


def test_texts_are_refused_before_any_work(words, tmp_path, monkeypatch):
    monkeypatch.setattr("thalweg.export.export.prepared", lambda *args: pytest.fail("worked"))
    with pytest.raises(UserError) as error:
        export(load(words.path, device="cpu"), tmp_path / "out", format="onnx")
    assert error.value.argument == "run"
    assert not (tmp_path / "out").exists()
