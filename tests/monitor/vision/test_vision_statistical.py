"""The statistical judge: verdicts, controls, a ranking, and that it says what it is."""

import pytest
import torch

from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.monitor import Report
from thalweg.monitor.vision.opinion import SampleJudge
from thalweg.monitor.vision.statistical import StatisticalJudge


@pytest.fixture(scope="module")
def rows():
    """600 points of four clusters in the plane, and which cluster."""
    draws = generator(0, "test-statistical-judge")
    which = torch.randint(4, (1600,), generator=draws)
    centres = torch.tensor([[2.0, 2], [-2, 2], [2, -2], [-2, -2]])
    return centres[which] + 0.3 * torch.randn(1600, 2, generator=draws), which


@pytest.fixture(scope="module")
def judge(rows):
    return StatisticalJudge(rows[0][1000:1300])


def test_verdicts(judge, rows):
    x, which = rows
    assert isinstance(judge, SampleJudge)
    samples = {
        "good": x[1300:1400],
        "alike": x[1300:][which[1300:] == 1],
        "noise": 10 + torch.randn(100, 2, generator=generator(0, "test-noise")),
        "copies": x[1000:1100],
    }
    for verdict, given in samples.items():
        opinion = judge.compare(given, x[:600], step=7)
        assert (opinion.verdict, opinion.reliable, opinion.step) == (verdict, True, 7), opinion.sentence
        assert opinion.sentence.startswith("Statistical judge (figures and a test, no vision model): ")
        assert (opinion.judge, opinion.model, opinion.cost, opinion.images_sent) == ("statistical", "", 0, 0)
        assert {"vendi", "coverage", "density"} <= opinion.figures.keys()
        assert (opinion.p_value <= 0.01) == (verdict != "good")
    assert {control.kind for control in opinion.controls} == {"real", "noise", "duplicates", "wrong class", "copies"}
    assert opinion.chance_to_pass == 0.5 * 0.5**12


def test_the_chance_of_a_coin(rows, monkeypatch):
    """Checks that toss a coin pass as seldom as is said: 1 in 1,024 without training rows.

    Rejects a rule that asks for two of three alarms (1 in 16).
    """
    toss = generator(0, "test-coin")

    class Coin:
        def __init__(self, *_, **__):
            pass

        def check(self, _):
            return Report(bool(torch.rand((), generator=toss) < 0.5), 0.5, {}, "", {}, None)

    monkeypatch.setattr("thalweg.monitor.vision.statistical.Diversity", Coin)
    passed = 0
    for _ in range(300):
        opinion = StatisticalJudge().compare(rows[0][:10], rows[0][:90])
        passed += opinion.reliable
    assert opinion.chance_to_pass == 1 / 1024
    assert passed <= 3  # 0.3 are expected; more with probability 3e-4


def test_data_without_a_law_of_their_own_fail_the_controls():
    """Points at random in a box are noise themselves, so the control of noise gives no alarm."""
    x = torch.rand(400, 2, generator=generator(0, "test-box"))
    opinion = StatisticalJudge().compare(x[200:], x[:200])
    assert not opinion.reliable
    assert "is not listened to: it failed these controls: noise" in opinion.sentence


def test_ranking(judge, rows):
    x, which = rows
    draws = generator(0, "test-ranking")
    sets = {
        "noise": 8 * torch.rand(200, 2, generator=draws) - 4,
        "late": x[1300:1500],
        "two clusters": x[600:1000][which[600:1000] < 2],
    }
    ranking = judge.rank(sets, x[:600])
    assert ranking.reliable
    assert set(ranking.order()[:2]) == {"late", "real"}
    strengths = {row.name: row for row in ranking.strengths}
    assert strengths["two clusters"].strength < strengths["late"].low
    assert strengths["noise"].strength < strengths["late"].low
    assert ranking.sentence.startswith("Statistical judge (figures and a test, no vision model), strengths in nats: ")


def test_what_is_refused(judge, rows):
    x, _ = rows
    for call in (
        lambda: judge.compare(x[:100], x[:80]),
        lambda: judge.rank({"real": x[:100]}, x),
        lambda: judge.rank({"few": x[:30]}, x[:600]),
        lambda: judge.rank({}, x),
    ):
        with pytest.raises(UserError):
            call()
