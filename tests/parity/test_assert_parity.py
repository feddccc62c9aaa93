"""A candidate of any kind against any reference, in one line."""

import shlex
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import vit_numpy.layers
from parity import ParityError, assert_parity, make_pair


def scale(x, gamma):
    return x * gamma


def scale_backward(dy, x, gamma):
    return dy * gamma, (dy * x).reshape(-1, x.shape[-1]).sum(0)


def scale_with_vjp(x, gamma):
    return x * gamma, lambda dy: scale_backward(dy, x, gamma)


def scale_with_cache(x, gamma):
    return x * gamma, (x, gamma)


class Scale:
    """Caches on itself, and leaves its gradient there."""

    def __init__(self) -> None:
        self.g: Any = None

    def forward(self, x):
        self.x = x
        return x * self.g

    def backward(self, dy):
        self.dg = (dy * self.x).reshape(-1, self.x.shape[-1]).sum(0)
        return dy * self.g


class ScaleFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, gamma):
        ctx.save_for_backward(x, gamma)
        return x * gamma

    @staticmethod
    def backward(ctx, dy):
        x, gamma = ctx.saved_tensors
        return dy * gamma, (dy * x).flatten(0, -2).sum(0)


class ScaleModule(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = torch.nn.Parameter(torch.ones(7))

    def forward(self, x):
        return x * self.gamma


SHAPES = {"inputs": {"x": (3, 5, 7)}, "parameters": {"gamma": (7,)}}


@pytest.mark.parametrize(
    ("candidate", "options"),
    [
        (scale, {"backward": scale_backward}),
        (scale_with_cache, {"backward": lambda dy, cache: scale_backward(dy, *cache)}),
        (scale_with_vjp, {}),
        (
            lambda x, gamma: (
                x * gamma,
                lambda dy: {"x": dy * gamma, "gamma": scale_backward(dy, x, gamma)[1]},
            ),
            {},
        ),
        (Scale(), {"names": {"gamma": "g"}}),
        (vit_numpy.layers.LayerScale(7), {}),
        (ScaleFunction, {}),
        (ScaleModule(), {}),
        (torch.compile(ScaleModule(), backend="eager"), {}),
        (scale, {"backend": "torch"}),
    ],
    ids=[
        "backward",
        "cache",
        "vjp",
        "vjp-names",
        "object",
        "protocol",
        "autograd.Function",
        "module",
        "compiled",
        "torch function",
    ],
)
def test_every_kind_of_candidate(candidate: Any, options: dict[str, Any]) -> None:
    agreement = assert_parity(candidate, scale, **SHAPES, **options)
    assert set(agreement.tensors) == {"out", "d_x", "d_gamma"}
    assert 0 <= agreement.share <= 1
    assert 0 < agreement.sensitivity < 1e-3


def test_a_module_as_reference_lends_its_parameters() -> None:
    layer = vit_numpy.layers.Linear(4, 3)
    agreement = assert_parity(layer, torch.nn.Linear(4, 3), {"input": (2, 5, 4)})
    assert agreement.tensors == ("out", "d_input", "d_weight", "d_bias")


def test_jax_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its vjp is asked for through public functions alone; test_jax.py has the rest."""
    asked = []

    def vjp(function, *primals):
        return function(*primals), lambda dy: scale_backward(dy, *primals)

    def enable_x64(value):
        asked.append(value)
        return nullcontext()

    fake = SimpleNamespace(vjp=vjp, enable_x64=enable_x64)
    monkeypatch.setitem(sys.modules, "jax", fake)
    assert_parity(scale, scale, **SHAPES, backend="jax", dtype="float32")
    assert asked == []
    assert_parity(scale, scale, **SHAPES, backend="jax", dtype="float64")
    assert set(asked) == {True}


def test_inputs_as_given_and_integers() -> None:
    seen = []

    def embed(index, table):
        seen.append(index.copy())
        out = table[index]

        def vjp(dy):
            dtable = np.zeros_like(table)
            np.add.at(dtable, index, dy)
            return {"table": dtable}

        return out, vjp

    index = np.array([[0, 2], [1, 1]])
    agreement = assert_parity(
        embed,
        lambda index, table: F.embedding(index, table),
        {"index": index},
        parameters={"table": (3, 4)},
    )
    assert agreement.tensors == ("out", "d_table")
    assert (seen[0] == index).all()


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_a_boolean_input(backend: str) -> None:
    def masked(x, mask):
        return x * mask, lambda dy: {"x": dy * mask}

    candidate = masked if backend == "numpy" else torch.mul
    mask = np.arange(12).reshape(3, 4) % 3 > 0
    agreement = assert_parity(candidate, torch.mul, {"x": (3, 4), "mask": mask})
    assert agreement.tensors == ("out", "d_x")


@pytest.mark.parametrize(
    ("candidate", "options"),
    [
        (scale, {"backward": scale_backward}),
        (scale_with_vjp, {}),
        (Scale(), {"names": {"gamma": "g"}}),
        (ScaleFunction, {}),
    ],
    ids=["backward", "vjp", "object", "autograd.Function"],
)
def test_gradients_that_are_not_asked_for(
    candidate: Any, options: dict[str, Any]
) -> None:
    options |= {"differentiate": ["x"]}
    agreement = assert_parity(candidate, scale, **SHAPES, **options)
    assert agreement.tensors == ("out", "d_x")


def test_a_candidate_may_refuse_inputs_outside_its_domain() -> None:
    def log(x):
        if (x <= 0).any():
            raise ValueError("x must be positive")
        return np.log(x), lambda dy: dy / x

    x = np.random.default_rng(0).uniform(1, 2, (3, 4))
    assert_parity(log, torch.log, {"x": x})


def test_an_index_kept_on_the_layer_is_seen() -> None:
    kept = []

    def embed(index, table):
        kept.append(index)

        def vjp(dy):
            dtable = np.zeros_like(table)
            np.add.at(dtable, kept[-1], dy)
            return {"table": dtable}

        return table[index], vjp

    with pytest.raises(ParityError) as caught:
        assert_parity(
            embed,
            F.embedding,
            {"input": np.array([0, 2, 1, 1])},
            parameters={"weight": (3, 4)},
            names={"weight": "table"},
        )
    assert caught.value.cause == "stale-cache"


def test_a_gradient_that_the_reference_stops_is_no_slope() -> None:
    def straight(x):
        return x + np.tanh(x), lambda dy: dy * 1

    def reference(x):
        return x + torch.tanh(x.detach())

    assert_parity(straight, reference, (3, 4))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_gradients_that_are_not_numbers_on_either_side_agree() -> None:
    def root(x):
        y = np.sqrt(x * x)
        return y, lambda dy: dy * x / y

    def reference(x):
        return (x * x).sqrt()

    assert_parity(root, reference, {"x": np.array([0.0, 1.0, 2.0])}, examples=1)


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
def test_infinite_gradients_of_several_tensors_agree() -> None:
    def roots(x, y):
        def vjp(dy):
            return dy / (2 * np.sqrt(x)), -dy / (2 * np.sqrt(y))

        return np.sqrt(x) - np.sqrt(y), vjp

    x = np.array([0.0, 1.0, 2.0])
    assert_parity(roots, lambda x, y: x.sqrt() - y.sqrt(), [x, x[::-1]], examples=2)


def test_an_output_without_a_gradient_beside_one_that_has_it() -> None:
    def both(x):
        return x * x, x.detach() * 3

    agreement = assert_parity(both, both, (3, 4), backend="torch")
    assert agreement.tensors == ("out0", "out1", "d_x")


def test_a_gradient_cut_off_by_mistake_is_wrong_not_an_error() -> None:
    def cut(x):
        return x.detach() * 3

    with pytest.raises(ParityError, match="d_x") as caught:
        assert_parity(cut, lambda x: x * 3, (3, 4), backend="torch")
    assert "raised" not in str(caught.value)


class Shift(torch.nn.Module):
    """Adds a table that is no parameter, and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.linspace(0, 1, 4))
        self.register_buffer("turn", torch.polar(torch.ones(4), torch.ones(4)))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x + self.table + (self.turn * x).real


class Lookup(torch.nn.Module):
    """Scales rows of a table that is no parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(1, 13).reshape(3, 4) / 8)

    def forward(self, index, x):
        return self.table[index] * x


class Projection(torch.nn.Module):
    """Multiplies by a matrix that is no parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.eye(4) / 2)

    def forward(self, x):
        return x @ self.matrix


def test_buffers_of_the_users_modules_stay_as_they_are() -> None:
    shift = Shift()
    assert_parity(shift, shift, {"x": (3, 4)})
    assert shift.calls == 0
    assert {b.dtype for b in shift.buffers()} == {torch.float32, torch.complex64}


@pytest.mark.parametrize(
    ("module", "inputs"),
    [
        (Projection(), {"x": (3, 4)}),
        (Lookup(), {"index": np.array([2, 0, 1]), "x": (3, 4)}),
    ],
    ids=["no parameters", "integers first"],
)
def test_buffers_have_the_dtype_of_the_case(module: Any, inputs: Any) -> None:
    assert_parity(module, module, inputs)


def test_outputs_alone() -> None:
    with pytest.raises(ParityError, match="no backward"):
        assert_parity(np.tanh, torch.tanh, (3, 4))
    assert assert_parity(np.tanh, torch.tanh, (3, 4), differentiate=False).tensors == (
        "out",
    )


def test_a_failure_is_an_assertion_that_names_the_cause() -> None:
    def norm(x, weight, bias):
        centred = x - x.mean(-1, keepdims=True)
        rstd = 1 / np.sqrt((centred**2).mean(-1, keepdims=True) + x.dtype.type(1e-3))
        x_hat = centred * rstd

        def vjp(dy):
            d = dy * weight
            dx = rstd * (
                d
                - d.mean(-1, keepdims=True)
                - x_hat * (d * x_hat).mean(-1, keepdims=True)
            )
            return dx, (dy * x_hat).sum((0, 1)), dy.sum((0, 1))

        return x_hat * weight + bias, vjp

    with pytest.raises(AssertionError) as caught:
        assert_parity(norm, torch.nn.LayerNorm(8), (2, 3, 8))
    error = caught.value
    assert isinstance(error, ParityError)
    assert error.cause == "norm-eps"
    assert "eps = 0.001" in str(error)
    assert "times the error bound" in str(error)


@pytest.mark.parametrize(
    ("backward", "cause"),
    [
        (lambda dy, x, g: (np.ones_like(dy) * g, None), "upstream-ignored"),
        (lambda dy, x, g: (dy * g, -(dy * x).sum((0, 1))), "sign"),
        (lambda dy, x, g: (dy * g, np.zeros_like(g)), "not-trained"),
        (lambda dy, x, g: (dy, (dy * x).sum((0, 1))), "layer-scale"),
        (lambda dy, x, g: (dy * g, (dy * x).sum((0, 1)) / 3), "broadcast-gradient"),
    ],
)
def test_causes_in_a_function_of_ones_own(backward: Any, cause: str) -> None:
    def complete(dy, x, gamma):
        dx, dgamma = backward(dy, x, gamma)
        right = (dy * x).sum((0, 1))
        if dgamma is None:
            dgamma = np.ones_like(dy).reshape(-1, 7).T @ x.reshape(-1, 7)
            dgamma = x.sum((0, 1)) if dgamma.shape != right.shape else dgamma
        return dx, dgamma

    with pytest.raises(ParityError) as caught:
        assert_parity(scale, scale, **SHAPES, backward=complete)
    assert caught.value.cause == cause


def test_a_forgotten_return_is_told() -> None:
    def total(x):
        x.sum()

    for differentiate in (False, True):
        with pytest.raises(ParityError, match="array of real numbers, got None"):
            assert_parity(total, torch.sum, (3, 4), differentiate=differentiate)


def test_complex_output_for_a_real_one_is_told() -> None:
    with pytest.raises(ParityError, match="real numbers, got complex128"):
        assert_parity(np.fft.fft, torch.tanh, [(3, 4)], differentiate=False)


def test_nothing_is_named_where_nothing_fits() -> None:
    def odd(x, gamma):
        return x * gamma + 0.1 * np.sin(7 * x), lambda dy: scale_backward(dy, x, gamma)

    with pytest.raises(ParityError, match="none known fits") as caught:
        assert_parity(odd, scale, **SHAPES)
    assert caught.value.cause is None
    assert "right: d_x, d_gamma" in str(caught.value)


def test_blindness_is_refused_unless_explained() -> None:
    def constant(x):
        return x * 0, lambda dy: dy * 0

    with pytest.raises(ParityError, match="nothing of out stands above"):
        assert_parity(constant, lambda x: x * 0, (2, 3))
    blind = {"out": "zero by definition", "d_x": "zero by definition"}
    assert_parity(constant, lambda x: x * 0, (2, 3), blind=blind)


def test_skipping_a_check_runs_all_others() -> None:
    calls = []

    def tanh(x):
        # Other last digits in each call, and memory read as if it had no gaps.
        calls.append(1)
        base = x if x.base is None else x.base
        read = base.reshape(-1)[: x.size].reshape(x.shape)
        noise = 1 + len(calls) % 3 * np.finfo(x.dtype).eps
        y = np.tanh(read) * noise
        return y.astype(x.dtype), lambda dy: dy * (1 - np.tanh(read) ** 2)

    with pytest.raises(ParityError, match="strided"):
        assert_parity(tanh, torch.tanh, (3, 4), skip=["repeatable"])


def test_skipped_checks_leave_nothing_that_crashes() -> None:
    def flat(x):
        return x.reshape(-1), lambda dy: {}

    skip = ["forward", "dx", "strided"]
    assert_parity(flat, torch.clone, (3, 4), skip=skip)


class Doubling(torch.autograd.Function):
    """Writes into what it is given, forward or backward."""

    forward_writes = False

    @classmethod
    def forward(cls, ctx, x):
        return x.mul_(2).clone() if cls.forward_writes else x * 2

    @classmethod
    def backward(cls, ctx, dy):
        return dy * 2 if cls.forward_writes else dy.mul_(2).clone()


@pytest.mark.parametrize("forward_writes", [True, False])
def test_writes_of_a_torch_candidate_are_seen(
    forward_writes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Doubling, "forward_writes", forward_writes)
    with pytest.raises(ParityError, match="wrote into"):
        assert_parity(Doubling, lambda x: x * 2, {"x": (3, 4)}, examples=1)


def test_a_torch_candidate_is_given_memory_with_gaps() -> None:
    strides = set()

    def double(x):
        strides.add(x.stride())
        return x.as_strided(x.shape, (4, 1)) * 2

    with pytest.raises(ParityError, match="strided"):
        assert_parity(double, lambda x: x * 2, (3, 4), backend="torch", examples=1)
    assert strides == {(4, 1), (8, 2)}


def test_an_output_that_a_later_call_writes_into_is_named() -> None:
    workspaces: dict[Any, Any] = {}

    def double(x):
        out = workspaces.setdefault(x.dtype, np.empty_like(x))
        return np.multiply(x, 2, out=out), lambda dy: dy * 2

    with pytest.raises(ParityError, match="a later forward wrote into") as caught:
        assert_parity(double, lambda x: x * 2, (3, 4))
    assert caught.value.cause == "aliasing"


@pytest.mark.parametrize("layout", ["gaps", "reversed", "transposed"])
def test_every_layout_is_tried(layout: str) -> None:
    refused = {
        "gaps": lambda x: x.strides[-1] == 2 * x.itemsize,
        "reversed": lambda x: x.strides[-1] < 0,
        "transposed": lambda x: x.flags.f_contiguous,
    }[layout]

    def double(x):
        return x * (3 if refused(x) else 2), lambda dy: dy * 2

    with pytest.raises(ParityError, match="strided"):
        assert_parity(double, lambda x: x * 2, (3, 4))


def test_arguments_are_checked() -> None:
    for options, message in (
        ({"dtype": "float16"}, "dtype"),
        ({"dtype": ()}, "dtype must name float64, float32 or both, got none"),
        ({"backend": "cupy"}, "backend"),
        ({"skip": ["forwards"]}, "forward"),
        ({"examples": 0}, "examples must be at least 1, got examples=0"),
        ({"names": {"gama": "g"}}, "gamma"),
    ):
        with pytest.raises(ValueError, match=message):
            assert_parity(scale, scale, **SHAPES, **options)
    with pytest.raises(TypeError, match="candidate must be callable"):
        assert_parity(3, scale, **SHAPES)


@pytest.mark.parametrize("dtypes", [("float16",), "half", ()])
def test_a_pair_of_unknown_dtypes_is_refused(dtypes: Any) -> None:
    with pytest.raises(ValueError, match="dtypes must"):
        make_pair("scale", scale_with_vjp, scale, **SHAPES, dtypes=dtypes)


def test_more_gradients_than_tensors_are_refused() -> None:
    def backward(dy, x, gamma):
        return (*scale_backward(dy, x, gamma), dy * 3)

    with pytest.raises(ParityError, match="each of x, gamma, got 3 gradients"):
        assert_parity(scale, scale, **SHAPES, backward=backward)
    assert_parity(
        scale,
        scale,
        **SHAPES,
        backward=lambda *given: (*scale_backward(*given), None, {}),
    )


def test_a_table_of_ones_own(tmp_path: Any) -> None:
    (tmp_path / "my_pairs.py").write_text(
        "import numpy as np, torch\n"
        "from parity import make_pair\n"
        "def tanh(x):\n"
        "    y = np.tanh(x)\n"
        "    return y, lambda dy: dy * (1 - y)\n"
        "PAIRS = (make_pair('tanh', tanh, torch.tanh, {'input': (3, 4)}),)\n"
    )

    def check(*arguments: str) -> Any:
        return subprocess.run(
            [sys.executable, "-m", "parity", "check", "--workers", "1", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    done = check("--pairs", "my_pairs:PAIRS")
    assert done.returncode == 1, done.stderr
    assert "activation-derivative" in done.stdout
    # The command that the report gives shows the failure again.
    line = next(x for x in done.stdout.splitlines() if x.startswith("  reproduce"))
    again = check(*shlex.split(line)[3:])
    assert again.returncode == 1, again.stderr
    assert "dx: d_input" in again.stdout
    for path in ("my_pairs", "my_pairs:ROWS", "no_such_module:PAIRS", "my_pairs:np"):
        done = check("--pairs", path)
        assert done.returncode == 2
        assert done.stderr.startswith("parity: --pairs")
        assert done.stderr.count("\n") == 1


def test_make_pair_serves_the_harness() -> None:
    from parity.runs import run_pair

    pair = make_pair("scale", scale_with_vjp, scale, **SHAPES)
    result = run_pair(pair, "float64", examples=3)
    assert not result.failures
    assert result.tensors == 3


def test_importing_parity_is_light() -> None:
    code = "import parity, parity.pytest_plugin, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
