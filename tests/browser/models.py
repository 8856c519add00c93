"""Small servables with every capability, in closed form, for the tests of the page."""

import numpy as np

from thalweg.bundle.servable import TensorSpec

SIDE = 12
ATTACK = '<img src=x onerror="document.body.dataset.attacked=1"><script>document.body.dataset.attacked=1</script>'


def _quantiles(u, known):
    return (1 + (known[None] >= u[:, None]).sum(1)) / (len(known) + 1)


class Images:
    """E = 60 (mean(x) - 0.15)^2 + 4 Var(x), of grey images; the labels tell where the ink is."""

    title = "an energy of images"
    content = "image"
    inputs = (TensorSpec("x", "FP32", (-1, 1, SIDE, SIDE)),)
    outputs = tuple(TensorSpec(n, t, (-1,)) for n, t in (("energy", "FP32"), ("p_value", "FP32"), ("flag", "BOOL")))
    flag_rate = 0.05
    labels = ("left", "right", ATTACK)

    def __init__(self):
        draws = np.random.default_rng(0).beta(1, 6, (400, 1, SIDE, SIDE)).astype(np.float32)
        self.calibration_energies = self._energy(draws)
        self.calls = 0

    def _energy(self, x):
        return 60 * (x.mean((1, 2, 3)) - 0.15) ** 2 + 4 * x.var((1, 2, 3))

    def score(self, rows, *, alpha=None):
        self.calls += 1
        u = self._energy(rows["x"])
        p = _quantiles(u, self.calibration_energies)
        return {"energy": u, "p_value": p.astype(np.float32), "flag": p <= (self.flag_rate if alpha is None else alpha)}

    def explain(self, rows, *, top=3):
        return [{"map": x[0] * 0.5, "repaired": x * 0.2} for x in rows["x"]]

    def classify(self, rows):
        x = rows["x"] + 1e-6
        left = x[..., : SIDE // 2].sum((1, 2, 3)) / x.sum((1, 2, 3))
        return np.stack([0.98 * left, 0.98 * (1 - left), np.full(len(x), 0.02)], 1)

    def _draws(self, n, seed, temperature):
        return np.random.default_rng(seed).beta(1, 6 / temperature, (n, 1, SIDE, SIDE)).astype(np.float32)

    def sample(self, n, *, seed=0, temperature=1.0, label=None):
        return self._draws(n, seed, temperature)

    def sample_frames(self, n, *, seed=0, temperature=1.0, label=None, frames=12):
        last = self._draws(n, seed, temperature)
        noise = np.random.default_rng(seed + 1).random(last.shape).astype(np.float32)
        for i in range(frames):
            x = noise + (last - noise) * (i + 1) / frames
            yield x, self._energy(x)

    def inpaint(self, x, observed, *, n=1, seed=0):
        random = np.random.default_rng(seed)
        for _ in range(n):
            yield np.where(observed, x, random.beta(1, 6, x.shape)).astype(np.float32)


class Table:
    """Half the squared distance to (20, 1000), in units of (1, 5), of numbers; 3 nats more for an unknown category."""

    title = "a detector"
    content = "table"
    outputs = Images.outputs
    flag_rate = 0.05
    columns = ("temperature", ATTACK, "state")
    inputs = tuple(TensorSpec(n, t, (-1,)) for n, t in zip(columns, ("FP64", "FP64", "BYTES"), strict=True))

    def __init__(self):
        self.calibration_energies = np.random.default_rng(0).chisquare(2, 400) / 2

    def _parts(self, rows):
        heat = (rows[self.columns[0]].astype(float) - 20) ** 2 / 2
        load = (rows[self.columns[1]].astype(float) - 1000) ** 2 / 50
        state = np.array([0.0 if value in ("on", "off") else 3.0 for value in rows["state"]])
        return np.nan_to_num(np.stack([heat, load, state], 1))

    def score(self, rows, *, alpha=None):
        u = self._parts(rows).sum(1)
        p = _quantiles(u, self.calibration_energies)
        return {"energy": u, "p_value": p, "flag": p <= (self.flag_rate if alpha is None else alpha)}

    def explain(self, rows, *, top=3):
        normal = (20.0, 1000.0, "on")
        found = []
        for i, parts in enumerate(self._parts(rows)):
            order = np.argsort(-parts)[:top]
            reasons = [
                {
                    "feature": self.columns[k],
                    "share": float(parts[k] / max(parts.sum(), 1e-9)),
                    "value": rows[self.columns[k]][i] if k == 2 else float(rows[self.columns[k]][i]),
                    "repair": normal[k],
                }
                for k in order
            ]
            found.append({"reasons": reasons})
        return found


class Texts:
    """2 nats for each letter but a."""

    title = "an energy of texts"
    content = "text"
    inputs = (TensorSpec("x", "BYTES", (-1,)),)
    outputs = Images.outputs
    flag_rate = 0.05

    def __init__(self):
        self.calibration_energies = np.random.default_rng(0).integers(0, 6, 400) * 2.0

    def score(self, rows, *, alpha=None):
        u = np.array([2.0 * sum(letter != "a" for letter in text) for text in rows["x"]])
        p = _quantiles(u, self.calibration_energies)
        return {"energy": u, "p_value": p, "flag": p <= (self.flag_rate if alpha is None else alpha)}

    def explain(self, rows, *, top=3):
        found = []
        for text in rows["x"]:
            surprise = [0.1 if letter == "a" else 5.0 for letter in text]
            worst = next((i for i, letter in enumerate(text) if letter != "a"), None)
            repair = text if worst is None else text[:worst] + "a" + text[worst + 1 :]
            places = sorted(range(len(text)), key=lambda i: -surprise[i])[:top]
            reasons = [{"place": i + 1, "letter": text[i], "surprise": surprise[i], "expected": "a"} for i in places]
            told = {"text": text, "surprise": surprise, "reasons": reasons, "repair": repair}
            found.append({**told, "repair_energy": 2.0 * sum(letter != "a" for letter in repair)})
        return found

    def sample(self, n, *, seed=0, temperature=1.0, label=None):
        random = np.random.default_rng(seed)
        return np.array(["a" * int(k) for k in random.integers(1, 9, n)], object)

    def sample_frames(self, n, *, seed=0, temperature=1.0, label=None, frames=12):
        yield self.sample(n, seed=seed), np.zeros(n)


class Points:
    """E(x) = |x|^2 / 2 in the plane, without calibration."""

    title = "a trained energy"
    content = "rows"
    inputs = (TensorSpec("x", "FP64", (-1, 2)),)
    outputs = (TensorSpec("energy", "FP64", (-1,)),)
    flag_rate = None

    def score(self, rows, *, alpha=None):
        return {"energy": (rows["x"] ** 2).sum(1) / 2}

    def sample(self, n, *, seed=0, temperature=1.0, label=None):
        return np.random.default_rng(seed).normal(0, temperature**0.5, (n, 2))

    def sample_frames(self, n, *, seed=0, temperature=1.0, label=None, frames=12):
        yield self.sample(n, seed=seed, temperature=temperature), np.zeros(n)


class Judge:
    """Energy: minus the mean of an image."""

    title = "a re-ranker"
    content = "image"
    inputs = Images.inputs
    outputs = (TensorSpec("energy", "FP32", (-1,)),)
    flag_rate = None

    def score(self, rows, *, alpha=None):
        return {"energy": -rows["x"].mean((1, 2, 3))}

    def rerank(self, rows, *, keep=None):
        u = self.score(rows)["energy"]
        return {"order": np.argsort(u, kind="stable")[:keep], "energy": u}
