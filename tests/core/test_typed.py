"""A value of another type than the constructor declares is told by its key, its value and what is wanted."""

import math

import pytest

from thalweg.core.config import build
from thalweg.core.errors import UserError

ULA = {"type": "thalweg.sampler.langevin:ULA", "step_size": 0.1}
CD = {"type": "thalweg.objective.contrastive:ContrastiveDivergence", "sampler": ULA}
NET = {"type": "thalweg.energy.strided:StridedEnergy"}


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ({**CD, "num_steps": 2.5}, "num_steps=2.5: want a valid integer"),
        ({**CD, "num_steps": None}, "num_steps=None: want"),
        ({**CD, "num_steps": True}, "num_steps=True: want"),
        ({**CD, "num_steps": ["a", "b"]}, "num_steps=.*want"),
        ({**CD, "num_steps": [1.5, 2]}, "num_steps=.*want"),
        ({**CD, "buffer_size": "x"}, "buffer_size='x': want a valid integer"),
        ({**CD, "buffer_size": 20.5}, "buffer_size=20.5: want a valid integer"),
        ({**CD, "reinit": "x"}, "reinit='x': want a valid number"),
        ({**CD, "sampler": 5}, "sampler=5: want a part, as in"),
        (
            {**CD, "sampler": {"type": "thalweg.energy.mlp:MLPEnergy"}},
            "sampler=an MLPEnergy: want a part with the method",
        ),
        ({**CD, "sampler": {**ULA, "step_size": "word"}}, "step_size='word': want"),
        ({**CD, "sampler": {**ULA, "clamp": [1]}}, "clamp=.*want"),
        ({**CD, "sampler": {**ULA, "step_size": math.inf}}, "step_size=inf: want a positive number"),
        ({**NET, "channels": 8}, "channels=8: want"),
        ({**NET, "channels": ["a"]}, "channels=.*want a valid integer at place 0"),
    ],
)
def test_a_slip_names_its_key(spec, wanted):
    with pytest.raises(UserError, match=wanted):
        build(spec)


def test_what_is_right_passes():
    sampler = {**ULA, "step_size": 1, "clamp": [0, 1.0], "clip": None}
    made = build({**CD, "num_steps": [30, 10], "sampler": sampler, "augment": {"type": "thalweg.data.augment:Warp"}})
    assert list(made.num_steps) == [30, 10]
    assert list(made.sampler.clamp) == [0, 1]
    assert build({**NET, "channels": [4, 8]}).trunk is not None
    assert build({"type": "thalweg.data.transform:Chain", "parts": []}).parts == []
    assert build({"type": "thalweg.data.transform:Chain", "parts": [{"type": "thalweg.data.transform:Identity"}]}).parts
