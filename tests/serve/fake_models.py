"""Small models of numpy whose answers are known: one of each content, with every capability among them."""

from itertools import pairwise

import numpy as np

from thalweg.bundle.servable import TensorSpec
from thalweg.core.errors import UserError

RATE = 0.1
SCORES = (TensorSpec("energy", "FP32", (-1,)), TensorSpec("p_value", "FP32", (-1,)), TensorSpec("flag", "BOOL", (-1,)))


@np.errstate(all="ignore")
def scored(energy, alpha):
    p = 1 / (1 + np.abs(energy))
    return {
        "energy": energy.astype(np.float32),
        "p_value": p.astype(np.float32),
        "flag": p <= (RATE if alpha is None else alpha),
    }


class Numbers:
    """E(x) = |x|² of two numbers; draws are the seed and the temperature; refuses a first number of 13."""

    title, content, flag_rate = "numbers", "rows", RATE
    inputs = (TensorSpec("x", "FP32", (-1, 2)),)
    outputs = SCORES
    calibration_energies = np.linspace(0, 1, 100)

    def score(self, rows, *, alpha=None):
        if (rows["x"][:, 0] == 13).any():
            raise UserError("must not be 13", argument="x", value=13)
        return scored((rows["x"].astype(np.float64) ** 2).sum(1), alpha)

    def sample(self, n, *, seed=0, temperature=1.0, label=None):
        return np.full((n, 2), [seed % 1000, temperature])

    def sample_frames(self, n, *, seed=0, temperature=1.0, label=None, frames=12):
        for i in range(frames):
            x = (
                np.full((n, 2), [i, temperature])
                if i < frames - 1
                else self.sample(n, seed=seed, temperature=temperature)
            )
            yield x, x.sum(1)

    def rerank(self, rows, *, keep=None):
        energy = self.score(rows)["energy"]
        return {"order": np.argsort(energy)[:keep], "energy": energy}


class Table:
    """E = age / 10 of an age and a city; an age that is missing counts 1, a city that is missing adds 1."""

    title, content, flag_rate = "a table", "table", RATE
    inputs = (TensorSpec("age", "FP64", (-1,)), TensorSpec("city", "BYTES", (-1,)))
    outputs = (TensorSpec("energy", "FP64", (-1,)), *SCORES[1:])

    def score(self, rows, *, alpha=None):
        energy = np.nan_to_num(rows["age"], nan=10) / 10 + np.array([city is None for city in rows["city"]])
        return {**scored(energy, alpha), "energy": energy}

    def explain(self, rows, *, top=3):
        names = ("age", "city")[:top]
        values = [(float(a) if a == a else None, c) for a, c in zip(rows["age"], rows["city"], strict=True)]
        return [
            {"reasons": [{"feature": n, "share": 0.5, "value": v, "repair": 0.0} for n, v in zip(names, row)]}  # noqa: B905
            for row in values
        ]


class Pictures:
    """E = the sum of pixels of a grey 4 x 4 image; label "dark" or "light" by its mean."""

    title, content, flag_rate = "pictures", "image", RATE
    inputs = (TensorSpec("x", "FP32", (-1, 1, 4, 4)),)
    outputs = (*SCORES, TensorSpec("probabilities", "FP32", (-1, 2)))
    labels = ("dark", "light")

    def score(self, rows, *, alpha=None):
        return scored(rows["x"].sum((1, 2, 3)), alpha) | {"probabilities": self.classify(rows)}

    def classify(self, rows):
        light = rows["x"].mean((1, 2, 3))
        return np.stack([1 - light, light], 1).astype(np.float32)

    def explain(self, rows, *, top=3):
        return [{"map": x[0], "repaired": np.zeros_like(x)} for x in rows["x"]]

    def sample(self, n, *, seed=0, temperature=1.0, label=None):
        if label not in (None, 0, 1):
            raise UserError("must be 0 or 1", argument="label", value=label)
        return np.full((n, 1, 4, 4), (seed % 256) / 255, np.float32)

    def sample_frames(self, n, *, seed=0, temperature=1.0, label=None, frames=12):
        drawn = self.sample(n, seed=seed, label=label)
        for i in range(frames):
            x = np.full((n, 1, 4, 4), i / frames, np.float32) if i < frames - 1 else drawn
            yield x, x.sum((1, 2, 3))

    def inpaint(self, x, observed, *, n=1, seed=0):
        for i in range(n):
            yield np.where(observed, x, np.float32((seed + i) % 256 / 255))


class Words:
    """E = the number of letters; explains each letter."""

    title, content, flag_rate = "words", "text", None
    inputs = (TensorSpec("x", "BYTES", (-1,)),)
    outputs = (TensorSpec("energy", "FP32", (-1,)), TensorSpec("log_prob", "FP32", (-1,)))

    def score(self, rows, *, alpha=None):
        if alpha is not None:
            raise UserError("must be left out, as nothing is flagged", argument="alpha")
        energy = np.array([len(text) for text in rows["x"]], np.float32)
        return {"energy": energy, "log_prob": -energy}

    def explain(self, rows, *, top=3):
        told = []
        for text in rows["x"]:
            pairs = list(pairwise(text))[:top]
            letters = [{"place": i, "letter": a, "surprise": 1.0, "expected": b} for i, (a, b) in enumerate(pairs, 1)]
            about = {"text": text, "surprise": [1.0] * len(text), "reasons": letters}
            told.append({**about, "repair": text, "repair_energy": 0.0, "edits": []})
        return told

    def sample(self, n, *, seed=0, temperature=1.0, label=None):
        found = np.empty(n, object)
        found[:] = ["ab"] * n
        return found

    def sample_frames(self, n, *, seed=0, temperature=1.0, label=None, frames=12):
        for _ in range(frames):
            yield self.sample(n), np.full(n, 2.0)


class Endless(Numbers):
    """Gives infinity for a first number of 7, and fails for 8 as no model should."""

    def score(self, rows, *, alpha=None):
        if (rows["x"][:, 0] == 8).any():
            raise RuntimeError("/srv/models/secret.py: thalweg.energy.networks.mlp:MLPEnergy has failed")
        found = super().score(rows, alpha=alpha)
        found["energy"][rows["x"][:, 0] == 7] = np.inf
        return found


MODELS = {"numbers": Numbers(), "table": Table(), "pictures": Pictures(), "words": Words(), "endless": Endless()}
