"""The computed bounds: their rules, and the verdicts that they lead to."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parity.bounds import (
    FACTOR,
    NoRuleError,
    Quantity,
    Reference,
    Rounding,
    accumulation,
    elementwise,
    exact,
    reference,
    register_decomposition,
    register_rule,
    rounding,
)
from parity.bounds.decompositions import DECOMPOSITIONS

DTYPES = (torch.float32, torch.float64)
Tensors = dict[str, Tensor]


def normal(seed: int, **shapes: tuple[int, ...]) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator) for name, shape in shapes.items()
    }


def evaluate(function: Callable[..., Tensor], ref: Reference) -> dict[str, np.ndarray]:
    """Run a candidate with one output in the tested dtype, with autograd."""
    leaves = {name: torch.from_numpy(x.copy()) for name, x in ref.inputs.items()}
    wanted = [n for n, x in leaves.items() if x.is_floating_point()]
    for name in wanted:
        leaves[name].requires_grad_()
    out = function(**leaves)
    cotangent = torch.from_numpy(ref.cotangents["out"])
    gradients = torch.autograd.grad(out, [leaves[n] for n in wanted], cotangent)
    return {
        "out": out.detach().numpy(),
        **{f"d_{n}": g.numpy() for n, g in zip(wanted, gradients, strict=True)},
    }


def worst(function: Callable[..., Tensor], ref: Reference) -> float:
    """The largest share of the bound that a candidate uses anywhere."""
    results = evaluate(function, ref)
    return max(float(ref.share(name, results[name]).max()) for name in ref.names)


# --- the rules, against real rounding -------------------------------------------------

PRIMITIVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "mul by a constant": lambda a, b: a * 0.1,
    "div": torch.div,
    "reciprocal": lambda a, b: a.reciprocal(),
    "sqrt": lambda a, b: a.abs().sqrt(),
    "rsqrt": lambda a, b: a.abs().rsqrt(),
    "exp": lambda a, b: a.exp(),
    "log": lambda a, b: a.abs().log(),
    "tanh": lambda a, b: a.tanh(),
    "erf": lambda a, b: a.erf(),
    "sigmoid": lambda a, b: a.sigmoid(),
    "pow": lambda a, b: a.abs().pow(1.5),
    "square": lambda a, b: a.square(),
    "sum": lambda a, b: a.sum(-1),
    "sum of all": lambda a, b: a.sum(),
    "mean": lambda a, b: a.mean(0),
    "cumsum": lambda a, b: a.cumsum(-1),
    "mm": lambda a, b: a @ b.T,
    "mv": lambda a, b: a @ b[0],
    "dot": lambda a, b: a[0] @ b[0],
    "bmm": lambda a, b: torch.bmm(a.reshape(4, 8, 96), b.reshape(4, 96, 8)),
    "addmm": lambda a, b: F.linear(a, b, b[:, 0]),
    "baddbmm": lambda a, b: torch.baddbmm(
        a.reshape(4, 8, 96)[:, :, :8], a.reshape(4, 8, 96), b.reshape(4, 96, 8)
    ),
    "conv2d": lambda a, b: F.conv2d(
        a.reshape(1, 3, 32, 32), b[:, :48].reshape(32, 3, 4, 4), b[0, :32], stride=2
    ),
    "conv2d, grouped": lambda a, b: F.conv2d(
        a.reshape(1, 4, 24, 32), b[:, :32].reshape(32, 2, 4, 4), groups=2, padding=1
    ),
    "conv_transpose2d": lambda a, b: F.conv_transpose2d(
        a.reshape(1, 4, 24, 32), b[:4, :32].reshape(4, 2, 4, 4), stride=2
    ),
    "avg_pool2d": lambda a, b: F.avg_pool2d(a.reshape(1, 3, 32, 32), 4),
    "index_add": lambda a, b: a.index_add(0, torch.arange(32) % 3, b),
    "scatter_add": lambda a, b: a.scatter_add(1, torch.zeros(32, 96).long(), b),
    "index_put": lambda a, b: a.index_put((torch.arange(32) % 3,), b, accumulate=True),
    "fft": lambda a, b: torch.fft.fft2(a).imag,
    "fft, scaled": lambda a, b: torch.fft.ifft(torch.complex(a, b)).real,
    "rfft": lambda a, b: torch.fft.rfft(a, norm="ortho").real,
    "irfft": lambda a, b: torch.fft.irfft(torch.complex(a, b), n=190),
    "irfft2": lambda a, b: torch.fft.irfft2(torch.complex(a, b), s=(32, 191)),
    "complex mul": lambda a, b: (torch.complex(a, b) * torch.complex(b, a)).imag,
    "complex div": lambda a, b: (torch.complex(a, b) / torch.complex(b, a)).real,
    "complex mm": lambda a, b: (torch.complex(a, b) @ torch.complex(b, a).mH).imag,
    "complex exp": lambda a, b: torch.complex(a, b).exp().real,
    "complex abs": lambda a, b: torch.complex(a, b).abs(),
    "complex sgn": lambda a, b: torch.view_as_real(torch.complex(a, b).sgn()),
    "complex var": lambda a, b: torch.complex(a, b).var(-1),
    "complex norm": lambda a, b: torch.linalg.vector_norm(torch.complex(a, b)),
    "polar": lambda a, b: torch.polar(a.abs(), b).real,
    "lerp": lambda a, b: a.lerp(b, 0.3),
    "var": lambda a, b: a.var(-1),
    "std of all": lambda a, b: a.std(),
    "norm": lambda a, b: torch.linalg.vector_norm(a),
    "in place": lambda a, b: a.clone().mul_(b).add_(0.3).addcdiv_(a, b, value=0.7),
    "addmm in place": lambda a, b: a[:, :32].clone().addmm_(a, b.T),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_product_inside_a_sum_need_not_be_fused(dtype: torch.dtype) -> None:
    b = normal(0, b=(8, 8))["b"]
    # Where the two cancel, the rounding of the product is all that is left.
    inputs = {"a": -0.1 * b * (1 + 1e-5), "b": b}
    forms: list[Callable[[Tensor, Tensor], Tensor]] = [
        lambda a, b: torch.add(a, b, alpha=0.1),
        lambda a, b: torch.sub(a, b, alpha=-0.1),
        lambda a, b: torch.rsub(b, a, alpha=-0.1),
        lambda a, b: a.clone().add_(b, alpha=0.1),
    ]
    for form in forms:
        ref = reference(form, inputs, dtype=dtype, differentiate=False)
        product = ref.inputs["b"] * ref.inputs["b"].dtype.type(0.1)
        assert ref.share("out", product + ref.inputs["a"]).max() <= 1


@pytest.mark.parametrize("name", PRIMITIVES)
def test_the_noise_of_each_rule_covers_float32_rounding(name: str) -> None:
    def function(a: Tensor, b: Tensor) -> Tensor:
        return PRIMITIVES[name](a, b)

    for seed in range(3):
        for scale in (1e-3, 1.0, 10.0):
            inputs = normal(seed, a=(32, 96), b=(32, 96))
            inputs["a"] *= scale
            ref = reference(function, inputs, differentiate=False, seed=seed)
            q = ref.quantities["out"]
            error = np.abs(q.native.astype(np.float64) - q.value)
            assert (error <= FACTOR * q.spread + 2.0**-126).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_fourier_transform_may_be_a_product_of_matrices(dtype: torch.dtype) -> None:
    def mix(x: Tensor) -> Tensor:
        return torch.fft.fft2(x).real

    def product(x: Tensor) -> Tensor:
        turns = [
            2 * math.pi / n * (torch.outer(steps, steps) % n).double()
            for n, steps in zip(x.shape, map(torch.arange, x.shape), strict=True)
        ]
        cos = [turn.cos().to(x.dtype) for turn in turns]
        sin = [turn.sin().to(x.dtype) for turn in turns]
        return cos[0] @ x @ cos[1] - sin[0] @ x @ sin[1]

    for scale in (1.0, 300.0):
        inputs = {"x": scale * normal(0, x=(7, 12))["x"] + scale}
        assert worst(product, reference(mix, inputs, dtype=dtype)) <= 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_rotation_by_complex_numbers_may_be_one_by_real_numbers(
    dtype: torch.dtype,
) -> None:
    def rotate(x: Tensor, angle: Tensor) -> Tensor:
        z = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        turn = torch.polar(torch.ones_like(angle), angle)
        return torch.view_as_real(z * turn).flatten(-2)

    def by_pairs(x: Tensor, angle: Tensor) -> Tensor:
        a, b = x[..., ::2], x[..., 1::2]
        cos, sin = angle.cos(), angle.sin()
        return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)

    ref = reference(rotate, normal(0, x=(3, 5, 8), angle=(5, 4)), dtype=dtype)
    assert worst(by_pairs, ref) <= 1
    assert ref.sensitivity("out") < (1e-5 if dtype == torch.float32 else 1e-13)


def test_a_complex_operator_without_a_rule_is_refused() -> None:
    def tangent(x: Tensor) -> Tensor:
        return torch.complex(x, x).tan().real

    with pytest.raises(NoRuleError, match=r"complex numbers must have .*aten\.tan"):
        reference(tangent, normal(0, x=(3,)))


def test_narrowing_complex_numbers_is_refused() -> None:
    def narrowed(x: Tensor) -> Tensor:
        return torch.complex(x, x).to(torch.complex64).abs().to(x.dtype)

    with pytest.raises(TypeError, match="complex128 to complex64 inside it"):
        reference(narrowed, normal(0, x=(3,)), dtype=torch.float64)


@pytest.mark.parametrize("name", ["add", "mul", "div", "sqrt", "exp", "tanh", "erf"])
def test_elementwise_noise_is_at_most_a_few_ulps(name: str) -> None:
    def function(a: Tensor, b: Tensor) -> Tensor:
        return PRIMITIVES[name](a, b)

    inputs = normal(0, a=(32, 96), b=(32, 96))
    q = reference(function, inputs, differentiate=False).quantities["out"]
    assert (q.spread <= 4 * 2.0**-24 * np.abs(q.value)).all()


EXACT: dict[str, Callable[[Tensor], Tensor]] = {
    "views": lambda x: x.reshape(8, 4).T.unsqueeze(0)[:, 1:3],
    "flip, roll, pad": lambda x: F.pad(x.flip(0).roll(1, 1), (1, 2)),
    "cat, split": lambda x: torch.cat(x.split(3, 1)[::-1], 1),
    "gather": lambda x: x.gather(1, torch.arange(8).expand(4, 8).flip(1)),
    "relu, neg": lambda x: -x.relu(),
    "indexing": lambda x: x[[3, 0], 2:5],
    "clamp, threshold": lambda x: F.threshold(x.clamp(-0.5, 0.5), 0.1, 7.0),
    "max": lambda x: x.max(1).values,
    "sort": lambda x: x.sort(1).values,
    "where, masked_fill": lambda x: torch.where(x > 0, x, 3.0).masked_fill(x > 1, 5.0),
    "power of two": lambda x: x * 0.25 / 2.0 * torch.tensor(-8.0),
    "sum of one term": lambda x: x.unsqueeze(0).sum(0).unsqueeze(1).mean(1),
    "max_pool2d": lambda x: F.max_pool2d(x.unsqueeze(0), 2),
}


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("batched", [True, False])
def test_exact_operators_get_no_noise(name: str, batched: bool) -> None:
    def function(x: Tensor) -> Tensor:
        return EXACT[name](x)

    ref = reference(function, normal(0, x=(4, 8)), batched=batched)
    for q in ref.quantities.values():
        assert not q.spread.any()
        np.testing.assert_array_equal(q.value, q.native)


def test_infinite_masks_stay_infinite() -> None:
    def function(x: Tensor) -> Tensor:
        mask = torch.zeros(4, 4).masked_fill(torch.ones(4, 4).triu(1).bool(), -math.inf)
        return x + mask

    ref = reference(function, normal(0, x=(4, 4)))
    assert np.isfinite(ref.quantities["out"].spread).all()
    assert np.isneginf(ref.quantities["out"].value[np.triu_indices(4, 1)]).all()
    out = evaluate(function, ref)["out"]
    assert ref.share("out", out).max() <= 1


FUSED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "layer_norm": lambda x, w: F.layer_norm(x, (6,), w, w * 0.5, 1e-5),
    "layer_norm, plain": lambda x, w: F.layer_norm(x, (5, 6)),
    "layer_norm, one row": lambda x, w: F.layer_norm(x[0, 0], (6,), w, w),
    "group_norm": lambda x, w: F.group_norm(x.transpose(1, 2), 3, w, w),
    "batch_norm": lambda x, w: F.batch_norm(
        x.transpose(1, 2), None, None, w, w, training=True
    ),
    "softmax": lambda x, w: torch.softmax(x * w, 1),
    "log_softmax": lambda x, w: torch.log_softmax(x * w, -1),
    "logsumexp": lambda x, w: torch.logsumexp(x * w, -1),
    "gelu": lambda x, w: F.gelu(x * w),
    "gelu, tanh": lambda x, w: F.gelu(x * w, approximate="tanh"),
    "silu": lambda x, w: F.silu(x * w),
    "tanh": lambda x, w: (x * w).tanh(),
    "sigmoid": lambda x, w: (x * w).sigmoid(),
    "hardtanh": lambda x, w: F.hardtanh(x * w),
    "leaky_relu": lambda x, w: F.leaky_relu(x * w),
    "elu": lambda x, w: F.elu(x * w),
    "softplus": lambda x, w: F.softplus(x * w),
    "addcmul": lambda x, w: torch.addcmul(x, w, x, value=0.3),
    "addcdiv": lambda x, w: torch.addcdiv(x, w, 3 + x.square(), value=0.3),
    "lerp": lambda x, w: x.lerp(w.expand_as(x), 0.7),
    "var": lambda x, w: (x * w).var((0, 2), correction=0),
    "var_mean": lambda x, w: sum(torch.var_mean(x * w, -1), torch.zeros(())),
    "std": lambda x, w: (x * w).std(-1, keepdim=True),
    "std_mean": lambda x, w: sum(torch.std_mean(x * w, 1), torch.zeros(())),
    "norm 1": lambda x, w: torch.linalg.vector_norm(x * w, 1, dim=1),
    "norm 2": lambda x, w: torch.linalg.vector_norm(x * w),
    "norm inf": lambda x, w: torch.linalg.vector_norm(x * w, math.inf),
    "cross_entropy": lambda x, w: F.cross_entropy(
        (x * w)[0], torch.arange(5), label_smoothing=0.1
    ),
    "mse_loss": lambda x, w: F.mse_loss(x * w, x.detach()),
    "binary_cross_entropy": lambda x, w: F.binary_cross_entropy_with_logits(
        x * w, torch.full_like(x, 0.25)
    ),
    "attention": lambda x, w: F.scaled_dot_product_attention(x * w, x, x + w),
    "embedding": lambda x, w: F.embedding(torch.tensor([0, 4, 0]), x[0] * w),
    "conv1d": lambda x, w: F.conv1d(x, w.expand(2, 5, 6)[:, :, :3], padding=1),
    "einsum": lambda x, w: torch.einsum("btd,d,bsd->bts", x, w, x),
}


@pytest.mark.parametrize("name", FUSED)
def test_decompositions_agree_with_their_kernels(name: str) -> None:
    def function(x: Tensor, w: Tensor) -> Tensor:
        return FUSED[name](x, w)

    inputs = {n: x.double() for n, x in normal(1, x=(2, 5, 6), w=(6,)).items()}
    ref = reference(function, inputs, dtype=torch.float64)
    for q in ref.quantities.values():
        np.testing.assert_allclose(q.value, q.native, rtol=1e-11, atol=1e-13)


def test_every_decomposition_of_our_own_is_compared_with_its_kernel() -> None:
    seen: set[str] = set()

    class Spy(Rounding):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            name = op._schema.name.removeprefix("aten::").rstrip("_")
            seen.update((name, f"{name}.{op._overloadname}"))
            return super().__torch_dispatch__(op, types, args, kwargs)

    for function in FUSED.values():
        inputs = normal(1, x=(2, 5, 6), w=(6,))
        x, w = (v.double().requires_grad_() for v in inputs.values())
        with (
            Spy(0.0),
            torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        ):
            torch.autograd.grad(function(x, w).sum(), (x, w), allow_unused=True)
    # What attention uses when whole rows may be masked, the same function as softmax;
    # and what clipping uses, which `parity.adapters` adds and its row compares.
    assert set(DECOMPOSITIONS) - seen <= {"_safe_softmax", "_foreach_norm"}


# --- verdicts on whole functions ------------------------------------------------------


def linear(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.linear(x, w, b)


def linear_other(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return torch.einsum("...i,oi->...o", x.flip(-1), w.flip(-1)) + b


def softmax(x: Tensor) -> Tensor:
    return torch.softmax(x, -1)


def softmax_other(x: Tensor) -> Tensor:
    e = torch.exp(x - x.detach().amax(-1, keepdim=True))
    return e * (1 / (e @ torch.ones(x.shape[-1], 1, dtype=x.dtype)))


def gelu(x: Tensor) -> Tensor:
    return F.gelu(x)


def gelu_other(x: Tensor) -> Tensor:
    return x * (torch.erfc(-x / math.sqrt(2)) / 2)


def gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def gelu_tanh_other(x: Tensor) -> Tensor:
    inner = math.sqrt(2 / math.pi) * x * (1 + 0.044715 * x * x)
    return 0.5 * x + 0.5 * x * torch.tanh(inner)


def layer_norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w, b, 1e-6)


def layer_norm_with(
    eps: float = 1e-6, correction: int = 0, one_pass: bool = False
) -> Callable[..., Tensor]:
    def function(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        x = x.flip(-1)
        mean = x.sum(-1, keepdim=True) / x.shape[-1]
        centred = x - mean
        var = centred.square().sum(-1, keepdim=True) / (x.shape[-1] - correction)
        if one_pass:
            var = x.square().mean(-1, keepdim=True) - mean.square()
        return (centred / torch.sqrt(var + eps)).flip(-1) * w + b

    return function


HEADS = 2


def attention(
    x: Tensor, qkv_w: Tensor, qkv_b: Tensor, proj_w: Tensor, proj_b: Tensor
) -> Tensor:
    q, k, v = F.linear(x, qkv_w, qkv_b).chunk(3, -1)
    q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return F.linear(y, proj_w, proj_b)


def attention_with(exponent: float = -0.5) -> Callable[..., Tensor]:
    def function(
        x: Tensor, qkv_w: Tensor, qkv_b: Tensor, proj_w: Tensor, proj_b: Tensor
    ) -> Tensor:
        head = x.shape[-1] // HEADS
        w = qkv_w.reshape(3, HEADS, head, -1)
        b = qkv_b.reshape(3, 1, HEADS, 1, head)
        q, k, v = torch.einsum("btd,nhed->nbhte", x, w) + b
        scores = softmax_other(q @ (k.mT * head**exponent))
        y = torch.einsum("bhts,bhse->bthe", scores, v).flatten(2)
        return y @ proj_w.T + proj_b

    return function


BLOCK = ("n1", "n2", "qkv", "proj", "fc1", "fc2")


def block_with(
    norm: Callable[..., Tensor],
    mixing: Callable[..., Tensor],
    dense: Callable[..., Tensor],
    act: Callable[..., Tensor],
) -> Callable[..., Tensor]:
    def function(x: Tensor, **p: Tensor) -> Tensor:
        (n1, n2, qkv, proj, fc1, fc2) = ((p[f"{n}_w"], p[f"{n}_b"]) for n in BLOCK)
        x = x + mixing(norm(x, *n1), *qkv, *proj)
        return x + dense(act(dense(norm(x, *n2), *fc1)), *fc2)

    return function


D = 12
DENSE = {"x": (2, 5, D), "w": (7, D), "b": (7,)}
NORM = {"x": (2, 5, D), "w": (D,), "b": (D,)}
ATTENTION = {
    "x": (2, 5, D),
    "qkv_w": (3 * D, D),
    "qkv_b": (3 * D,),
    "proj_w": (D, D),
    "proj_b": (D,),
}
WHOLE = {
    **ATTENTION,
    **{f"{n}_{p}": (D,) for n in ("n1", "n2") for p in "wb"},
    **{"fc1_w": (2 * D, D), "fc1_b": (2 * D,), "fc2_w": (D, 2 * D), "fc2_b": (D,)},
}
block = block_with(layer_norm, attention, linear, gelu)
block_other = block_with(layer_norm_with(), attention_with(), linear_other, gelu_other)


REGIMES: dict[str, Callable[[Tensor], Tensor]] = {
    "ordinary": lambda x: x,
    "small": lambda x: x * 1e-3,
    "large": lambda x: x * 300,
    "offset": lambda x: x + 1e3,
    "constant rows": lambda x: x[..., :1].expand_as(x),
}


def draw(
    seed: int, shapes: dict[str, tuple[int, ...]], regime: str = "ordinary"
) -> Tensors:
    """Draw inputs, with weights that keep the variance as trained ones do."""
    inputs = normal(seed, **shapes)
    for name, value in inputs.items():
        if value.dim() == 2 and name.endswith("w"):
            value /= math.sqrt(value.shape[1])
    inputs["x"] = REGIMES[regime](inputs["x"])
    return inputs


CORRECT = {
    "linear": (linear, linear_other, DENSE),
    "softmax": (softmax, softmax_other, {"x": (3, 9)}),
    "gelu": (gelu, gelu_other, {"x": (3, 9)}),
    "gelu_tanh": (gelu_tanh, gelu_tanh_other, {"x": (3, 9)}),
    "layer_norm": (layer_norm, layer_norm_with(), NORM),
    "attention": (attention, attention_with(), ATTENTION),
    "block": (block, block_other, WHOLE),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("name", CORRECT)
def test_correct_code_raises_no_alarm(
    name: str, regime: str, dtype: torch.dtype
) -> None:
    function, other, shapes = CORRECT[name]
    for seed in range(3 if name == "block" else 12):
        inputs = draw(seed, shapes, regime)
        ref = reference(function, inputs, dtype=dtype, seed=seed)
        assert not ref.ambiguous
        assert worst(function, ref) <= 0.25, "PyTorch itself is within |t - r|"
        assert worst(other, ref) <= 1


DEFECTS = {
    "eps 1e-5 for 1e-6": (layer_norm, layer_norm_with(eps=1e-5), NORM, "ordinary"),
    "unbiased variance": (layer_norm, layer_norm_with(correction=1), NORM, "ordinary"),
    "tanh GELU for erf": (gelu, gelu_tanh_other, {"x": (3, 9)}, "ordinary"),
    "erf GELU for tanh": (gelu_tanh, gelu_other, {"x": (3, 9)}, "ordinary"),
    "GELU by a sigmoid": (
        gelu,
        lambda x: x * torch.sigmoid(1.702 * x),
        {"x": (3, 9)},
        "ordinary",
    ),
    "attention not scaled": (attention, attention_with(0.0), ATTENTION, "ordinary"),
    "scaled by 1/d": (attention, attention_with(-1.0), ATTENTION, "ordinary"),
    "softmax over the wrong axis": (
        softmax,
        lambda x: torch.softmax(x, 0),
        {"x": (3, 9)},
        "ordinary",
    ),
    "eps inside a block": (
        block,
        block_with(layer_norm_with(eps=1e-5), attention, linear, gelu),
        WHOLE,
        "ordinary",
    ),
    "less accurate: E[x^2] - mean^2": (
        layer_norm,
        layer_norm_with(one_pass=True),
        NORM,
        "offset",
    ),
    "less accurate: exp(x - logsumexp)": (
        softmax,
        lambda x: torch.exp(x - torch.logsumexp(x, -1, keepdim=True)),
        {"x": (3, 9)},
        "offset",
    ),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", DEFECTS)
def test_defects_are_flagged(name: str, dtype: torch.dtype) -> None:
    function, wrong, shapes, regime = DEFECTS[name]
    ref = reference(function, draw(3, shapes, regime), dtype=dtype)
    assert worst(wrong, ref) > 2


@pytest.mark.parametrize("name", CORRECT)
def test_a_small_relative_error_is_flagged_in_every_tensor(name: str) -> None:
    function, _, shapes = CORRECT[name]
    ref = reference(function, draw(0, shapes))
    error = 3e-5 if name == "block" else 1e-5
    for quantity in ref.names:
        off = ref.quantities[quantity].native * np.float32(1 + error)
        assert ref.share(quantity, off).max() > 1, quantity
        assert ref.sensitivity(quantity) < error, quantity


def test_a_gradient_that_ignores_its_cotangent_is_flagged() -> None:
    ref = reference(softmax, normal(0, x=(3, 9)))
    assert ref.share("d_x", np.zeros((3, 9), np.float32)).max() > 1e3


def test_optimizers_are_judged_without_derivatives() -> None:
    shapes = {"p": (6, 4), **{f"g{i}": (6, 4) for i in range(5)}}

    def adam_w(p: Tensor, **grads: Tensor) -> Tensor:
        parameter = nn.Parameter(p.clone())
        optimizer = torch.optim.AdamW(
            [parameter], lr=1e-2, weight_decay=0.1, foreach=False
        )
        for grad in grads.values():
            parameter.grad = grad.clone()
            optimizer.step()
        return parameter.detach()

    def by_hand(p: np.ndarray, *grads: np.ndarray, eps: float = 1e-8) -> np.ndarray:
        m = v = np.zeros_like(p)
        for t, g in enumerate(grads, 1):
            m = 0.9 * m + 0.1 * g
            v = 0.999 * v + 0.001 * g * g
            p = p * (1 - 1e-2 * 0.1)
            p = p - 1e-2 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + eps)
        return p

    for dtype in DTYPES:
        for seed in range(4):
            ref = reference(
                adam_w,
                normal(seed, **shapes),
                dtype=dtype,
                differentiate=False,
                seed=seed,
            )
            assert ref.names == ("out",)
            assert not ref.cotangents
            arrays = list(ref.inputs.values())
            assert ref.share("out", by_hand(*arrays)).max() <= 1
            assert ref.share("out", by_hand(*arrays, eps=1e-5)).max() > 1


# --- ambiguity ------------------------------------------------------------------------


def kinked(x: Tensor, w: Tensor) -> Tensor:
    return F.relu(x @ w)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_kink_within_rounding_is_ambiguous(batched: bool, dtype: torch.dtype) -> None:
    # Zero in real numbers; what it is in floating point depends on the order of sums.
    at_the_kink = {"x": torch.tensor([[0.1, 0.3, -0.4]]), "w": torch.ones(3, 1)}
    at_the_kink["x"] = at_the_kink["x"].to(dtype).double()
    at_the_kink["x"][0, 2] = -(at_the_kink["x"][0, 0] + at_the_kink["x"][0, 1])
    ref = reference(kinked, at_the_kink, dtype=dtype, batched=batched)
    assert ref.ambiguous
    assert "relu" in ref.ambiguous_operators
    ref = reference(kinked, normal(0, x=(4, 3), w=(3, 2)), dtype=dtype, batched=batched)
    assert not ref.ambiguous


@pytest.mark.parametrize("batched", [True, False])
def test_ties_are_ambiguous_only_if_rounding_can_break_them(batched: bool) -> None:
    def computed(x: Tensor) -> Tensor:
        return (x * 0.1).max(-1).values

    def given(x: Tensor) -> Tensor:
        return x.max(-1).values + F.relu(x - x).sum(-1)

    tie = {"x": torch.tensor([[1.0, 3.0, 3.0], [2.0, 1.0, 0.0]])}
    assert reference(computed, tie, batched=batched).ambiguous
    assert not reference(given, tie, batched=batched).ambiguous


def test_a_pooled_batch_of_runs_is_told_apart() -> None:
    def pooled(x: Tensor) -> Tensor:
        return F.max_pool2d(x * 0.1, 2)

    x = normal(0, x=(2, 1, 4, 4))
    assert not reference(pooled, x).ambiguous
    assert reference(pooled, {"x": torch.ones(2, 1, 4, 4)}).ambiguous


# --- refusals -------------------------------------------------------------------------


def test_an_operator_without_rule_is_refused_until_it_has_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rounding, "RULES", dict(rounding.RULES))
    monkeypatch.setattr(rounding, "DECOMPOSITIONS", dict(DECOMPOSITIONS))
    monkeypatch.setattr(rounding, "_plans", {})
    inputs = normal(0, x=(5,))

    def evaluated() -> Quantity:
        ref = reference(torch.special.bessel_j0, inputs, differentiate=False)
        return ref.quantities["out"]

    inputs["input"] = inputs.pop("x")
    with pytest.raises(NoRuleError, match=r'bessel_j0.*register_rule\("special_bess'):
        evaluated()
    register_rule("special_bessel_j0", elementwise(4.0))
    assert evaluated().spread.all()
    register_rule("special_bessel_j0", exact)
    assert not evaluated().spread.any()
    register_rule("special_bessel_j0", accumulation(lambda call: 9))
    assert evaluated().spread.all()
    register_rule("special_bessel_j0.default", exact)
    assert not evaluated().spread.any()
    register_decomposition("special_bessel_j0.default", lambda x: x * 4)
    np.testing.assert_array_equal(evaluated().value, 4 * inputs["input"].numpy())


def test_what_cannot_be_a_reference_is_refused() -> None:
    x = normal(0, x=(3, 4))
    with pytest.raises(NoRuleError, match=r"deterministic.*pass them as inputs"):
        reference(lambda x: F.dropout(x, 0.5, training=True), x)
    with pytest.raises(NoRuleError, match="foreach=False"):
        reference(lambda x: torch._foreach_add([x], 1.0)[0], x, differentiate=False)
    with pytest.raises(TypeError, match=r"keep the dtype.*float64 in out"):
        reference(lambda x: x * torch.ones(4, dtype=torch.float64), x)
    with pytest.raises(TypeError, match="conversion from float64 to float32"):
        reference(lambda x: x.float(), x)
    with pytest.raises(ValueError, match="dtype must be"):
        reference(softmax, x, dtype=torch.float16)
    with pytest.raises(ValueError, match="runs must be at least 2, got 1"):
        reference(softmax, x, runs=1)
    with pytest.raises(ValueError, match="floating inputs, got 'y'"):
        reference(softmax, x, differentiate=["y"])
    with pytest.raises(ValueError, match=r"names \(out\), got y"):
        reference(softmax, x, cotangents={"y": torch.ones(3, 4)})
    with pytest.raises(NoRuleError, match="order must be 1, 2 or inf to have a"):
        reference(lambda x: torch.linalg.vector_norm(x, 3), x)


# --- the interface --------------------------------------------------------------------


def test_names_of_outputs_and_gradients() -> None:
    x = normal(0, x=(3,), y=(3,))

    def several(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x * y, x + 1

    def named(x: Tensor, y: Tensor) -> Tensors:
        return {"sum": x + y}

    assert reference(several, x).names == ("out0", "out1", "d_x", "d_y")
    assert reference(named, x).names == ("sum", "d_x", "d_y")
    assert reference(named, x, differentiate=["y"]).names == ("sum", "d_y")
    assert reference(named, x, differentiate=False).names == ("sum",)


def test_integers_are_passed_on_and_have_no_gradient() -> None:
    inputs = {"logits": normal(0, x=(3, 4))["x"], "labels": np.array([0, 3, 1])}

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels)

    ref = reference(loss, inputs)
    assert ref.names == ("out", "d_logits")
    assert ref.inputs["labels"].dtype == np.int64
    assert ref.quantities["out"].value.shape == ()
    assert ref.share("out", ref.quantities["out"].native) <= 0.25


def test_an_input_that_does_not_matter_has_gradient_zero() -> None:
    ref = reference(lambda x, y: x * 3, normal(0, x=(3,), y=(2,)))
    assert ref.share("d_y", np.zeros(2, np.float32)).max() == 0
    assert ref.share("d_y", np.full(2, 1e-30, np.float32)).min() > 1
    assert ref.visible("d_y") == 0


def test_inputs_are_rounded_to_the_tested_dtype() -> None:
    x = np.random.default_rng(0).normal(size=5)
    ref = reference(lambda x: x * 1, {"x": x})
    assert ref.inputs["x"].dtype == np.float32
    np.testing.assert_array_equal(ref.quantities["out"].value, x.astype(np.float32))
    assert ref.cotangents["out"].dtype == np.float32


def test_the_reference_owns_its_inputs() -> None:
    inputs = {"x": torch.ones(3), "rows": torch.tensor([0, 2])}
    ref = reference(lambda x, rows: x[rows], inputs)
    ref.inputs["x"][:] = 7
    ref.inputs["rows"][:] = 1
    assert inputs["x"].tolist() == [1, 1, 1]
    assert inputs["rows"].tolist() == [0, 2]


def test_the_seed_decides_everything() -> None:
    x = normal(0, x=(3, 9))
    a, b, c = (reference(softmax, x, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a.bound("d_x"), b.bound("d_x"))
    assert (a.cotangents["out"] != c.cotangents["out"]).any()
    assert (a.bound("out") != c.bound("out")).any()


def test_given_cotangents_are_used() -> None:
    ref = reference(
        lambda x: x * x, {"x": torch.tensor([1.0, 2.0])}, cotangents={"out": [3.0, 5.0]}
    )
    np.testing.assert_array_equal(ref.quantities["d_x"].value, [6.0, 20.0])


def test_runs_in_one_batch_and_one_by_one_agree() -> None:
    inputs = normal(0, **WHOLE)
    batch, single = (reference(block, inputs, batched=b) for b in (True, False))
    for name in batch.names:
        a, b = batch.quantities[name], single.quantities[name]
        np.testing.assert_allclose(a.value, b.value, rtol=1e-9, atol=1e-12)
        assert 0.7 < np.median(a.scale / b.scale) < 1.4


def test_control_flow_on_values_falls_back_to_single_runs() -> None:
    def branching(x: Tensor) -> Tensor:
        return x * 3 if float(x.sum().detach()) > 0 else x * 5

    ref = reference(branching, {"x": torch.ones(4)})
    np.testing.assert_array_equal(
        ref.quantities["d_x"].value, 3 * ref.cotangents["out"].astype(np.float64)
    )
    assert not ref.ambiguous


def test_a_module_is_a_function_of_its_parameters() -> None:
    module = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8))

    def function(x: Tensor, **parameters: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(module, parameters, (x,))
        return out

    inputs = {**normal(0, x=(3, 4)), **dict(module.named_parameters())}
    ref = reference(function, inputs)
    assert "d_0.weight" in ref.names
    assert ref.visible("d_2.bias") == 1


def test_a_gradient_of_zero_is_not_visible() -> None:
    ref = reference(attention, normal(0, **ATTENTION))
    q, k, v = np.split(ref.quantities["d_qkv_b"].value, 3)
    assert np.abs(k).max() < 1e-12 < 1e-3 < min(np.abs(q).max(), np.abs(v).max())
    assert ref.share("d_qkv_b", np.concatenate([q, 0 * k, v])).max() <= 1
    assert ref.visible("d_qkv_b") == pytest.approx(2 / 3, abs=0.05)
    alone = Quantity(
        k, k.astype(np.float32), ref.quantities["d_qkv_b"].spread[D : 2 * D]
    )
    blind = Reference(ref.dtype, {}, {}, {"d_key_bias": alone}, ())
    assert blind.visible("d_key_bias") == 0
    assert ref.visible("out") == 1


def test_values_that_are_not_finite() -> None:
    def function(x: Tensor) -> Tensor:
        return torch.stack([x.exp(), x.log(), -(x.exp()), x])

    # In float32 exp(100) overflows, in float64 it does not.
    ref = reference(function, {"x": torch.tensor([100.0, -1.0])}, differentiate=False)
    native = ref.quantities["out"].native
    assert np.isinf(native[0, 0])
    assert np.isnan(native[1, 1])
    assert ref.share("out", native).max() <= 0.25
    for row, column, value in [
        (0, 0, math.nan),
        (0, 0, -math.inf),
        (1, 1, 0.0),
        (1, 1, math.inf),
        (3, 0, math.nan),
        (3, 0, math.inf),
    ]:
        wrong = native.copy()
        wrong[row, column] = value
        share = ref.share("out", wrong)
        assert np.isinf(share[row, column])
        assert np.isinf(share).sum() == 1


def test_mismatch_of_shape_and_dtype() -> None:
    ref = reference(softmax, normal(0, x=(3, 9)))
    assert ref.mismatch("out", np.zeros((3, 9), np.float32)) is None
    assert ref.mismatch("out", np.zeros((3, 9))) == (
        "out must have dtype float32, got float64"
    )
    assert ref.mismatch("d_x", np.zeros((9, 3), np.float32)) == (
        "d_x must have shape (3, 9), got (9, 3)"
    )
    with pytest.raises(ValueError, match=r"out must have shape \(3, 9\), got \(9,\)"):
        ref.share("out", np.zeros(9, np.float32))
    with pytest.raises(KeyError, match="one of out, d_x, got 'dx'"):
        ref.bound("dx")


def test_sensitivity_is_the_smallest_relative_error_that_is_flagged() -> None:
    ref = reference(linear, normal(0, **DENSE))
    q = ref.quantities["out"]
    relative = ref.sensitivity("out")
    assert ref.share("out", q.value * (1 + 0.99 * relative)).max() < 1
    assert ref.share("out", q.value * (1 + 1.01 * relative)).max() > 1
    assert ref.sensitivity("out", factor=2) == pytest.approx(relative / 2)
    nothing = reference(lambda x: x * 0, normal(0, x=(3,)))
    assert nothing.sensitivity("out") == math.inf
