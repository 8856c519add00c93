"""Names of devices: what is meant by them, and that a device which is not there is refused in one line."""

import copy

import pytest
import torch

from thalweg.core.device import MaskableAdamW, find_device, of_process, tf32
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


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)


@pytest.mark.parametrize(
    ("name", "environment", "expected"),
    [
        ("auto", {}, "cuda"),
        ("auto", {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, "cuda:1"),
        ("cuda", {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}, "cuda:0"),
        ("cuda:1", {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}, "cuda:1"),
        ("cpu", {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, "cpu"),
    ],
)
def test_each_process_of_several_takes_the_gpu_of_its_number(two_gpus, monkeypatch, name, environment, expected):
    for variable in ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "THALWEG_DEVICE"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    assert str(of_process(find_device(name))) == expected


@pytest.mark.parametrize(("name", "rank", "argument"), [("cuda", "2", "LOCAL_RANK"), ("cuda:0", "0", "device")])
def test_processes_without_a_gpu_of_their_own_are_refused(two_gpus, monkeypatch, name, rank, argument):
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(UserError) as caught:
        of_process(find_device(name))
    assert caught.value.argument == argument


def test_tf32_is_put_back():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    with tf32(True):
        assert torch.get_float32_matmul_precision() == "high"
        with tf32(None):
            assert torch.get_float32_matmul_precision() == "high"
    with tf32(False):
        assert not torch.backends.cudnn.allow_tf32
    assert before == (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)


@pytest.mark.parametrize("plain", [False, True])
def test_a_masked_step_leaves_weights_and_moments(plain):
    """Bad, good, bad: the weights of one step, by the fused kernel and by the plain form."""
    torch.manual_seed(0)
    net = torch.nn.Linear(3, 2)
    optimizer, twin = (MaskableAdamW(m.parameters(), lr=0.1, weight_decay=0.1) for m in (net, copy.deepcopy(net)))
    if plain:
        optimizer = MaskableAdamW(net.parameters(), lr=0.1, weight_decay=0.1)
        optimizer.has_fused = False
    for bad in (1.0, 0.0, 1.0):
        for p in net.parameters():
            p.grad = torch.full_like(p, float("nan") if bad else 0.3)
        before = [p.detach().clone() for p in net.parameters()]
        optimizer.masked_step(torch.tensor(bad))
        assert all(torch.equal(p, b) == bool(bad) for p, b in zip(net.parameters(), before, strict=True))
    assert all(s["exp_avg"].isfinite().all() for s in optimizer.state.values())
    assert twin.param_groups[0]["fused"]


def test_moments_from_a_file_and_means_over_ranks_have_the_layout_of_the_weights(monkeypatch):
    """Weights in channels_last, as on a GPU; fused kernels read memory, and a mutant without the copy is caught."""
    from thalweg.training.distributed import ProcessGroup

    def begun():
        torch.manual_seed(0)
        net = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        return net, MaskableAdamW(net.parameters(), lr=0.1)

    def step(net, optimizer, number):
        draws = torch.Generator().manual_seed(number)
        for p in net.parameters():
            p.grad = torch.empty_like(p).copy_(torch.randn(p.shape, generator=draws))
        optimizer.step()

    (net, optimizer), (twin, other) = begun(), begun()
    step(net, optimizer, 1)
    step(twin, other, 1)
    stored = copy.deepcopy(other.state_dict())
    for own in stored["state"].values():
        own.update({name: value.contiguous() for name, value in own.items()})
    other.load_state_dict(stored)
    step(net, optimizer, 2)
    step(twin, other, 2)
    assert torch.equal(net.weight, twin.weight)

    group = object.__new__(ProcessGroup)
    group.rank, group.size, group._store = 0, 1, None
    monkeypatch.setattr("torch.distributed.all_reduce", lambda *_: None)
    before = net.weight.grad.clone()
    group.average(net)
    assert net.weight.grad.stride() == net.weight.stride() != net.weight.grad.contiguous().stride()
    assert torch.equal(net.weight.grad, before)
