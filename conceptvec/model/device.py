"""The device and the precision of a run, and what they call themselves.

Torch is imported where it is needed, because light requests come through here too.
"""

from __future__ import annotations

import platform
import time
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from conceptvec.errors import RequestError
from conceptvec.launch import place

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "transformers", "tokenizers", "numpy")  # whose versions are told
NATIVE_BFLOAT16 = 8  # the compute capability from which a GPU computes bfloat16 itself


def choose_device(name: str) -> torch.device:
    """`auto` takes cuda, then mps, then cpu; a device that is not there is a bad request."""
    import torch

    process = place()
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if has_cuda else "mps" if has_mps else "cpu"
    if name == "cuda" and has_cuda and process.world > 1:
        # Several processes: one GPU each.
        torch.cuda.set_device(process.local % torch.cuda.device_count())
    device = torch.device(name)
    exists = {
        "cpu": True,
        "cuda": has_cuda and (device.index or 0) < torch.cuda.device_count(),
        "mps": has_mps,
    }
    if not exists[device.type]:
        raise RequestError(f"--device: {name} is not available here; use --device auto or cpu")
    return device


def choose_dtype(name: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The precision of the forward pass and the reason for it."""
    import torch

    native = has_native_bfloat16(device)
    if name == "auto" and native:
        return torch.bfloat16, "this GPU computes bfloat16 natively"
    if name == "bfloat16":
        if native:
            return torch.bfloat16, "asked for"
        slow = {"cuda": "this GPU only emulates bfloat16"}
        though = slow.get(device.type, "float32 is safer here")
        return torch.bfloat16, f"asked for, though {though}"
    if name == "float32":
        return torch.float32, "asked for"
    reasons = {
        "cuda": "this GPU only emulates bfloat16",
        "mps": "the safe precision on MPS",
        "cpu": "exact on a CPU",
    }
    return torch.float32, reasons[device.type]


def has_native_bfloat16(device: torch.device) -> bool:
    """Whether a GPU computes bfloat16 itself.

    Not `is_bf16_supported`: older GPUs such as the T4 say yes and emulate it, several times slower.
    """
    import torch

    if device.type != "cuda":
        return False
    return torch.cuda.get_device_capability(device)[0] >= NATIVE_BFLOAT16


def wide_products(device: torch.device) -> bool:
    """Whether products of bfloat16 can come out in float32: on CUDA, from torch 2.8 on."""
    import torch

    major_minor = tuple(int(part) for part in torch.__version__.split(".")[:2])
    return device.type == "cuda" and torch.version.hip is None and major_minor >= (2, 8)


def environment(device: str) -> dict[str, str]:
    """Versions and the machine's kind."""
    import torch

    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "unknown"
    if device.startswith("cuda"):
        device_name = torch.cuda.get_device_name(torch.device(device))
    else:
        device_name = platform.processor() or device
    return {
        "python": platform.python_version(),
        **versions,
        "platform": platform.platform(),
        "device_name": device_name,
    }


def now(device: torch.device) -> float:
    """Seconds of the clock, once the device's queue is empty."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()
