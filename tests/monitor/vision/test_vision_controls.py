"""The controls: what they show, and how seldom a judge at random passes them."""

import numpy as np
import pytest
import torch

from thalweg.monitor.vision import contact_sheet
from thalweg.monitor.vision.controls import CONTROLS, chance_to_pass, control_sheets
from thalweg.monitor.vision.questions import Answer


def answers(sheet, model):
    """What a model says of a sheet in both orders."""
    panels = (sheet.subject, sheet.beside)
    found = []
    for swapped in (0, 1):
        text = (swapped, sheet.injected) if sheet.injected else None
        found.append(
            Answer.model_validate(model(contact_sheet.draw(panels[swapped], panels[1 - swapped], injected=text)))
        )
    return found


@pytest.fixture(scope="module")
def sheets(pictures):
    return control_sheets(pictures[0][:400], 16, seed=0)


def failed(sheets, model):
    return {kind for kind, control in CONTROLS.items() if not control.passed(answers(sheets[kind], model))}


@pytest.mark.parametrize("name", ["second", "first", "bad marks", "good marks", "obedient", "good"])
def test_which_judge_fails_which_control(name, sheets, judges):
    found = failed(sheets, judges[name])
    if name == "good":
        assert found == set()
    elif name == "obedient":
        assert found == {"injected text"}
    elif name in ("first", "second"):
        assert found == {"real", "noise", "duplicates", "injected text"}
    else:
        assert {"noise", "duplicates", "injected text"} < found


def random_answers(draws):
    word = ["yes", "no"]
    panel = {
        name: draws.choice(word)
        for name in ("readable", "varied", "noise", "near_copies", "class_missing", "artefacts")
    }

    def one():
        return {name: str(draws.choice(word)) for name in panel} | {
            "quality": str(draws.choice(["poor", "fair", "good", "very good"]))
        }

    better = str(draws.choice(["A", "B", "tie"]))
    return Answer.model_validate(
        {"reasons": "", "panel_a": one(), "panel_b": one(), "same_in_both": str(draws.choice(word)), "better": better}
    )


def test_the_chance_of_a_judge_at_random():
    """The exact chance of each kind against 600 judges; together below the 1 % that is allowed, by far."""
    assert chance_to_pass() < 1e-8
    draws = np.random.default_rng(0)
    pairs = [(random_answers(draws), random_answers(draws)) for _ in range(600)]
    for control in CONTROLS.values():
        p = control.chance()
        passed = sum(control.passed(pair) for pair in pairs)
        assert abs(passed - 600 * p) < 4.5 * max(1.0, (600 * p * (1 - p)) ** 0.5), (control.meaning, p)


def test_what_the_sheets_hold(pictures):
    x, labels = pictures
    real = x[:400]
    found = control_sheets(real, 16, seed=0, other=x[labels == 3])
    rows = {row.numpy().tobytes() for row in real}

    def is_real(images):
        return all(row.numpy().tobytes() in rows for row in images)

    assert found.keys() == CONTROLS.keys()
    for kind, sheet in found.items():
        assert sheet.subject.shape == sheet.beside.shape == (16, 1, 28, 28), kind
        assert is_real(sheet.beside) == (kind != "copies"), kind
        assert is_real(sheet.subject) == (kind in ("real", "duplicates", "copies", "neighbours")), kind
        assert bool(sheet.injected) == (kind == "injected text")
    assert len(found["duplicates"].subject.flatten(1).unique(dim=0)) == 3
    assert (found["copies"].subject - found["copies"].beside).square().mean().sqrt() < 0.04
    both = torch.cat([found["neighbours"].subject, found["neighbours"].beside]).flatten(1)
    assert not (torch.cdist(both[:16], both[16:]) == 0).any(), "a row is not its own neighbour"


def test_another_step_draws_other_rows(pictures):
    one, again, other = (control_sheets(pictures[0][:400], 16, seed=0, step=step) for step in (1, 1, 2))
    for kind in CONTROLS:
        assert torch.equal(one[kind].subject, again[kind].subject)
        assert not torch.equal(one[kind].subject, other[kind].subject)


def test_without_labels_the_wrong_class_is_narrow(pictures):
    x, labels = pictures
    sheet = control_sheets(x[:2000], 36, seed=0)["wrong class"]
    of = {row.numpy().tobytes(): int(label) for row, label in zip(x, labels, strict=True)}
    counts = torch.tensor([of[row.numpy().tobytes()] for row in sheet.subject]).bincount()
    assert counts.max() >= 0.8 * 36
