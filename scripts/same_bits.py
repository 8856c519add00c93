"""Do short runs give the same bits as before? For changes that are meant to leave results alone.

    python scripts/same_bits.py --write before.json        before the change
    python scripts/same_bits.py --check before.json        after it: names what differs, exit code 1

Trains, samples, scores, detects, re-ranks and in-paints with fixed seeds through the command line, on one thread, and
hashes the numbers. Names of files, of parameters and of figures do not count, so that they may be changed: a stored
model is the sorted hashes of its tensors, a table the text of its numbers. Bits are compared on one machine only.
"""

import argparse
import csv
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

EXACT = ["train.precision=fp32"]


def thalweg(*words: str | Path) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "thalweg", *map(str, words)], env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"thalweg {' '.join(map(str, words))}\n{done.stderr}")


def of_arrays(*arrays: np.ndarray) -> str:
    each = sorted(hashlib.sha256(np.ascontiguousarray(a).tobytes()).hexdigest() for a in arrays)
    return hashlib.sha256("".join(each).encode()).hexdigest()[:16]


def of_run(run: Path) -> dict[str, str]:
    """The hash of each stored file of tensors, and of the logged figures without the times."""
    found = {f"tensors of {p.parent.name}/{i}": of_arrays(*load_file(p).values()) for i, p in enumerate(_models(run))}
    log = run / "metrics.jsonl"
    if log.exists():
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        values = [sorted(repr(v) for k, v in row.items() if k != "seconds") for row in rows]
        found["figures"] = hashlib.sha256(repr(values).encode()).hexdigest()[:16]
    return found


def _models(run: Path) -> list[Path]:
    return sorted(run.glob("*.safetensors"), key=lambda p: (p.stat().st_size, p.name))


def of_table(path: Path) -> str:
    """The numbers of a CSV, by column in any order."""
    rows = list(csv.reader(path.open()))
    columns = sorted(",".join(column[1:]) for column in zip(*rows, strict=True))
    return hashlib.sha256("\n".join(columns).encode()).hexdigest()[:16]


def runs(folder: Path) -> dict[str, dict[str, str]]:
    rng = np.random.default_rng(0)
    found: dict[str, dict[str, str]] = {}

    def train(name: str, data: str, *words: str) -> Path:
        thalweg("train", data, *words, *EXACT, "-o", folder / name, "--no-report", "--seed", "3")
        found[name] = of_run(folder / name)
        thalweg("sample", folder / name, "-n", "6", "--num-steps", "4", "--npy", folder / f"{name}.npy")
        found[name]["samples"] = of_arrays(np.load(folder / f"{name}.npy"))
        return folder / name

    dual = train("dual", "mnist", "--steps", "8")
    train("pcd", "mnist", "--recipe", "pcd", "--steps", "6")
    jem = train("jem", "mnist", "--recipe", "jem", "--steps", "4", "train.batch_size=32", "objective.rows=16")
    train("toy2d", "two-moons", "--recipe", "toy2d", "--steps", "60")
    train("rows", "checkerboard", "--steps", "60")

    digits = np.load(folder / "dual.npy")
    np.save(folder / "digits.npy", np.concatenate([digits, rng.random((6, 1, 28, 28), np.float32)]))
    for name, run in (("dual", dual), ("jem", jem)):
        thalweg("score", run, folder / "digits.npy", "-o", folder / "s.csv")
        found[name]["scores"] = of_table(folder / "s.csv")
    thalweg("classify", jem, folder / "digits.npy", "-o", folder / "c.csv")
    found["jem"]["classes"] = of_table(folder / "c.csv")
    for mask in ("right-half", "random:0.6"):
        thalweg("inpaint", dual, "--image", folder / "digits.npy", "--mask", mask, "-n", "3", "-o", folder / "in.npy")
        found["dual"][f"completions {mask}"] = of_arrays(np.load(folder / "in.npy"))

    x = rng.normal(size=(600, 4))
    x[:, 3] = x[:, 0] * x[:, 1] + 0.1 * x[:, 3]
    kinds = rng.choice(["on", "off", "idle"], 600)
    head = "a,b,c,d,state\n"
    lines = [",".join([*(repr(float(v)) for v in row), kind]) for row, kind in zip(x, kinds, strict=True)]
    (folder / "normal.csv").write_text(head + "\n".join(lines[:500]) + "\n")
    (folder / "new.csv").write_text(head + "\n".join(lines[500:]) + "\n1,2,8,9,on\n")
    thalweg("detect", "fit", folder / "normal.csv", "-o", folder / "detector")
    found["detector"] = of_run(folder / "detector")
    thalweg("detect", "score", folder / "detector", folder / "new.csv", "-o", folder / "d.csv")
    found["detector"]["scores"] = of_table(folder / "d.csv")

    real, generated = rng.normal(size=(600, 3)), rng.normal(size=(600, 3)) * 1.4 + 0.3
    np.save(folder / "real.npy", real.astype(np.float32))
    np.save(folder / "generated.npy", generated.astype(np.float32))
    thalweg("rerank", "fit", folder / "real.npy", folder / "generated.npy", "-o", folder / "judge", "--steps", "80")
    found["judge"] = of_run(folder / "judge")
    for name, words in (("ranking", ["--force"]), ("choice", [])):  # by energy alone, and as strictly as was checked
        again = ["rerank", folder / "judge", folder / "generated.npy", "--keep", "50", "--table", folder / "r.csv"]
        thalweg(*again, *words)
        found["judge"][name] = of_table(folder / "r.csv")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path)
    parser.add_argument("--check", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = runs(Path(folder))
    if asked.write:
        asked.write.write_text(json.dumps(found, indent=1))
    if asked.check:
        before = json.loads(asked.check.read_text())
        pairs = {(name, what) for tree in (before, found) for name in tree for what in tree[name]}
        other = [f"{n}: {w}" for n, w in sorted(pairs) if before.get(n, {}).get(w) != found.get(n, {}).get(w)]
        print("\n".join(other) or f"the same bits: {len(pairs)} of {len(pairs)}")
        sys.exit(bool(other))


if __name__ == "__main__":
    main()
