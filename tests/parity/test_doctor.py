"""The doctor names what is wrong with a port, and nothing else."""

import functools
import json
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import vit_torch
from parity.cli import main
from parity.commands.doctor import report
from parity.doctor import Diagnosis, diagnose
from parity.doctor.changes import all_changes
from parity.doctor.search import Search
from parity.doctor.setup import as_given

FIELDS: dict[str, Any] = dict(
    image_size=8,
    patch_size=4,
    in_chans=3,
    num_classes=5,
    dim=12,
    depth=2,
    num_heads=3,
    mlp_dim=24,
)
D, H, DH = 12, 3, 4


def network(**fields: Any) -> Any:
    """Return the original, with random weights."""
    config = vit_torch.ViTConfig(**FIELDS | fields)
    model = vit_torch.VisionTransformer(config).double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(0.4 * torch.randn(p.shape, generator=generator))
            if "norm" in name and name.endswith("weight"):
                p += 1
    return model


def weights(model: Any) -> dict[str, Any]:
    return {n: p.detach().numpy().copy() for n, p in model.named_parameters()}


def pictures() -> Any:
    return np.random.default_rng(3).random((3, 3, 8, 8))


def outputs(model: Any, images: Any) -> Any:
    with torch.no_grad():
        return model(torch.from_numpy(images)).numpy()


def ported(model: Any, name: str, function: Any) -> dict[str, Any]:
    """Return the weights as a port that makes a mistake stores them."""
    return {
        n: np.ascontiguousarray(function(w)) if n.endswith(name) else w
        for n, w in weights(model).items()
    }


def swap_kv(w: Any) -> Any:
    q, k, v = np.split(w, 3)
    return np.concatenate([q, v, k])


def pack(axes: tuple[int, ...], heads: int = H) -> Any:
    """Store rows (q, heads, features) in another order of these axes."""

    def function(w: Any) -> Any:
        apart = w.reshape(3, heads, D // heads, *w.shape[1:])
        rest = range(3, apart.ndim)
        return apart.transpose(*axes, *rest).reshape(w.shape)

    return function


def both(model: Any, function: Any) -> dict[str, Any]:
    found = ported(model, "qkv.weight", function)
    return found | {n: function(w) for n, w in found.items() if n.endswith("qkv.bias")}


def mixed_up_patches(w: Any) -> Any:
    """Take a matrix of features (row, column, channel) for one of (channel, …)."""
    return w.transpose(0, 2, 3, 1).reshape(w.shape)


def transposed_thirds(w: Any) -> Any:
    return np.concatenate([part.T for part in np.split(w, 3)])


MISTAKES: dict[str, tuple[Any, str]] = {
    "k and v exchanged": (lambda m: both(m, swap_kv), "qkv-order:qvk"),
    "rows by head": (
        lambda m: both(m, pack((1, 0, 2))),
        "qkv-packing:heads-qkv-features",
    ),
    "rows by feature": (
        lambda m: both(m, pack((1, 2, 0))),
        "qkv-packing:heads-features-qkv",
    ),
    "proj transposed": (
        lambda m: ported(m, "attn.proj.weight", lambda w: w.T),
        "transposed-attn.proj:transposed",
    ),
    "q, k, v transposed": (
        lambda m: ported(m, "qkv.weight", transposed_thirds),
        "transposed-attn.qkv:transposed",
    ),
    "fc1 reshaped": (
        lambda m: ported(m, "fc1.weight", lambda w: w.T.reshape(w.shape)),
        "transposed-mlp.fc1:reshaped",
    ),
    "patch features": (
        lambda m: ported(m, "patch_embed.proj.weight", mixed_up_patches),
        "patch-order:row-column-channel",
    ),
    "kernel flipped": (
        lambda m: ported(m, "patch_embed.proj.weight", lambda w: w[:, :, ::-1, ::-1]),
        "patch-flip:flipped",
    ),
    "class token last": (
        lambda m: ported(m, "pos_embed", lambda w: np.roll(w, -1, 1)),
        "class-position:last",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_weights_is_named(mistake: str) -> None:
    port, name = MISTAKES[mistake]
    model, images = network(), pictures()
    found = diagnose(model.config, port(model), images, outputs(model, images))
    assert found.found[0].names == (name,)
    assert found.found[0].share <= 1
    assert not found.before.agrees


@pytest.mark.parametrize(
    ("original", "port", "name"),
    [
        ({"norm_eps": 1e-5}, {}, "norm-eps:1e-05"),
        ({"norm_eps": 1e-12}, {}, "norm-eps:1e-12"),
        ({"act": "gelu_tanh"}, {}, "activation:gelu_tanh"),
        ({"act": "gelu"}, {"act": "gelu_tanh"}, "activation:gelu"),
        ({"num_heads": 2}, {}, "num-heads:2"),
        ({"pool": "mean"}, {}, "pool:mean"),
        (
            {"pool": "mean", "final_norm": "before"},
            {"pool": "mean", "final_norm": "after"},
            "final-norm:before",
        ),
    ],
)
def test_another_configuration_is_named(
    original: dict[str, Any], port: dict[str, Any], name: str
) -> None:
    model, images = network(**original), pictures()
    config = vit_torch.ViTConfig(**FIELDS | port)
    given = weights(model)
    if config.final_norm == "after":
        given = {
            ("fc_" + n if n.startswith("norm.") else n): w for n, w in given.items()
        }
    found = diagnose(config, given, images, outputs(model, images))
    assert found.found[0].names == (name,)


PREPROCESSING: dict[str, tuple[Any, str]] = {
    "255": (lambda x: x * 255, "pixel-scale:times-255"),
    "half": (lambda x: (x - 0.5) / 0.5, "normalisation:half"),
    "undone": (lambda x: x * 0.5 + 0.5, "normalisation:half-undone"),
    "BGR": (lambda x: x[:, ::-1].copy(), "channel-order:reversed"),
    "axes": (lambda x: x.swapaxes(2, 3).copy(), "image-axes:transposed"),
}


@pytest.mark.parametrize("name", PREPROCESSING)
def test_preprocessing_is_named(name: str) -> None:
    change, expected = PREPROCESSING[name]
    model, images = network(), pictures()
    known = outputs(model, change(images))
    found = diagnose(model.config, weights(model), images, known)
    assert found.found[0].names == (expected,)


def test_images_may_be_integers_with_channels_last() -> None:
    model = network()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    given = (pixels.transpose(0, 3, 1, 2) / 255 - 0.3) / 0.2
    found = diagnose(
        model.config,
        weights(model),
        pixels,
        outputs(model, given),
        preprocessing={"mean": [0.3] * 3, "std": [0.2] * 3},
    )
    assert found.found[0].names == ("normalisation:file",)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"mode": "bicubic", "antialias": True}, "bicubic-antialias"),
        ({"mode": "bicubic", "align_corners": True}, "bicubic-corners"),
        ({"mode": "bilinear"}, "bilinear"),
        ({"mode": "bilinear", "align_corners": True}, "bilinear-corners"),
    ],
)
def test_the_resize_of_positions_is_named(options: dict[str, Any], name: str) -> None:
    """The images are larger than those that the weights are for."""
    small = network(image_size=12)
    table = small.pos_embed.detach()
    grid = table[:, 1:].reshape(1, 3, 3, D).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(5, 5), **options).flatten(2).mT
    state = dict(small.state_dict()) | {"pos_embed": torch.cat([table[:, :1], grid], 1)}
    model = network(image_size=20)
    model.load_state_dict(state)
    images = np.random.default_rng(3).random((2, 3, 20, 20))
    found = diagnose(small.config, weights(small), images, outputs(model, images))
    assert [e.names for e in found.found] == [(f"position-resize:{name}",)]


def test_two_mistakes_are_named_together() -> None:
    model, images = network(act="gelu_tanh"), pictures()
    config = vit_torch.ViTConfig(**FIELDS)
    found = diagnose(
        config, both(model, swap_kv), images, outputs(model, images), seconds=120
    )
    assert set(found.found[0].names) == {"qkv-order:qvk", "activation:gelu_tanh"}
    assert "and" in found.conclusion


# The weights of the norms of q and k give the number of heads.
@pytest.mark.parametrize(("heads", "qk_norm"), [(H, False), (H, True), (2, False)])
@pytest.mark.parametrize("scale", ["", "none", "dim"])
@pytest.mark.parametrize("layout", ["", "order", "packing", "reshaped"])
def test_changes_of_attention_undo_what_they_name_together(
    heads: int, qk_norm: bool, scale: str, layout: str
) -> None:
    """Each as the others have left it: by their number of heads, on rows in place."""
    model, images = network(num_heads=heads, qk_norm=qk_norm), pictures()
    order: dict[str, tuple[str, Any]] = {
        "order": ("qkv-order:qvk", swap_kv),
        "packing": ("qkv-packing:heads-qkv-features", pack((1, 0, 2), heads)),
        "reshaped": (
            "transposed-attn.qkv:reshaped",
            lambda w: w if w.ndim == 1 else w.T.reshape(w.shape),
        ),
    }
    names = [f"num-heads:{heads}"] if heads != H else []
    given = weights(model)
    if layout:
        names.append(order[layout][0])
        given = both(model, order[layout][1])
    if scale:
        names.append(f"attention-scale:{scale}")
        width = {"none": 1, "dim": D}[scale]
        for block in model.blocks:
            block.attn.scale = width**-0.5
            block.attn.forward = functools.partial(scaled, block.attn)
    port = as_given(vit_torch.ViTConfig(**FIELDS | {"qk_norm": qk_norm}), given, images)
    for change in all_changes(port, None, integers=False):
        port = change.apply(port) if change.name in names else port
    config = vit_torch.ViTConfig.from_dict(port.config.to_dict())
    repaired = vit_torch.VisionTransformer(config).double().eval()
    repaired.load_state_dict(port.weights)
    # Float64: a factor on q in place of one on the logits rounds otherwise.
    np.testing.assert_allclose(
        outputs(repaired, images), outputs(model, images), rtol=0, atol=1e-11
    )


def scaled(attention: Any, x: Any, masks: None = None) -> Any:
    """Attend with the module's own scale, which the fused product does not know."""
    q, k, v = attention._heads(attention.qkv(x))
    q, k = attention.q_norm(q), attention.k_norm(k)
    weights = (q @ k.mT * attention.scale).softmax(-1)
    return attention.proj((weights @ v).transpose(1, 2).reshape(x.shape))


def three_mistakes() -> Diagnosis:
    model, images = network(act="gelu_tanh", norm_eps=1e-3), pictures()
    port = both(model, swap_kv)
    config = vit_torch.ViTConfig(**FIELDS | {"act": "gelu_tanh"})
    port = {
        n: w.T.copy() if n.endswith("attn.proj.weight") else w for n, w in port.items()
    }
    return diagnose(config, port, images, outputs(model, images), seconds=120)


THREE = {"qkv-order:qvk", "transposed-attn.proj:transposed", "norm-eps:0.001"}


def test_three_mistakes_are_named_before_all_pairs_are_tried() -> None:
    found = three_mistakes()
    assert set(found.found[0].names) == THREE
    assert found.tried < 1000


def test_a_large_network_is_looked_at_in_a_quicker_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Fewer images and float32 are for looking; what is named is judged in full."""
    monkeypatch.setattr("parity.doctor.search._COSTLY", 0.0)
    monkeypatch.setattr("parity.doctor.search._LOGITS", 5)
    seen: set[tuple[int, torch.dtype]] = set()
    original = Search.function

    def watched(self: Search, setup: Any) -> Any:
        seen.add((len(setup.images), setup.images.dtype))
        return original(self, setup)

    monkeypatch.setattr(Search, "function", watched)
    assert set(three_mistakes().found[0].names) == THREE
    assert seen == {(1, torch.float32), (3, torch.float64)}


def test_nothing_is_wrong() -> None:
    model, images = network(), pictures()
    known = outputs(model, images)
    found = diagnose(model.config, weights(model), images, known)
    assert found.before.agrees
    assert not found.found
    assert "nothing to repair" in found.conclusion
    single = diagnose(model.config, weights(model), images, known.astype(np.float32))
    assert single.before.agrees


@pytest.mark.parametrize("size", [1e-6, 1e-2, 1.0])
def test_an_unknown_mistake_is_not_explained(size: float) -> None:
    """Weights that are moved at random are no known mistake, however little."""
    model, images = network(), pictures()
    rng = np.random.default_rng(0)
    given = {
        n: w + size * rng.standard_normal(w.shape) for n, w in weights(model).items()
    }
    found = diagnose(model.config, given, images, outputs(model, images), seconds=2)
    assert not found.found
    assert found.closest
    assert "none of" in found.conclusion


def test_time_that_ran_out_is_said_whatever_took_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bounds take time too: here all that is left once single changes were run."""
    judged = Search.judged

    def slowly(search: Search, explanations: Any) -> Any:
        done = judged(search, explanations)
        if any(e.changes for e in explanations):
            search.deadline = 0.0
        return done

    monkeypatch.setattr(Search, "judged", slowly)
    model, images = network(act="gelu_tanh"), pictures()
    config = vit_torch.ViTConfig(**FIELDS)
    found = diagnose(config, both(model, swap_kv), images, outputs(model, images))
    assert not found.found
    assert not found.complete


def test_a_port_of_another_grid_is_no_distance_away() -> None:
    images = pictures()
    known = outputs(network(), images)
    small = network(image_size=12)
    found = diagnose(small.config, weights(small), images, known, seconds=0)
    assert not found.complete
    assert "inf" not in found.conclusion
    assert "inf" not in report(found, "port", "original", "")


def test_probabilities_are_recognised() -> None:
    model, images = network(), pictures()
    logits = torch.from_numpy(outputs(model, images))
    found = diagnose(model.config, weights(model), images, logits.softmax(-1).numpy())
    assert found.found[0].names == ("outputs:softmax",)


@pytest.mark.parametrize(
    ("images", "known", "message"),
    [
        (np.zeros((2, 8, 8)), np.zeros((2, 5)), r"must have shape \(B, C, H, W\)"),
        (np.zeros((2, 4, 8, 8)), np.zeros((2, 5)), "must have 3 channels"),
        (np.zeros((2, 3, 8, 8)), np.zeros((2, 4)), "its outputs have shape"),
        (np.zeros((2, 3, 10, 8)), np.zeros((2, 5)), "divisible by patch_size"),
        (np.zeros((2, 3, 8, 8)), np.full((2, 5), np.nan), "are not finite"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    images: Any, known: Any, message: str
) -> None:
    model = network()
    with pytest.raises(ValueError, match=message):
        diagnose(model.config, weights(model), images, known)


# --- the command ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_original_may_be_a_function_of_either_dtype(
    saved: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    dtype: str,
) -> None:
    """Its weights cannot be seen, so nothing can bring them to another."""
    module = types.ModuleType("originals")
    model = network(act="gelu_tanh").to(getattr(torch, dtype))
    module.original = lambda images: model(images)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "originals", module)
    argv = ["doctor", str(saved / "port.safetensors"), "originals:original"]
    assert main([*argv, "--images", str(saved / "x.npy")]) == 1
    assert "[activation:gelu_tanh]" in capsys.readouterr().out


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    original = network(act="gelu_tanh")
    vit_torch.save(tmp_path / "original.safetensors", original)
    port = network()
    vit_torch.save(tmp_path / "port.safetensors", port)
    images = pictures().astype(np.float32)
    np.save(tmp_path / "x.npy", images)
    np.save(tmp_path / "y.npy", outputs(original.float(), images))
    return tmp_path


def test_command_with_the_original(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port, original = saved / "port.safetensors", saved / "original.safetensors"
    out = saved / "found.json"
    argv = ["doctor", str(port), str(original), "--json", str(out)]
    assert main(argv) == 1
    shown = capsys.readouterr().out
    assert "set act='gelu_tanh'  [activation:gelu_tanh]" in shown
    told = json.loads(out.read_text())
    assert told["found"][0]["changes"][0]["name"] == "activation:gelu_tanh"
    assert main(["doctor", str(port), str(port)]) == 0


def test_command_with_recorded_outputs(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["doctor", str(saved / "port.safetensors")]
    argv += ["--images", str(saved / "x.npy"), "--outputs", str(saved / "y.npy")]
    assert main(argv) == 1
    assert "activation is GELU by tanh" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "give the original"),
        (["B", "--outputs", "y.npy"], "give the original"),
        (["--outputs", "y.npy"], "--outputs needs --images"),
        (["--outputs", "no.npy", "--images", "x.npy"], "does not exist"),
        (["--outputs", "x.npy", "--images", "x.npy"], "must hold logits"),
    ],
)
def test_command_refuses_in_one_line(
    saved: Path,
    argv: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [str(saved / w) if w.endswith(".npy") else w for w in argv]
    assert main(["doctor", str(saved / "port.safetensors"), *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_diagnosis_is_plain_data() -> None:
    model, images = network(), pictures()
    found = diagnose(model.config, weights(model), images, outputs(model, images))
    assert isinstance(found, Diagnosis)
    assert json.loads(json.dumps(found.to_dict()))["before"]["agrees"]


# --- the page ------------------------------------------------------------------------

PAGE = Path(__file__).resolve().parents[2] / "docs" / "debugging-a-port.md"


def test_the_page_shows_what_the_commands_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Line for line but for numbers, which vary with the machine in the last digits."""
    text = PAGE.read_text("utf-8")
    monkeypatch.chdir(tmp_path)
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.M | re.S))
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)

    def without_numbers(shown: str) -> list[str]:
        return re.sub(r"\d[\d.,e+-]*| +", "#", shown).splitlines()

    shown = re.findall(r"^```text\n\$ parity (.*?)\n(.*?)^```", text, re.M | re.S)
    assert len(shown) == 2
    for command, said in shown:
        assert main(command.split()) == 1
        assert without_numbers(capsys.readouterr().out) == without_numbers(said)
