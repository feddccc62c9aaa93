"""torchvision, imported past a mismatch between its build and torch's.

A torchvision built for CUDA registers its operators in a library that a CPU-only torch
cannot load, and then fails to import because `torchvision::nms` does not exist, though
its models, transforms and data sets need none of those operators
(https://github.com/pytorch/vision/issues/9085). Declaring the two by name lets the
import pass; calling them still fails. An install that imports by itself is not touched.
"""

import importlib
import sys
from types import ModuleType

from torch.library import Library

# A library takes its operators with it when it is collected.
_declared: list[Library] = []


def import_torchvision() -> ModuleType:
    """Return torchvision.

    Raises
    ------
    ImportError
        If it is not installed.
    RuntimeError
        If it fails to import for another reason than the operators it lacks.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
    for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define(
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    )
    _declared.append(library)
    return importlib.import_module("torchvision")
