"""`thalweg.train`: an energy from data in one call, and the report of a run."""

import functools
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from thalweg.bundle.bundle import Bundle
from thalweg.core import check
from thalweg.core.config import names_class, plain, type_name
from thalweg.core.device import find_device
from thalweg.core.errors import UserError
from thalweg.core.progress import Bar
from thalweg.core.store import read_json, write_bytes, write_json
from thalweg.core.trust import as_names, trusting
from thalweg.data.catalog import Dataset, as_float
from thalweg.data.in_memory import NAME, given_dataset, is_in_memory
from thalweg.data.stored_rows import some_rows
from thalweg.data.transform import Transform
from thalweg.objective.base import HasSampler, Objective
from thalweg.run.fit import Request, fit_with_data
from thalweg.run.given import Given
from thalweg.run.in_memory import fit_in_memory
from thalweg.sampler.base import Sampler

if TYPE_CHECKING:
    from thalweg.monitor.vision.opinion import Opinion
    from thalweg.monitor.vision.settings import VisionSettings

LEAST_HELD_OUT = 20  # rows for a report
LARGE, LARGE_ODE = 6144, 8  # numbers of an image above which a report takes fewer samples, and rows of the ODE
JUDGED = 200  # samples that a judge is shown a part of, or tests
log = logging.getLogger("thalweg")


def train(
    energy: nn.Module | functools.partial[nn.Module] | type[nn.Module] | str | os.PathLike[str],
    data: Any,
    *,
    objective: Objective[Any] | None = None,
    sampler: Sampler[Any] | None = None,
    labels: Any = None,
    size: int | None = None,
    skip_bad: bool = False,
    steps: int | None = None,
    minutes: float | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    device: str | torch.device = "auto",
    seed: int = 0,
    held_out: Any = None,
    settings: Mapping[str, Any] | None = None,
    monitor: Mapping[str, Any] | None = None,
    progress: bool = True,
    report: bool = False,
    transform: Transform | None = None,
    trust: Sequence[str] = (),
) -> Bundle:
    """Train an energy on data; the bundle, which samples, scores and is stored.

    A network sees the data in model units: columns standardised, pixels in [0, 1]. It is trained in place, and the
    bundle has the average of its weights. Rows must not see each other.

    Args:
        energy: A network E(x), (B, *) to (B,), or U(y, t), (B, *) and noise variances (B,) to (B,), told apart by its
            `forward`; a class or a `functools.partial` that builds one; or the name of a recipe ("dual", "pcd", …).
        data: Rows (N, D) or images (N, C, H, W): a tensor, an array, a frame, a map-style data set of torch, a path, or
            a name of the catalog, such as "mnist". Or texts: a list of str, or the path of a .txt.
        objective: The loss. None: that of the recipe; contrastive divergence for E(x), dual score matching for an
            energy from `thalweg.anchored`, denoising score matching for another U(y, t).
        sampler: What `bundle.sample` draws by. None: the objective's, or the recipe's.
        labels: For objectives that learn classes: whole numbers (N,) where `data` are rows; where they are a folder of
            images "folder", each folder in it a class, or the path of a CSV of names and classes.
        size: Of images in files: the side of the square to which they are resized and cropped.
        skip_bad: Whether images in files that cannot be read are left out.
        steps: Number of steps.
        minutes: Time to train, turned into steps at the start. Without either: ten minutes.
        out: A run folder, with checkpoints, log and bundle. None: nothing is written.
        resume: Go on with the run in `out`; the same arguments give the same bits as without an interruption.
        device: "auto" (THALWEG_DEVICE, else a GPU, else the CPU), "cpu", "cuda" or "cuda:N".
        seed: Of all randomness.
        held_out: The share of rows to hold out, or the rows themselves.
        settings: The recipe's values under `train`, such as {"batch_size": 32, "guard": {"policy": "stop"}}.
        monitor: The recipe's values under `monitor`, such as {"policy": "warn"}: who watches the samples, and what is
            done once they are worse.
        progress: Whether a bar is shown on standard error.
        report: Whether report.html and evaluation.json are written to `out`.
        transform: From data units to model units, such as `thalweg.data.transform.Identity()`.
        trust: Packages whose classes a recipe may name.

    Raises:
        UserError: Bad data, a network that cannot be trained, settings that do not exist, a folder in use.
        Diverged: The guard has given up. With `out` the last good checkpoint is kept.
        Interrupted: Stopped by a signal, with `out`; the run goes on by `resume=True`.
    """
    _check(energy, out, resume, report)
    seed = check.whole("seed", seed, 0, 2**64 - 1)
    in_memory = is_in_memory(data)
    _check_of_files(in_memory, labels, size, skip_bad)
    rows = given_dataset(data, labels, held_out=held_out, seed=seed) if in_memory else None
    with trusting(*as_names(trust)), _own_modes():
        given = _given(energy, rows, objective, sampler, transform)
        if out is not None:
            _require_named(given.sampler)
        request = Request(
            data=NAME if in_memory else data,
            recipe=energy if isinstance(energy, str | os.PathLike) else None,
            minutes=minutes,
            steps=steps,
            seed=seed,
            overrides=[
                *_overrides("train", settings),
                *_overrides("monitor", monitor),
                *([] if in_memory else _of_named_data(held_out)),
            ],
            size=size,
            labels=None if in_memory else labels,
            skip_bad=skip_bad,
            command="thalweg.train(…)",
            given=given,
            device=str(find_device(device)),
        )
        if out is None:
            return fit_in_memory(request, progress=Bar(None) if progress else None)
        folder = Path(out)
        bundle, read = fit_with_data(request, folder, resume=resume, progress=Bar(folder) if progress else None)
        if report and not (folder / "report.html").exists():
            evaluate_run(bundle, folder, num_samples=None, seed=seed, data=read or rows)
    return bundle


def _given(
    energy: Any,
    rows: Dataset | None,
    objective: Objective[Any] | None,
    sampler: Sampler[Any] | None,
    transform: Transform | None,
) -> Given:
    """The parts that are objects, each of its kind; the objective's sampler where no other is given."""
    for name, part, kind in (("objective", objective, Objective), ("sampler", sampler, Sampler)):
        if part is not None and (isinstance(part, type) or not isinstance(part, kind)):
            hint = f"build it, as {part.__name__}(…)" if isinstance(part, type) else None
            raise UserError(
                f"must be an {name}" if name == "objective" else f"must be a {name}",
                argument=name,
                value=part,
                hint=hint,
            )
    for name in ("normalises", "noisy"):
        if objective is not None and not isinstance(getattr(objective, name, None), bool):
            raise UserError("must be True or False", argument=f"objective.{name}", value=type_name(type(objective)))
    if isinstance(transform, type):
        raise UserError("must be a transform", argument="transform", hint=f"build it, as {transform.__name__}()")
    if transform is not None and not isinstance(transform, Transform):
        raise UserError("must be a transform", argument="transform", value=transform)
    if sampler is None and isinstance(objective, HasSampler):
        sampler = objective.sampler
    module = None if isinstance(energy, str | os.PathLike) else energy
    return Given(energy=module, objective=objective, sampler=sampler, transform=transform, data=rows)


def _overrides(path: str, settings: Any) -> Iterator[str]:
    """Settings as assignments of the recipe, `train.batch_size=32`."""
    if settings is None:
        return
    if not isinstance(settings, Mapping) or not all(isinstance(key, str) for key in settings):
        hint = "write " + ('{"policy": "warn"}' if path == "monitor" else '{"batch_size": 32}')
        section = path.partition(".")[0]
        name = {"train": "settings"}.get(section, section)
        raise UserError(f"must be a mapping of the recipe's keys under {section}", argument=name, hint=hint)
    for key, value in settings.items():
        if isinstance(value, Mapping) and path == "train":  # those of `monitor` are given whole
            yield from _overrides(f"{path}.{key}", value)
        else:
            yield f"{path}.{key}={_as_yaml(f'{path}.{key}', value)}"


def _as_yaml(key: str, value: Any) -> str:
    try:
        return json.dumps(plain(value, key))
    except (TypeError, ValueError) as error:
        raise UserError("must be a number, a text, a list or None", argument=key, value=value) from error


@contextmanager
def _own_modes() -> Iterator[None]:
    """The caller's no_grad, inference mode and autocast do not reach a training, which has a precision of its own."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def _require_named(sampler: Sampler[Any] | None) -> None:
    """UserError for a sampler whose class a bundle cannot name: it could not be loaded again."""
    if sampler is None:
        return
    name = type_name(type(sampler))
    if not names_class(name):
        text = "must be of a class in a module, as the bundle names it; this one is in the script or in a function"
        hint = "put the class in a module, and load with trust="
        raise UserError(text, argument="sampler", value=name, hint=hint)


def _check(energy: Any, out: Any, resume: bool, report: bool) -> None:
    if energy is None:
        raise UserError("must be a module, or the name of a recipe", argument="energy", value=check.stated(None))
    if out is None and (resume or report):
        name = "resume" if resume else "report"
        raise UserError("needs a run folder", argument=name, value=True, hint='give out="runs/mine"')
    if out is not None and (not isinstance(out, str | os.PathLike) or not os.fspath(out)):
        raise UserError("must be the path of a folder", argument="out", value=check.stated(out))


def _check_of_files(in_memory: bool, labels: Any, size: Any, skip_bad: Any) -> None:
    """UserError for options of files where the rows are in memory, and labels in memory where they are in files."""
    if in_memory:
        given = next((name for name, value in {"size": size, "skip_bad": skip_bad}.items() if value), None)
        if given is not None:
            raise UserError("is for images in files, and the data are rows in memory", argument=given)
        if isinstance(labels, str | os.PathLike):
            text = "must be whole numbers, one a row, where data are rows in memory"
            raise UserError(text, argument="labels", value=check.stated(labels))
    elif not (labels is None or isinstance(labels, str | os.PathLike)):
        text = 'must be "folder" or the path of a CSV where data is a name or a path'
        raise UserError(text, argument="labels")


def _of_named_data(held_out: Any) -> list[str]:
    """The override that a share makes; UserError for what belongs to rows in memory."""
    if held_out is None:
        return []
    if isinstance(held_out, bool) or not isinstance(held_out, int | float):
        raise UserError("must be a share in (0, 1) where data is a name or a path", argument="held_out")
    return [f"data.held_out={held_out}"]


def evaluate_run(
    bundle: Bundle, folder: Path, *, num_samples: int | None, seed: int, data: Dataset | None = None
) -> dict[str, Any]:
    """Figures of a run, written with the report to its folder; `data` where the run's were read already.

    `num_samples`: None for 1,000, of images of more than 6,144 numbers 200, and of texts, whose chains are slow, 100.
    Of such images the ODE is solved for 8 rows in place of 64.
    """
    from thalweg.apps.landscape.picture_files import of_report
    from thalweg.bundle.dataset import data_of
    from thalweg.bundle.inputs import in_float32
    from thalweg.evaluate.history_section import history_section
    from thalweg.evaluate.judged_section import judged_section
    from thalweg.evaluate.report import write_figures, write_report
    from thalweg.evaluate.suite import evaluate_bundle
    from thalweg.evaluate.texts import evaluate_texts
    from thalweg.monitor.history import History
    from thalweg.training.metrics_log import read_metrics

    data = data_of(bundle) if data is None else data
    if len(data.held_out) < LEAST_HELD_OUT:
        few = f"must have {LEAST_HELD_OUT} held-out rows or more, and has {len(data.held_out)}"
        raise UserError(few, argument=str(folder), hint="train on more data")
    large = data.kind == "image" and math.prod(data.shape) > LARGE
    num_samples = num_samples or (100 if data.alphabet is not None else 200 if large else 1000)
    how: dict[str, Any] = {"history": read_metrics(folder), "num_samples": num_samples, "seed": seed}
    how |= {"num_ode": LARGE_ODE} if large else {}
    if data.alphabet is not None:
        train, unseen = (data.alphabet.decode(part) for part in (some_rows(data.train, len(data.train)), data.held_out))
        (figures, pictures), more = evaluate_texts(bundle, train=train, held_out=unseen, **how), {}
    else:
        bundle, _, (rows, held_out) = in_float32(
            bundle, as_float(some_rows(data.train, 10_000)), as_float(data.held_out)
        )
        labels = data.held_out_labels
        figures, pictures = evaluate_bundle(bundle, train=rows, held_out=held_out, held_out_labels=labels, **how)
        more = of_report(bundle, held_out, labels, seed=seed)
    judged, sheet = read_opinion(bundle, folder)
    write_figures(folder / "evaluation.json", figures)
    seen = History(folder)
    history = history_section([look._asdict() for look in seen.looks()], seen.pictures())
    write_report(
        folder / "report.html",
        title=f"An energy of {bundle.config['run']['data']['name']}",
        command=bundle.config["command"] or "thalweg.run.fit.fit(…)",
        figures=figures,
        pictures=pictures | more,
        data=data.source,
        sections=[judged_section(judged, sheet), history],
    )
    return figures


def judge_run(
    bundle: Bundle,
    folder: Path,
    settings: "VisionSettings | None" = None,
    *,
    num_samples: int | None = None,
    seed: int = 0,
    data: Dataset | None = None,
) -> "Opinion":
    """Put samples of a run before a judge; writes `opinion.json`, and of images `opinion.png`, to its folder.

    settings: Of a vision-language model. None, or a server whose key is not in the environment: the statistical judge.
    The next report of the same training has a section with both files. `UserError` for texts.
    """
    from thalweg.bundle.dataset import data_of
    from thalweg.bundle.inputs import in_float32
    from thalweg.monitor.vision.contact_sheet import draw
    from thalweg.monitor.vision.judge import VisionJudge
    from thalweg.monitor.vision.statistical import StatisticalJudge

    if settings is not None and not settings.has_key():
        log.info("%s holds no key, so the statistical judge answers", settings.variable())
        settings = None
    data = data_of(bundle) if data is None else data
    if data.kind == "text":
        raise UserError("must be a run of images or rows for a judge", argument=str(folder))
    bundle, _, (train, real) = in_float32(bundle, as_float(some_rows(data.train, 10_000)), as_float(data.held_out))
    step, labels = bundle.config["training"]["steps"], data.held_out_labels
    if settings is None:
        judge = StatisticalJudge(train, seed=seed)
    else:
        one_class = None if labels is None else real[labels == labels.mode().values]
        judge = VisionJudge(settings, folder / "judge", other=one_class, train=train)
    samples = bundle.sample(num_samples or JUDGED, seed=seed).cpu()
    opinion = judge.compare(samples, real).model_copy(update={"step": step})  # asked anew where there was no answer
    if data.kind == "image":
        some = min(36, len(samples), len(real))
        vision = isinstance(judge, VisionJudge)
        sheet = judge.sheet(samples, real) if vision else draw(samples[:some], real[:some])
        write_bytes(folder / "opinion.png", sheet)
    write_json(folder / "opinion.json", opinion.model_dump(mode="json"))
    return opinion


def read_opinion(bundle: Bundle, folder: Path) -> tuple[dict[str, Any] | None, dict[str, bytes]]:
    """The opinion about this training in a run's folder, and its contact sheet; none where it is of another step."""
    if not (folder / "opinion.json").is_file():
        return None, {}
    opinion = read_json(folder / "opinion.json")
    if opinion.get("step") != bundle.config["training"]["steps"]:
        return None, {}
    sheet = folder / "opinion.png"
    return opinion, {"judged": sheet.read_bytes()} if sheet.is_file() else {}
