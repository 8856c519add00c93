"""Promised against realised false-alarm rates of `EnergyDetector`, over simulated sets.

    python benchmarks/rates.py [--sets 1000] [--shapes | --copies]

Each set is fitted anew and asked about one fresh normal row, so that flags are independent and their number is
binomial. `narrow` has 4 skewed columns, one with heavy tails and one of few values; `wide` 24 dependent ones.
99 energies calibrate each set: of the fitted rows as if left out ("unseen"), or of rows held out ("split"). The row
`seen` is the mistake that this guards against: thresholds from the energies of rows that the energy was fitted on.

`--shapes` fits tables of many shapes instead, by the default, and asks each about 400 fresh rows: the mean share that
is flagged with its standard error over sets, beside the share that n rows can promise, floor(a (n + 1)) / (n + 1).

`--copies` copies rows of tables of 300 in several ways, some of values that repeat, and asks each about 1,000 fresh
rows; beside it the same with copies left in the table, so that a row is left out alone.
"""

import argparse
import logging

import numpy as np
from scipy import stats

from thalweg.apps.anomaly.calibration import Calibration
from thalweg.apps.anomaly.detector import EnergyDetector
from thalweg.apps.anomaly.duplicates import copied_rows as module
from thalweg.apps.anomaly.duplicates.copied_rows import Copies

CALIBRATED = 99
SHAPES = ((100, 5), (500, 20), (100, 50), (100, 300), (50, 100))
RATES = (0.05, 0.01)


def narrow(random, n):
    e = random.exponential(size=(n, 3))
    return np.column_stack([e[:, 0], e[:, 0] + 0.3 * e[:, 1], random.standard_t(4, n), np.floor(2 * e[:, 2])])


def wide(random, n):
    return np.expm1(random.normal(size=(n, 4)) @ np.cos(np.arange(96)).reshape(4, 24)) + random.normal(size=(n, 24))


def normal(random, n, d):
    return random.normal(size=(n, d))


def together(random, n, d):
    k = max(1, d // 6)
    return random.normal(size=(n, k)) @ np.cos(np.arange(k * d)).reshape(k, d) + 0.5 * random.normal(size=(n, d))


def exponential(random, n, d):
    return random.exponential(size=(n, d))


def flagged(law, n, d, number):
    """Shares of 400 fresh rows that are flagged at each rate, and those promised, (2, rates)."""
    random = np.random.default_rng([5, n, d, number])
    rows, fresh = law(random, n, d), law(random, 400, d)
    fitted = EnergyDetector(calibration="unseen", random_state=number).fit(rows)
    p = fitted.p_values(fresh)
    return [[(p <= rate).mean() for rate in RATES], [fitted.calibration_.rate(rate).expected for rate in RATES]]


def shapes(sets: int) -> None:
    """The table of `--shapes`."""
    print("| law | rows x columns |" + "".join(f" {rate:.0%} | promised |" for rate in RATES))
    print("|---|---|" + "---|---|" * len(RATES))
    for law in (normal, together, exponential):
        for n, d in SHAPES:
            found = np.array([flagged(law, n, d, number) for number in range(sets)])
            mean, error = found.mean(0), found[:, 0].std(0, ddof=1) / sets**0.5
            cells = [f" {m:.2%} ± {e:.2%} | {p:.2%} |" for m, e, p in zip(mean[0], error, mean[1], strict=True)]
            print(f"| {law.__name__} | {n} x {d} |{''.join(cells)}", flush=True)


VALUES = {
    "normal": lambda random, n: random.normal(size=(n, 4)),
    "normal, one decimal": lambda random, n: random.normal(size=(n, 4)).round(1),
    "60 % zeros": lambda random, n: np.where(random.random((n, 3)) < 0.6, 0, random.lognormal(size=(n, 3))),
    "4 texts": lambda random, n: np.concatenate(
        [np.eye(k)[random.choice(k, n, p=np.arange(k, 0, -1) / (k * (k + 1) / 2))] for k in (3, 4, 2, 5)], axis=1
    ),
    "counts": lambda random, n: random.poisson(2, (n, 3)).astype(float),
}
COPYING = {
    "each once": lambda x, random: x,
    "each twice": lambda x, random: np.r_[x, x],
    "30 of them ten times": lambda x, random: np.repeat(x[:30], 10, axis=0),
    "three in ten twice": lambda x, random: np.r_[x, x[random.random(len(x)) < 0.3]],
    "drawn with replacement": lambda x, random: x[random.integers(0, len(x), len(x))],
    "rounded to a tenth beside": lambda x, random: np.r_[x, x.round(1)],
}


def copies(sets: int) -> None:
    """The table of `--copies`."""
    print("| law | rows | 5 % | 1 % | one row left out, 5 % |\n|---|---|---|---|---|")
    found = module.find_copies
    logging.getLogger("thalweg").setLevel(logging.ERROR)
    for law, draw in VALUES.items():
        for way, copy in COPYING.items():
            shares = []
            for number in range(sets):
                random = np.random.default_rng([12, number])
                rows, fresh = copy(draw(random, 300), random), draw(random, 1000)
                p = EnergyDetector(random_state=number).fit(rows).p_values(fresh)
                module.find_copies = lambda x, _: Copies(np.arange(len(x)), np.arange(len(x)))
                mutant = EnergyDetector(random_state=number).fit(rows).p_values(fresh)
                module.find_copies = found
                shares.append([(p <= 0.05).mean(), (p <= 0.01).mean(), (mutant <= 0.05).mean()])
            mean, error = np.mean(shares, axis=0), np.std(shares, axis=0, ddof=1) / sets**0.5
            cells = "".join(f" {m:.1%} ± {e:.1%} |" for m, e in zip(mean, error, strict=True))
            print(f"| {law} | {way} |{cells}", flush=True)


def p_values(law, number):
    """Of one fresh row, by the way of calibrating."""
    random = np.random.default_rng([11, number])
    rows, fresh, more = law(random, CALIBRATED), law(random, 1), law(random, 33)
    unseen = EnergyDetector(calibration="unseen", random_state=number).fit(rows)
    split = EnergyDetector(calibration="split", held_out=CALIBRATED / 132, random_state=number)
    split.fit(np.r_[rows, more])
    seen = Calibration(unseen.energy_.energy(rows)).p_values(unseen.energy(fresh))
    return {"unseen": unseen.p_values(fresh)[0], "split": split.p_values(fresh)[0], "seen": seen[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=1000)
    parser.add_argument("--shapes", action="store_true", help="many shapes of tables, by the default calibration")
    parser.add_argument("--copies", action="store_true", help="tables whose rows were copied, or whose values repeat")
    given = parser.parse_args()
    if given.shapes:
        return shapes(given.sets)
    if given.copies:
        return copies(given.sets)
    sets = given.sets
    bands = {rate: stats.binom.ppf([0.005, 0.995], sets, rate) / sets for rate in RATES}
    print(
        "| sets | calibration |" + "".join(f" {rate:.0%}, band {b[0]:.2%} to {b[1]:.2%} |" for rate, b in bands.items())
    )
    print("|---|---|" + "---|" * len(RATES))
    for law in (narrow, wide):
        found = [p_values(law, number) for number in range(sets)]
        for name in found[0]:
            p = np.array([f[name] for f in found])
            rates = [(rate, (p <= rate).mean()) for rate in RATES]
            cells = [f" {r:.2%}{'' if bands[rate][0] <= r <= bands[rate][1] else ' (outside)'} |" for rate, r in rates]
            print(f"| {law.__name__} | {name} |{''.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
