"""Where two networks, or two runs, part: known defects must be named by their place."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vit_numpy
import vit_torch
from parity import recipes
from parity.cli import main
from parity.curves import SharedMasks, Side, batches
from parity.data import from_arrays
from parity.diverge import (
    TorchNetwork,
    compare,
    first_divergence,
    locate,
    read_names,
)
from parity.training import open_stream
from parity.transfer import copy_weights, weights
from vit_numpy.masks import KeyedMasks

FIELDS: dict[str, Any] = dict(
    image_size=8,
    patch_size=4,
    in_chans=1,
    num_classes=3,
    dim=8,
    depth=2,
    num_heads=2,
    mlp_dim=12,
)


def networks(**fields: Any) -> tuple[Any, Any]:
    """Return both twins with the same random weights."""
    ours = vit_numpy.VisionTransformer(vit_numpy.ViTConfig(**FIELDS | fields))
    ours.to(np.float64)
    rng = np.random.default_rng(0)
    for name, p in ours.named_parameters():
        scale = name.endswith(("norm1.weight", "norm2.weight", "norm.weight"))
        p[...] = (0.4 * rng.standard_normal(p.shape) + scale).astype(np.float32)
    theirs = vit_torch.VisionTransformer(vit_torch.ViTConfig(**FIELDS | fields)).eval()
    copy_weights(ours, theirs.double())
    return ours, theirs


def images(chans: int = 1) -> Any:
    return np.random.default_rng(1).standard_normal((3, chans, 8, 8))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("scale", ["measured", "coarse"])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"act": "relu", "pool": "mean", "final_norm": "after", "layer_scale": 0.3},
        {"pool": "map", "class_token": False, "pos_embed": "sincos2d", "dim": 8},
        {"distillation_token": True, "num_registers": 2, "qk_norm": True},
    ],
)
def test_twins_agree(fields: dict[str, Any], scale: str, dtype: str) -> None:
    found = compare(*networks(**fields), images(), dtype=dtype, scale=scale)
    assert found.agree, found.conclusion
    assert found.scale == scale
    assert max(row.share for row in found.rows) < 0.8
    # A comparison that compares nothing agrees too.
    names = {row.tensor for row in found.rows}
    assert {"blocks.1.attn", "d blocks.0.mlp", "logits", "d images"} <= names
    assert {f"d {name}" for name in networks(**fields)[0].state_dict()} <= names


def changed_forward(module: Any, change: Callable[[Any], Any]) -> None:
    """Have a NumPy layer return something else; its backward stays as it is."""
    forward = module.forward

    def broken(*args: Any, **kwargs: Any) -> Any:
        y, cache = forward(*args, **kwargs)
        return change(y), cache

    module.forward = broken


def changed_backward(module: Any, change: Callable[[Any, Any], Any]) -> None:
    backward = module.backward

    def broken(dy: Any, cache: Any, *args: Any) -> Any:
        dx, grads = backward(dy, cache, *args)
        return change(dx, grads)

    module.backward = broken


def larger(y: Any) -> Any:
    return y * (1 + 1e-9)


FORWARD_DEFECTS = {
    "patch_embed.proj": "patch_embed.proj",
    "blocks.0.norm1": "blocks.0.norm1",
    "blocks.1.attn.qkv": "blocks.1.attn.qkv",
    "blocks.1.attn.proj": "blocks.1.attn.proj",
    "blocks.0.mlp.act": "blocks.0.mlp.act",
    "blocks.1.mlp.fc2": "blocks.1.mlp.fc2",
    "norm": "norm",
    "pool": "pool",
    "head": "head",
}


@pytest.mark.parametrize("path", FORWARD_DEFECTS)
def test_a_defect_of_a_layer_is_named(path: str) -> None:
    """One part in 10⁹ is enough, as nothing in float64 explains it."""
    ours, theirs = networks()
    changed_forward(dict(ours.named_modules())[path], larger)
    found = compare(ours, theirs, images())
    assert found.first is not None
    assert found.first.layer == path
    assert found.first.direction == "forward"
    assert found.first.off == "A"
    assert "computation differs" in found.conclusion


def test_the_first_intermediate_that_differs_is_the_layers_own() -> None:
    """A defect between a layer's children belongs to the layer."""
    ours, theirs = networks()
    ours.blocks[1].attn.scale *= 1 + 1e-9
    found = compare(theirs, ours, images())
    first = next(row for row in found.rows if not row.agrees)
    assert first.tensor == "blocks.1.attn"
    assert found.first is not None
    assert found.first.layer == "blocks.1.attn"
    assert found.first.off == "B"


BACKWARD_DEFECTS: dict[str, tuple[str, Callable[[Any, Any], Any], str]] = {
    "dx of the activation": (
        "blocks.0.mlp.act",
        lambda dx, g: (larger(dx), g),
        "blocks.0.mlp.act",
    ),
    "dx of a norm": ("blocks.1.norm2", lambda dx, g: (larger(dx), g), "blocks.1.norm2"),
    "a weight's gradient": (
        "blocks.1.attn.qkv",
        lambda dx, g: (dx, g | {"weight": larger(g["weight"])}),
        "blocks.1.attn.qkv",
    ),
    "a bias's gradient": (
        "head",
        lambda dx, g: (dx, g | {"bias": larger(g["bias"])}),
        "head",
    ),
    "a lost gradient": (
        "norm",
        lambda dx, g: (dx, g | {"weight": 0 * g["weight"]}),
        "norm",
    ),
}


@pytest.mark.parametrize("name", BACKWARD_DEFECTS)
def test_a_defect_of_a_backward_is_named(name: str) -> None:
    path, change, layer = BACKWARD_DEFECTS[name]
    ours, theirs = networks()
    changed_backward(dict(ours.named_modules())[path], change)
    found = compare(ours, theirs, images())
    assert found.first is not None
    assert (found.first.layer, found.first.direction) == (layer, "backward")
    assert all(row.agrees for row in found.rows if row.part == "forward")


def test_a_residual_that_backward_forgets_belongs_to_the_block() -> None:
    ours, theirs = networks()
    block = ours.blocks[1]
    changed_backward(block, lambda dx, g: (dx - 1e-6, g))
    found = compare(ours, theirs, images())
    assert found.first is not None
    assert (found.first.layer, found.first.direction) == ("blocks.1", "backward")


def test_watching_leaves_a_network_as_it_was() -> None:
    ours, theirs = networks()
    before = [set(vars(m)) for _, m in ours.named_modules()]
    compare(ours, theirs, images())
    assert [set(vars(m)) for _, m in ours.named_modules()] == before
    assert all(
        not m._forward_hooks and not m._forward_pre_hooks for m in theirs.modules()
    )


def test_weights_that_differ_are_said_to() -> None:
    ours, theirs = networks()
    with torch.no_grad():
        theirs.blocks[0].mlp.fc1.weight.copy_(
            theirs.blocks[0].mlp.fc1.weight.half().double()
        )
    found = compare(ours, theirs, images())
    (difference,) = found.weights
    assert difference.name == "blocks.0.mlp.fc1.weight"
    assert difference.says == "B's are A's rounded to float16"
    assert found.tried_same_weights
    assert found.same_weights is None
    assert "the weights differ, in 1 tensor;" in found.conclusion
    assert not found.agree


def test_weights_and_computation_may_both_differ() -> None:
    ours, theirs = networks()
    theirs.blocks[0].norm2.eps = 1e-3
    with torch.no_grad():
        theirs.head.bias += 1
    found = compare(ours, theirs, images())
    assert [w.name for w in found.weights] == ["head.bias"]
    assert found.same_weights is not None
    assert found.same_weights.layer == "blocks.0.norm2"


def test_what_is_not_finite_in_both_shows_nothing() -> None:
    ours, theirs = networks()
    ours.blocks[0].norm2.weight[0] = np.nan
    healthy = compare(ours, theirs, images())
    assert healthy.first is not None, "here it is in one of them alone"
    assert healthy.weights[0].name == "blocks.0.norm2.weight"
    json.dumps(healthy.to_dict(), allow_nan=False)
    with torch.no_grad():
        theirs.blocks[0].norm2.weight[0] = np.nan
    found = compare(ours, theirs, images())
    assert not found.weights
    assert found.conclusion.startswith("blocks.0.mlp is not finite in both networks")
    assert not found.agree


def test_configurations_that_differ_are_named() -> None:
    ours, _ = networks()
    _, theirs = networks(norm_eps=1e-5, mlp_drop=0.1)
    found = compare(ours, theirs, images())
    assert {f for f, _, _ in found.configuration} == {"norm_eps", "mlp_drop"}
    assert "configurations differ in norm_eps" in found.conclusion
    _, larger_images = networks(image_size=12)
    found = compare(ours, larger_images, images())
    assert "other images" in found.conclusion
    assert not found.agree


def test_training_with_dropout_is_located() -> None:
    fields = dict(act_drop=0.3, drop_path=0.4, attn_drop=0.2, pos_drop=0.1)
    ours, theirs = networks(**fields)
    dlogits = np.random.default_rng(2).standard_normal((3, 3))
    masks = KeyedMasks(3, 5)
    assert locate(ours, theirs, images(), dlogits, masks=masks) is None
    changed_forward(ours.blocks[1].drop_path1, larger)
    place = locate(ours, theirs, images(), dlogits, masks=masks)
    assert place is not None
    assert place.layer == "blocks.1.drop_path1"


# --- anybody's networks --------------------------------------------------------------


class Foreign(torch.nn.Module):
    """The twin under other names, as another library would have it."""

    def __init__(self, twin: Any) -> None:
        super().__init__()
        self.stem = twin.patch_embed
        self.cls = twin.cls_token
        self.positions = twin.pos_embed
        self.layers = twin.blocks
        self.last = torch.nn.Sequential(twin.norm)
        self.classifier = twin.head

    def forward(self, x: Any) -> Any:
        x = self.stem(x)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.classifier(self.last(x)[:, 0])


NAMES = """
[intermediates]
patch_embed = "stem"
embedding = "layers.0:input"
"blocks.{i}" = "layers.{i}"
"blocks.{i}.*" = "layers.{i}.*"
head = "classifier"

[parameters]
"patch_embed.*" = "stem.*"
cls_token = "cls"
pos_embed = "positions"
"blocks.{i}.*" = "layers.{i}.*"
"norm.*" = "last.0.*"
"head.*" = "classifier.*"
"""


@pytest.fixture
def names(tmp_path: Path) -> Path:
    path = tmp_path / "names.toml"
    path.write_text(NAMES)
    return path


def test_a_foreign_module_is_compared_by_its_names(names: Path) -> None:
    ours, theirs = networks()
    foreign = TorchNetwork(Foreign(theirs), "other", names=read_names(names))
    assert foreign.parameters().keys() == ours.state_dict().keys()
    found = compare(ours, foreign, images())
    assert found.agree
    assert not found.uncompared
    tensors = {row.tensor for row in found.rows}
    assert {"embedding", "blocks.1.attn", "d blocks.0", "d pos_embed"} <= tensors
    theirs.blocks[1].mlp.act = torch.nn.GELU(approximate="tanh")
    found = compare(
        ours, TorchNetwork(Foreign(theirs), names=read_names(names)), images()
    )
    assert found.first is not None
    assert found.first.layer == "blocks.1.mlp.act"


def test_a_function_is_compared_by_its_logits() -> None:
    ours, theirs = networks()
    assert compare(ours, theirs.forward, images()).agree
    found = compare(ours, lambda x: theirs(x) * 1.001, images())
    assert found.first is not None
    assert found.first.tensor == "logits"
    with pytest.raises(TypeError, match="must be a VisionTransformer, a torch module"):
        compare(ours, 3, images())
    with pytest.raises(ValueError, match="logits of the same shape"):
        compare(ours, lambda x: theirs(x)[:, :2], images())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[layers]\na = 'b'", "table of .*layers"),
        ("[parameters]\na = 1", "must hold a name for each name"),
        ("nonsense", "cannot be read"),
        ("[intermediates]\n'blocks.{i}' = 'encoder'", "the same on both sides of"),
        ("[]", "must hold the tables intermediates and parameters"),
    ],
)
def test_a_bad_map_of_names_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / ("names.json" if text == "[]" else "names.toml")
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_names(path)


def test_a_name_that_is_not_there_is_refused() -> None:
    names = {"intermediates": {"blocks.{i}": "encoder.{i}"}}
    with pytest.raises(ValueError, match=r"called 'encoder\.\{i\}'"):
        TorchNetwork(Foreign(networks()[1]), names=names)


# --- the command ---------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    ours, theirs = networks()
    vit_numpy.save(tmp_path / "a.safetensors", ours)
    vit_torch.save(tmp_path / "b.safetensors", theirs)
    _, other = networks(norm_eps=1e-3)
    vit_torch.save(tmp_path / "eps.safetensors", other)
    return tmp_path


def test_command_says_and_writes(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, out = saved / "a.safetensors", saved / "b.safetensors", saved / "out.json"
    assert main(["compare", str(a), f"numpy:{b}"]) == 0
    assert "the weights are the same, and so is the computation" in (
        capsys.readouterr().out
    )
    argv = ["compare", str(a), str(saved / "eps.safetensors"), "--json", str(out)]
    assert main([*argv, "--dtype", "float32", "--count", "2"]) == 1
    shown = capsys.readouterr().out
    assert "norm_eps: 1e-06 in A, 0.001 in B" in shown
    assert "it parts in blocks.0.norm1, forward" in shown
    told = json.loads(out.read_text())
    assert told["first"]["layer"] == "blocks.0.norm1"
    assert told["images"] == 2
    assert not told["agree"]


def test_of_a_folder_no_more_pictures_are_read_than_are_run(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = vit_numpy.load(saved / "a.safetensors").config
    height, width = config["image_size"]
    mode = {1: "L", 3: "RGB"}[config["in_chans"]]
    folder = saved / "pictures"
    (folder / ".hidden").mkdir(parents=True)
    for i in range(2):
        Image.new(mode, (width, height), i).save(folder / f"{i}.png")
    for name in ("2.png", ".hidden/0.png"):
        (folder / name).write_bytes(b"no picture")
    a = str(saved / "a.safetensors")
    argv = ["compare", a, a, "--images", str(folder)]
    assert main([*argv, "--count", "2"]) == 0
    assert "2 pictures of" in capsys.readouterr().out
    assert main([*argv, "--count", "3"]) == 2
    assert "2.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nope.safetensors", "A"], "does not exist"),
        (["no_such_module:x", "A"], "no module 'no_such_module'"),
        (["json:nope", "A"], "nope"),
        (["A", "A", "--images", "x.npy"], "does not exist"),
        (["A", "A", "--json", "no/such/folder.json"], "make it first"),
        (["A", "A", "--names", "NAMES"], "too many"),
    ],
)
def test_command_refuses_in_one_line(
    saved: Path,
    names: Path,
    argv: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    known = {"A": str(saved / "a.safetensors"), "NAMES": str(names)}
    assert main(["compare", *(known.get(word, word) for word in argv)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


# --- in time -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset() -> Any:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (64, 1, 28, 28), dtype=np.uint8)
    return from_arrays(pixels, np.arange(64) % 10)


def runs(dataset: Any, **changes: Any) -> tuple[Side, Side, Iterator[Any]]:
    """Make two runs with dropout, drop path, augmentation, decay and clipping on."""
    recipe = recipes.load("network1").replace(
        {
            "dtype": "float64",
            "batch_size": 6,
            "clip_norm": 0.5,
            "augment": [{"name": "flip"}],
            "model.depth": 2,
            "model.drop_path": 0.3,
            "model.attn_drop": 0.1,
        }
        | changes
    )
    stream = open_stream(recipe, dataset.train)
    a = Side(recipe, "numpy", stream)
    b = Side(recipe, "torch", stream, SharedMasks(recipe.seed))
    return a, b, batches(stream, 3)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_runs_with_everything_on_agree(dataset: Any, dtype: str) -> None:
    assert first_divergence(*runs(dataset, dtype=dtype)) is None


def from_step(run: Side, step: int, path: str, name: str, change: Any) -> None:
    """Break a method of a run's layer from some step on."""
    module = dict(run.trainer.model.named_modules())[path]
    method = getattr(module, name)

    def broken(*args: Any, **kwargs: Any) -> Any:
        first, second = method(*args, **kwargs)
        return (change(first) if run.trainer.steps >= step else first), second

    setattr(module, name, broken)


def test_step_layer_and_tensor_are_named_forward(dataset: Any) -> None:
    a, b, stream = runs(dataset)
    from_step(a, 1, "blocks.1.mlp.act", "forward", lambda y: y * (1 + 1e-7))
    found = first_divergence(a, b, stream)
    assert found is not None
    assert found.step == 2
    assert found.place.layer == "blocks.1.mlp.act"
    assert found.place.tensor == "blocks.1.mlp.act"


def test_step_layer_and_tensor_are_named_backward(dataset: Any) -> None:
    a, b, stream = runs(dataset)
    from_step(a, 2, "blocks.0.norm2", "backward", lambda dx: dx * (1 + 1e-7))
    found = first_divergence(a, b, stream)
    assert found is not None
    assert found.step == 3
    assert (found.place.layer, found.place.direction) == ("blocks.0.norm2", "backward")


def test_the_update_is_named(dataset: Any) -> None:
    """A parameter that decays and should not, as a norm's scale."""
    a, b, stream = runs(dataset)
    a.trainer.optimizer = vit_numpy.AdamW(
        list(a.trainer.model.named_parameters()), lr=0.01, weight_decay=0.001
    )
    found = first_divergence(a, b, stream)
    assert found is not None
    assert (found.step, found.place.direction) == (1, "update")
    assert found.place.tensor.startswith("new ")


@pytest.mark.parametrize(
    ("attribute", "value", "tensor"),
    [("clip_norm", 0.6, "d "), ("base_lr", 0.02, "lr"), ("loss", None, "loss")],
)
def test_what_the_trainer_does_is_named(
    dataset: Any, attribute: str, value: Any, tensor: str
) -> None:
    a, b, stream = runs(dataset)
    if attribute == "loss":
        value = vit_numpy.CrossEntropy(label_smoothing=1e-6)
    setattr(a.trainer, attribute, value)
    found = first_divergence(a, b, stream)
    assert found is not None
    assert found.step == 1
    assert found.place.tensor.startswith(tensor)


def test_the_reference_run_must_be_torch(dataset: Any) -> None:
    a, b, stream = runs(dataset)
    with pytest.raises(TypeError, match="b must be a run in PyTorch"):
        first_divergence(b, a, stream)


def test_weights_are_copied_not_shared() -> None:
    ours, _ = networks()
    copied = weights(ours)
    copied["head.bias"] += 1
    assert not np.array_equal(copied["head.bias"], ours.head.bias)
