"""What the twins answer to input that no row of the table refuses: the same."""

from importlib import import_module

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import vit_numpy
import vit_torch
from parity.cli import main

FIELDS = dict(image_size=8, patch_size=4, in_chans=1, dim=8, num_heads=2, mlp_dim=8)


def answer(use):
    with pytest.raises((TypeError, ValueError)) as caught:
        use()
    return caught.type, str(caught.value)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64"])
def test_unsigned_labels_are_labels_in_both(dtype):
    logits = np.random.default_rng(0).normal(size=(3, 4))
    labels = np.array([3, 0, 1], dtype)
    ours = vit_numpy.CrossEntropy()(logits, labels)
    theirs = vit_torch.CrossEntropy()(
        torch.from_numpy(logits), torch.from_numpy(labels)
    )
    assert ours == pytest.approx(float(theirs), rel=1e-14)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint64"])
def test_labels_of_any_integers_are_mixed_and_trained_on_in_both(dtype):
    images = np.random.default_rng(0).normal(size=(4, 1, 8, 8)).astype(np.float32)
    labels = np.array([3, 0, 1, 3], dtype)
    found = []
    for package in (vit_numpy, vit_torch):
        batch = [images, labels]
        if package is vit_torch:
            batch = [torch.from_numpy(array) for array in batch]
        model = package.VisionTransformer(package.ViTConfig(**FIELDS, num_classes=4))
        package.init_weights(model, 0)
        trainer = package.Trainer(model, package.SGD(model.named_parameters(), 0.1))
        augment = import_module(f"{package.__name__}.augment")
        mix = augment.Mix([augment.CutMix()], 4)
        found.append((trainer.step(*batch).accuracy, mix(*batch, 0, range(4))[1]))
    assert found[0][0] == found[1][0]
    np.testing.assert_array_equal(found[0][1], found[1][1].numpy())


@pytest.mark.parametrize("label", [4, 2**63 + 5])
def test_unsigned_labels_out_of_range_are_named(label):
    logits = np.zeros((1, 4))
    labels = np.array([label], np.uint64)
    said = answer(lambda: vit_numpy.CrossEntropy()(logits, labels))
    assert f"got {label};" in said[1]
    assert said == answer(
        lambda: vit_torch.CrossEntropy()(
            torch.from_numpy(logits), torch.from_numpy(labels)
        )
    )


@pytest.mark.parametrize("loss", ["CrossEntropy", "MeanSquaredError"])
def test_a_loss_of_half_precision_is_refused(loss):
    half = np.zeros((2, 3), np.float16)
    kind, text = answer(lambda: getattr(vit_numpy, loss)()(half, half))
    assert kind is TypeError
    assert text.endswith(
        " must be float32 or float64, got float16; convert it to one of them"
    )
    for dtype in ("float16", "bfloat16"):
        halves = torch.from_numpy(half).to(getattr(torch, dtype))
        assert answer(lambda: getattr(vit_torch, loss)()(halves, halves)) == (  # noqa: B023
            kind,
            text.replace("float16", dtype),
        )


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_a_group_names_each_of_its_parameters(name):
    def groups(param):
        return [{"names": ["a", "b"], "params": [param], "weight_decay": 0.0}]

    said = answer(lambda: getattr(vit_numpy, name)(groups(np.zeros(2)), lr=0.1))
    assert "got 2 names, 1 parameters" in said[1]
    assert said == answer(
        lambda: getattr(vit_torch, name)(groups(torch.zeros(2)), lr=0.1)
    )


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_parameters_come_in_pairs_with_their_names_or_in_groups(name):
    for package, array in ((vit_numpy, np.zeros(2)), (vit_torch, torch.zeros(2))):
        optimizer = getattr(package, name)
        kind = type(array).__name__
        for params, got in (
            ([array], kind),
            (array[None], kind),
            ({"a": array}, "str"),
            ([("a", array), array], kind),
            ([("a", 1.0)], "tuple"),
            ([(array, "a")], "tuple"),
            ([("a", array), {"names": ["b"], "params": [array]}], "dict"),
            (3, "int"),
        ):
            assert answer(lambda: optimizer(params, lr=0.1)) == (  # noqa: B023
                TypeError,
                "params must be (name, parameter) pairs, as model.named_parameters() "
                f"gives, or groups, as param_groups gives, got {got}",
            )
        whole = {"names": ["a"], "params": [array], "weight_decay": 0.0}
        for key in whole:
            group = {k: v for k, v in whole.items() if k != key}
            assert answer(lambda: optimizer([whole, group], lr=0.1)) == (  # noqa: B023
                ValueError,
                f"a group must hold names, params and weight_decay, got no {key}; "
                "make groups with param_groups",
            )


def test_the_groups_given_to_an_optimizer_stay_as_they_are():
    for package in (vit_numpy, vit_torch):
        model = package.VisionTransformer(package.ViTConfig(**FIELDS))
        groups = package.param_groups(model, 0.1)
        before = [dict(group) for group in groups]
        first = package.AdamW(groups, 0.1, betas=(0.5, 0.5), eps=1e-3)
        second = package.AdamW(groups, 0.2)
        assert [dict(group) for group in groups] == before
        assert first.param_groups[0] is not second.param_groups[0]
        for own in second.param_groups if package is vit_torch else ():
            assert (own["lr"], own["betas"], own["eps"]) == (0.2, (0.9, 0.999), 1e-8)


@pytest.mark.parametrize("given", [np.zeros, torch.zeros, lambda _: [[0.0]]])
def test_training_and_evaluation_refuse_images_of_the_other_kind(given):
    for package, own in ((vit_numpy, np.zeros), (vit_torch, torch.zeros)):
        if given is own:
            continue
        model = package.VisionTransformer(package.ViTConfig(**FIELDS))
        trainer = package.Trainer(model, package.SGD(model.named_parameters(), 0.1))
        images = given((2, 1, 8, 8))
        for use in (
            lambda: trainer.step(images, [0, 1]),  # noqa: B023
            lambda: package.evaluate(model, images),  # noqa: B023
        ):
            assert answer(use) == (
                TypeError,
                "images must be an array for vit_numpy and a tensor for vit_torch, "
                f"got {type(images).__name__}",
            )


def other_model(package, model):
    return package.VisionTransformer(model.config), None


def renamed(package, model):
    pairs = model.named_parameters()
    return model, package.SGD([(f"{n}.", p) for n, p in pairs], 0.1)


def replaced(package, model):
    optimizer = package.SGD(model.named_parameters(), 0.1)
    weight = model.head.weight
    model.head.weight = (
        weight.copy() if package is vit_numpy else torch.nn.Parameter(weight.detach())
    )
    return model, optimizer


@pytest.mark.parametrize(
    ("change", "name"),
    [(other_model, "cls_token"), (renamed, "cls_token."), (replaced, "head.weight")],
)
def test_an_optimizer_of_other_arrays_than_the_models_is_refused(change, name):
    for package in (vit_numpy, vit_torch):
        model = package.VisionTransformer(package.ViTConfig(**FIELDS))
        optimizer = package.SGD(model.named_parameters(), 0.1)
        changed, other = change(package, model)
        said = answer(lambda: package.Trainer(changed, other or optimizer))  # noqa: B023
        assert said == (
            ValueError,
            f"optimizer must hold the model's own parameters, got another {name!r}; "
            "make it from this model, after to() and whatever else replaces them",
        )


def test_the_twins_configurations_are_told_apart(tmp_path):
    for package, other in ((vit_numpy, vit_torch), (vit_torch, vit_numpy)):
        config = other.ViTConfig(**FIELDS)
        for use in (
            lambda: package.VisionTransformer(config),  # noqa: B023
            lambda: package.from_pretrained(tmp_path / "none", config),  # noqa: B023
        ):
            kind, text = answer(use)
            assert kind is TypeError
            assert f"got {other.__name__}.config.ViTConfig" in text
        package.VisionTransformer(package.ViTConfig.from_dict(config.to_dict()))


@pytest.mark.parametrize("command", ["inspect", "convert"])
@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("[1]", "the header entry 'vit_parity' cannot be read"),
        ("[" * 100_000, "the header entry 'vit_parity' cannot be read"),
        (
            '{"format": 1, "config": {}, "preprocessing": {"mean": [0.5]}}',
            "preprocessing must hold mean and std",
        ),
        ('{"format": 2, "config": {}}', "has format 2, this version reads 1"),
    ],
)
def test_a_header_that_is_not_read_is_bad_input(
    tmp_path, capsys, command, header, said
):
    file = tmp_path / "strange.safetensors"
    save_file({"blocks.0.attn.qkv.weight": np.zeros(1)}, file, {"vit_parity": header})
    for package in (vit_numpy, vit_torch):
        with pytest.raises(ValueError, match=said):
            package.from_pretrained(file)
    targets = [str(tmp_path / "new.safetensors")] if command == "convert" else []
    assert main([command, str(file), *targets]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_clipping_hides_no_gradient_that_is_not_finite(value):
    ours = {"a": np.array([value, 1.0]), "b": np.ones(2)}
    theirs = {name: torch.from_numpy(grad.copy()) for name, grad in ours.items()}
    norms = vit_numpy.clip_grad_norm(ours, 1.0), vit_torch.clip_grad_norm(theirs, 1.0)
    np.testing.assert_equal(norms[0], norms[1].item())
    for name, grad in ours.items():
        np.testing.assert_array_equal(grad, theirs[name].numpy())


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (
            {"image_size": 10**30},
            f"image_size must be at most 16777216, got image_size={10**30}",
        ),
        (
            {"depth": 2**24 + 1},
            "depth must be at most 16777216, got depth=16777217",
        ),
        (
            {"image_size": 2**20, "patch_size": 16},
            "a network must have at most 16777216 tokens, got 4294967297 from "
            "image_size=(1048576, 1048576), patch_size=16, num_registers=0; "
            "use smaller images, larger patches or fewer registers",
        ),
    ],
)
def test_sizes_that_no_network_has_are_refused(fields, text):
    for package in (vit_numpy, vit_torch):
        assert answer(lambda: package.ViTConfig(**fields)) == (ValueError, text)  # noqa: B023


@pytest.mark.parametrize("value", [1e39, -3.5e38, 10**40])
def test_a_layer_scale_that_float32_cannot_hold_is_refused(value):
    for package in (vit_numpy, vit_torch):
        for name, use in (
            ("layer_scale", lambda: package.ViTConfig(layer_scale=value)),  # noqa: B023
            ("init", lambda: package.layers.LayerScale(4, value)),  # noqa: B023
        ):
            assert answer(use) == (
                ValueError,
                f"{name} must be at most 3.403e+38 in size, as float32 holds, "
                f"got {name}={value}",
            )
        largest = float(np.finfo(np.float32).max)
        assert package.layers.LayerScale(4, largest).gamma.tolist() == [largest] * 4
        package.ViTConfig(layer_scale=-largest)


def test_the_largest_size_is_allowed():
    for package in (vit_numpy, vit_torch):
        package.ViTConfig(
            num_classes=2**24,
            image_size=2**12,
            patch_size=1,
            class_token=False,
            pool="mean",
        )


@pytest.mark.parametrize("name", [[], None, 3])
def test_a_preset_is_named_by_a_string(name):
    for package in (vit_numpy, vit_torch):
        said = answer(lambda: package.preset(name))  # noqa: B023
        assert said == (TypeError, f"preset must be a string, got preset={name!r}")


@pytest.mark.parametrize(
    ("given", "missing"), [({}, "mean"), ({"mean": [0.5]}, "std")], ids=str
)
def test_preprocessing_without_mean_or_std_is_refused(tmp_path, given, missing):
    file = tmp_path / "model.safetensors"
    for package in (vit_numpy, vit_torch):
        model = package.VisionTransformer(package.ViTConfig(**FIELDS))
        assert answer(lambda: package.checkpoint.save(file, model, given)) == (  # noqa: B023
            ValueError,
            f"preprocessing must hold mean and std, got no {missing}; "
            "give a number a channel for each",
        )
        assert not file.exists()
