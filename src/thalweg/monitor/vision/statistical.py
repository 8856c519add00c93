"""The judge without a model: figures and a test of samples beside real data, in the form of the vision judge."""

import hashlib
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.monitor import Diversity
from thalweg.monitor.figure import Kind, deviations
from thalweg.monitor.vision.bradley_terry import bradley_terry
from thalweg.monitor.vision.controls import NUM_KINDS_OF_TILES, ControlResult, one_kind
from thalweg.monitor.vision.opinion import Opinion, OpinionKind, Ranking, Strength, strength_rows

NAME = "Statistical judge (figures and a test, no vision model)"
VERDICTS: dict[Kind | None, OpinionKind] = {
    None: "good",
    "variety": "alike",
    "noise": "noise",
    "memorisation": "copies",
}
MEANINGS = {
    "real": "three lots of real data that are not among those compared with: an alarm in one at most",
    "noise": "points at random in the data's box: an alarm",
    "duplicates": "three real rows repeated: an alarm",
    "wrong class": "the nearest neighbours of one real row: an alarm",
    "copies": "training rows themselves: an alarm",
}
DRAWS = 3  # of each control
ROWS = 200  # at most of a control
LEAST = 90  # real rows: a third is set aside for controls
PARTS, LEAST_PART = 6, 20  # parts of a set that a ranking compares, and their rows


class _Prepared(NamedTuple):
    diversity: Diversity  # what samples are compared with
    aside: Tensor  # real rows that are not in it
    controls: list[ControlResult]


class StatisticalJudge:
    """Judges samples by `Diversity`, without a vision model and without sending anything.

    A third of the real data, 200 rows at most, is set aside. It is "real" in a ranking, and a control: of its three
    parts one at most may alarm. Noise, repeated rows, one kind of rows and, with `train`, training rows must alarm, in
    three draws each. A judge that tosses a coin passes with probability 2^-10, with `train` 2^-13; the data's own law
    fails the first control in about 3 of 10,000 calls.

    Args:
        train: Training rows (M, *), for copies of them. None: copies are not looked for.
        features: As of `Diversity`.
        seed: Of all draws.
    """

    def __init__(self, train: Tensor | None = None, features: object = None, *, seed: int = 0):
        self.train, self.features, self.seed = train, features, seed
        self._known: tuple[str, _Prepared] | None = None  # of the real data of the last call

    def compare(self, samples: Tensor, real: Tensor, *, step: int | None = None) -> Opinion:
        """An opinion about samples (n, *) beside real rows (N, *) that no training saw, N >= 90."""
        diversity, _, controls = self._prepared(real)
        report = diversity.check(samples)
        failed = ", ".join(control.kind for control in controls if not control.passed)
        told = f"is not listened to: it failed these controls: {failed}." if failed else report.sentence
        return Opinion(
            judge="statistical",
            reliable=not failed,
            sentence=f"{NAME} {told}" if failed else f"{NAME}: {told}",
            reasons=[report.sentence],
            controls=controls,
            chance_to_pass=_chance(controls),
            seed=self.seed,
            questions=1 + DRAWS * len(controls),
            verdict=VERDICTS[report.kind],
            step=step,
            figures={name: float(value) for name, value in report.figures.items()},
            p_value=float(report.p_value),
        )

    def rank(self, sets: dict[str, Tensor], real: Tensor) -> Ranking:
        """Several sets and real data by Bradley-Terry strength.

        Each set is cut into six parts; of two parts that one wins whose figures lie fewer deviations on the bad side of
        what real data have, on average. A pair of sets counts as six comparisons.

        Raises:
            UserError: As `Diversity`; a set of fewer than 40 rows, or one of the name "real".
        """
        if not sets or "real" in sets:
            raise UserError('must hold a set or more, none of the name "real"', argument="sets")
        diversity, aside, controls = self._prepared(real)
        pool = {**sets, "real": aside}
        size = max(LEAST_PART, min(map(len, pool.values())) // PARTS)
        losses = {name: self._losses(diversity, x, size, name) for name, x in pool.items()}
        wins = np.zeros((len(pool), len(pool)))
        for i, one in enumerate(losses.values()):
            for j, other in enumerate(losses.values()):
                if i != j:
                    better = (one[:, None] < other).double() + 0.5 * (one[:, None] == other).double()
                    wins[i, j] = min(len(one), len(other)) * better.mean().item()
        failed = ", ".join(control.kind for control in controls if not control.passed)
        rows: list[Strength] = strength_rows(list(pool), bradley_terry(wins))
        order = " > ".join(f"{row.name} ({row.strength:+.2f})" for row in rows)
        told = (
            f" is not listened to: it failed these controls: {failed}." if failed else f", strengths in nats: {order}."
        )
        return Ranking(
            judge="statistical",
            reliable=not failed,
            sentence=f"{NAME}{told}",
            controls=controls,
            chance_to_pass=_chance(controls),
            seed=self.seed,
            strengths=rows,
        )

    def _prepared(self, real: Tensor) -> "_Prepared":
        """What follows from the real data alone, computed once for the same data."""
        if len(real) < LEAST:
            raise UserError(f"must hold {LEAST} rows or more, not {len(real)}", argument="real")
        digest = hashlib.sha256(real.detach().cpu().float().contiguous().numpy().tobytes()).hexdigest()
        if self._known is None or self._known[0] != digest:
            order = torch.randperm(len(real), generator=generator(self.seed, "statistical-judge"))
            n = min(ROWS, len(real) // 3)
            diversity = Diversity(real[order[n:]], self.train, self.features, seed=self.seed)
            aside = real[order[:n]]
            self._known = digest, _Prepared(diversity, aside, self._controls(diversity, aside, real))
        return self._known[1]

    def _controls(self, diversity: Diversity, aside: Tensor, real: Tensor) -> list[ControlResult]:
        results: dict[str, list[tuple[bool, str]]] = {}
        for draw in range(DRAWS):
            for kind, rows in self._control_sets(aside, real, draw).items():
                report = diversity.check(rows)
                results.setdefault(kind, []).append((report.alarm, report.sentence))
        found = []
        for kind, reports in results.items():
            alarms, reasons = sum(alarm for alarm, _ in reports), [sentence for _, sentence in reports]
            passed = alarms <= 1 if kind == "real" else alarms == DRAWS
            found.append(ControlResult(kind=kind, meaning=MEANINGS[kind], passed=passed, reasons=reasons))
        return found

    def _control_sets(self, aside: Tensor, real: Tensor, draw: int) -> dict[str, Tensor]:
        draws = generator(self.seed, "statistical-controls", draw)
        n, low, high = len(aside), aside.amin(0), aside.amax(0)
        few = torch.randperm(n, generator=draws)[:NUM_KINDS_OF_TILES]
        found = {
            "real": aside[draw::DRAWS],
            "noise": low + (high - low) * torch.rand(aside.shape, generator=draws),
            "duplicates": aside[few[torch.arange(n) % len(few)]],
            "wrong class": one_kind(real, max(n // 5, 10), draws),
        }
        if self.train is not None:
            found["copies"] = self.train[torch.randperm(len(self.train), generator=draws)[:n]]
        return found

    def _losses(self, diversity: Diversity, x: Tensor, size: int, name: str) -> Tensor:
        """(parts,) mean deviations on the bad side of each part of a set."""
        if len(x) < 2 * size:
            raise UserError(f"must hold {2 * size} rows or more, not {len(x)}", argument=f"sets[{name!r}]")
        reference, found = diversity.reference(size), []
        for part in x.split(size)[:PARTS]:
            if len(part) == size:
                off = deviations(diversity.figures(part), reference)
                found.append(sum(off.values()) / len(off))
        return torch.tensor(found, dtype=torch.float64)


def _chance(controls: list[ControlResult]) -> float:
    """The probability that alarms at random, half the time, pass: the first control has 4 good cases of 8."""
    return 0.5 * 0.5 ** (DRAWS * (len(controls) - 1))
