"""Energies of English words: unseen words against typing errors, beside n-grams; repairs; objectives compared.

    python benchmarks/words.py --words /usr/share/dict/words --minutes 10 --json words.json

Words are those of lower-case letters alone. 1 in 20 is held out for the figures, 1 in 20 for choices (orders of the
n-gram, objectives); no training sees either. `--split families` holds out whole families: all words with the same first
five letters go to the same part. A typing error that is a word of the list is left out.
"""

import argparse
import functools
import json
import random
import re
import time
from pathlib import Path

import numpy as np
import torch

import thalweg
from thalweg.core.rng import generator
from thalweg.energy.networks.tilted_bigram import TiltedBigramEnergy
from thalweg.evaluate.detection import auroc
from thalweg.evaluate.ngram import NGram
from thalweg.evaluate.text_sets import nearest_texts, shuffled
from thalweg.objective.combined import Combined
from thalweg.objective.likelihood import MaximumLikelihood
from thalweg.objective.noise_contrastive import NoiseContrastive
from thalweg.objective.pseudo_likelihood import PseudoLikelihood

KINDS = ("replaced", "put in", "taken out", "exchanged")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
FAMILY = 5  # letters that the words of a family share
ORDERS = (3, 4, 5, 6, 7)
TILTED = functools.partial(TiltedBigramEnergy, width=64, depth=3, num_heads=4)
ONE_UNIT = PseudoLikelihood(num_units=1, num_candidates=2)
OBJECTIVES = {  # name: (energy, None for the recipe's; objective)
    "noise-contrastive": (TILTED, NoiseContrastive()),
    "pseudo-likelihood": (TILTED, ONE_UNIT),
    "both of these": (TILTED, Combined(parts=(NoiseContrastive(), ONE_UNIT))),
    "likelihood": (None, MaximumLikelihood()),
}


def split(words: list[str], how: str) -> dict[str, list[str]]:
    """train, validation and held-out words: 90, 5 and 5 %."""
    rng = random.Random(0)
    key = (lambda w: w) if how == "random" else (lambda w: w[:FAMILY])
    groups = sorted({key(word) for word in words})
    rng.shuffle(groups)
    part, twentieth = {}, len(groups) // 20
    for i, group in enumerate(groups):
        part[group] = "held out" if i < twentieth else "validation" if i < 2 * twentieth else "train"
    found: dict[str, list[str]] = {"train": [], "validation": [], "held out": []}
    for word in words:
        found[part[key(word)]].append(word)
    for rows in found.values():
        rng.shuffle(rows)
    return found


def typo(word: str, kind: str, rng: random.Random) -> str:
    """One random typing error of a kind, letters and places uniform."""
    i, letter = rng.randrange(len(word)), rng.choice(LETTERS)
    if kind == "replaced":
        return word[:i] + letter + word[i + 1 :]
    if kind == "put in":
        i = rng.randrange(len(word) + 1)
        return word[:i] + letter + word[i:]
    if kind == "taken out":
        return word[:i] + word[i + 1 :]
    return word[:i] + word[i + 1 : i + 2] + word[i] + word[i + 2 :]


def typos(words: list[str], known: set[str], kind: str, most: int) -> list[tuple[str, str]]:
    """(word, typing error) of each word that has one outside of `known`, in 20 tries."""
    rng, found = random.Random(kind), []
    for word in words:
        tries = (typo(word, kind, rng) for _ in range(20))
        good = next((t for t in tries if t and t not in known and len(t) <= most), None)
        found += [] if good is None else [(word, good)]
    return found


def others(words: list[str], known: set[str], bigram: NGram, most: int) -> dict[str, list[str]]:
    """The sets that words are told from."""
    sets = {f"one letter {kind}": [t for _, t in typos(words, known, kind, most)] for kind in KINDS}
    sets["all four"] = [text for each in sets.values() for text in each]
    rng = np.random.default_rng(0)
    sets["shuffled"] = shuffled(words, known, rng).texts
    sets["draws of the bigram law"] = [t for t in bigram.draws(len(words), rng, most=most) if t and t not in known]
    return sets


def energies(bundle, texts: list[str]) -> torch.Tensor:
    return bundle.energy(texts).double()


def aurocs(surprise, words: list[str], sets: dict[str, list[str]]) -> dict[str, float]:
    inside = surprise(words)
    return {name: round(auroc(inside, surprise(texts)), 4) for name, texts in sets.items()}


def trained(words: list[str], name: str | None, budget: dict, out: Path | None = None):
    """(bundle, seconds of the processor, seconds) of the recipe, or of one of `OBJECTIVES`."""
    energy, objective = OBJECTIVES[name] if name else (None, None)
    begun, wall = time.process_time(), time.time()
    given = {"objective": objective} if objective else {}
    settings: dict = {"log_every": 100} if out else {}
    if energy is not None:  # its recipe is the same, but for the rate: attention in both directions
        settings |= {"batch_size": 256, "learning_rate": 2e-3, "decay": "linear", "ema": 0.998, "weight_decay": 0.01}
        settings |= {"guard": {"min_slope": None}}
    bundle = thalweg.train(energy or "words", words, held_out=0.02, settings=settings, out=out, **budget, **given)
    return bundle, time.process_time() - begun, time.time() - wall


def repairs(bundle, words: list[str], known: set[str], most: int, each: int) -> dict[str, float]:
    """Share of typing errors whose lowest-energy text within one edit is the word itself; and by the posterior."""
    pairs = [pair for kind in KINDS for pair in typos(words, known, kind, most)[:each]]
    found = {"typos": len(pairs)}
    for name, channel in (("by energy", False), ("by energy and channel", True)):
        explained = bundle.explain([text for _, text in pairs], channel=channel)
        right = [e.repair == word for e, (word, _) in zip(explained, pairs, strict=True)]
        found[name] = round(sum(right) / len(right), 4)
        places = [(e, word, text) for e, (word, text) in zip(explained, pairs, strict=True) if len(word) == len(text)]
        replaced = [(e, w, t) for e, w, t in places if sum(a != b for a, b in zip(w, t, strict=True)) == 1]
        if not channel:
            worst = [e.worst == next(i for i in range(len(w)) if w[i] != t[i]) for e, w, t in replaced]
            found["the letter replaced is the most surprising"] = round(sum(worst) / max(1, len(worst)), 4)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", type=Path, default=Path("/usr/share/dict/words"))
    parser.add_argument("--split", choices=("random", "families"), default="random")
    parser.add_argument("--minutes", type=float, help="of training; the recipe's if not given")
    parser.add_argument("--steps", type=int, help="of training, in place of minutes")
    parser.add_argument("--objectives", nargs="*", help="compare these on validation words: all, or some by name")
    parser.add_argument("--repairs", type=int, default=100, help="typing errors of each kind to repair")
    parser.add_argument("--bundle", type=Path, help="a trained run of this split, in place of training")
    parser.add_argument("--out", type=Path, help="the run's folder")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    lines = options.words.read_text("utf-8").split()
    words = sorted({word for word in lines if re.fullmatch("[a-z]+", word)})
    parts, known = split(words, options.split), set(words)
    print({name: len(rows) for name, rows in parts.items()}, flush=True)
    train, validation, unseen = parts["train"], parts["validation"][:3000], parts["held out"][:3000]
    most = max(map(len, train)) + 2
    budget = {"steps": options.steps} if options.steps else {"minutes": options.minutes} if options.minutes else {}
    bigram = NGram(order=2).fit(train)
    figures: dict = {"split": options.split, "words": {name: len(rows) for name, rows in parts.items()}}

    def say(name: str, row: dict) -> None:
        figures.setdefault("rows", {})[name] = row
        print(name, json.dumps(row), flush=True)
        if options.json:
            options.json.write_text(json.dumps(figures, indent=1))

    on_validation = others([w for w in validation if len(w) <= most], known, bigram, most)
    if options.objectives is not None:
        for name in options.objectives or OBJECTIVES:
            bundle, seconds, wall = trained(train, name, budget)
            row = aurocs(functools.partial(energies, bundle), validation, on_validation)
            if bundle.normalised:
                row["nats"] = round(float(-bundle.log_prob(validation).mean()), 3)
            say(f"validation: {name}", {**row, "processor_seconds": round(seconds), "seconds": round(wall)})
        return
    laws = {order: NGram(order=order).fit(train) for order in ORDERS}
    scored = {n: float(law.log_prob(validation).mean()) for n, law in laws.items()}
    order = max(scored, key=scored.__getitem__)
    say("n-gram, nats of validation words", {str(n): round(-v, 3) for n, v in scored.items()})
    sets = others([w for w in unseen if len(w) <= most], known, bigram, most)
    for name, law in (("bigram", bigram), (f"{order}-gram", laws[order])):
        row = aurocs(lambda texts, law=law: -torch.from_numpy(law.log_prob(texts)), unseen, sets)
        say(name, {**row, "nats": round(float(-law.log_prob(unseen).mean()), 3)})
    if options.bundle:
        bundle, cost = thalweg.load(options.bundle), {}
    else:
        bundle, seconds, wall = trained(train, None, budget, options.out)
        cost = {"processor_seconds": round(seconds), "seconds": round(wall)}
    row = aurocs(functools.partial(energies, bundle), unseen, sets)
    say("energy", {**row, "nats": round(float(-bundle.log_prob(unseen).mean()), 3), **cost})
    both = lambda texts: energies(bundle, texts) - torch.from_numpy(laws[order].log_prob(texts))  # noqa: E731
    say(f"energy and {order}-gram, mean", aurocs(both, unseen, sets))
    say("repairs", repairs(bundle, unseen[: 2 * options.repairs], known, most, options.repairs))
    few = {name: texts[:100] for name, texts in sets.items()} | {"all four": sets["all four"][:: len(unseen) // 25]}
    distance = lambda texts: torch.tensor([float(d) for _, d in nearest_texts(texts, train)])  # noqa: E731
    say("edits to the nearest training word (100)", aurocs(distance, unseen[:100], few))
    started = bundle.model.base_draws(torch.rand(40, bundle.model.num_uniforms, generator=generator(0, "base")))
    codes = bundle.decode(started)
    say("samples", {"bigram": " ".join(bundle.texts(codes)), "energy": " ".join(bundle.texts(bundle.sample(40)))})


if __name__ == "__main__":
    main()
