"""Where a module's weights are, and what memory there is."""

import os
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from jukebox_lite.errors import InputError

# Whether the processor has AVX-512, for which oneDNN's products are written first; without, some are slower than MKL's.
MULTIPLIES_WIDE = bool(torch.cpu.get_capabilities().get("avx512_f", False))


def device_of(module: nn.Module) -> torch.device:
    """The device of a module's parameters; the CPU where it has none."""
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


def is_plain(x: Tensor) -> bool:
    """Whether products of x are a CPU's in full precision, of which some are faster in forms of our own."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


def bytes_of(tree: Any) -> int:
    """Memory of all tensors in nested lists, tuples and mappings."""
    return sum(leaf.nbytes for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device, or can be made so."""
    if device.type != "cpu":
        return torch.accelerator.get_memory_info(device)[0]
    told = Path("/proc/meminfo")  # of Linux, which counts what it could drop
    if told.exists():
        available = next(line for line in told.read_text().splitlines() if line.startswith("MemAvailable:"))
        return 1024 * int(available.split()[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def multiplies_bf16() -> bool:
    """Whether this machine's accelerator, or else its processor, does so natively; emulated it would be slower."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16", False) or able.get("amx_bf16", False) or able.get("bf16", False))


def check_compiler(setting: str) -> None:
    """Raises InputError, which begins with the `setting`, where torch has nothing to compile a graph for a CPU with."""
    compiler = os.environ.get("CXX") or {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    if not shutil.which(compiler):
        raise InputError(f"{setting}: no C++ compiler {compiler} is found: install it, set CXX, or leave it out")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        raise InputError(f"{setting}: Python's headers (Python.h) are not there: install them, or leave it out")
