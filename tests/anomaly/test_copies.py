"""Copied rows count once in every part; rows that are equal because values are few are no copies."""

import logging

import numpy as np
import pandas as pd
import pytest

import thalweg
from thalweg.apps.anomaly.detector import EnergyDetector
from thalweg.apps.anomaly.duplicates import copied_rows as module
from thalweg.apps.anomaly.duplicates.copied_rows import Copies, find_copies, find_image_copies
from thalweg.apps.anomaly.saved import DetectorBundle

QUICK = {"steps": 2, "overrides": ["energy.widths=[64,32]", "train.batch_size=64"]}

COPYING = {
    "each twice": lambda x, r: np.r_[x, x],
    "each ten times": lambda x, r: np.repeat(x, 10, axis=0),
    "two thirds twice": lambda x, r: np.r_[x, x[: 2 * len(x) // 3]],
    "drawn with replacement": lambda x, r: np.r_[x, x[r.integers(0, len(x), 2 * len(x))]],
    "rounded beside": lambda x, r: np.r_[x, x.round(1)],
    "measured three times": lambda x, r: np.r_[x, x + 0.003 * r.normal(size=x.shape), x - 0.003],
}
LAWS = {
    "normal": lambda r, n: r.normal(size=(n, 4)),
    "rounded": lambda r, n: r.normal(size=(n, 2)).round(1),
    "heavy tails": lambda r, n: r.standard_t(2, (n, 3)),
    "one curve": lambda r, n: np.c_[t := r.normal(size=n), 2 * t, t**2],
    "one column": lambda r, n: r.normal(size=(n, 1)),
    "a walk": lambda r, n: r.normal(size=(n, 3)).cumsum(0),
    "tight clusters": lambda r, n: 0.01 * r.normal(size=(n, 3)) + r.integers(0, 3, (n, 3)),
    "zeros and numbers": lambda r, n: np.where(r.random((n, 3)) < 0.6, 0, r.lognormal(size=(n, 3))),
    "counts": lambda r, n: r.poisson(2, (n, 3)).astype(float),
    "counts and their sum": lambda r, n: np.c_[a := r.poisson(2, (n, 2)), a.sum(1)].astype(float),
    "levels": lambda r, n: r.integers(0, 3, (n, 4)).astype(float),
    "statuses": lambda r, n: r.choice([200.0, 301.0, 404.0, 503.0], (n, 1), p=[0.7, 0.2, 0.07, 0.03]),
    "indicators": lambda r, n: np.c_[np.eye(4)[r.integers(0, 4, n)], np.eye(3)[r.choice(3, n, p=[0.8, 0.1, 0.1])]],
    "rare events": lambda r, n: np.where(r.random((n, 5)) < 0.95, 0, r.poisson(3, (n, 5))).astype(float),
    "all alike": lambda r, n: np.full((n, 2), 3.0),
}


@pytest.mark.parametrize("law", LAWS)
def test_what_repeats_by_nature_is_not_taken_for_copies(law):
    for n in (30, 60, 200, 500):
        for seed in range(3):
            rows = LAWS[law](np.random.default_rng([n, seed]), n)
            assert find_copies(rows).num == 0, (n, seed)


@pytest.mark.parametrize("copying", COPYING)
@pytest.mark.parametrize("law", ["normal", "heavy tails"])
def test_copies_are_found(copying, law):
    """Nearly all rows of the table before copying stay, and nearly none besides."""
    random = np.random.default_rng(1)
    copied = COPYING[copying](LAWS[law](random, 200), random)
    found = find_copies(copied)
    assert abs(len(found.kept) - 200) <= (2 if "twice" in copying or "ten" in copying else 20)
    np.testing.assert_array_equal(found.counted_by[found.kept], np.arange(len(found.kept)))
    gaps = np.abs(copied - copied[found.kept][found.counted_by])
    assert np.median(gaps.max(1)) <= 0.06


def test_copies_are_found_beside_what_repeats_by_nature():
    """Rows of zeros stay, many as they are, where other rows were copied."""
    rows = LAWS["zeros and numbers"](np.random.default_rng(1), 200)
    zeros = (rows == 0).all(1).sum()
    kept = np.r_[rows, rows[:120]][find_copies(np.r_[rows, rows[:120]]).kept]
    assert (kept == 0).all(1).sum() >= zeros
    assert ((kept == 0).sum(1) == 0).sum() == ((rows == 0).sum(1) == 0).sum()


@pytest.mark.parametrize("law", ["levels", "counts", "indicators"])
def test_a_whole_table_of_few_values_that_is_repeated_keeps_what_repeated_before(law):
    rows = LAWS[law](np.random.default_rng(0), 200)
    if law == "indicators":  # 12 kinds of rows: their numbers may be even by chance
        rows = np.c_[rows, LAWS["levels"](np.random.default_rng(1), 200)]
    np.testing.assert_array_equal(find_copies(np.r_[rows, rows]).kept, np.arange(200))


def test_texts_repeat_by_nature():
    """A column of texts that tells the rows apart alone, and columns that follow from it; numbers so are copies."""
    random = np.random.default_rng(0)
    place = random.choice(25, 300, p=np.arange(25, 0, -1) / 325)
    frame = pd.DataFrame({"place": place.astype(str), "region": (place % 3).astype(str)})
    detector = EnergyDetector(random_state=0).fit(frame)
    assert len(detector.calibration_.energies) == 300
    table = random.normal(size=(25, 3))[place]
    assert len(find_copies(table).kept) == 25


@pytest.fixture
def rows():
    return np.random.default_rng(0).normal(size=(120, 6))


@pytest.mark.parametrize("keywords", [{}, {"calibration": "split"}, {"missing": "marginalise"}, {"contamination": 0.1}])
@pytest.mark.parametrize("copying", ["each twice", "each ten times", "two thirds twice"])
def test_a_copied_table_gives_the_detector_of_the_table(rows, keywords, copying, caplog):
    """Leave-one-out, folds, neighbours, mixtures, split and threshold, bit for bit; each given row has its score."""
    copied = COPYING[copying](rows, None)
    once = EnergyDetector(random_state=0, **keywords).fit(rows)
    with caplog.at_level(logging.WARNING, "thalweg"):
        found = EnergyDetector(random_state=0, **keywords).fit(copied)
    assert f"{len(copied) - 120} of {len(copied)} rows are copies" in caplog.text
    new = np.random.default_rng(1).normal(size=(50, 6))
    np.testing.assert_array_equal(found.energy(new), once.energy(new))
    np.testing.assert_array_equal(found.calibration_.energies, once.calibration_.energies)
    assert found.offset_ == once.offset_
    assert found.train_scores_.shape == (len(copied),)
    places = {row.tobytes(): i for i, row in enumerate(rows)}
    wanted = once.train_scores_[[places[row.tobytes()] for row in copied]]
    np.testing.assert_array_equal(found.train_scores_, wanted)


def test_recalibration_counts_copies_once(rows):
    new = np.random.default_rng(1).normal(size=(60, 6))
    once, twice = (EnergyDetector(random_state=0).fit(rows).recalibrate(x) for x in (new, np.r_[new, new]))
    np.testing.assert_array_equal(twice.calibration_.energies, once.calibration_.energies)


@pytest.mark.parametrize("copying", COPYING)
def test_the_false_alarm_rate_holds_on_copied_rows(copying, monkeypatch):
    """Six tables of 60 rows of 8 columns, copied: at most 5 % of new rows are flagged, within 3 of the mean's errors,
    and not almost none. The mutant, which leaves one row out only, flags more by 3 of its errors.
    """

    def share(number):
        random = np.random.default_rng([3, number])
        copied = COPYING[copying](random.normal(size=(60, 8)), random)
        detector = EnergyDetector(random_state=number).fit(copied)
        return (detector.predict(random.normal(size=(400, 8))) == -1).mean()

    def least(shares):
        return np.mean(shares) - 3 * np.std(shares, ddof=1) / len(shares) ** 0.5

    found = [share(i) for i in range(6)]
    monkeypatch.setattr(module, "find_copies", lambda x, _: Copies(np.arange(len(x)), np.arange(len(x))))
    mutant = [share(i) for i in range(6)]
    assert least(found) <= 0.05 < least(mutant)
    assert np.mean(found) > 0.01


@pytest.mark.parametrize("law", ["rounded", "zeros and numbers", "counts", "levels", "indicators"])
def test_the_false_alarm_rate_holds_where_values_repeat(law):
    shares = []
    for i in range(6):
        random = np.random.default_rng([4, i])
        detector = EnergyDetector(random_state=i).fit(LAWS[law](random, 120))
        shares.append((detector.predict(LAWS[law](random, 400)) == -1).mean())
    assert np.mean(shares) - 3 * np.std(shares, ddof=1) / len(shares) ** 0.5 <= 0.05


@pytest.mark.parametrize("n", [120, 1100])
def test_the_energy_of_a_row_does_not_depend_on_the_others_where_rows_are_equal(n):
    """Equal rows tie however sums are ordered: alone, in a small batch, in a large one."""
    random = np.random.default_rng(0)
    detector = EnergyDetector(random_state=0).fit(LAWS["levels"](random, n))
    new = LAWS["levels"](random, 200)
    u = detector.energy(new)
    np.testing.assert_allclose([detector.energy(row[None])[0] for row in new[:40]], u[:40], atol=1e-4)
    np.testing.assert_allclose(detector.energy(new[:7]), u[:7], atol=1e-4)


def test_copied_images_count_once():
    """Equal images, images in other types, and images rounded to a tenth beside themselves."""
    random = np.random.default_rng(0)
    images = random.random((60, 8, 8))
    for copied in (np.r_[images, images], np.r_[images, np.rint(255 * images) / 255], np.r_[images, images.round(1)]):
        np.testing.assert_array_equal(find_image_copies(copied).kept, np.arange(60))
    assert find_image_copies(np.rint(255 * images).astype(np.uint8)).num == 0
    once, twice = (
        EnergyDetector(kind="image", options=QUICK, random_state=0).fit(x) for x in (images, np.r_[images, images])
    )
    np.testing.assert_array_equal(twice.calibration_.energies, once.calibration_.energies)
    np.testing.assert_array_equal(twice.train_scores_, np.r_[once.train_scores_, once.train_scores_])


@pytest.mark.parametrize("copying", ["as it is", "each twice"])
def test_a_stored_detector_knows_of_equal_rows(copying, tmp_path):
    random = np.random.default_rng(0)
    rows = (
        LAWS["levels"](random, 100) if copying == "as it is" else COPYING[copying](random.normal(size=(100, 3)), random)
    )
    found = EnergyDetector(random_state=0).fit(rows)
    DetectorBundle(found).save_pretrained(tmp_path / "run")
    again, new = thalweg.load(tmp_path / "run").detector, LAWS["levels"](random, 50)[:, : rows.shape[1]]
    np.testing.assert_array_equal(again.energy(new), found.energy(new))
    assert again.drift(new) == found.drift(new)
    assert again.realised_rate() == found.realised_rate()
    assert again.recalibrate(new).calibration_.left_out is None
