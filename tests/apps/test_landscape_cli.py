"""`thalweg landscape` as people meet it: the files it writes, and every bad input as one line with exit code 2."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from thalweg.cli import main as cli
from thalweg.core.errors import UserError
from thalweg.run.fit import Request, fit


def call(*words):
    return CliRunner().invoke(cli.app, ["landscape", *map(str, words)], standalone_mode=False)


def test_it_draws_and_tells(chains, tmp_path):
    found = call(chains.path, "-o", tmp_path / "a.png", "--size", 16, "--json")
    assert found.exit_code == 0, found.exception
    told = json.loads(found.stdout.splitlines()[-1])
    assert told["file"].endswith("a.png")
    assert told["basins"]
    assert sum(b["share"] for b in told["basins"]) == pytest.approx(1)
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_wider_tables_are_drawn_over_the_plane_through_given_rows(tmp_path):
    rows = np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    np.save(tmp_path / "three.npy", rows[:3])
    small = ["energy.width=16", "energy.num_blocks=1", "train.precision=fp32"]
    fit(Request(data=str(tmp_path / "rows.npy"), steps=10, overrides=small), tmp_path / "run", tensorboard=False)
    found = call(tmp_path / "run", "-o", tmp_path / "a.html", "--examples", tmp_path / "three.npy", "--size", 12)
    assert found.exit_code == 0, found.exception
    assert "<canvas" in (tmp_path / "a.html").read_text("utf-8")


def test_bad_input_is_one_line(chains, tmp_path):
    np.save(tmp_path / "two.npy", np.zeros((2, 2), np.float32))
    column = np.random.default_rng(0).normal(size=(300, 1)).astype(np.float32)
    np.save(tmp_path / "column.npy", column)
    small = ["energy.width=16", "energy.num_blocks=1", "train.precision=fp32"]
    fit(Request(data=str(tmp_path / "column.npy"), steps=2, overrides=small), tmp_path / "line", tensorboard=False)
    for words, message in (
        ((chains.path, "-o", tmp_path / "a.svg"), "must end in .png"),
        ((chains.path, "-o", tmp_path / "none" / "a.png"), "in a folder that exists"),
        ((chains.path, "--examples", tmp_path / "two.npy", "-o", tmp_path / "a.png"), "must be 3 rows or more"),
        ((tmp_path / "line", "-o", tmp_path / "a.png"), "of two columns or more"),
        ((tmp_path / "nothing", "-o", tmp_path / "a.png"), "no such folder"),
    ):
        found = call(*words)
        assert isinstance(found.exception, UserError), (words, found.output, found.exception)
        assert message in str(found.exception)
        assert "\n" not in str(found.exception)
        assert not (tmp_path / "a.png").exists()


def test_a_detector_is_told_apart(tmp_path):
    from thalweg import EnergyDetector
    from thalweg.apps.anomaly.saved import DetectorBundle

    rows = np.random.default_rng(0).normal(size=(200, 3))
    DetectorBundle(EnergyDetector().fit(rows)).save_pretrained(tmp_path / "detector")
    found = call(tmp_path / "detector", "-o", tmp_path / "a.png")
    assert isinstance(found.exception, UserError)
    assert "a detector" in str(found.exception)
