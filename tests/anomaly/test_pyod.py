"""The adapter where PyOD looks for things: scores, labels, probabilities, combinations and ensembles.

Combinations and feature bagging want the package combo, which is among the development extras.
"""

import pickle

import numpy as np
import pytest

pytest.importorskip("pyod")

from pyod.models.knn import KNN
from pyod.models.lof import LOF
from pyod.models.lscp import LSCP
from pyod.utils.utility import standardizer
from sklearn.base import clone
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from thalweg.apps.anomaly.pyod import EnergyOD
from thalweg.core.errors import UserError

ODD = np.arange(200) >= 180


@pytest.fixture(scope="module")
def rows():
    random = np.random.default_rng(1)
    return np.r_[random.normal(size=(180, 4)), random.normal(size=(20, 4)) * 4 + 3]


def test_scores_labels_and_threshold(rows):
    detector = EnergyOD(contamination=0.1, random_state=0).fit(rows)
    assert detector.decision_scores_.shape == (200,)
    np.testing.assert_array_equal(detector.labels_, detector.decision_scores_ > detector.threshold_)
    assert detector.labels_.sum() == 20
    assert detector.labels_[180:].mean() > 0.8
    assert detector.decision_function(rows[180:]).mean() > detector.decision_function(rows[:180]).mean()


def test_probabilities_and_confidence(rows):
    detector = EnergyOD().fit(rows)
    p = detector.predict_proba(rows)
    assert p.shape == (200, 2)
    np.testing.assert_allclose(p.sum(1), 1)
    labels, confidence = detector.predict(rows, return_confidence=True)
    assert set(labels) == {0, 1}
    assert np.all((confidence >= 0) & (confidence <= 1))
    assert detector.predict_confidence(rows).shape == (200,)


def told_apart(detector, rows):
    """An ensemble ranks the last 20 rows above the others, both as fitted rows and as new ones."""
    for scores in (detector.decision_scores_, detector.decision_function(rows)):
        assert roc_auc_score(ODD, scores) > 0.85
    assert detector.predict_proba(rows).shape == (200, 2)
    assert detector.labels_[180:].mean() > 0.5


def test_scores_and_labels_are_combined_with_those_of_others(rows):
    combination = pytest.importorskip("pyod.models.combination", exc_type=ImportError)
    members = [EnergyOD().fit(rows), KNN().fit(rows)]
    scores = standardizer(np.column_stack([m.decision_scores_ for m in members]))
    for name, keywords in {"average": {}, "maximization": {}, "aom": {"n_buckets": 2}, "moa": {"n_buckets": 2}}.items():
        assert roc_auc_score(ODD, getattr(combination, name)(scores, **keywords)) > 0.85
    assert set(combination.majority_vote(np.column_stack([m.labels_ for m in members]))) <= {0, 1}


def test_as_the_base_of_a_bag_of_features(rows):
    bagging = pytest.importorskip("pyod.models.feature_bagging", exc_type=ImportError)
    told_apart(bagging.FeatureBagging(EnergyOD(), n_estimators=3, random_state=0).fit(rows), rows)


@pytest.mark.filterwarnings("ignore:The number of histogram bins:UserWarning")
def test_in_a_locally_selective_combination(rows):
    members = [EnergyOD(random_state=0), EnergyOD(calibration="split", random_state=1), KNN(), LOF()]
    told_apart(LSCP(members, local_region_size=40, random_state=0).fit(rows), rows)


def test_in_a_pipeline_and_pickled(rows):
    pipe = make_pipeline(StandardScaler(), EnergyOD(contamination=0.1, random_state=0)).fit(rows)
    assert pipe.predict(rows)[180:].mean() > 0.5
    again = pickle.loads(pickle.dumps(pipe))
    np.testing.assert_array_equal(again.decision_function(rows), pipe.decision_function(rows))


def test_what_the_detector_refuses_is_refused(rows):
    with pytest.raises(ValueError, match="features"):
        EnergyOD().fit(rows).decision_function(rows[:, :2])
    with pytest.raises(ValueError, match="NaN"):
        EnergyOD().fit(np.where(rows > 2, np.nan, rows))
    with pytest.raises(ValueError, match="contamination"):
        EnergyOD(contamination=0.7)


def test_clone_and_use_before_fit(rows):
    assert clone(EnergyOD(contamination=0.2)).contamination == 0.2
    with pytest.raises(UserError, match="must be fitted"):
        EnergyOD().decision_function(rows)
