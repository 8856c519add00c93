"""A value of another type than the constructor declares is told by its key, its value and what is wanted."""

import math

import pytest

from thalweg.core.config import build
from thalweg.core.errors import UserError

ULA = {"type": "thalweg.sampler.langevin:ULA", "step_size": 0.1}
CD = {"type": "thalweg.objective.contrastive.divergence:ContrastiveDivergence", "sampler": ULA}
NET = {"type": "thalweg.energy.networks.strided:StridedEnergy"}


@pytest.mark.parametrize(
    ("spec", "argument", "wanted"),
    [
        ({**CD, "num_steps": 2.5}, "num_steps", "num_steps=2.5: must be a whole number"),
        ({**CD, "num_steps": None}, "num_steps", "num_steps=None: must be"),
        ({**CD, "num_steps": True}, "num_steps", "num_steps=True: must be"),
        ({**CD, "num_steps": ["a", "b"]}, "num_steps", ""),
        ({**CD, "num_steps": [1.5, 2]}, "num_steps", ""),
        ({**CD, "buffer_size": "x"}, "buffer_size", "buffer_size='x': must be a whole number"),
        ({**CD, "buffer_size": 20.5}, "buffer_size", "must be a whole number"),
        ({**CD, "reinit": "x"}, "reinit", "must be a number"),
        ({**CD, "sampler": 5}, "sampler", "sampler=5: must be a part, as in"),
        (
            {**CD, "sampler": {"type": "thalweg.energy.networks.mlp:MLPEnergy"}},
            "sampler",
            "with the method init",
        ),
        ({**CD, "sampler": {**ULA, "step_size": "word"}}, "sampler.step_size", "='word': must be a number"),
        ({**CD, "sampler": {**ULA, "clamp": [1]}}, "sampler.clamp", ""),
        ({**NET, "channels": 8}, "channels", "channels=8: must be"),
        ({**NET, "channels": {"a": 1}}, "channels", "channels={'a': 1}: must be"),
        ({**NET, "channels": ["a"]}, "channels", "must be a whole number at index 0"),
    ],
)
def test_a_slip_names_its_key(spec, argument, wanted):
    with pytest.raises(UserError) as caught:
        build(spec, "part")
    assert caught.value.argument == f"part.{argument}"
    assert wanted in str(caught.value)


def test_a_slip_that_the_constructor_finds_names_the_part():
    with pytest.raises(UserError, match="step_size") as caught:
        build({**CD, "sampler": {**ULA, "step_size": math.inf}}, "objective")
    assert str(caught.value.argument).startswith("objective.sampler")


def test_what_is_right_passes():
    sampler = {**ULA, "step_size": 1, "clamp": [0, 1.0], "clip": None}
    made = build({**CD, "num_steps": [30, 10], "sampler": sampler, "augment": {"type": "thalweg.data.augment:Warp"}})
    assert list(made.num_steps) == [30, 10]
    assert list(made.sampler.clamp) == [0, 1]
    assert build({**NET, "channels": [4, 8]}).trunk is not None
    composed = {"type": "thalweg.data.transform:Composed"}
    assert build({**composed, "parts": []}).parts == []
    assert build({**composed, "parts": [{"type": "thalweg.data.transform:Identity"}]}).parts
