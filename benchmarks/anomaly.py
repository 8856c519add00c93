"""Detectors of anomalies side by side on a folder of tables (npz with X (N, D) and y (N,), 1 = anomaly).

    python benchmarks/anomaly.py DATA -o OUT [--protocol semisup|unsup] [--seeds 0,1,2] [--peers ROWS.csv]

semisup: fit on a random half of the normal rows, score the rest and all anomalies. unsup: fit on all rows without
labels, score the same rows. Rows beyond --limit are drawn by the seed, anomalies in proportion, 30 of them or more.
Columns are standardised by the fitted rows. `chance` scores at random, `1-NN` by the distance to the nearest other row.
PyOD's detectors run where PyOD is installed, of sets that are all fitted by their `decision_scores_`. OUT has rows.csv
and rank.png, a critical-difference diagram.
"""

import argparse
import importlib
import os
import random
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import studentized_range, wilcoxon
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neighbors import NearestNeighbors

from thalweg.apps.anomaly.tabular.tabular_energy import TabularEnergy

PYOD = {"KNN": "knn", "LOF": "lof", "IForest": "iforest", "GMM": "gmm", "MCD": "mcd", "CBLOF": "cblof", "HBOS": "hbos"}
PYOD |= {
    "OCSVM": "ocsvm",
    "INNE": "inne",
    "ECOD": "ecod",
    "COPOD": "copod",
    "LUNAR": "lunar",
    "AutoEncoder": "auto_encoder",
}
TIE = 0.005  # AUROC; closer than this is a tie
DRAWS = 4000


def ours(train, test, seed):
    """The energy; what it says of its own rows where nothing else is scored."""
    model = TabularEnergy().fit(train, seed=seed)
    return model.train_outlier_scores_ if test is None else model.energy(test)


def chance(train, test, seed):
    return np.random.default_rng(seed).random(len(train if test is None else test))


def nearest(train, test, seed):
    return NearestNeighbors(n_neighbors=1).fit(train).kneighbors(test)[0][:, 0]


def of_pyod(name):
    """PyOD's detector of that name at its defaults, or None."""
    try:
        kind = getattr(importlib.import_module(f"pyod.models.{PYOD[name]}"), name)
    except ImportError:
        return None

    def score(train, test, seed):
        seeded = "random_state" in kind.__init__.__code__.co_varnames
        model = kind(random_state=seed) if seeded else kind()
        model.fit(train)
        return model.decision_scores_ if test is None else model.decision_function(test)

    return score


def drawn(y, seed, limit):
    """The numbers of `limit` rows, rising, anomalies in proportion, but 30 of them or all that there are."""
    if len(y) <= limit:
        return np.arange(len(y))
    draw, odd, normal = np.random.default_rng([seed, 1]), np.flatnonzero(y == 1), np.flatnonzero(y == 0)
    num = min(len(odd), max(round(limit * len(odd) / len(y)), 30))
    return np.sort(np.r_[draw.choice(odd, num, replace=False), draw.choice(normal, limit - num, replace=False)])


def rows_of(path, protocol, seed, limit):
    """(fitted rows, rows to score or None for the same, their labels)."""
    with np.load(path, allow_pickle=False) as file:
        x, y = file["X"].astype(np.float64), file["y"].astype(int).ravel()
    kept = drawn(y, seed, limit)
    x, y, draw = x[kept], y[kept], np.random.default_rng([seed, 2])
    if protocol == "semisup":
        normal = draw.permutation(np.flatnonzero(y == 0))
        fitted, rest = np.split(normal, [(len(normal) + 1) // 2])
        scored = draw.permutation(np.r_[rest, np.flatnonzero(y == 1)])
    else:
        fitted = scored = draw.permutation(len(y))
    mean, sd = x[fitted].mean(0), x[fitted].std(0)
    x = (x - mean) / np.where(sd < 1e-12, 1.0, sd)
    return x[fitted], x[scored] if protocol == "semisup" else None, y[scored]


def measure(paths, protocol, seeds, limit, detectors):
    """One row for each table, seed and detector: AUROC, AUPR, CPU seconds."""
    for path in paths:
        for seed in seeds:
            train, test, y = rows_of(path, protocol, seed, limit)
            for name, detector in detectors.items():
                random.seed(seed)
                np.random.seed(seed)  # noqa: NPY002 — what detectors without a seed of their own draw from
                torch.manual_seed(seed)
                began = time.process_time()
                try:
                    score = finite(np.asarray(detector(train, test, seed), float))
                except Exception as error:
                    print(f"{path.stem}: {name} failed, and counts as last: {error}", file=sys.stderr)
                    continue
                seconds = time.process_time() - began
                figures = {"auroc": roc_auc_score(y, score), "aupr": average_precision_score(y, score)}
                yield {"dataset": path.stem, "detector": name, "seed": seed, **figures, "cpu_s": seconds}


def finite(score):
    """Scores with what is not finite at the ends of what is, so that it counts against the detector."""
    there = score[np.isfinite(score)]
    low, high = (there.min(), there.max()) if len(there) else (0.0, 0.0)
    return np.nan_to_num(score, nan=low, posinf=high, neginf=low)


def summary(table, aupr, seconds):
    """Mean figures of each detector; a table where one failed counts as its last place."""
    return pd.DataFrame(
        {
            "AUROC": table.mean(),
            "AUPR": aupr.mean(),
            "rank": table.fillna(-1).rank(axis=1, ascending=False).mean(),
            "median_s": seconds.median(),
        }
    ).sort_values("rank")


def duels(table):
    """Ours minus each other: bootstrap 95 % interval over tables, wins, ties, losses, Holm-corrected Wilcoxon test."""
    draw, out = np.random.default_rng(0), []
    for name in table.columns.drop("ours"):
        gap = (table["ours"] - table[name]).dropna().to_numpy()
        low, high = np.quantile(gap[draw.integers(0, len(gap), (DRAWS, len(gap)))].mean(1), [0.025, 0.975])
        counts = {"wins": (gap > TIE).sum(), "ties": (abs(gap) <= TIE).sum(), "losses": (gap < -TIE).sum()}
        p = wilcoxon(gap).pvalue if gap.any() else 1.0
        out.append({"peer": name, "gap": gap.mean(), "low": low, "high": high, **counts, "p": p})
    frame = pd.DataFrame(out).sort_values("p").set_index("peer")
    frame["p_holm"] = np.minimum(1, np.maximum.accumulate(frame.p.to_numpy() * np.arange(len(frame), 0, -1)))
    return frame


def diagram(table, path):
    """Mean ranks on a line, with Nemenyi's critical difference at 5 % (Demšar 2006)."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    ranks = table.fillna(-1).rank(axis=1, ascending=False).mean().sort_values()
    n, k = table.shape
    critical = studentized_range.ppf(0.95, k, np.inf) / np.sqrt(2) * np.sqrt(k * (k + 1) / (6 * n))
    figure, axes = plt.subplots(figsize=(7, 0.3 * k + 1.2), layout="constrained")
    axes.scatter(ranks, range(k), color=["tab:red" if name == "ours" else "tab:blue" for name in ranks.index])
    axes.plot([ranks.iloc[0], ranks.iloc[0] + critical], [-0.8, -0.8], color="black")
    axes.text(ranks.iloc[0], -1.0, f"critical difference {critical:.1f}", va="bottom", fontsize=8)
    axes.set_yticks(range(k), ranks.index)
    axes.set_ylim(k - 0.4, -2)
    axes.set_xlabel(f"mean rank by AUROC, {n} tables (1 = best)")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", default=os.environ.get("ADBENCH_DATA"))
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--protocol", choices=["semisup", "unsup"], default="semisup")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--limit", type=int, default=10_000)
    parser.add_argument("--peers", type=Path, help="rows of other detectors measured before, on the same splits")
    parser.add_argument("--pyod", nargs="*", choices=PYOD, default=list(PYOD), help="PyOD's detectors to run; all")
    parser.add_argument("--tables", nargs="*", help="names of tables to use; all")
    a = parser.parse_args()
    if a.data is None or not any(Path(a.data).glob("*.npz")):
        parser.error("no folder of .npz tables: name one, or set ADBENCH_DATA")
    detectors = {"ours": ours, "1-NN": nearest, "chance": chance}
    detectors |= {name: found for name in a.pyod if (found := of_pyod(name)) is not None}
    seeds = [int(s) for s in a.seeds.split(",")]
    a.out.mkdir(parents=True, exist_ok=True)
    paths = [path for path in sorted(Path(a.data).glob("*.npz")) if not a.tables or path.stem in a.tables]
    rows = pd.DataFrame(measure(paths, a.protocol, seeds, a.limit, detectors))
    if a.peers:
        earlier = pd.read_csv(a.peers)
        rows = pd.concat([rows, earlier[~earlier.detector.isin(detectors)]], join="inner")
    rows.to_csv(a.out / "rows.csv", index=False)
    table, aupr, seconds = (
        rows.pivot_table(index="dataset", columns="detector", values=v) for v in ("auroc", "aupr", "cpu_s")
    )
    print(summary(table, aupr, seconds).round(3).to_string(), "\n\nours minus peer, AUROC:")
    print(duels(table).round(4).to_string(), "\n")
    print(table.round(3).to_string())
    diagram(table, a.out / "rank.png")


if __name__ == "__main__":
    main()
