"""What a result was measured on."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = (
    "vit-parity",
    "numpy",
    "torch",
    "torchvision",
    "safetensors",
    "hypothesis",
)


def environment() -> dict[str, Any]:
    """Return versions, CPU, BLAS kernel and threads, as JSON can hold them."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "blas": _blas(),
        "numpy_threads": _threads("vit_numpy.parallel"),
        "torch_threads": _threads("torch"),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(errors="replace").partition("\n\n")[0].splitlines()
        first = {
            key.strip(): value.strip()
            for key, _, value in (line.partition(":") for line in lines)
        }
        if "model name" in first:
            return first["model name"] + _generation(first)
    return platform.processor() or platform.machine()


def _generation(cpu: dict[str, str]) -> str:
    """Tell processors of one name apart, as virtual machines show them."""
    if "cpu family" not in cpu or "model" not in cpu:
        return ""
    return f" (family {cpu['cpu family']}, model {cpu['model']})"


def _blas() -> list[dict[str, Any]] | None:
    """Return the BLAS libraries that are loaded; None if threadpoolctl is missing."""
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return None
    import numpy  # noqa: F401  (loads its BLAS)

    return [
        {
            "library": pool["internal_api"],
            "version": pool.get("version"),
            "kernel": pool.get("architecture"),
            "threads": pool["num_threads"],
        }
        for pool in threadpool_info()
        if pool["user_api"] == "blas"
    ]


def _threads(package: str) -> int | None:
    # Training in NumPy must not load torch only to report that it was not used.
    module = sys.modules.get(package)
    return None if module is None else module.get_num_threads()
