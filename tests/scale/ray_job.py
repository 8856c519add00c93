"""A scoring by Ray, to be killed from within or without: `python ray_job.py '{"kind": …}'`; one JSON line at its end.

`kills`: workers of Ray that are killed at random while it scores; `loopback`: also say which sockets listen elsewhere.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path


def workers(root: int) -> list[int]:
    """Processes below `root` that are actors of ours."""
    parents, names = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            names[int(path.name)] = (path / "cmdline").read_text()
        except OSError:
            continue
    below = {root}
    for _ in range(5):
        below |= {pid for pid, parent in parents.items() if parent in below}
    return [pid for pid in below if names.get(pid, "").startswith("ray::Actor")]


def exposed(root: int) -> list[str]:
    """Addresses other than the loopback's at which processes below `root` listen (Linux)."""
    found = []
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/{root}/net/{name}").read_text().splitlines()[1:]:
            place, state, inode = (line.split()[i] for i in (1, 3, 9))
            loopback = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")
            if state == "0A" and not place.startswith(loopback):
                found.append((place, inode))
    ours = set()
    for pid in [root, *descendants(root)]:
        try:
            ours |= {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}
        except OSError:
            continue
    return [place for place, inode in found if f"socket:[{inode}]" in ours]


def descendants(root: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{root}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *descendants(child)]
    return found


def main() -> None:
    from thalweg.scale.score_files import Engine, score_files
    from thalweg.scale.scorers import Options

    given = json.loads(sys.argv[1])
    left, rng, open_to = given.get("kills", 0), random.Random(0), []

    def advance(done: int, total: int) -> None:
        nonlocal left, open_to
        open_to = open_to or exposed(os.getpid())
        if left and rng.random() < given.get("chance", 1.0):
            pids = workers(os.getpid())
            if pids:
                time.sleep(rng.random() * given.get("within", 0.0))
                os.kill(rng.choice(pids), signal.SIGKILL)
                left -= 1

    engine = Engine("ray", given["workers"])
    more = {"engine": engine, "block_rows": given["block_rows"], "advance": advance}
    found = score_files(
        given["kind"], Options(given["run"], skip_bad=given.get("skip_bad", False)), given["data"], given["out"], **more
    )
    print(json.dumps({**found._asdict(), "kills": given.get("kills", 0) - left, "exposed": open_to}))


if __name__ == "__main__":
    main()
