"""A trained model takes another head and size, and trains only what it is told to."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import vit_numpy
import vit_torch
from parity import recipes
from parity.data import from_arrays
from parity.training import Backend, RunFolder, fitted, open_data, train
from parity.transfer import weights
from vit_numpy.checkpoint import load
from vit_numpy.finetune import MODES, resize_positions
from vit_torch.finetune import resize_positions as torch_resize

TWINS = [vit_numpy, vit_torch]
both = pytest.mark.parametrize("twin", TWINS, ids=["numpy", "torch"])
FIELDS = dict(
    image_size=12, patch_size=4, in_chans=1, num_classes=3, dim=8, depth=3,
    num_heads=2, mlp_dim=12, layer_scale=0.5,
)  # fmt: skip


def model_of(twin, seed=3, **overrides):
    model = twin.VisionTransformer(twin.ViTConfig(**FIELDS | overrides))
    twin.init_weights(model, seed, zero_head=False)
    return model


def batch(twin, size=6, image=12):
    rng = np.random.default_rng(1)
    images = rng.standard_normal((size, 1, image, image)).astype(np.float32)
    labels = rng.integers(0, 3, size)
    if twin is vit_numpy:
        return images, labels
    return torch.from_numpy(images), torch.from_numpy(labels)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("old", "new"),
    [((7, 7), (14, 14)), ((14, 14), (7, 7)), ((5, 3), (4, 9)), ((2, 1), (1, 3))],
)
def test_positions_are_resized_as_torch_interpolates(mode, old, new):
    rng = np.random.default_rng(0)
    table = rng.standard_normal((1, 2 + old[0] * old[1], 6))
    kind, _, way = mode.partition("-")
    grid = torch.from_numpy(table[:, 2:].reshape(1, *old, 6)).permute(0, 3, 1, 2)
    expected = F.interpolate(
        grid,
        new,
        mode=kind,
        align_corners=way == "corners",
        antialias=way == "antialias",
    )
    expected = expected.permute(0, 2, 3, 1).reshape(1, -1, 6).numpy()
    for got in (
        resize_positions(table, old, new, 2, mode),
        torch_resize(torch.from_numpy(table), old, new, 2, mode).numpy(),
    ):
        assert got.shape == (1, 2 + new[0] * new[1], 6)
        assert np.array_equal(got[:, :2], table[:, :2])
        # Float64: sums of up to 49 products near 1, each rounded by 2⁻⁵³.
        np.testing.assert_allclose(got[:, 2:], expected, rtol=0, atol=1e-13)


def test_ways_of_resizing_differ():
    table = np.random.default_rng(0).standard_normal((1, 49, 4)).astype(np.float32)
    resized = [resize_positions(table, (7, 7), (5, 5), mode=mode) for mode in MODES]
    for i, one in enumerate(resized):
        assert one.dtype == np.float32
        for other in resized[:i]:
            assert np.abs(one - other).max() > 1e-3
    assert resize_positions(table, (7, 7), (7, 7)) is table


def test_wrong_tables_are_refused_alike():
    table = np.zeros((1, 9, 4))
    for resize, array in (
        (resize_positions, table),
        (torch_resize, torch.from_numpy(table)),
    ):
        with pytest.raises(ValueError, match="unknown mode 'bicubik'; did you mean"):
            resize(array, (3, 3), (4, 4), mode="bicubik")
        with pytest.raises(
            ValueError, match="table must hold 1 \\+ 3·3 positions, got"
        ):
            resize(array, (3, 3), (4, 4), prefix=1)


@both
def test_weights_are_kept_but_for_head_and_positions(twin):
    model = model_of(twin)
    config = twin.ViTConfig(
        **FIELDS | dict(image_size=20, num_classes=5, drop_path=0.1)
    )
    adapted = twin.adapt(model, config, "bilinear")
    old, new = weights(model), weights(adapted)
    changed = {name for name in new if not np.array_equal(old[name], new[name])}
    assert changed == {"head.weight", "head.bias", "pos_embed"}
    assert not new["head.weight"].any()
    assert new["pos_embed"].shape == (1, 26, 8)
    images, _ = batch(twin, image=20)
    assert adapted(images).shape == (6, 5)
    kept = twin.adapt(model, twin.ViTConfig(**FIELDS), new_head=False)
    images, _ = batch(twin)
    assert (kept(images) == model(images)).all()
    for wrong, message in (
        ({"dim": 16}, "a trained model keeps its dim=8, got 16"),
        ({"num_classes": 4}, "head.weight must have shape"),
    ):
        with pytest.raises(ValueError, match=message):
            twin.adapt(model, twin.ViTConfig(**FIELDS | wrong), new_head=False)


@both
@pytest.mark.parametrize("blocks", [0, 1, 3, 4])
def test_frozen_layers_stay_and_others_learn_as_if_alone(twin, blocks):
    model = model_of(twin)
    frozen = twin.frozen_layers(model.config, blocks)
    groups = twin.param_groups(model, 0.1, frozen=frozen)
    before = {name: array.copy() for name, array in weights(model).items()}
    trainer = twin.Trainer(model, twin.SGD(groups, 0.5), clip_norm=1e3)
    result = trainer.step(*batch(twin))
    after = weights(model)
    moved = {name for name in after if not np.array_equal(before[name], after[name])}
    names = {name for group in groups for name in group["names"]}
    assert moved == names
    assert ("patch_embed.proj.weight" in moved) == (blocks == 0)
    if blocks == 4:
        assert moved == {"head.weight", "head.bias"}
    # The same gradient as where everything is trained.
    whole = model_of(twin)
    reference = twin.Trainer(whole, twin.SGD(twin.param_groups(whole, 0.1), 0.5))
    assert reference.step(*batch(twin)).grad_norm >= result.grad_norm
    for name in names:
        assert np.array_equal(after[name], weights(whole)[name]), name


@both
def test_only_what_there_is_can_be_frozen(twin):
    model = model_of(twin)
    with pytest.raises(ValueError, match=r"unknown parameter or module 'block\.0'"):
        twin.param_groups(model, 0.1, frozen=["block.0"])
    frozen = [*twin.frozen_layers(model.config, 4), "head"]
    with pytest.raises(ValueError, match="frozen must leave a parameter to train"):
        twin.param_groups(model, 0.1, frozen=frozen)
    # A name is not the beginning of another.
    twelve = model_of(twin, depth=12)
    groups = twin.param_groups(twelve, 0.1, frozen=["blocks.1"])
    names = [name for group in groups for name in group["names"]]
    assert any(name.startswith("blocks.11.") for name in names)
    assert not any(name.startswith("blocks.1.") for name in names)


@both
def test_layers_learn_slower_the_deeper_they_lie(twin):
    model = model_of(twin)
    groups = twin.param_groups(model, 0.0, layer_decay=0.5)
    scale = {name: g["lr_scale"] for g in groups for name in g["names"]}
    assert scale["head.weight"] == scale["norm.bias"] == 1
    assert scale["blocks.2.attn.qkv.weight"] == 0.5
    assert scale["blocks.0.ls1.gamma"] == 0.125
    assert scale["pos_embed"] == scale["patch_embed.proj.weight"] == 0.0625
    plain = model_of(twin)
    for trained, its_groups in ((model, groups), (plain, plain.named_parameters())):
        twin.Trainer(trained, twin.SGD(its_groups, 1.0)).step(*batch(twin))
    start, slow, fast = weights(model_of(twin)), weights(model), weights(plain)
    for name, share in scale.items():
        # The differences are of float32 weights below 1, each rounded by 2⁻²⁴.
        np.testing.assert_allclose(
            slow[name] - start[name],
            share * (fast[name] - start[name]),
            rtol=1e-5,
            atol=1e-7,
        )
    with pytest.raises(ValueError, match=r"layer_decay must be in \(0, 1\], got"):
        twin.param_groups(model, 0.0, layer_decay=0)


# --- through recipes -----------------------------------------------------------------


def small_recipe(**changes):
    return recipes.load("network1").replace(
        {"epochs": 2, "batch_size": 10, "schedule.drop_after": [1]} | changes
    )


def random_images(size, channels, classes, count=40):
    rng = np.random.default_rng(4)
    images = rng.integers(0, 256, (count, channels, size, size), dtype=np.uint8)
    labels = np.arange(count) % classes
    return from_arrays(images, labels, images, labels)


def trained(recipe, backend, dataset, path):
    backend, folder = Backend.load(backend), RunFolder(path)
    if not folder.checkpoint.exists():
        folder.create(fitted(recipe, dataset), backend, overwrite=False)
    for _ in train(recipe, backend, dataset, folder):
        pass
    return load(folder.checkpoint)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_a_run_starts_from_a_file_of_another_size_and_task(backend, tmp_path):
    source = tmp_path / "source.safetensors"
    model = model_of(vit_torch)
    vit_torch.save(source, model)
    before = weights(model)
    dataset = random_images(20, 1, 5)
    recipe = small_recipe(**{"finetune.source": str(source), "model.act_drop": 0.2})
    probed = recipe.replace({"finetune.linear_probe": True})
    tuned = trained(recipe, backend, dataset, tmp_path / "tuned")
    assert tuned.config["dim"] == 8
    assert tuned.config["image_size"] == [20, 20]
    assert tuned.config["num_classes"] == 5
    assert tuned.config["act_drop"] == 0.2
    after = trained(probed, backend, dataset, tmp_path / "probed").arrays
    names = before.keys() - {"head.weight", "head.bias", "pos_embed"}
    assert all(np.array_equal(before[name], after[name]) for name in names)
    assert not any(np.array_equal(before[name], tuned.arrays[name]) for name in names)
    assert after["head.weight"].any()
    # The file is needed to begin with, and not to go on.
    source.unlink()
    folder = RunFolder(tmp_path / "probed")
    longer = folder.reopen().replace({"epochs": 3})
    again = trained(longer, backend, dataset, tmp_path / "probed")
    assert again.header["training"]["epoch"] == 3


def test_pictures_get_a_size_for_the_files_patches(tmp_path):
    """The preset of the recipe has others, for which 20 would be no size."""
    source = tmp_path / "source.safetensors"
    vit_numpy.save(source, model_of(vit_numpy))
    for name in ("a/0.png", "a/1.png", "b/0.png", "b/1.png"):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (30, 30)).save(path)
    for size in (12, 20):
        changes = {} if size == 12 else {"finetune.image_size": size}
        recipe = recipes.load("folder-224").replace(
            {
                "data": f"folder:{tmp_path / 'pictures'}",
                "finetune.source": str(source),
                **changes,
            }
        )
        dataset = open_data(recipe)
        config = fitted(recipe, dataset).config()
        assert (config.image_hw, config.num_classes) == ((size, size), 2)
    with pytest.raises(ValueError, match=r"finetune\.image_size must be at least 1"):
        recipe.replace({"finetune.image_size": 0})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"finetune.freeze": 4}, r"finetune\.freeze must be at most the 3 blocks"),
        (
            {"finetune.freeze": 1, "finetune.linear_probe": True},
            r"finetune\.linear_probe freezes all blocks",
        ),
        ({"finetune.resize": "bicubik"}, "did you mean 'bicubic"),
        ({"finetune.frozen": 1}, r"unknown recipe key 'finetune\.frozen'; did you"),
        ({"finetun.freeze": 1}, "unknown recipe table 'finetun'; did you mean"),
    ],
)
def test_wrong_fine_tuning_is_refused(changes, message, tmp_path):
    source = tmp_path / "source.safetensors"
    vit_numpy.save(source, model_of(vit_numpy))
    with pytest.raises(ValueError, match=message):
        trained(
            small_recipe(**{"finetune.source": str(source)} | changes),
            "numpy",
            random_images(12, 1, 5),
            tmp_path / "run",
        )


def test_classes_that_no_recipe_names_are_the_datas():
    recipe = recipes.load("folder-224").replace({"model.image_size": 32})
    dataset = random_images(32, 3, 4)
    assert fitted(recipe, dataset).config().num_classes == 4
    named = recipe.replace({"model.num_classes": 9})
    assert fitted(named, dataset).config().num_classes == 9
