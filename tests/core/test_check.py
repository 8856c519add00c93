"""Checks of arguments, and the parts of an error."""

import copy
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import thalweg
from thalweg.core import check
from thalweg.core.errors import DamagedFile, UserError, kind_of

GOOD = [
    lambda: check.positive(a=1e-9, b=torch.tensor(2.0), c=np.float32(3), d=float("inf")),
    lambda: check.non_negative(a=0, b=0.5),
    lambda: check.finite(a=-1e9, b=torch.tensor(2.0)),
    lambda: check.share(a=0, b=1, c=0.25),
    lambda: check.count(a=1, b=np.int64(7)),
    lambda: check.one_of(("left", "right"), side="left"),
    lambda: check.increasing(low=-1, high=2.5),
    lambda: check.fits_memory(1000, (1, 28, 28)),
]
NAN = float("nan")
BAD = [
    (lambda: check.positive(a=1.0, b=0.0), "b", 0.0),
    (lambda: check.positive(a=NAN), "a", NAN),
    (lambda: check.positive(a="1"), "a", "1"),
    (lambda: check.positive(a=True), "a", True),
    (lambda: check.positive(a=torch.ones(2)), "a", torch.ones(2)),
    (lambda: check.non_negative(a=-1e-9), "a", -1e-9),
    (lambda: check.non_negative(a=float("inf")), "a", float("inf")),
    (lambda: check.finite(a=-float("inf")), "a", -float("inf")),
    (lambda: check.finite(a=NAN), "a", NAN),
    (lambda: check.share(a=1.001), "a", 1.001),
    (lambda: check.share(a=NAN), "a", NAN),
    (lambda: check.count(a=0), "a", 0),
    (lambda: check.count(a=2.0), "a", 2.0),
    (lambda: check.whole("a", True, 0), "a", True),
    (lambda: check.whole("a", 11, 0, 10), "a", 11),
    (lambda: check.one_of(("left", "right"), side="up"), "side", "up"),
    (lambda: check.fits_memory(10**12, (1, 28, 28)), "n", 10**12),
]


@pytest.mark.parametrize("call", GOOD)
def test_good_values_pass(call):
    call()


@pytest.mark.parametrize(("call", "argument", "value"), BAD)
def test_bad_values_are_named(call, argument, value):
    with pytest.raises(UserError) as caught:
        call()
    assert caught.value.argument == argument
    assert repr(caught.value.value) == repr(value)
    assert str(caught.value).startswith(f"{argument}=")


@pytest.mark.parametrize("numbers", [{"low": 2, "high": 1}, {"low": 1, "high": 1}, {"low": NAN, "high": 1}])
def test_a_range_names_both_ends(numbers):
    with pytest.raises(UserError) as caught:
        check.increasing(**numbers)
    assert "low=" in str(caught.value.argument)
    assert "high=" in str(caught.value.argument)


def test_none_is_shown():
    with pytest.raises(UserError, match="a=None: must be positive"):
        check.positive(a=None)


def test_an_error_as_text():
    error = UserError("must be positive", argument="step_size", value=-1, hint="give 0.01")
    assert str(error) == "step_size=-1: must be positive; give 0.01"
    assert str(UserError("no such file", argument="x.csv")) == "x.csv: no such file"
    assert str(UserError("nothing given")) == "nothing given"
    assert len(str(UserError("m", argument="a", value="x" * 1000))) < 100


def test_an_error_keeps_its_class_and_parts():
    error = DamagedFile("truncated", argument="model.safetensors", hint="train again")
    changed = error.replace(hint="restore it").within("runs/a")
    assert type(changed) is DamagedFile
    assert str(changed) == "runs/a.model.safetensors: truncated; restore it"
    assert str(error) == "model.safetensors: truncated; train again"
    for again in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert str(again) == str(error)


def named(name):
    return type(name, (), {})()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (3, "an int"),
        ("x", "a str"),
        (1.5, "a float"),
        (None, "None"),
        (int, "the class int"),
        (np.zeros(2), "an ndarray"),
        (torch.zeros(2), "a Tensor"),
        (object(), "an object"),
        (named("EnergyReranker"), "an EnergyReranker"),
        (named("UNetEnergy"), "a UNetEnergy"),
        (named("UserError"), "a UserError"),
        (named("Unit"), "a Unit"),
        (named("Unfitted"), "an Unfitted"),
        (named("Upsample"), "an Upsample"),
        (named("OneHot"), "a OneHot"),
        (named("MLPEnergy"), "an MLPEnergy"),
        (named("MALA"), "a MALA"),
        (named("RBM"), "an RBM"),
        (named("ResNet"), "a ResNet"),
        (named("_Inner"), "an _Inner"),
    ],
)
def test_what_a_value_is_in_words(value, words):
    assert kind_of(value) == words


def test_no_message_writes_the_article_by_itself():
    """`a int`, `a EnergyReranker`: the article and the type's name come from `kind_of`."""
    own = re.compile(r"\b[Aa]n? \{[^{}]*__name__")
    assert own.search('f"want a {type(x).__name__}"')
    source = Path(thalweg.__file__).parent
    found = [path.name for path in source.rglob("*.py") if own.search(path.read_text("utf-8"))]
    assert not found
