"""The evaluation of a model of texts: detection, likelihood and samples, each beside the bigram and an n-gram law.

All texts of a set are compared with held-out ones, which no training saw. The rivals are fitted to the training texts.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from thalweg.core.errors import NotNormalised, UserError
from thalweg.core.rng import generator
from thalweg.evaluate import pictures as draw
from thalweg.evaluate.chains import NUM_CHAINS, HasChains, chain_figures
from thalweg.evaluate.detection import auroc, fpr95
from thalweg.evaluate.ngram import NGram
from thalweg.evaluate.suite import CURVES, Evaluation, require_finite, versions
from thalweg.evaluate.text_sets import AlteredTexts, nearest_texts, shuffled, typos
from thalweg.normaliser.estimate import LogProb

ORDER = 6  # of the n-gram
NUM_TEXTS = 1000  # held-out ones, and of each altered set: energies are cheap, samples are not
SHOWN = 30  # samples in the table of a report
LEAST = 20  # held-out texts
BLOCK = 250


class TextModel(Protocol):
    """A model of texts; with `HasChains` its chains are diagnosed."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(L,): the most letters of a text."""
        ...

    def energy(self, x: Any, /) -> Tensor:
        """(B,) energies in nats of a list of texts."""
        ...

    def log_prob(self, x: Any, /) -> Tensor | LogProb:
        """(B,) log-probabilities in nats of a list of texts; raises `NotNormalised` where there are none."""
        ...

    def sample(self, n: int, /, *, seed: int = 0) -> Tensor:
        """n samples, as codes."""
        ...

    def texts(self, codes: Tensor, /) -> list[str]:
        """The texts of codes."""
        ...


def evaluate_texts(
    model: TextModel,
    *,
    train: Sequence[str],
    held_out: Sequence[str],
    history: list[dict[str, float]] | None = None,
    num_samples: int = 100,
    num_texts: int = NUM_TEXTS,
    seed: int = 0,
) -> Evaluation:
    """Measure a model of texts; figures fit for JSON, and pictures as PNG.

    Costs `num_samples` samples, and `num_texts` energies of held-out texts and of each altered set. UserError for
    fewer than 20 held-out texts.
    """
    if len(held_out) < LEAST:
        raise UserError(f"must hold {LEAST} texts or more, and holds {len(held_out)}", argument="held_out")
    rng = np.random.default_rng(generator(seed, "evaluate-texts").initial_seed())
    reference = [held_out[int(i)] for i in rng.permutation(len(held_out))[:num_texts]]
    bigram, ngram = NGram(order=2).fit(train), NGram(order=ORDER).fit(train)
    most, known = model.shape[0], {*train, *held_out}
    pseudo = [text for text in bigram.draws(2 * len(reference), rng, most=most) if text and text not in known]
    sets = {
        "one-letter typos": typos(reference, known, rng, most=most),
        "shuffled letters": shuffled(reference, known, rng),
        "draws of the bigram law": AlteredTexts(pseudo[: len(reference)], np.zeros(0, int)),
    }
    samples = model.texts(model.sample(num_samples, seed=seed))
    energies = {name: _energies(model, each.texts) for name, each in sets.items() if each.texts}
    energies = {"unseen texts": _energies(model, reference), "samples": _energies(model, samples)} | energies
    figures: dict[str, Any] = {
        "about": {
            "kind": "text",
            "shape": [int(s) for s in model.shape],
            "num_samples": len(samples),
            "num_held_out": len(held_out),
            "num_train": len(train),
            "seed": seed,
            "ngram_order": ORDER,
            "versions": versions(),
        },
        "detection": [_row(name, sets[name], reference, energies, bigram, ngram) for name in sets if name in energies],
        "energy": {name: {"mean": u.mean().item(), "std": u.std().item()} for name, u in energies.items()},
        "likelihood": _likelihood(model, reference, samples, bigram, ngram),
        "rivals": {"nats_bigram": _mean(bigram, reference), "nats_ngram": _mean(ngram, reference)},
        "samples": _samples(samples, train, held_out, bigram.draws(len(samples), rng, most=most)),
        "sample_table": _table(samples[:SHOWN], energies["samples"], train, held_out),
    }
    pictures = {"energies": draw.png(draw.energy_strips(energies))}
    if history and (figure := draw.curves(history, CURVES)):
        pictures["training"] = draw.png(figure)
    chains = model.chains(NUM_CHAINS, seed=seed) if isinstance(model, HasChains) else None
    if chains is not None:
        figures["chains"] = chain_figures(*chains, seed=seed)
    require_finite(figures)
    return Evaluation(figures, pictures)


def _energies(model: TextModel, texts: Sequence[str]) -> Tensor:
    with torch.no_grad():
        parts = [model.energy(list(texts[i : i + BLOCK])) for i in range(0, len(texts), BLOCK)]
    return torch.cat(parts).cpu().double()


def _surprise(law: NGram, texts: Sequence[str]) -> Tensor:
    return -torch.from_numpy(law.log_prob(texts))


def _mean(law: NGram, texts: Sequence[str]) -> float:
    return -_surprise(law, texts).mean().item()


def _row(
    name: str, made: AlteredTexts, reference: Sequence[str], energies: dict[str, Tensor], bigram: NGram, ngram: NGram
) -> dict[str, Any]:
    """One line of the detection table. `paired`: how often a text has a lower energy than what was made of it."""
    laws = {"bigram": bigram, "ngram": ngram}
    scores = {"": (energies["unseen texts"], energies[name])}
    scores |= {f"{key}_": (_surprise(law, reference), _surprise(law, made.texts)) for key, law in laws.items()}
    row: dict[str, Any] = {"out": name, "num_in": len(reference), "num_out": len(made.texts), "chance": 0.5}
    for key, (inside, outside) in scores.items():
        row |= {f"{key}auroc": auroc(inside, outside), f"{key}fpr95": fpr95(inside, outside)}
        if len(made.origin):
            own = inside[torch.from_numpy(made.origin)]
            row[f"{key}paired"] = ((own < outside).double() + (own == outside).double() / 2).mean().item()
    return row


def _likelihood(
    model: TextModel, reference: Sequence[str], samples: Sequence[str], bigram: NGram, ngram: NGram
) -> dict[str, Any] | None:
    """Mean log p in nats of held-out texts, and of the model's own samples; None where the model is not normalised."""
    try:
        first = model.log_prob([reference[0]])
    except NotNormalised:
        return None

    def log_prob(texts: Sequence[str]) -> Tensor:
        parts = [model.log_prob(list(texts[i : i + BLOCK])) for i in range(0, len(texts), BLOCK)]
        return torch.cat([p.estimate if isinstance(p, LogProb) else p for p in parts]).detach().cpu().double()

    log_p = log_prob(reference)
    row = {
        "num": len(reference),
        "nats": log_p.mean().item(),
        "nats_error": (log_p.std() / math.sqrt(len(log_p))).item(),
        "nats_samples": log_prob(samples).mean().item(),
        "nats_bigram": _mean(bigram, reference),
        "nats_ngram": _mean(ngram, reference),
    }
    if isinstance(first, LogProb):
        for name, end in (("nats_low", first.low), ("nats_high", first.high)):
            shift = (end - first.estimate).item()
            row[name] = row["nats"] + shift if math.isfinite(shift) else None
    return row


def _samples(
    samples: Sequence[str], train: Sequence[str], held_out: Sequence[str], pseudo: Sequence[str]
) -> dict[str, dict[str, float]]:
    """What share of the samples are training texts, held-out texts, repeated ones; beside the bigram law's draws.

    Of the held-out texts themselves, too: the last column is what texts of the law would have.
    """
    seen, apart = set(train), set(held_out)

    def shares(texts: Sequence[str]) -> dict[str, float]:
        n = max(1, len(texts))
        return {
            "training": sum(text in seen for text in texts) / n,
            "held_out": sum(text in apart and text not in seen for text in texts) / n,
            "repeated": 1 - len({*texts}) / n,
            "empty": sum(not text for text in texts) / n,
            "mean_length": sum(map(len, texts)) / n,
        }

    return {"samples": shares(samples), "bigram": shares(pseudo), "real": shares(held_out)}


def _table(
    samples: Sequence[str], energies: Tensor, train: Sequence[str], held_out: Sequence[str]
) -> list[dict[str, Any]]:
    """Samples as they came, each with its nearest training text."""
    times, apart = Counter(samples), set(held_out)
    near = nearest_texts(samples, train)
    return [
        {
            "text": text,
            "energy": float(u),
            "nearest": nearest,
            "edits": edits,
            "note": "training" if not edits else "held out" if text in apart else "twice" if times[text] > 1 else "",
        }
        for text, u, (nearest, edits) in zip(samples, energies, near, strict=False)
    ]
