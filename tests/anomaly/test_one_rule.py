"""Predictions, decisions, p-values, the bundle's flags and the realised rate say one thing; each row has a score."""

import logging
import pickle

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError

import thalweg
from thalweg.apps.anomaly.calibration import Calibration
from thalweg.apps.anomaly.image.image_energy import ImageEnergy
from thalweg.apps.anomaly.saved import DetectorBundle
from thalweg.core.errors import UserError

QUICK = {"steps": 2, "overrides": ["energy.widths=[64,32]", "train.batch_size=64"]}


@pytest.fixture(scope="module")
def rows():
    return np.random.default_rng(0).normal(size=(200, 3))


@pytest.fixture(scope="module")
def fresh():
    return np.random.default_rng(1).normal(size=(4000, 3)) * 1.2


def agree(detector, x):
    """The flags, after each way to get them was compared."""
    flags = detector.predict(x) == -1
    np.testing.assert_array_equal(detector.decision_function(x) < 0, flags)
    np.testing.assert_array_equal(detector.p_values(x) <= detector.rate_, flags)
    np.testing.assert_array_equal(DetectorBundle(detector).score(x)["flag"].numpy(), flags)
    return flags


@pytest.mark.parametrize("keywords", [{}, {"contamination": 0.3}, {"contamination": 0.005}, {"false_alarm_rate": 0.2}])
@pytest.mark.parametrize("calibration", ["unseen", "split"])
def test_all_ways_to_flag_agree(rows, fresh, keywords, calibration, tmp_path):
    detector = thalweg.EnergyDetector(calibration=calibration, random_state=0, **keywords).fit(rows)
    flags = agree(detector, fresh)
    low, high = detector.realised_rate(level=0.999)[1:]
    same_law = agree(detector, fresh / 1.2).mean()
    assert low - 0.02 < same_law < high + 0.02
    if "contamination" in keywords:
        assert (detector.predict(rows) == -1).sum() == round(200 * keywords["contamination"])
    DetectorBundle(detector).save_pretrained(tmp_path / "run")
    for again in (thalweg.load(tmp_path / "run").detector, pickle.loads(pickle.dumps(detector))):
        np.testing.assert_array_equal(agree(again, fresh), flags)
        assert again.realised_rate() == detector.realised_rate()


def test_too_few_rows_flag_nothing_by_any_way(rows):
    detector = thalweg.EnergyDetector(random_state=0).fit(rows[:10])
    far = np.array([[1e9, 0, 0], [1e12, -1e12, 1e12]])
    assert not agree(detector, far).any()
    assert detector.realised_rate() == (0, 0, 0)


def test_parameters_set_after_fit_wait(rows, fresh):
    detector = thalweg.EnergyDetector(random_state=0).fit(rows)
    flags, rate = agree(detector, fresh), detector.realised_rate()
    detector.set_params(false_alarm_rate=0.5, missing="marginalise", kind="image", contamination=0.4)
    np.testing.assert_array_equal(agree(detector, fresh), flags)
    assert detector.realised_rate() == rate
    with pytest.raises(UserError, match="NaN"):
        detector.energy(np.full((1, 3), np.nan))
    detector.set_params(missing="raise", kind="table", contamination="auto").recalibrate(fresh[:500])
    assert agree(detector, fresh).mean() == pytest.approx(0.5, abs=0.07)


@pytest.mark.parametrize("t", [-1.0, 0.0, 3.0, 3.5, 4.0, 99.0])
def test_a_calibration_through_a_threshold(t):
    u = np.arange(-1, 101, 0.25)
    c, rate = Calibration(np.array([4.0, 0, 3, 3, 7, 9])).through(t)
    np.testing.assert_array_equal(u > t, c.p_values(u) <= rate)
    assert c.threshold(rate) == t


def test_each_row_has_a_score_gaps_among_them(rows):
    x = rows.copy()
    x[:20, 1] = np.nan
    x[0] = [np.nan, 50, np.nan]
    detector = thalweg.EnergyDetector(missing="marginalise", random_state=0).fit(x)
    assert detector.train_scores_.shape == (200,)
    assert np.isfinite(detector.train_scores_).all()
    assert detector.train_scores_[:20].argmax() == 0
    np.testing.assert_array_equal(detector.train_scores_[:20], detector.energy(x[:20]))


def test_most_rows_left_out_is_a_warning(rows, caplog):
    x = rows.copy()
    x[50:, 0] = np.nan
    with caplog.at_level(logging.WARNING, "thalweg"):
        thalweg.EnergyDetector(missing="marginalise").fit(x)
    assert "150 of 200 rows have a gap" in caplog.text


@pytest.mark.parametrize("keywords", [{}, {"calibration": "split"}, {"calibration": "split", "held_out": 0.5}])
def test_images_are_split_and_each_has_a_score(keywords, caplog):
    images = np.random.default_rng(0).random((100, 8, 8))
    with caplog.at_level(logging.WARNING, "thalweg"):
        detector = thalweg.EnergyDetector(kind="image", options=QUICK, random_state=0, **keywords).fit(images)
    assert detector.train_scores_.shape == (100,)
    assert np.isfinite(detector.train_scores_).all()
    n = {0.25: 25, 0.5: 50}[keywords.get("held_out", 0.25)] if keywords else 5
    assert len(detector.calibration_.energies) == n
    assert ("none can be flagged" in caplog.text) == (n < 19)
    agree(detector, images[:20])


def test_images_that_cannot_be_calibrated_are_refused_before_training(monkeypatch):
    monkeypatch.setattr(
        "thalweg.apps.anomaly.image.image_energy.train_in_memory", lambda *a, **k: pytest.fail("trained")
    )
    images = np.random.default_rng(0).random((100, 8, 8))
    for bad, options, part in [
        (images, {"held_out": 0.01}, "must hold out 4 images or more, not 1"),
        (images, {"held_out": "x"}, "held_out='x'"),
        (images, {"steps": 1.5}, "steps=1.5"),
        (images[:50] * 0, {}, "must be 40 images or more"),
        ("folder", {}, "path"),
    ]:
        with pytest.raises(UserError, match=part):
            thalweg.EnergyDetector(kind="image", options=options).fit(bad)
    assert ImageEnergy(held_out=0.1).num_calibrating(380) == 19


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"foo": 1}, "options"),
        ({"form": "learned"}, "options"),
        (["gap"], "options"),
        ({"num_stored": "x"}, "num_stored"),
        ({"gap": -1}, "gap"),
    ],
)
def test_wrong_options_are_told_by_name(rows, options, argument):
    with pytest.raises(UserError) as caught:
        thalweg.EnergyDetector(options=options).fit(rows)
    assert caught.value.argument == argument


def test_what_is_not_fitted_and_what_makes_no_sense(rows, tmp_path):
    with pytest.raises(NotFittedError):
        DetectorBundle(thalweg.EnergyDetector()).save_pretrained(tmp_path / "run")
    detector = thalweg.EnergyDetector(false_alarm_rate=np.float32(0.1), random_state=0).fit(rows)
    DetectorBundle(detector).save_pretrained(tmp_path / "run")
    assert thalweg.load(tmp_path / "run").detector.rate_ == detector.rate_
    for top in (-1, 0, 1.5, True):
        with pytest.raises(UserError) as caught:
            detector.explain(rows[:1], top=top)
        assert caught.value.argument == "top"
    with pytest.raises(UserError) as caught:
        detector.drift(rows, level=2)
    assert caught.value.argument == "level"
    alarm = detector.drift_alarm()
    with pytest.raises(UserError, match="finite"):
        alarm.update(np.full(50, np.nan))
    assert alarm.batches == 0
