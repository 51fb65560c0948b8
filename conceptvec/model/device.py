"""The device and the precision of a run, and what they call themselves."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version

import torch

from conceptvec.errors import RequestError


def choose_device(name: str) -> torch.device:
    """`auto` takes cuda, then mps, then cpu; a device that is not there is a bad request."""
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if has_cuda else "mps" if has_mps else "cpu"
    if (
        name == "cuda" and has_cuda and "LOCAL_RANK" in os.environ
    ):  # several processes: one GPU each
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    device = torch.device(name)
    there = {
        "cpu": True,
        "cuda": has_cuda and (device.index or 0) < torch.cuda.device_count(),
        "mps": has_mps,
    }
    if not there[device.type]:
        raise RequestError(f"--device: {name} is not available here; use --device auto or cpu")
    return device


def choose_dtype(name: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The precision of the forward pass and the reason for it."""
    # Not is_bf16_supported(): older GPUs such as the T4 say yes and emulate it, several times slower.
    native = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8
    if name == "auto" and native:
        return torch.bfloat16, "this GPU computes bfloat16 natively"
    emulates = "this GPU only emulates bfloat16"
    if name == "bfloat16":
        slow = (
            ""
            if native
            else {"cuda": f", though {emulates}"}.get(device.type, ", though float32 is safer here")
        )
        return torch.bfloat16, f"asked for{slow}"
    if name == "float32":
        return torch.float32, "asked for"
    reason = {"cuda": emulates, "mps": "the safe precision on MPS", "cpu": "exact on a CPU"}
    return torch.float32, reason[device.type]


def wide_products(device: torch.device) -> bool:
    """Whether products of bfloat16 can come out in float32: on CUDA, from torch 2.8 on."""
    version = tuple(int(x) for x in torch.__version__.split(".")[:2])
    return device.type == "cuda" and torch.version.hip is None and version >= (2, 8)


def environment(device: str) -> dict[str, str]:
    """Versions and the machine's kind."""
    versions = {}
    for name in ("torch", "transformers", "tokenizers", "numpy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "unknown"
    named = (
        torch.cuda.get_device_name(torch.device(device))
        if device.startswith("cuda")
        else platform.processor() or device
    )
    return {
        "python": platform.python_version(),
        **versions,
        "platform": platform.platform(),
        "device_name": named,
    }


def now(device: torch.device) -> float:
    """Seconds of the clock, once the device's queue is empty."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()
