"""The design as rules that a machine checks: the mirror, imports, packaging."""

import ast
import importlib
import inspect
import pkgutil
import shutil
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, is_typeddict

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("vit_numpy", "vit_torch", "parity")
TWINS = ("vit_numpy", "vit_torch")

IDENTICAL = ("config.py", "draws.py", "schedule.py")
NUMPY_ONLY = {
    "module.py",
    "functional.py",
    "parallel.py",
    "allocator.py",
    "workers.py",
}
TORCH_ONLY = {"_torchvision.py"}
TORCH_KEYWORDS = {"device", "compile", "amp", "fused"}
NUMPY_KEYWORDS = {"grads", "consume", "processes"}
NUMPY_METHODS = {"backward", "shard", "close"}
# Base classes and helpers in the place of what torch has built in, or lacks.
NUMPY_NAMES = {
    "Loss",
    "Optimizer",
    "combined_norm",
    "flatten_parameters",
    "num_shards",
}
TORCH_NAMES = {"dtype_name"}

DEFINING = (
    ast.Import,
    ast.ImportFrom,
    ast.FunctionDef,
    ast.ClassDef,
    ast.Assign,
    ast.AnnAssign,
)

# Third-party packages by file; "*" is every file of the package.
ALLOWED = {
    "vit_numpy": {
        "*": {"numpy"},
        "checkpoint.py": {"safetensors"},
        "parallel.py": {"threadpoolctl"},
    },
    "vit_torch": {
        "*": {"torch"},
        "checkpoint.py": {"safetensors"},
        "_torchvision.py": {"torchvision"},
    },
}
# The one way from a twin to parity, inside this function, through which
# `from_pretrained` opens the files of other libraries.
EXCEPTION = ("checkpoint.py", "_load_foreign", "parity.weights")


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT / path.relative_to(ROOT).parts[0]).as_posix()


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def every_file(packages: tuple[str, ...] = PACKAGES) -> list[Any]:
    return [
        pytest.param(path, id=path.relative_to(ROOT).as_posix())
        for package in packages
        for path in files(package)
        if path.name != "__main__.py"
    ]


def shared_modules() -> list[str]:
    names = {relative(p) for p in files("vit_numpy")} & {
        relative(p) for p in files("vit_torch")
    }
    return sorted(
        name.removesuffix(".py").replace("/", ".")
        for name in names
        if not name.endswith("__init__.py")
    )


# --- the mirror ----------------------------------------------------------------------


@pytest.mark.parametrize("name", IDENTICAL)
def test_pure_python_is_byte_identical(name: str) -> None:
    numpy_file, torch_file = ((ROOT / twin / name).read_bytes() for twin in TWINS)
    assert numpy_file == torch_file


def test_twins_have_the_same_files() -> None:
    numpy_files, torch_files = ({relative(p) for p in files(twin)} for twin in TWINS)
    assert numpy_files - torch_files <= NUMPY_ONLY
    assert torch_files - numpy_files <= TORCH_ONLY
    assert not (NUMPY_ONLY & torch_files) | (TORCH_ONLY & numpy_files)


def definitions(module: ModuleType) -> dict[str, Any]:
    """Return the public classes and functions that a module itself defines."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    }


def is_cache(name: str) -> bool:
    return name.endswith("Cache")


def both(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    numpy_side, torch_side = (
        definitions(importlib.import_module(f"{twin}.{name}")) for twin in TWINS
    )
    return (
        {k: v for k, v in numpy_side.items() if not is_cache(k) | (k in NUMPY_NAMES)},
        {k: v for k, v in torch_side.items() if k not in TORCH_NAMES},
    )


@pytest.mark.parametrize("module", shared_modules())
def test_same_classes_and_functions(module: str) -> None:
    numpy_side, torch_side = both(module)
    assert sorted(numpy_side) == sorted(torch_side)


Parameters = list[tuple[str, Any, Any]]


def parameters(function: Any) -> Parameters:
    return [
        (p.name, p.kind, p.default)
        for p in inspect.signature(function).parameters.values()
    ]


def constructor(cls: type) -> Parameters:
    """Return the constructor's parameters; none where only the framework has one."""
    for base in cls.__mro__:
        if "__init__" in vars(base):
            ours = base.__module__.split(".")[0] in TWINS
            return parameters(vars(base)["__init__"])[1:] if ours else []
    return []


def mirrored(numpy_side: Parameters, torch_side: Parameters) -> bool:
    """Tell whether two signatures agree but for what only one side may have."""
    numpy_names, torch_names = (
        {p[0] for p in side} for side in (numpy_side, torch_side)
    )
    numpy_own = NUMPY_KEYWORDS - torch_names
    torch_own = TORCH_KEYWORDS - numpy_names
    return [p for p in numpy_side if p[0] not in numpy_own] == [
        p for p in torch_side if p[0] not in torch_own
    ]


def public_methods(cls: type) -> dict[str, Any]:
    """Return what this class itself defines, with its constructor if it has one."""
    return {
        name: value
        for name, value in vars(cls).items()
        if inspect.isfunction(value)
        and value.__name__ == name  # not the lambda that is a field's default
        and (name == "__init__" or name[0] != "_")
    }


@pytest.mark.parametrize(
    "module", [m for m in shared_modules() if f"{m}.py" not in IDENTICAL]
)
def test_same_signatures(module: str) -> None:
    numpy_side, torch_side = both(module)
    for name in numpy_side.keys() & torch_side.keys():
        ours, theirs = numpy_side[name], torch_side[name]
        assert inspect.isclass(ours) == inspect.isclass(theirs), name
        if not inspect.isclass(ours):
            assert mirrored(parameters(ours), parameters(theirs)), name
            continue
        if getattr(ours, "_is_protocol", False):
            continue  # a name for type checkers, not a thing with a signature
        if is_typeddict(ours):
            assert ours.__annotations__.keys() == theirs.__annotations__.keys()
            continue
        assert mirrored(constructor(ours), constructor(theirs)), f"{name}(...)"
        for method in public_methods(ours).keys() | {"forward"}:
            if not hasattr(ours, method):
                continue
            if not hasattr(theirs, method):
                assert method in NUMPY_METHODS, f"{name}.{method} has no torch twin"
            elif method != "__init__":
                assert mirrored(
                    parameters(getattr(ours, method)),
                    parameters(getattr(theirs, method)),
                ), f"{name}.{method}"
        for method in public_methods(theirs):
            assert hasattr(ours, method), f"{name}.{method} has no NumPy twin"


def test_twins_export_the_same_names() -> None:
    numpy_names, torch_names = (
        set(getattr(importlib.import_module(twin), "__all__", ())) for twin in TWINS
    )
    assert numpy_names, "vit_numpy exports nothing"
    package = importlib.import_module("vit_numpy")
    starred = {f"vit_numpy.{name.removesuffix('.py')}" for name in NUMPY_ONLY}
    for name in numpy_names - torch_names:
        assert getattr(package, name).__module__ in starred, name
    assert torch_names <= numpy_names


# --- imports -------------------------------------------------------------------------


def imports(
    node: ast.AST, function: str = "", top: bool = True
) -> Iterator[tuple[str, str, bool]]:
    """Yield each import as (module, enclosing function, whether it runs at import)."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield alias.name, function, top
        elif isinstance(child, ast.ImportFrom):
            module = "." * child.level + (child.module or "")
            for alias in child.names if module in PACKAGES else ():
                yield f"{module}.{alias.name}", function, top
            if module not in PACKAGES:
                yield module, function, top
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from imports(child, child.name, False)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from imports(child, function, False)
        else:
            yield from imports(child, function, top)


@pytest.mark.parametrize("path", every_file(TWINS))
def test_twins_import_only_what_they_may(path: Path) -> None:
    package, name = path.relative_to(ROOT).parts[0], relative(path)
    allowed = (
        set(sys.stdlib_module_names)
        | {package}
        | ALLOWED[package]["*"]
        | ALLOWED[package].get(name, set())
    )
    for module, function, _ in imports(tree(path)):
        if (name, function, module) == EXCEPTION:
            continue
        if module.startswith(".") and name in IDENTICAL:
            continue
        assert module.split(".")[0] in allowed, f"{path.name} imports {module}"


def test_the_exception_is_there_once_in_each_twin() -> None:
    for twin in TWINS:
        path = ROOT / twin / EXCEPTION[0]
        found = [
            (function, module)
            for module, function, _ in imports(tree(path))
            if module.split(".")[0] == "parity"
        ]
        assert found == [EXCEPTION[1:]]


def test_only_identical_files_import_relatively() -> None:
    """They name no package, so that the same bytes serve both."""
    for package in PACKAGES:
        for path in files(package):
            relatively = {m for m, _, _ in imports(tree(path)) if m.startswith(".")}
            assert not relatively or (package in TWINS and path.name in IDENTICAL), path


def run_blocked(code: str, *blocked: str, cwd: Path | None = None) -> str:
    """Run `code` in a process in which importing any of `blocked` fails."""
    # Found but not loadable: torch looks for packages that it never imports.
    prelude = f"""
        import sys
        from importlib.machinery import ModuleSpec

        class Blocked:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in {blocked!r}:
                    return ModuleSpec(name, self)

            def create_module(self, spec):
                raise ModuleNotFoundError(f"No module named {{spec.name!r}}")

            def exec_module(self, module):
                pass

        sys.meta_path.insert(0, Blocked())
        sys.path.insert(0, {str(ROOT)!r})
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(prelude) + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


TRAIN = """
    import {twin} as vit

    config = vit.ViTConfig(
        image_size=8, patch_size=4, in_chans=1, num_classes=3, dim=8, depth=1,
        num_heads=2, mlp_dim=16,
    )
    model = vit.VisionTransformer(config)
    vit.init_weights(model, seed=0)
    trainer = vit.Trainer(
        model,
        vit.AdamW(vit.param_groups(model, weight_decay=0.01), lr=1e-3),
    )
    {arrays}
    losses = [float(trainer.step(images, labels).loss) for _ in range(2)]
    assert losses[1] != losses[0]
    vit.save("model.safetensors", model)
    opened = vit.from_pretrained("model.safetensors")
    assert (opened(images) == model(images)).all()
"""
ARRAYS = {
    "vit_numpy": """import numpy as np
    rng = np.random.default_rng(0)
    images = rng.standard_normal((4, 1, 8, 8)).astype(np.float32)
    labels = np.array([0, 1, 2, 0])""",
    "vit_torch": """import torch
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 0])""",
}
OTHERS = {
    "vit_numpy": ("vit_torch", "parity", "torch", "torchvision", "hypothesis"),
    "vit_torch": ("vit_numpy", "parity", "torchvision", "hypothesis"),
}


@pytest.mark.parametrize("twin", TWINS)
def test_a_twin_stands_alone(twin: str, tmp_path: Path) -> None:
    """With the others removed it imports, trains, saves and opens its own file."""
    code = TRAIN.format(twin=twin, arrays=ARRAYS[twin])
    run_blocked(code, *OTHERS[twin], cwd=tmp_path)


@pytest.mark.parametrize("module", ["parity", "parity.cli", "parity.data"])
def test_parity_imports_without_torch(module: str) -> None:
    run_blocked(f"import {module}", "torch", "torchvision", "vit_torch", "hypothesis")


@pytest.mark.parametrize("package", PACKAGES)
def test_import_leaves_the_process_alone(package: str) -> None:
    """Environment, warnings, threads, signals and numerical settings stay as they were.

    The libraries that a package needs are imported first: what they do is theirs.
    """
    run_blocked(
        f"""
        import os, pkgutil, random, signal, threading, warnings
        import numpy as np, safetensors.numpy
        import torch, hypothesis, safetensors.torch

        def state():
            return (
                dict(os.environ), list(warnings.filters), threading.active_count(),
                [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)],
                random.getstate(), str(np.random.get_state()), np.geterr(),
                repr(np.get_printoptions()), torch.get_num_threads(),
                torch.get_default_dtype(), torch.initial_seed(),
                torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled(),
                torch.get_float32_matmul_precision(), sys.getrecursionlimit(),
                sys.excepthook, sys.path.copy(),
            )

        before = state()
        package = __import__({package!r})
        for info in pkgutil.walk_packages(package.__path__, {package + "."!r}):
            if not info.name.endswith("__main__"):
                __import__(info.name)
        after = state()
        for one, other in zip(before, after, strict=True):
            assert one == other, (one, other)
        """,
    )


@pytest.mark.parametrize("path", every_file())
def test_modules_only_define(path: Path) -> None:
    """At module level: imports, definitions and constants, no statement that acts."""
    for node in tree(path).body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        guarded = isinstance(node, ast.If) and ast.unparse(node.test) in (
            "TYPE_CHECKING",
            "__name__ == '__main__'",
        )
        # Into a table of our own.
        registers = ast.unparse(node).startswith("register_")
        assert docstring or guarded or registers or isinstance(node, DEFINING), (
            f"{path.name}:{node.lineno}: {ast.unparse(node).splitlines()[0]}"
        )
        if isinstance(node, ast.Assign):
            assert not any("environ" in ast.unparse(t) for t in node.targets)


# --- safety --------------------------------------------------------------------------


@pytest.mark.parametrize("path", every_file())
def test_no_assert(path: Path) -> None:
    """Assertions vanish under `python -O`; an error that matters is raised."""
    found = [n.lineno for n in ast.walk(tree(path)) if isinstance(n, ast.Assert)]
    assert not found


@pytest.mark.parametrize("path", every_file())
def test_nothing_is_unpickled(path: Path) -> None:
    unsafe = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for module, _, _ in imports(tree(path)):
        assert module.split(".")[0] not in unsafe
    for node in ast.walk(tree(path)):
        if not isinstance(node, ast.Call):
            continue
        keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
        name = ast.unparse(node.func)
        assert keywords.get("allow_pickle", "False") == "False", node.lineno
        if name == "torch.load":
            assert keywords.get("weights_only") == "True", node.lineno


# --- documentation -------------------------------------------------------------------


def all_modules() -> list[str]:
    return [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for package in PACKAGES
        for path in files(package)
        if path.name != "__main__.py"
    ]


@pytest.mark.parametrize("name", all_modules())
def test_public_api_is_documented(name: str) -> None:
    """Every public name has a docstring; the twins' classes explain every parameter."""
    module = importlib.import_module(name)
    assert module.__doc__, name
    for key, value in definitions(module).items():
        # inspect.getdoc would accept a base class's text.
        doc = value.__doc__ or ""
        generated = inspect.isclass(value) and doc.startswith(f"{key}(")
        assert bool(doc) > generated, f"{name}.{key} has no docstring"
        if not inspect.isclass(value):
            continue
        for method, function in public_methods(value).items():
            if method != "__init__":
                assert function.__doc__, f"{name}.{key}.{method} has no docstring"
        if name.split(".")[0] not in TWINS:
            continue
        # A record's fields stand right below its docstring.
        record = issubclass(value, tuple) or hasattr(value, "__dataclass_fields__")
        if "__init__" in vars(value) and key not in NUMPY_NAMES and not record:
            for parameter in list(inspect.signature(value).parameters.values()):
                if parameter.kind not in (
                    parameter.VAR_POSITIONAL,
                    parameter.VAR_KEYWORD,
                ):
                    assert parameter.name in doc, f"{name}.{key}: {parameter.name}"


# --- packaging -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Build the wheel from a copy of what it is made of; return its file names."""
    source, out = (tmp_path_factory.mktemp(name) for name in ("source", "wheel"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    # What must stay out is copied too: the test would not see it otherwise.
    for name in (*PACKAGES, "tests", "scripts", "docs"):
        shutil.copytree(
            ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--no-index", "--wheel-dir", out, source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("vit_parity-*.whl")
    return zipfile.ZipFile(built).namelist()


def test_wheel_holds_exactly_the_three_packages(wheel: list[str]) -> None:
    tops = {name.split("/")[0] for name in wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)
    shipped = {name for name in wheel if name.split("/")[0] in PACKAGES}
    source = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert shipped == source


def test_wheel_is_typed_and_carries_its_data(wheel: list[str]) -> None:
    for package in PACKAGES:
        assert f"{package}/py.typed" in wheel
    assert any(n.startswith("parity/data/") and not n.endswith(".py") for n in wheel)
    assert any(n.startswith("parity/recipes/") and n.endswith(".toml") for n in wheel)
    licences = {Path(n).name for n in wheel if ".dist-info/licenses/" in n}
    assert licences == {"LICENSE", "NOTICE"}


def test_every_package_is_importable_as_a_package() -> None:
    for package in PACKAGES:
        found = {info.name for info in pkgutil.iter_modules([str(ROOT / package)])}
        folders = {
            p.name
            for p in (ROOT / package).iterdir()
            if p.is_dir() and any(p.glob("*.py"))
        }
        assert folders <= found
