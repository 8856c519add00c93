"""The adapter where PyOD looks for things: scores, labels, probabilities, combinations and ensembles."""

import numpy as np
import pytest

pytest.importorskip("pyod")

from pyod.models.combination import aom, average, majority_vote, maximization
from pyod.models.feature_bagging import FeatureBagging
from pyod.models.knn import KNN
from pyod.utils.utility import standardizer
from sklearn.base import clone

from thalweg.apps.anomaly.pyod import EnergyOD
from thalweg.core.errors import UserError


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


def test_beside_others_in_combinations_and_as_a_base(rows):
    members = [EnergyOD().fit(rows), KNN().fit(rows)]
    scores = standardizer(np.column_stack([m.decision_scores_ for m in members]))
    for combined in (average(scores), maximization(scores), aom(scores, n_buckets=2)):
        assert combined[180:].mean() > combined[:180].mean()
    assert set(majority_vote(np.column_stack([m.labels_ for m in members]))) <= {0, 1}
    bag = FeatureBagging(EnergyOD(), n_estimators=3, random_state=0).fit(rows)
    assert bag.decision_scores_[180:].mean() > bag.decision_scores_[:180].mean()


def test_clone_and_use_before_fit(rows):
    assert clone(EnergyOD(contamination=0.2)).contamination == 0.2
    with pytest.raises(UserError, match="not been fitted"):
        EnergyOD().decision_function(rows)
