"""The bigram law of texts, a transformer's energy over it, and pseudo-likelihood, against sums over all states."""

import itertools
import math

import pytest
import torch
from torch.nn.functional import one_hot, softplus

from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.energy.base import Constrained, Discrete, Fittable, HasBaseLaw, HasExactLogZ, energy_and_grad
from thalweg.energy.density import bigram
from thalweg.energy.density.bigram import BigramEnergy, codes_of
from thalweg.energy.enumeration import all_states
from thalweg.energy.ising import IsingEnergy
from thalweg.energy.networks import autoregressive as autoregressive_module
from thalweg.energy.networks.autoregressive import AutoregressiveEnergy
from thalweg.energy.networks.context_counts import ContextCounts
from thalweg.energy.networks.tilted_bigram import TiltedBigramEnergy
from thalweg.energy.potts import PottsEnergy
from thalweg.energy.rbm import RBMEnergy
from thalweg.objective import noise_contrastive, pseudo_likelihood
from thalweg.objective.base import Batch
from thalweg.objective.combined import Combined
from thalweg.objective.likelihood import MaximumLikelihood
from thalweg.objective.noise_contrastive import NoiseContrastive
from thalweg.objective.pseudo_likelihood import PseudoLikelihood
from thalweg.training.settings import TrainSettings
from thalweg.training.state import fresh

from .test_score_matching import mutant

L, K = 4, 4
TEXTS = [t for n in range(L + 1) for t in itertools.product(range(1, K), repeat=n)]
NUM_DRAWS = 40_000


def encoded(texts, length=L, num_states=K):
    """One-hot rows, float64, of tuples of letters."""
    codes = torch.zeros(len(texts), length, dtype=torch.long)
    for row, text in zip(codes, texts, strict=True):
        row[: len(text)] = torch.tensor(text, dtype=torch.long)
    return one_hot(codes, num_states).double()


def sample_texts(n=300):
    """Texts with a law of their own: letters seldom repeat, and few are of the full length."""
    draws = generator(0, "texts")
    weight = torch.tensor([0.02 if not t else 0.4 ** sum(a == b for a, b in itertools.pairwise(t)) for t in TEXTS])
    weight = weight * torch.tensor([0.3 ** (len(t) == L) for t in TEXTS])
    return encoded(TEXTS)[weight.multinomial(n, replacement=True, generator=draws)]


def fitted(module=bigram, **settings):
    return module.BigramEnergy(shape=(L, K), **settings).double().fit(sample_texts())


def tilted(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        energy = TiltedBigramEnergy(shape=(L, K), width=16, depth=2, num_heads=2)
        torch.nn.init.uniform_(energy.head.weight, -0.75, 0.75)  # it begins at zero
    return energy.double().fit(sample_texts()).eval()


def autoregressive(length=L, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        energy = AutoregressiveEnergy(shape=(length, K), width=16, depth=2, num_heads=2, **settings)
        with torch.no_grad():
            energy.head.weight.mul_(30)
    return energy.double().fit(sample_texts()[:, :length]).eval()


def test_they_are_what_they_say():
    for energy in (BigramEnergy(), TiltedBigramEnergy.example(), AutoregressiveEnergy.example()):
        for capability in (Discrete, Constrained, HasBaseLaw, Fittable):
            assert isinstance(energy, capability)


@pytest.mark.parametrize("smoothing", [1.0, 20.0])
def test_the_bigram_law_sums_to_one_over_all_states(smoothing):
    """Over the texts; over all states too, those that are no texts included, which weigh nothing."""
    energy = fitted(smoothing=smoothing)
    assert math.isclose(float((-energy(encoded(TEXTS))).exp().sum()), 1, abs_tol=1e-12)
    assert math.isclose(float((-energy(all_states(L, K))).exp().sum()), 1, abs_tol=1e-12)
    assert math.isclose(float((-BigramEnergy(shape=(L, K)).double()(encoded(TEXTS))).exp().sum()), 1, abs_tol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        ("x[:, :-1] @ table", "x[:, 1:] @ table"),
        ("torch.cat([first.expand", "torch.cat([0 * first.expand"),
        ("log_next[0, 0] = 0", "log_next[0, 0] = -0.1"),
        ("(first.sum() + weight)", "(first.sum() + k * weight)"),
    ],
    ids=["backwards", "first letter", "padding costs", "smoothing counted twice"],
)
def test_a_law_that_is_wrong_does_not(change):
    energy = fitted(mutant(bigram, *change))
    assert abs(float((-energy(encoded(TEXTS))).exp().sum()) - 1) > 1e-3


def test_counts_are_those_of_a_loop():
    x, s = sample_texts(), 3.0
    energy = fitted(smoothing=s)
    texts = [[int(c) for c in row] for row in x.argmax(-1)]
    ends = [[*t[: t.index(0)], 0] if 0 in t else t for t in texts]
    letters = [c for t in ends for c in t]
    share = [(letters.count(b) + 1) / (len(letters) + K) for b in range(K)]
    for a in range(1, K):
        after = [v for t in ends for u, v in itertools.pairwise(t) if u == a]
        for b in range(K):
            want = math.log((after.count(b) + s * share[b]) / (len(after) + s))
            assert float(energy.log_next[a, b]) == pytest.approx(want, abs=1e-12)


def chi_square(energy, draws):
    """(statistic of the counts of all texts, degrees of freedom)."""
    place = K ** torch.arange(L - 1, -1, -1)
    number = (draws.argmax(-1) * place).sum(1)
    texts = encoded(TEXTS)
    p = (-energy(texts)).exp()
    wanted = (texts.argmax(-1) * place).sum(1)
    counts = (number[:, None] == wanted).sum(0)
    assert int(counts.sum()) == len(draws), "a draw that is no text"
    return float(((counts - len(draws) * p) ** 2 / (len(draws) * p)).sum()), len(TEXTS) - 1


def uniforms(n=NUM_DRAWS):
    return torch.rand(n, L, generator=generator(0, "uniforms"), dtype=torch.float64)


def bar(degrees):
    """The chi-square that is exceeded once in a million (Wilson & Hilferty 1931)."""
    return degrees * (1 - 2 / (9 * degrees) + 4.75 * (2 / (9 * degrees)) ** 0.5) ** 3


def test_draws_follow_the_law():
    energy = fitted(smoothing=20.0)
    statistic, degrees = chi_square(energy, energy.base_draws(uniforms()))
    assert statistic < bar(degrees)
    wrong = fitted(mutant(bigram, "below = tables.exp()", "below = tables.roll(1, 0).exp()"), smoothing=20.0)
    with pytest.raises(AssertionError, match="no text"):
        chi_square(energy, wrong.base_draws(uniforms()))
    warmer = fitted(smoothing=100.0)
    assert chi_square(energy, warmer.base_draws(uniforms()))[0] > bar(degrees)


def test_exact_draws_of_the_autoregressive_energy_follow_its_law():
    """Draws that forget the letters before, and those of the bigram law, are rejected."""
    energy = autoregressive(context=2)
    with torch.no_grad():
        statistic, degrees = chi_square(energy, energy.exact_draws(uniforms(8000)))
        assert statistic < bar(degrees)
        wrong = mutant(autoregressive_module, "log_p[:, i].exp()", "log_p[:, 0].exp()")
        forgetful = wrong.AutoregressiveEnergy(shape=(L, K), width=16, depth=2, num_heads=2, context=2).double().eval()
        forgetful.load_state_dict(energy.state_dict())
        assert chi_square(energy, forgetful.exact_draws(uniforms(8000)))[0] > bar(degrees)
        assert chi_square(energy, energy.base_draws(uniforms(8000)))[0] > bar(degrees)


def test_draws_are_a_pure_function_and_keep_the_type():
    energy = BigramEnergy(shape=(L, K)).fit(sample_texts().float())
    u = uniforms(100).float()
    draws = energy.base_draws(u)
    assert draws.dtype == torch.float32
    assert torch.equal(draws, energy.base_draws(u))
    assert torch.equal(energy.base_draws(torch.zeros(1, L)).sum(-1), torch.ones(1, L))
    with pytest.raises(UserError) as caught:
        energy.base_draws(u[:, :-1])
    assert caught.value.argument == "uniforms"


@pytest.mark.parametrize("make", [fitted, tilted, autoregressive])
def test_the_gradient_predicts_single_changes(make):
    """Of the bigram law exactly; of the tilted one it tells the changes apart, growing and shrinking included."""
    energy, x = make(), encoded([(1, 2), (3, 1, 2), (1,), (2, 2, 1, 3)])
    u, g = energy_and_grad(energy, x)
    predicted, found = [], []
    for row, allowed in enumerate(energy.allowed(x)):
        for unit, state in allowed.nonzero().tolist():
            changed = x[row : row + 1].clone()
            changed[0, unit] = one_hot(torch.tensor(state), K)
            predicted.append(((changed[0] - x[row]) * g[row]).sum())
            found.append((energy(changed) - u[row]).squeeze(0).detach())
    predicted, found = torch.stack(predicted), torch.stack(found)
    if make is fitted:
        torch.testing.assert_close(predicted, found, rtol=0, atol=1e-10)
    else:
        assert float(torch.corrcoef(torch.stack([predicted, found]))[0, 1]) > 0.5


def test_what_may_change_keeps_a_text():
    """All states that are texts, of each unit while the others stay, and no others."""
    known = {tuple(t) for t in TEXTS}
    codes = encoded(TEXTS).argmax(-1)
    for row, allowed in zip(codes.tolist(), BigramEnergy(shape=(L, K)).allowed(encoded(TEXTS)), strict=True):
        for unit, state in itertools.product(range(L), range(K)):
            changed = [*row[:unit], state, *row[unit + 1 :]]
            end = changed.index(0) if 0 in changed else L
            text = tuple(changed[:end]) in known and not any(changed[end:])
            assert bool(allowed[unit, state]) == text, (row, unit, state)


@pytest.mark.parametrize("make", [tilted, autoregressive])
def test_the_tilt_sees_nothing_after_the_end_and_cuts_padding_only(make):
    energy = make().requires_grad_(False)
    rows = all_states(L, K)
    codes = rows.argmax(-1)
    cleaned = torch.where((codes == 0).cumsum(1) > 0, 0, codes)
    torch.testing.assert_close(energy.tilt(rows), energy.tilt(one_hot(cleaned, K).double()), rtol=0, atol=1e-12)
    one_by_one = torch.cat([energy.tilt(row) for row in rows[:50].split(1)])
    torch.testing.assert_close(energy.tilt(rows)[:50], one_by_one, rtol=0, atol=1e-12)
    assert float(energy.tilt(encoded(TEXTS)).detach().std()) > 0.05
    mass = torch.softmax(-energy(rows), 0)[(codes != cleaned).any(1)]
    assert float(mass.sum()) < 1e-30


@pytest.mark.parametrize(
    "bad",
    [
        encoded([(1, 2)]) * 0.5,
        torch.cat([encoded([(1,)])[:, :1], encoded([()])[:, :1], encoded([(1, 1)])[:, :2]], 1),
        encoded([(1, 2)])[:0],
    ],
    ids=["not one-hot", "a letter after the end", "no rows"],
)
def test_what_is_no_text_is_refused(bad):
    with pytest.raises(UserError) as caught:
        BigramEnergy(shape=(L, K)).double().fit(bad)
    assert caught.value.argument == "x"
    with pytest.raises(UserError, match="must have one text or more"):
        BigramEnergy(shape=(L, K)).fit_parts([])
    with pytest.raises(UserError) as caught:
        TiltedBigramEnergy(shape=(L, 2))
    assert caught.value.argument == "shape"


class Counted(torch.nn.Module):
    """-log q(x) - f(x) + c with q fitted and f a free number for each text: the largest family there is."""

    num_states = K

    def __init__(self):
        super().__init__()
        self.bigram, self.free = fitted(smoothing=20.0), torch.nn.Parameter(torch.zeros(K**L, dtype=torch.float64))
        self.num_uniforms = L

    def base_energy(self, x):
        return self.bigram(x)

    def base_draws(self, uniforms):
        return self.bigram.base_draws(uniforms)

    def forward(self, x):
        return self.bigram(x) - self.free[(x.argmax(-1) * K ** torch.arange(L - 1, -1, -1)).sum(1)]


def kl(p, q):
    return float((p * (p.log() - q.log())).sum())


def test_the_base_law_is_the_noise():
    """The loss of data and draws of q by hand, with log-odds f(x) - log nu."""
    energy, x = Counted(), encoded(TEXTS)
    with torch.no_grad():
        energy.free.copy_(torch.randn(K**L, generator=generator(0, "free")))

    def by(module):
        nce = module.NoiseContrastive(ratio=2)
        state = nce.init(energy, x, generator(0, "init"))
        noise = nce.draw(state, Batch(x), generator(0, "draw"), 0.0)
        return nce.loss(energy, state, Batch(x), noise)[0].detach(), noise[0]

    loss, u = by(noise_contrastive)
    assert u.shape == (2 * len(TEXTS), L)
    assert u.dtype == torch.float64
    odds = [energy.bigram(rows) - energy(rows) - math.log(2) for rows in (x, energy.base_draws(u))]
    want = softplus(-odds[0]).mean() + 2 * softplus(odds[1]).mean()
    torch.testing.assert_close(loss, want.detach())
    wrong, _ = by(mutant(noise_contrastive, "-law.base_energy(x)", "law.base_energy(x)"))
    assert abs(float(wrong - loss)) > 0.1


def test_so_the_constant_is_learned_with_the_law():
    """From 4,000 texts of another law: its sum over all is 1 within 0.05; its KL below 0.05 nats, 0.015 noise."""
    energy, texts = Counted(), encoded(TEXTS)
    with torch.no_grad():
        p = torch.softmax(-tilted(seed=1)(texts) + 0.3 * (texts.argmax(-1) == 3).sum(1), 0)
    x = texts[p.multinomial(4000, replacement=True, generator=generator(0, "x"))]
    nce = NoiseContrastive()
    state = nce.init(energy, x, generator(0, "init"))
    optimizer = torch.optim.Adam(energy.parameters(), lr=0.2)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.2 * (1 - step / 200)
        noise = nce.draw(state, Batch(x), generator(0, "draw", step), 0.0)
        optimizer.zero_grad()
        nce.loss(energy, state, Batch(x), noise)[0].backward()
        optimizer.step()
    with torch.no_grad():
        q = (-energy(texts)).exp()
    assert kl(p, (-energy.bigram(texts)).exp()) > 0.1
    assert float(q.sum()) == pytest.approx(1, abs=0.05)
    assert kl(p, q / q.sum()) < 0.05


def test_an_energy_without_the_law_of_the_training_is_refused():
    nce, x = NoiseContrastive(), encoded(TEXTS)
    state = nce.init(fitted(), x, generator(0, "init"))
    noise = nce.draw(state, Batch(x), generator(0, "draw"), 0.0)
    with pytest.raises(UserError) as caught:
        nce.loss(IsingEnergy.example(), state, Batch(x), noise)
    assert caught.value.argument == "energy"


LATTICES = {
    "Ising": lambda: IsingEnergy(shape=(3, 3), coupling=0.25, field=0.3, periodic=False),
    "Potts": lambda: PottsEnergy(shape=(2, 3, 3), coupling=0.5, periodic=False),
    "RBM": lambda: RBMEnergy(shape=(4,), num_hidden=2, weight_std=1.0),
}


def units_of(energy):
    k = energy.num_states
    size = math.prod(energy.shape)
    return all_states(size if k == 2 else size // k, k).reshape(-1, *energy.shape)


def exact(energy, x):
    """-sum_i log p(x_i | x without i) by a loop over units and states."""
    k = energy.num_states
    total = torch.zeros(len(x), dtype=x.dtype)
    flat = x.reshape(len(x), -1) if k == 2 else x.reshape(len(x), -1, k)
    for unit in range(flat.shape[1]):
        others = []
        for state in range(k):
            changed = flat.clone()
            changed[:, unit] = state if k == 2 else one_hot(torch.tensor(state), k).to(x)
            others.append(energy(changed.reshape(x.shape)))
        total = total + energy(x) + torch.logsumexp(-torch.stack(others), 0)
    return total


@pytest.mark.parametrize("name", [*LATTICES, "text"])
def test_all_units_and_states_are_the_pseudo_likelihood(name):
    energy = (tilted() if name == "text" else LATTICES[name]().double()).requires_grad_(False)
    x = encoded(TEXTS) if name == "text" else units_of(energy)[::7]
    objective = PseudoLikelihood(num_units=None)
    state = objective.init(energy, x, generator(0, "init"))
    noise = objective.draw(state, Batch(x), generator(0, "draw"), 0.0)
    assert all(n.numel() == 0 for n in noise)
    loss, _, metrics = objective.loss(energy, state, Batch(x), noise)
    assert float(loss) == pytest.approx(float(exact(energy, x).mean()), abs=1e-9)
    assert float(metrics["pseudo_surprise"]) == float(loss)


def estimates(module, energy, x, parts=200, **settings):
    """(mean, its standard error) of the loss of one row, over so many batches of 50 copies of it."""
    objective = module.PseudoLikelihood(**settings)
    batch, state = Batch(x.expand(50, *x.shape[1:])), objective.init(energy, x, generator(0, "init"))
    noises = (objective.draw(state, batch, generator(0, "draw", part), 0.0) for part in range(parts))
    values = torch.stack([objective.loss(energy, state, batch, noise)[0] for noise in noises])
    return float(values.mean()), float(values.std() / parts**0.5)


@pytest.mark.parametrize("num_units", [1, 2, 3, 20])
def test_some_units_estimate_the_sum_without_bias(num_units):
    """A text of 3 letters has 4 units that may change: fewer than 20, then each is met five times."""
    energy, x = fitted(smoothing=20.0), encoded([(3, 1, 2)])
    mean, error = estimates(pseudo_likelihood, energy, x, num_units=num_units)
    assert abs(mean - float(exact(energy, x))) < 5 * error + 1e-6
    if num_units < 4:
        wrong = mutant(pseudo_likelihood, "free.sum(1) / self.num_units", "free.sum(1) / (1 + self.num_units)")
        mean, error = estimates(wrong, energy, x, num_units=num_units)
        assert abs(mean - float(exact(energy, x))) > 5 * error


def learned(module, truth, make, steps=150, **settings):
    """KL of the law that the objective finds, with the data's law exact: every state in the batch, weighed."""
    x = units_of(truth)
    p = torch.softmax(-truth(x).detach(), 0)
    energy = make()
    objective = module.PseudoLikelihood(**settings)
    optimizer = torch.optim.Adam(energy.parameters(), lr=0.05)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1 - step / steps)
        draws = generator(0, "learn", step)
        rows = x[p.multinomial(512, replacement=True, generator=draws)]
        state = objective.init(energy, rows, draws)
        loss = objective.loss(energy, state, Batch(rows), objective.draw(state, Batch(rows), draws, 0.0))[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return kl(p, torch.softmax(-energy(x).detach(), 0))


@pytest.mark.parametrize(
    ("name", "settings"),
    [("Ising", {}), ("Potts", {}), ("Potts", {"num_candidates": 1}), ("RBM", {"num_units": None})],
)
def test_its_minimum_is_the_law(name, settings):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        truth = LATTICES[name]().double()
        other = {"Ising": {"coupling": 0.0}, "Potts": {"coupling": 0.0}, "RBM": {"weight_std": 0.5}}[name]

        def make():
            shape = {"Ising": (3, 3), "Potts": (2, 3, 3), "RBM": (4,)}[name]
            more = {"num_hidden": 2} if name == "RBM" else {"periodic": False}
            return type(truth)(shape=shape, **more, **other).double()

        begin = kl(*(torch.softmax(-e(units_of(truth)).detach(), 0) for e in (truth, make())))
        found = learned(pseudo_likelihood, truth, make, **settings)
        assert found < 0.01 < begin
        if name == "Potts":
            wrong = mutant(pseudo_likelihood, "gap = own[:, None, None] - others", "gap = others - own[:, None, None]")
            assert learned(wrong, truth, make, steps=40, **settings) > 0.01


def test_an_energy_of_no_states_is_refused():
    with pytest.raises(UserError) as caught:
        PseudoLikelihood().init(lambda x: x.sum(1), torch.zeros(2, 3), generator(0, "init"))
    assert caught.value.argument == "energy"
    for wrong in ({"num_units": 0}, {"num_candidates": 0}):
        with pytest.raises(UserError):
            PseudoLikelihood(**wrong)


@pytest.mark.parametrize("settings", [{}, {"context": 3}, {"context": 3, "slots": 7}], ids=str)
@pytest.mark.parametrize("training", [False, True])
def test_an_autoregressive_energy_is_normalised_as_it_stands(settings, training):
    """Over all states, with a network that is far from the bigram law; its own `log_z` says so.

    In training mode each text is left out of its own counts, so there it is each text's law that sums to 1.
    """
    energy = autoregressive(**settings).requires_grad_(False).train(training)
    if training:
        p = (
            energy.counts(torch.full((1, L, K), 1 / K), codes_of(sample_texts()[:1]))
            if energy.counts
            else torch.ones(1)
        )
        torch.testing.assert_close(p.sum(-1), torch.ones_like(p.sum(-1)), check_dtype=False)
        return
    assert math.isclose(float((-energy(all_states(L, K))).exp().sum()), 1, abs_tol=1e-10)
    assert float((energy(encoded(TEXTS)) - energy.bigram(encoded(TEXTS))).abs().mean()) > 0.3
    assert float(energy.log_z()) == 0
    assert isinstance(energy, HasExactLogZ)


@pytest.mark.parametrize("longest", [2, 3])
def test_contexts_are_counted_as_by_a_loop(longest):
    """p of the longest context, in which each letter is counted; in training mode without the text itself."""
    codes = codes_of(sample_texts(60))
    counts = ContextCounts(K, longest, 1 << 16).double()
    counts.fit(codes)
    texts = [[*row[: row.index(0)], 0] if 0 in row else row for row in codes.tolist()]
    law = torch.full((1, L, K), 1 / K, dtype=torch.float64)
    for training in (False, True):
        counts.train(training)
        text = next(t for t in texts if len(set(t)) == len(t) > 2)  # no context comes twice
        row = torch.tensor([text + [0] * (L - len(text))])
        found = counts(law, row).detach()[0]
        for i in range(len(text)):
            p = [1 / K] * K
            for c in range(2, longest + 1):
                context = ([K] * c + text)[i : i + c]
                after = [t[j] for t in texts for j in range(len(t)) if ([K] * c + t)[j : j + c] == context]
                if training:
                    after.remove(text[i])
                p = [(after.count(b) + 4 * p[b]) / (len(after) + 4) for b in range(K)]
            assert found[i].tolist() == pytest.approx(p, abs=1e-6)


def test_a_small_table_has_the_most_frequent_contexts():
    codes = codes_of(sample_texts(60))
    full, few = ContextCounts(K, 3, 1 << 16), ContextCounts(K, 3, 5)
    for counts in (full, few):
        counts.fit(codes)
    every = full.counts3.sum(1).sort(descending=True).values
    assert int(every.sum()) == int(((codes == 0).cumsum(1) <= 1).sum())
    assert few.counts3.shape == (5, K)
    torch.testing.assert_close(few.counts3.sum(1).sort(descending=True).values, every[:5])
    law = torch.full((len(codes), L, K), 1 / K)
    known = torch.isin(full._keys(codes, 3), few.keys3)
    full.eval(), few.eval()
    few.keys2, few.counts2 = full.keys2, full.counts2
    assert torch.equal(full(law, codes)[known], few(law, codes)[known])
    assert 0.1 < float(known.double().mean()) < 0.9


@pytest.mark.parametrize("num_states", [28, 102, 602, 6000])
def test_tables_of_counts_are_of_bounded_size(num_states):
    with torch.device("meta"):
        counts = ContextCounts(num_states, 4, 1 << 17)
    sizes = {name: buffer.numel() * buffer.element_size() for name, buffer in counts.named_buffers()}
    assert max(sizes.values()) <= 2**23
    assert num_states > 28 or counts.counts4.shape == (1 << 17, 28)  # English keeps its rows
    assert {name for name, _ in counts.named_buffers()} == set(counts.fixed_buffers)


def test_counts_beyond_16_bits_are_scaled_in_proportion():
    codes = torch.tensor([[1, 1, 1, 0]]).repeat(100_000, 1)
    codes[:50_000, 2] = 2
    codes[0, 2] = 3
    counts = ContextCounts(4, 2, 100)
    counts.fit(codes)
    row = counts.counts2[counts.keys2 == 1 * 5 + 1][0]
    assert row.tolist() == [32767, 32767, 32766, 1]


@pytest.mark.parametrize(("shape", "context", "most"), [((4, 3), 5, 4), ((40, 28), 14, 12), ((4, 3), 10**9, 4)])
def test_a_context_that_does_not_fit_is_refused(shape, context, most):
    AutoregressiveEnergy(shape=shape, width=8, depth=1, num_heads=2, context=most, slots=4)
    with pytest.raises(UserError, match=f"at most {most} ") as caught:
        AutoregressiveEnergy(shape=shape, width=8, depth=1, num_heads=2, context=context, slots=4)
    assert caught.value.argument == "context"


@pytest.mark.parametrize("kind", [TiltedBigramEnergy, AutoregressiveEnergy])
def test_no_texts_have_no_energies(kind):
    assert kind.example()(torch.zeros(0, 4, 3)).shape == (0,)


def test_fixed_buffers_are_kept_once_in_a_state_and_come_back(tmp_path):
    """Of the energy alone, not of its average nor of the guard's copies."""
    energy = AutoregressiveEnergy(shape=(L, K), width=8, depth=1, num_heads=2, context=2).fit(sample_texts(60))
    state = fresh(energy, TrainSettings(), lambda _: ())
    assert set(state.core()["energy"]) - set(state.core()["average"]) == {
        "bigram.log_first",
        "bigram.log_next",
        "counts.keys2",
        "counts.counts2",
    }
    path = state.save(tmp_path, 1)
    empty = AutoregressiveEnergy(shape=(L, K), width=8, depth=1, num_heads=2, context=2)
    again = fresh(empty, TrainSettings(), lambda _: ())
    again.load(path)
    for name, value in state.average.state_dict().items():
        assert torch.equal(again.average.state_dict()[name], value), name


def test_an_autoregressive_energy_does_not_look_ahead():
    """Texts of one beginning: the differences of their energies follow from the letters behind it alone."""
    energy = autoregressive().requires_grad_(False)
    texts = encoded([(1, 2, 3), (1, 2, 1), (1, 2)])
    short = autoregressive(3).requires_grad_(False)
    short.load_state_dict(energy.state_dict())
    first_two = (-short(encoded([(1, 2, c) for c in range(1, K)] + [(1, 2)], 3))).exp().sum()  # p(x_1, x_2)
    longer = encoded([(1, 2, *rest) for n in range(3) for rest in itertools.product(range(1, K), repeat=n)])
    assert float((-energy(longer)).exp().sum()) == pytest.approx(float(first_two), abs=1e-12)
    assert float(energy(texts).std()) > 0.01


@pytest.mark.parametrize("name", ["Ising", "RBM"])
def test_maximum_likelihood_is_exact(name):
    """The loss is -log p of the rows by a sum over all states, and its gradient is that of the sum."""
    energy = LATTICES[name]().double()
    x = units_of(energy)
    loss, _, metrics = MaximumLikelihood().loss(energy, (), Batch(x[::5]), ())
    want = -torch.log_softmax(-energy(x), 0)[::5].mean()
    torch.testing.assert_close(loss, want)
    for a, b in zip(*(torch.autograd.grad(v, [*energy.parameters()]) for v in (loss, want)), strict=True):
        torch.testing.assert_close(a, b)
    assert float(metrics["surprise"]) == pytest.approx(float(want.detach()))
    with pytest.raises(UserError) as caught:
        MaximumLikelihood().loss(tilted(), (), Batch(x), ())
    assert caught.value.argument == "energy"


def test_a_sum_of_objectives_is_one():
    energy, x = Counted(), encoded(TEXTS)
    parts = NoiseContrastive(), PseudoLikelihood()
    both = Combined(parts=parts, weights=(2.0, 0.5))
    assert both.normalises
    assert both.learns_constant
    assert not Combined(parts=(PseudoLikelihood(), PseudoLikelihood())).normalises
    state = both.init(energy, x, generator(0, "init"))
    noise = both.draw(state, Batch(x), generator(0, "draw"), 0.0)
    loss, _, metrics = both.loss(energy, state, Batch(x), noise)
    each = [p.loss(energy, s, Batch(x), n)[0] for p, s, n in zip(parts, state.parts, noise, strict=True)]
    torch.testing.assert_close(loss, 2 * each[0] + 0.5 * each[1])
    assert {"NoiseContrastive_accuracy", "PseudoLikelihood_energy"} < metrics.keys()
    for wrong in ({"parts": parts[:1]}, {"parts": parts, "weights": (1.0,)}, {"parts": parts, "weights": (1.0, 0.0)}):
        with pytest.raises(UserError):
            Combined(**wrong)
