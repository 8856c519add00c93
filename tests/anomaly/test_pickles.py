"""Pickles and copies of a fitted detector: as large as the stored bundle, and with the same scores."""

import copy
import io
import pickle

import joblib
import numpy as np
import pytest

from thalweg.apps.anomaly.detector import EnergyDetector
from thalweg.apps.anomaly.pyod import EnergyOD
from thalweg.apps.anomaly.saved import DetectorBundle
from thalweg.apps.anomaly.tabular.tabular_energy import TabularEnergy
from thalweg.energy.density.kde_ivf import SMALL

N = SMALL + 300  # kernels then have lists of their own


@pytest.fixture(scope="module")
def rows():
    return np.random.default_rng(0).normal(size=(N, 4))


@pytest.fixture(scope="module")
def new():
    return np.random.default_rng(1).normal(size=(200, 4)) * 1.5


@pytest.fixture(scope="module")
def detector(rows, new):
    found = EnergyDetector(random_state=0).fit(rows)
    found.predict(new)  # which makes lists that are kept for the next rows
    return found


def joblib_copy(detector):
    file = io.BytesIO()
    joblib.dump(detector, file)
    file.seek(0)
    return joblib.load(file)


COPIES = {"pickle": lambda d: pickle.loads(pickle.dumps(d)), "deepcopy": copy.deepcopy, "joblib": joblib_copy}


def stored(detector, folder):
    """The bytes of its bundle."""
    DetectorBundle(detector).save_pretrained(folder / "run")
    return sum(file.stat().st_size for file in (folder / "run").iterdir())


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_has_the_same_scores_bit_for_bit(detector, new, way):
    again = COPIES[way](detector)
    for name in ("energy", "p_values", "predict", "decision_function"):
        np.testing.assert_array_equal(getattr(again, name)(new), getattr(detector, name)(new), name)
    assert again.explain(new[:3]) == detector.explain(new[:3])
    assert again.recalibrate(new).offset_ != detector.offset_


def test_a_pickle_is_about_as_large_as_the_bundle(detector, tmp_path):
    """Not some hundred times, as when views of one list were written whole, once each."""
    assert len(pickle.dumps(detector)) < 1.5 * stored(detector, tmp_path)


def test_pyods_detector_too(rows, new, tmp_path):
    found = EnergyOD(random_state=0).fit(rows)
    wanted, text = found.decision_function(new), pickle.dumps(found)
    assert len(text) < 2 * stored(found.detector_, tmp_path)
    np.testing.assert_array_equal(pickle.loads(text).decision_function(new), wanted)


def test_an_energy_that_is_not_fitted_is_copied_as_it_is():
    again = copy.deepcopy(TabularEnergy(num_stored=7, gap=0.5))
    assert (again.num_stored, again.gap) == (7, 0.5)
    assert len(again.fit(np.arange(20.0)[:, None]).rows_) == 7
