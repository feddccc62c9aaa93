"""The two packages, and the arrays that each computes with."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from parity.names import unknown_name
from vit_numpy.allocator import keep_freed_memory

BACKENDS = ("numpy", "torch")

# With workspaces of one size cuBLAS adds in one order; torch refuses other values.
_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_FIXED_WORKSPACES = (":4096:8", ":16:8")


@dataclass(frozen=True)
class Backend:
    """One of the two packages, and the arrays that it computes with.

    Attributes
    ----------
    name : {'numpy', 'torch'}
    device : str, default 'cpu'
        Where torch computes: 'cuda', 'cuda:1', 'mps'.
    amp : bool, default False
        Whether torch trains in bfloat16 where autocast holds that to be safe.
    compile : bool, default False
        Whether torch compiles the model.
    recompute : bool, default False
        Whether blocks are computed again in backward, to save memory; in both.
    """

    name: str
    device: str = "cpu"
    amp: bool = False
    compile: bool = False
    recompute: bool = False

    @classmethod
    def load(cls, name: str, **options: Any) -> Self:
        """Import the package of that name.

        Parameters
        ----------
        name : {'numpy', 'torch'}
        **options
            Attributes other than the name.

        Raises
        ------
        ValueError
            For an unknown name, for an option that is torch's alone, and for a device
            that is not there.
        ModuleNotFoundError
            If torch is wanted and not installed.
        """
        if name not in BACKENDS:
            raise unknown_name("backend", name, BACKENDS)
        backend = cls(name, **options)
        for option, value in backend.options.items():
            if name == "numpy" and option != "recompute":
                raise ValueError(
                    f"{option} is of backend 'torch' alone, got {option}={value!r}; "
                    "leave it out, or choose --backend torch"
                )
        try:
            import_module(f"vit_{name}")
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            raise ModuleNotFoundError(
                "backend 'torch' needs PyTorch, which is not installed; "
                "pip install 'vit-parity[torch]'",
                name="torch",
            ) from None
        if name == "torch":
            _check_device(backend.device)
        return backend

    @property
    def options(self) -> dict[str, Any]:
        """The options that are not at their default, by name."""
        return {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.name != "name" and getattr(self, f.name) != f.default
        }

    @property
    def accelerator(self) -> str | None:
        """What it computes on, by name, if that is not the CPU."""
        if self.device.startswith("cpu"):
            return None
        if self.device.startswith("cuda"):
            name: str = _torch().cuda.get_device_name(self.device)
            return name
        return self.device

    def module(self, name: str) -> Any:
        """Return a module of the package: ``'optim'`` is `vit_numpy.optim`, say."""
        return import_module(f"vit_{self.name}.{name}")

    def array(self, values: NDArray[Any], dtype: str) -> Any:
        """Return images or targets as this backend's array.

        Floating-point numbers get the dtype; labels stay integers.
        """
        if values.dtype.kind == "f":
            values = values.astype(dtype, copy=False)
        if self.name == "numpy":
            return values
        return _torch().from_numpy(values).to(self.device)

    def numpy(self, values: Any) -> NDArray[Any]:
        """Return one of this backend's arrays as NumPy's, without a copy."""
        return np.asarray(values if self.name == "numpy" else values.detach().cpu())

    def dtype(self, model: Any) -> str:
        """Return the name of a model's dtype."""
        return self.numpy(model.patch_embed.proj.weight).dtype.name

    def place(self, model: Any, dtype: str) -> Any:
        """Return a model in a dtype, where this backend computes."""
        if self.name == "numpy":
            return model.to(dtype)
        return model.to(self.device, getattr(_torch(), dtype))

    def prepare(self) -> None:
        """Set up this process for training, as a program may and a library may not.

        Freed memory is kept. On an NVIDIA GPU nothing is rounded to TensorFloat-32, and
        sums have one order, so that a run that is resumed comes out with the same bits.
        To be called before anything is computed there, as some of this is read once.

        Raises
        ------
        ValueError
            If torch is to compile and cannot.
        """
        keep_freed_memory()
        if self.device.startswith("cuda"):
            torch = _torch()
            torch.backends.cudnn.allow_tf32 = False
            torch.set_float32_matmul_precision("highest")
            torch.use_deterministic_algorithms(True)
            # Nothing here reads what it has not written.
            torch.utils.deterministic.fill_uninitialized_memory = False
            if os.environ.get(_WORKSPACE) not in _FIXED_WORKSPACES:
                os.environ[_WORKSPACE] = _FIXED_WORKSPACES[0]
        if self.compile:
            _check_compiler(self.device)

    def set_threads(self, threads: int) -> None:
        """Let this process compute on so many threads."""
        if self.name == "numpy":
            self.module("parallel").set_num_threads(threads)
        else:
            _torch().set_num_threads(threads)


def _check_device(device: str) -> None:
    """Raise unless torch can compute on a device."""
    torch = _torch()
    try:
        torch.zeros(1, device=device).cpu()
    except (AssertionError, RuntimeError) as error:
        raise ValueError(
            f"device {device!r} cannot be used ({str(error).splitlines()[0]}); "
            "choose another, or leave --device out for the CPU"
        ) from None


def _check_compiler(device: str) -> None:
    """Raise unless `torch.compile` works, before it fails at the first step."""
    torch = _torch()
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(2, device=device))
    except RuntimeError as error:
        raise ValueError(
            f"torch.compile does not work here ({str(error).splitlines()[0]}); "
            "install a C++ compiler, or leave --compile out"
        ) from None


def _torch() -> Any:
    return import_module("torch")
