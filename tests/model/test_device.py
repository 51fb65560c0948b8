"""Which device and precision a run takes, and that no float64 reaches a device without it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import conceptvec
from conceptvec import RequestError
from conceptvec.model.device import choose_device, choose_dtype, wide_products
from tests.children import world

CUDA, CPU, MPS = (torch.device(name) for name in ("cuda", "cpu", "mps"))
ONLY_EMULATED = "asked for, though this GPU only emulates bfloat16"


@pytest.fixture
def with_capability(monkeypatch: pytest.MonkeyPatch):
    """Gives the GPU that is not there a capability."""

    def give(*capability: int) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)

    return give


@pytest.mark.parametrize(
    ("capability", "dtype", "why"),
    [
        ((7, 5), torch.float32, "this GPU only emulates bfloat16"),
        ((8, 0), torch.bfloat16, "this GPU computes bfloat16 natively"),
        ((9, 0), torch.bfloat16, "this GPU computes bfloat16 natively"),
    ],
)
def test_the_precision_follows_the_gpu(capability, dtype, why, with_capability) -> None:
    with_capability(*capability)
    assert choose_dtype("auto", CUDA) == (dtype, why)


def test_a_slow_precision_is_given_where_it_is_asked_for(with_capability) -> None:
    with_capability(7, 5)
    assert choose_dtype("bfloat16", CUDA) == (torch.bfloat16, ONLY_EMULATED)


@pytest.mark.parametrize(
    ("device", "name", "dtype", "why"),
    [
        (CPU, "auto", torch.float32, "exact on a CPU"),
        (MPS, "auto", torch.float32, "the safe precision on MPS"),
        (CPU, "float32", torch.float32, "asked for"),
        (MPS, "bfloat16", torch.bfloat16, "asked for, though float32 is safer here"),
    ],
)
def test_the_precision_without_a_gpu(device, name, dtype, why) -> None:
    assert choose_dtype(name, device) == (dtype, why)


def test_auto_takes_cuda_then_mps_then_the_cpu(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto").type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto").type == "mps"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto").type == "cpu"


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps"])
def test_a_device_that_is_not_there_is_refused(name: str, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(RequestError, match=f"{name} is not available here"):
        choose_device(name)


def test_several_processes_take_a_gpu_each(monkeypatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for name, value in (world(4)[3] | {"LOCAL_RANK": "3"}).items():
        monkeypatch.setenv(name, value)
    assert str(choose_device("auto")) == "cuda"
    assert chosen == [1]


@pytest.mark.parametrize(
    ("device", "version", "wide"),
    [(CUDA, "2.13.0+cu130", True), (CUDA, "2.8.0", True), (CUDA, "2.7.1", False)]
    + [(CPU, "2.13.0", False), (MPS, "2.13.0", False)],
)
def test_wide_products_come_with_cuda_and_torch_2_8(device, version, wide, monkeypatch) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    assert wide_products(device) is wide


def test_no_float64_reaches_mps() -> None:
    """MPS has no float64, and casts on the device even where a copy to the CPU is asked for.

    So tensors are moved first, and widened then.
    """
    on_cpu = re.compile(r"(\.cpu\(\)|exact\)|model\.dtype\)|\b(x|rows|found))$")
    for path in Path(conceptvec.__file__).parent.rglob("*.py"):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            code, place = line.partition("#")[0], f"{path.name}:{number}: {line}"
            for before in re.findall(r"(\S*)\.double\(\)", code):
                assert on_cpu.search(before), place
            assert not re.search(r"\.to\([^)]*float64", code), place
