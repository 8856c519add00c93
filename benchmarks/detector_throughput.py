"""How fast the detector of tables scores, beside an earlier version of the package: rows a second, nats lost, AUROC.

    git worktree add /tmp/before REVISION
    python benchmarks/detector_throughput.py --before /tmp/before/src [--cases tanh-20,clusters-8] [--stored 5000,50000]

Each version fits and scores in a process of its own, on one thread, with the same generated rows; the two take turns,
so that what else the machine does meets both. A figure is the median over the rounds of the processor's time, and the
ratio that of these medians. `nats lost`: mean of the kernels' energies over the exact sums, on 6,000 new rows at most,
as a few rows lose most; "at most" is the worst row of one kernel. `AUROC`: of 2,000 new rows and 200 anomalies, rows
whose numbers come from two rows (`isotropic`: rows times 1.3).

Cases, with a number of columns: `tanh` (six hidden numbers, curved, with noise), `clusters` (twelve, of three
dimensions, with little noise: easy) and `isotropic` (normal: hard, as each sum has many terms).
"""

import argparse
import json
import os
import subprocess
import sys
import time

import numpy as np

CASES = "tanh-20,clusters-8,clusters-32,isotropic-8,isotropic-32"


def table(case, n, seed):
    kind, columns = case.split("-")
    d, draw, law = int(columns), np.random.default_rng([1, seed]), np.random.default_rng(0)
    if kind == "tanh":
        mix = law.normal(size=(6, d))
        return np.tanh(draw.normal(size=(n, 6)) @ mix) + 0.3 * draw.normal(size=(n, d))
    if kind == "clusters":
        centers, shapes, which = 4 * law.normal(size=(12, d)), law.normal(size=(12, 3, d)), draw.integers(0, 12, n)
        inside = np.einsum("nk,nkd->nd", draw.normal(size=(n, 3)), shapes[which])
        return centers[which] + inside + 0.1 * draw.normal(size=(n, d))
    return draw.normal(size=(n, d))


def anomalies(case, n):
    first, second = table(case, n, 2), table(case, n, 3)
    mask = np.random.default_rng(4).random(first.shape) < 0.5
    return 1.3 * first if case.startswith("isotropic") else np.where(mask, first, second)


def lost(detector, x):
    """Nats that the kernels' energies of x lie above the exact sums: signed and absolute means, and the most."""
    import torch

    from thalweg.energy.density.kde import KernelDensityEnergy

    energy, gaps = detector.energy_, []
    for name, kernel in energy.kernels_.items():
        rows, y = (torch.from_numpy(energy.scalings_[name](part)) for part in (energy.rows_, x))
        gaps.append((kernel(y) - KernelDensityEnergy(rows, t=kernel.t)(y)).numpy())
    return float(np.mean(gaps)), float(np.abs(gaps).mean()), float(np.max(gaps))


def work():
    """A process of one version: answers lines of JSON on its standard input."""
    import torch
    from sklearn.metrics import roc_auc_score

    from thalweg import EnergyDetector

    torch.set_num_threads(1)
    answer = sys.stdout
    for line in sys.stdin:
        asked = json.loads(line)
        case, start = asked["case"], time.process_time()
        if asked["do"] == "fit":
            detector = EnergyDetector(random_state=0, device="cpu").fit(table(case, asked["stored"], 0))
            x, out = table(case, asked["rows"], 1), {"fit": time.process_time() - start}
            detector.energy(x[:2000])
            some = np.concatenate([table(case, 2000, 5), anomalies(case, 200)])
            out["auroc"] = roc_auc_score(np.arange(2200) >= 2000, detector.energy(some))
            out["lost"], out["lost_absolute"], out["most"] = lost(detector, x[:6000])
            kernels = detector.energy_.kernels_.values()
            out["search"] = [list(kernel.search) for kernel in kernels]
        else:
            detector.energy(x)
            out = {"seconds": time.process_time() - start}
        answer.write(json.dumps(out) + "\n")
        answer.flush()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", help="the src folder of another revision; none: this one alone")
    parser.add_argument("--cases", default=CASES)
    parser.add_argument("--stored", default="5000,50000")
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.work:
        return work()
    here = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "src")
    paths = ({"before": a.before} if a.before else {}) | {"now": here}
    for stored in map(int, a.stored.split(",")):
        for case in a.cases.split(","):
            measured(paths, {"case": case, "stored": stored, "rows": a.rows}, a.rounds)


def measured(paths, asked, rounds):
    """Print the rows of one case."""
    command = [sys.executable, os.path.abspath(__file__), "--work"]
    one = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    made = {
        name: subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | one | {"PYTHONPATH": path},
        )
        for name, path in paths.items()
    }

    def ask(name, do):
        made[name].stdin.write(json.dumps(asked | {"do": do}) + "\n")
        made[name].stdin.flush()
        return json.loads(made[name].stdout.readline())

    fits = {name: ask(name, "fit") for name in made}
    times = {name: [] for name in made}
    for _ in range(rounds):
        for name in made:
            times[name].append(ask(name, "score")["seconds"])
    for process in made.values():
        process.stdin.close()
        process.wait()
    rates = {name: asked["rows"] / np.median(t) for name, t in times.items()}
    for name, fit in fits.items():
        pairs = " ".join(f"{int(s[0])}+{s[3]:.1%}" for s in fit["search"])
        print(
            f"{asked['stored']} {asked['case']} {name}: {rates[name]:,.0f} rows/s "
            f"({rates[name] / rates[next(iter(rates))]:.2f}x; best {asked['rows'] / min(times[name]):,.0f}), "
            f"{fit['lost']:.4f} nats lost ({fit['lost_absolute']:.4f} absolute, "
            f"{fit['most']:.2f} at most), AUROC {fit['auroc']:.4f}, fit {fit['fit']:.1f} s, candidates {pairs}",
            flush=True,
        )


if __name__ == "__main__":
    main()
