"""Names of devices: what is meant by them, and that a device which is not there is refused in one line."""

import pytest
import torch

from thalweg.core.device import find_device
from thalweg.core.errors import UserError


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("THALWEG_DEVICE", raising=False)


@pytest.mark.parametrize("name", ["gpu", "meta", "mps", "cpu:3", "", "cuda:x"])
def test_a_name_of_another_form_is_refused(name):
    with pytest.raises(UserError) as caught:
        find_device(name)
    assert caught.value.argument == "device"


def test_auto_is_the_environments_device_then_a_gpu_then_the_cpu(monkeypatch):
    assert find_device() == find_device(None) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device() == torch.device("cuda")
    monkeypatch.setenv("THALWEG_DEVICE", "cpu")
    assert find_device() == torch.device("cpu")
    assert find_device("cuda:1") == torch.device("cuda:1")
    monkeypatch.setenv("THALWEG_DEVICE", "cuda:2")
    with pytest.raises(UserError) as caught:
        find_device()
    assert caught.value.argument == "THALWEG_DEVICE"


def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(UserError) as caught:
        find_device("cuda:1")
    assert caught.value.argument == "device"
    assert str(caught.value.value) == "cuda:1"
