"""The detector among scikit-learn's own: every estimator check, pipelines, grid search, parallel jobs, pickles."""

import pickle

import joblib
import numpy as np
import pytest
import sklearn
from sklearn.base import clone
from sklearn.metrics import make_scorer, roc_auc_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

import thalweg
from thalweg.apps.anomaly.detector import EnergyDetector

CHECKS = list(estimator_checks_generator(EnergyDetector(), legacy=True, expected_failed_checks={}))
PARTIAL = list(estimator_checks_generator(EnergyDetector(missing="marginalise"), legacy=True))


@pytest.mark.parametrize(("estimator", "check"), CHECKS, ids=lambda v: getattr(getattr(v, "func", v), "__name__", ""))
def test_estimator_check(estimator, check):
    check(estimator)


@pytest.mark.parametrize(("estimator", "check"), PARTIAL, ids=lambda v: getattr(getattr(v, "func", v), "__name__", ""))
def test_estimator_check_with_gaps(estimator, check):
    check(estimator)


def test_the_number_of_checks():
    least = 46 if sklearn.__version__.startswith("1.6.") else 47  # 54 for detectors that take sample weights as well
    assert len(CHECKS) >= least


@pytest.fixture
def rows():
    return np.random.default_rng(0).normal(size=(200, 3))


def test_in_a_pipeline_and_a_grid(rows):
    odd = np.r_[rows[:80], rows[:8] * 8]
    labels = np.r_[np.ones(80), -np.ones(8)]
    pipe = make_pipeline(StandardScaler(), EnergyDetector())
    assert set(pipe.fit(rows).predict(odd)) == {-1, 1}
    folds = StratifiedKFold(2, shuffle=True, random_state=0)
    scorer = make_scorer(roc_auc_score, response_method="decision_function")
    grid = GridSearchCV(pipe, {"energydetector__calibration": ["unseen", "split"]}, scoring=scorer, cv=folds)
    assert grid.fit(odd, labels).best_score_ > 0.9


def test_clone_pickle_and_joblib_give_the_same_scores(rows):
    detector = thalweg.EnergyDetector(calibration="split", random_state=3).fit(rows)
    wanted = detector.score_samples(rows)
    again = pickle.loads(pickle.dumps(detector))
    np.testing.assert_array_equal(again.score_samples(rows), wanted)
    np.testing.assert_array_equal(clone(detector).fit(rows).score_samples(rows), wanted)
    halves = joblib.Parallel(n_jobs=2, backend="threading")(
        joblib.delayed(detector.score_samples)(part) for part in np.split(rows, 2)
    )
    np.testing.assert_array_equal(np.concatenate(halves), wanted)


def test_float32_rows_score_as_float64(rows):
    single = rows.astype(np.float32)
    detector = EnergyDetector().fit(single)
    np.testing.assert_allclose(detector.energy(single), detector.energy(single.astype(float)))


def test_a_share_of_the_fitted_rows_is_flagged(rows):
    detector = EnergyDetector(contamination=0.1)
    assert (detector.fit_predict(rows) == -1).sum() == 20


@pytest.mark.parametrize(
    "keywords",
    [
        {"kind": "sound"},
        {"contamination": 0.7},
        {"contamination": "most"},
        {"false_alarm_rate": 0},
        {"false_alarm_rate": "5 %"},
        {"missing": "ignore"},
        {"calibration": "none"},
        {"held_out": 1.0},
        {"missing": "marginalise", "calibration": "unseen"},
    ],
)
def test_wrong_parameters_are_told_at_fit(rows, keywords):
    (name, *_) = keywords
    with pytest.raises(thalweg.UserError, match=name):
        EnergyDetector(**keywords).fit(rows)
