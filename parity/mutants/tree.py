"""A package imported from syntax trees in memory, so that no mutant is ever on disk."""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

PACKAGE = "vit_numpy"


def package_root() -> Path:
    """Return the folder of `vit_numpy`, without importing it.

    Raises
    ------
    ValueError
        If it is not installed as files.
    """
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ValueError(f"{PACKAGE} must be installed as source files, found none")
    return Path(spec.origin).parent


class Tree(MetaPathFinder, Loader):
    """The package's source, compiled once, and imported from memory.

    Parameters
    ----------
    root : Path
        Folder of the package.

    Attributes
    ----------
    sources : dict of str to str
        The text of every file by its path below the root, with slashes.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sources = {
            path.relative_to(root).as_posix(): path.read_text(encoding="utf-8")
            for path in sorted(root.rglob("*.py"))
        }
        self._code = {
            file: compile(text, str(root / file), "exec", dont_inherit=True)
            for file, text in self.sources.items()
        }

    def replace(self, file: str, tree: ast.Module | str) -> None:
        """Import this instead of a file's own text from now on."""
        path = str(self.root / file)
        self._code[file] = compile(tree, path, "exec", dont_inherit=True)

    def restore(self, file: str) -> None:
        """Import a file's own text again."""
        self.replace(file, self.sources[file])

    def install(self) -> None:
        """Import the package from here in this process, and forget what it imported."""
        forget()
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """Find a module of the package, and none else."""
        file = self._file(fullname)
        if file is None:
            return None
        package = file.endswith("__init__.py")
        spec = spec_from_loader(
            fullname, self, origin=str(self.root / file), is_package=package
        )
        if spec is not None:
            spec.has_location = True
        return spec

    def exec_module(self, module: ModuleType) -> None:
        """Run the compiled file in the new module."""
        file = self._file(module.__name__)
        if file is not None:
            exec(self._code[file], vars(module))

    def _file(self, fullname: str) -> str | None:
        package, _, rest = fullname.partition(".")
        if package != PACKAGE:
            return None
        path = rest.replace(".", "/")
        candidates = (f"{path}/__init__.py".lstrip("/"), f"{path}.py")
        return next((file for file in candidates if file in self._code), None)


def forget() -> None:
    """Remove the package from `sys.modules`, so that the next import runs it again."""
    for name in [n for n in sys.modules if n.partition(".")[0] == PACKAGE]:
        del sys.modules[name]
