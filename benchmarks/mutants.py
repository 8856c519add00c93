"""Plants faults in the package, one at a time, and counts those that the tests reject.

    python benchmarks/mutants.py [--only PART_OR_NAME …] [--workers 2] [--json]

Each `[[mutant]]` of benchmarks/mutants/*.toml replaces one piece of source, `old`, which occurs once in `file` (below
src/thalweg), by `new`, in a copy of src. `tests` are run on the copy and must fail; on the source as it is they must
pass, which is seen first. `reason` says why a fault survives, where one does. Exit code 1 where fewer than 95 % are
rejected, a test fails without a fault, or a fault cannot be planted.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
REJECTED, SURVIVED = "rejected", "survived"
PASSED, FAILED = 0, 1  # pytest's exit codes; any other one means that the tests could not run
WANTED = 0.95


def read(only: list[str]) -> list[dict[str, Any]]:
    """The mutants, each with its part; all if `only` is empty."""
    found: list[dict[str, Any]] = []
    for path in sorted((ROOT / "benchmarks" / "mutants").glob("*.toml")):
        entries = tomllib.loads(path.read_text())["mutant"]
        found += [{"part": path.stem, **entry} for entry in entries]
    names = [mutant["name"] for mutant in found]
    if len(set(names)) < len(names):
        sys.exit(f"names occur twice: {sorted({name for name in names if names.count(name) > 1})}")
    return [mutant for mutant in found if not only or mutant["part"] in only or mutant["name"] in only]


def mutated(mutant: dict[str, Any]) -> str | None:
    """The mutant's file with its fault; None where `old` does not occur exactly once."""
    source = (ROOT / "src" / "thalweg" / mutant["file"]).read_text()
    return source.replace(mutant["old"], mutant["new"]) if source.count(mutant["old"]) == 1 else None


def run_tests(source: Path, tests: list[str], timeout: float = 600) -> int:
    """pytest's exit code over a copy of src; a fault that makes tests hang is rejected."""
    env = {**os.environ, "PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests]
    try:
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, timeout=timeout).returncode
    except subprocess.TimeoutExpired:
        return FAILED


def judge(mutant: dict[str, Any]) -> dict[str, Any]:
    """Plant one fault in a copy of src, run its tests, and say what came of it."""
    began, text = time.monotonic(), mutated(mutant)
    if text is None:
        return {**mutant, "result": "cannot be planted: its old text must occur once"}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "src"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
        (source / "thalweg" / mutant["file"]).write_text(text)
        code = run_tests(source, mutant["tests"])
    result = {FAILED: REJECTED, PASSED: SURVIVED}.get(code, f"its tests cannot run (pytest's exit code {code})")
    took = f"{time.monotonic() - began:5.0f} s"
    print(f"{result:9}  {took}  {mutant['part']}/{mutant['name']}", file=sys.stderr, flush=True)
    return {**mutant, "result": result}


def main() -> int:
    """Run the suite and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[], help="parts or names")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    mutants = read(options.only)
    if not mutants:
        sys.exit("no mutant of that name")
    tests = sorted({test for mutant in mutants for test in mutant["tests"]})
    control = run_tests(ROOT / "src", tests, timeout=3600)
    print(f"without a fault: {'passed' if control == PASSED else 'FAILED'}", file=sys.stderr, flush=True)
    with ThreadPoolExecutor(options.workers) as pool:
        judged = list(pool.map(judge, mutants))
    rejected = sum(mutant["result"] == REJECTED for mutant in judged)
    broken = [mutant for mutant in judged if mutant["result"] not in (REJECTED, SURVIVED)]
    if options.json:
        keep = ("part", "name", "file", "result", "reason")
        rows = [{key: mutant[key] for key in keep if key in mutant} for mutant in judged]
        print(json.dumps({"control": control == PASSED, "rejected": rejected, "planted": len(judged), "mutants": rows}))
    else:
        print("| part | fault | file | result |\n|---|---|---|---|")
        for mutant in judged:
            why = f": {mutant['reason']}" if "reason" in mutant else ""
            print(f"| {mutant['part']} | {mutant['name']} | `{mutant['file']}` | {mutant['result']}{why} |")
        print(f"\n{rejected} of {len(judged)} faults are rejected ({rejected / len(judged):.1%}).")
    return 0 if control == PASSED and not broken and rejected >= WANTED * len(judged) else 1


if __name__ == "__main__":
    sys.exit(main())
