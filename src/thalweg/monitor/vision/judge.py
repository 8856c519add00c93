"""A vision-language model as a judge of samples: blind pairs in both orders, and controls in every run of questions.

Never run against a real vision model: it was built and tested against a local server that speaks both protocols and
answers by simple statistics of the sheet. Whether a given model is reliable is what its controls say.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from thalweg.core import store
from thalweg.core.errors import DamagedFile, ThalwegError, UserError
from thalweg.core.rng import generator
from thalweg.monitor.vision import contact_sheet
from thalweg.monitor.vision.bradley_terry import bradley_terry
from thalweg.monitor.vision.controls import (
    CONTROLS,
    ControlResult,
    Sheet,
    chance_to_pass,
    control_sheets,
    nearest_rows,
    preferred,
)
from thalweg.monitor.vision.opinion import Opinion, Ranking, Strength, strength_rows
from thalweg.monitor.vision.questions import PROMPT_VERSION, Answer
from thalweg.monitor.vision.settings import VisionSettings
from thalweg.monitor.vision.transport import Transport
from thalweg.monitor.vision.verdict import failed_controls, no_answer, opinion_of, ranking_sentence

LEAST_TILES = 4
SCORE = {"subject": 1.0, "beside": 0.0, "tie": 0.5}


class AskedSheet(NamedTuple):
    """A sheet and the answers in both orders; in the second the subject was panel B. None: no valid answer."""

    kind: str
    answers: tuple[Answer | None, Answer | None]
    problem: str

    def both(self) -> tuple[Answer, Answer] | None:
        """The answers, where there are both."""
        first, second = self.answers
        return None if first is None or second is None else (first, second)


class VisionJudge:
    """A vision-language model that judges samples by contact sheets.

    Images are (N, C, H, W) in [0, 1] or uint8, C = 1 or 3.

    A run of questions begins with seven controls, each in both orders (`controls.py`). Where the model fails one, it is
    not listened to: the opinion is not `reliable`, says which controls, and the samples are not asked about. A model
    that answers at random passes with probability 4e-9.

    Never run against a real vision model; see the module.

    Args:
        settings: The model, what may be sent and spent.
        cache: A folder that keeps answers, opinions, and the ledger of what was sent and spent.
        other: Rows of a wrong class for the control, such as one class alone. None: near neighbours of one row.
        train: Training rows, among which copies are looked for. None: the real data of the call.

    Raises:
        UserError: `send_images` is off, or the key or the client's library is missing.
    """

    def __init__(
        self,
        settings: VisionSettings,
        cache: str | Path,
        *,
        other: Tensor | None = None,
        train: Tensor | None = None,
    ):
        self.settings, self.folder = settings, Path(cache)
        self.other, self.train = (None if x is None else _as_images(x) for x in (other, train))
        self.transport = Transport(settings, self.folder)

    def __repr__(self) -> str:
        return f"VisionJudge({self.settings!r}, {str(self.folder)!r})"

    def compare(self, samples: Tensor, real: Tensor, *, step: int | None = None) -> Opinion:
        """An opinion about samples beside real data, rows of which are drawn at random.

        With a step, the opinion is kept: the same samples at the same step are never asked about again, also where the
        first time gave no answer. No answer, for want of network, money or a willing model, is an opinion that is not
        reliable, and no error.

        Raises:
            UserError: The tensors are not images of one size, or fewer than 4 samples and 8 real images.
        """
        samples, real = _as_images(samples), _as_images(real)
        n = self._tiles(real, samples)
        kept = None if step is None else self._opinion_file(step, samples, real)
        if kept is not None and (known := _read_opinion(kept)) is not None:
            return known
        before = self.transport.budget.calls
        if not samples.isfinite().all():
            opinion = Opinion(
                judge="vision", reliable=False, sentence=no_answer("samples hold values that are not finite")
            )
        else:
            opinion = self._compare(samples, real, n, step)
        opinion = opinion.model_copy(update={"step": step, **self._facts(before)})
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            store.write_json(kept, opinion.model_dump(mode="json"))
        return opinion

    def rank(self, sets: dict[str, Tensor], real: Tensor) -> Ranking:
        """Several sets and real data by Bradley-Terry strength, from pairs of sheets in both orders.

        Each sheet counts as one comparison, the mean of its two orders, since these are not independent.

        Raises:
            UserError: As `compare`; fewer than one set, or one of the name "real".
        """
        if not sets or "real" in sets:
            raise UserError('must hold a set or more, none of the name "real"', argument="sets")
        real, sets = _as_images(real), {name: _as_images(x) for name, x in sets.items()}
        n = self._tiles(real, *sets.values())
        before, asked = self.transport.budget.calls, list[AskedSheet]()
        pool = {**sets, "real": real}
        wins, problem = np.zeros((len(pool), len(pool))), ""
        controls, failed = list[ControlResult](), ""
        try:
            failed = self._controls(real, n, 0, asked, controls)
            for names, sheet in self._pairs(pool, n) if not failed else ():
                asked.append(self._ask("pair", sheet, n))
                if both := asked[-1].both():
                    score = sum(SCORE[preferred(a, bool(k))] for k, a in enumerate(both)) / 2
                    i, j = (list(pool).index(name) for name in names)
                    wins[i, j] += score
                    wins[j, i] += 1 - score
        except ThalwegError as error:
            problem = str(error)
        strengths = _strengths(list(pool), wins)
        reliable = bool(strengths) and not failed and not problem
        return Ranking(
            judge="vision",
            reliable=reliable,
            sentence=ranking_sentence(self.settings.model, strengths, failed, problem),
            problem=problem,
            controls=controls,
            flip_rate=_flip_rate(asked),
            questions=_count(asked),
            strengths=strengths,
            **self._facts(before),
        )

    def sheet(self, samples: Tensor, real: Tensor, *, step: int | None = None) -> bytes:
        """PNG bytes of the first sheet that `compare` draws, samples as panel A, for a report. Nothing is sent."""
        samples, real = _as_images(samples), _as_images(real)
        n = self._tiles(real, samples)
        _, first = next(self._main(samples, real, n, step or 0))
        return contact_sheet.draw(first.subject, first.beside)

    def _compare(self, samples: Tensor, real: Tensor, n: int, step: int | None) -> Opinion:
        asked, controls, failed, problem = list[AskedSheet](), list[ControlResult](), "", ""
        try:
            failed = self._controls(real, n, step or 0, asked, controls)
            for kind, sheet in self._main(samples, real, n, step or 0) if not failed else ():
                asked.append(self._ask(kind, sheet, n))
        except ThalwegError as error:
            problem = str(error)
        found, lacking = dict[str, list[tuple[Answer, Answer]]](samples=[], nearest=[]), ""
        for each in asked:
            if each.kind in found and (both := each.both()):
                found[each.kind].append(both)
            elif each.kind in found:
                lacking = each.problem
        if not all(found.values()):
            problem = problem or lacking
        opinion = opinion_of(self.settings.model, found["samples"], found["nearest"], failed, problem)
        return opinion.model_copy(
            update={"controls": controls, "flip_rate": _flip_rate(asked), "questions": _count(asked)}
        )

    def _controls(self, real: Tensor, n: int, step: int, asked: list[AskedSheet], results: list[ControlResult]) -> str:
        """Ask all controls; in words, which of them the judge failed. Answers and results are appended as they come."""
        for kind, sheet in control_sheets(real, n, seed=self.settings.seed, step=step, other=self.other).items():
            asked.append(self._ask(kind, sheet, n))
            both, control = asked[-1].both(), CONTROLS[kind]
            reasons = [answer.reasons for answer in asked[-1].answers if answer is not None]
            passed = both is not None and control.passed(both)
            problem = [asked[-1].problem] if asked[-1].problem else []
            results.append(ControlResult(kind=kind, meaning=control.meaning, passed=passed, reasons=problem + reasons))
        return failed_controls(results)

    def _main(self, samples: Tensor, real: Tensor, n: int, step: int) -> Iterator[tuple[str, Sheet]]:
        """Sheets of samples beside real data, and one of samples beside the nearest real data."""
        for sheet in range(self.settings.sheets):
            draws = generator(self.settings.seed, "vision-sheets", step, sheet)
            own, data = _some(samples, n, draws), _some(real, n, draws)
            yield "samples", Sheet(own, data)
        own = _some(samples, n, generator(self.settings.seed, "vision-nearest", step))
        yield "nearest", Sheet(own, nearest_rows(own, real if self.train is None else self.train))

    def _pairs(self, pool: dict[str, Tensor], n: int) -> Iterator[tuple[tuple[str, str], Sheet]]:
        """Every pair of sets, in rounds, so that an early end leaves all sets compared."""
        for sheet in range(self.settings.sheets):
            for pair, names in enumerate(combinations(pool, 2)):
                draws = generator(self.settings.seed, "vision-pairs", sheet, pair)
                one, two = (_some(pool[name], n, draws) for name in names)
                yield names, Sheet(one, two)

    def _ask(self, kind: str, sheet: Sheet, n: int) -> AskedSheet:
        """Ask about a sheet in both orders."""
        panels, records = (sheet.subject, sheet.beside), []
        for swapped in (0, 1):
            injected = (swapped, sheet.injected) if sheet.injected else None
            png = contact_sheet.draw(panels[swapped], panels[1 - swapped], injected=injected)
            records.append(self.transport.ask(png, n))
        problem = next((record.problem for record in records if record.answer is None), "")
        return AskedSheet(kind, (records[0].answer, records[1].answer), problem)

    def _tiles(self, real: Tensor, *sets: Tensor) -> int:
        """Tiles a panel: fewer than the settings say where there are not so many rows."""
        for x in (real, *sets):
            if x.ndim != 4 or x.shape[1] not in (1, 3) or x.shape[1:] != real.shape[1:]:
                shape = tuple(x.shape)
                hint = "the statistical judge takes rows too"
                raise UserError(
                    "must be images (N, C, H, W) of one size, C = 1 or 3", argument="samples", value=shape, hint=hint
                )
        n = min(self.settings.tiles, len(real) // 2, *map(len, sets))
        if n < LEAST_TILES:
            sizes = f"{[len(x) for x in sets]} and {len(real)}"
            raise UserError(f"must hold 4 samples and 8 real images or more, not {sizes}", argument="samples")
        return n

    def _facts(self, calls_before: int) -> dict[str, Any]:
        """What every report says of how the model was asked."""
        s, budget = self.settings, self.transport.budget
        return {
            "model": s.model,
            "host": s.host(),
            "prompt_version": PROMPT_VERSION,
            "temperature": s.temperature,
            "seed": s.seed,
            "chance_to_pass": chance_to_pass(),
            "images_sent": budget.calls - calls_before,
            "cost": budget.spent,
        }

    def _opinion_file(self, step: int, samples: Tensor, real: Tensor) -> Path:
        """The file of the opinion about these samples at this step by this model."""
        s = self.settings
        how = (s.client, s.model, s.host(), s.temperature, s.tiles, s.sheets, s.seed, PROMPT_VERSION, step)
        digest = hashlib.sha256(repr(how).encode())
        for x in (samples, real):
            digest.update(x.contiguous().numpy().tobytes())
        return self.folder / "opinions" / f"step-{step:08d}-{digest.hexdigest()[:16]}.json"


def _read_opinion(path: Path) -> Opinion | None:
    try:
        return Opinion.model_validate(store.read_json(path)) if path.is_file() else None
    except (DamagedFile, ValidationError):
        return None


def _as_images(x: Tensor) -> Tensor:
    """float32 on the CPU; bytes are brought to [0, 1]."""
    x = x.detach().cpu()
    return x.float() / 255 if x.dtype == torch.uint8 else x.float()


def _some(x: Tensor, n: int, draws: torch.Generator) -> Tensor:
    return x[torch.randperm(len(x), generator=draws)[:n]]


def _flip_rate(asked: Iterable[AskedSheet]) -> float | None:
    """Share of sheets whose preferred panel is the same in both orders, so not the same pictures; a tie is no flip."""
    pairs = [both for each in asked if (both := each.both())]
    flips = [first.better == second.better != "tie" for first, second in pairs]
    return sum(flips) / len(flips) if flips else None


def _count(asked: Iterable[AskedSheet]) -> int:
    return sum(answer is not None for each in asked for answer in each.answers)


def _strengths(names: Sequence[str], wins: np.ndarray) -> list[Strength]:
    """The strongest first; none where the comparisons made so far do not join all sets."""
    try:
        return strength_rows(names, bradley_terry(wins))
    except UserError:
        return []
