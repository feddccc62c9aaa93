"""Recipes are read strictly, changed by name, and written back without loss."""

import dataclasses
import tomllib

import pytest

from parity import recipes
from parity.recipes import OptimizerSpec, Recipe

# patch, width, heads, blocks, MLP, warm-up, lr, decay, epochs, batch, milestone
PUBLISHED = {
    "network1": (7, 9, 3, 3, 32, 100, 0.01, 0.001, 20, 100, 10),
    "network2": (4, 32, 4, 3, 64, 200, 0.005, 0.003, 30, 100, 15),
    "network3": (4, 64, 8, 4, 128, 500, 0.001, 0.01, 40, 50, 20),
}
SMALL = {
    "name": "small",
    "data": "mnist-subset",
    "preset": "network1",
    "epochs": 1,
    "batch_size": 10,
    "optimizer": {"name": "adamw", "lr": 0.01},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_network_is_trained_as_published(name):
    recipe = recipes.load(name)
    config = recipe.config()
    got = (
        config.patch_size,
        config.dim,
        config.num_heads,
        config.depth,
        config.mlp_dim,
        recipe.schedule.warmup_steps,
        recipe.optimizer.lr,
        recipe.optimizer.weight_decay,
        recipe.epochs,
        recipe.batch_size,
        *recipe.schedule.drop_after,
    )
    assert got == PUBLISHED[name]
    assert recipe.optimizer.name == "adamw"
    assert recipe.optimizer.betas == (0.9, 0.999)
    assert recipe.schedule.decay == "step"
    assert recipe.schedule.drop_factor == 0.1
    assert config.act_drop == 0.1


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_cosine_trains_the_same_network_in_the_same_time(name):
    published, cosine = recipes.load(name), recipes.load(f"{name}-cosine")
    assert cosine.schedule.decay == "cosine"
    for same in ("data", "epochs", "batch_size", "augment", "target"):
        assert getattr(cosine, same) == getattr(published, same)
    assert cosine.config() == published.config()
    # From Xavier's values networks 2 and 3 reach their targets with the cosine alone.
    starts = {"network1": "xavier", "network2": "mimetic", "network3": "mimetic"}
    assert (published.init, cosine.init) == (starts[name], "xavier")


# patch, width, heads, blocks, MLP, positions, pooling, optimizer, lr, epochs
SMALL_PUBLISHED = {
    "mnist-sincos": (4, 8, 2, 2, 32, "sincos2d", "mean", "adam", 0.005, 5),
    "mnist-compact": (7, 16, 4, 4, 64, "learned", "mean", "adam", 0.001, 10),
    "mnist-flat": (4, 96, 4, 6, 192, "sincos1d", "flatten", "sgd", 0.001, 36),
}


@pytest.mark.parametrize("name", SMALL_PUBLISHED)
def test_small_network_is_trained_as_described(name):
    recipe = recipes.load(name)
    c, o = recipe.config(), recipe.optimizer
    assert SMALL_PUBLISHED[name] == (
        *(c.patch_size, c.dim, c.num_heads, c.depth, c.mlp_dim, c.pos_embed, c.pool),
        *(o.name, o.lr, recipe.epochs),
    )
    if name == "mnist-flat":
        assert recipe.batch_size == 100
        assert recipe.schedule.drop_after == (20, 33)


def test_folders_are_trained_at_224_by_adamw():
    recipe = recipes.load("folder-224")
    config = recipe.config()
    assert (config.image_hw, config.patch_size) == ((224, 224), 16)
    assert (recipe.optimizer.lr, recipe.optimizer.weight_decay) == (0.001, 0.01)
    assert [a["name"] for a in recipe.augment] == ["rotation", "flip"]


def test_of_the_published_three_only_network3_is_augmented():
    assert [a["name"] for a in recipes.load("network3").augment] == ["flip", "pad_crop"]
    assert recipes.load("network1").augment == recipes.load("network2").augment == ()


@pytest.mark.parametrize("name", recipes.names())
def test_written_recipe_reads_back_equal(name, tmp_path):
    recipe = recipes.load(name)
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.to_toml(), encoding="utf-8")
    assert recipes.load(path) == recipe
    path.write_text(recipe.resolved().to_toml(), encoding="utf-8")
    assert recipes.load(path).config() == recipe.config()


def test_a_fingerprint_is_that_of_the_training_alone(tmp_path):
    recipe = recipes.load("network1")
    print_ = recipe.fingerprint()
    (tmp_path / "other.toml").write_text(recipe.resolved().to_toml())
    assert recipes.load(tmp_path / "other.toml").fingerprint() == print_
    for same in ({"seed": 3}, {"target": 0.5}, {"name": "mine"}, {"model.depth": 3}):
        assert recipe.replace(same).fingerprint() == print_
    others = (
        {"data": "mnist-subset"}, {"epochs": 3}, {"optimizer.lr": 0.02},
        {"schedule.drop_after": [9]}, {"model.depth": 4}, {"init": "mimetic"},
        {"augment": [{"name": "flip"}]}, {"data": "folder:pictures"},
    )  # fmt: skip
    prints = {recipe.replace(other).fingerprint() for other in others}
    assert len(prints | {print_}) == 1 + len(others)
    # Where pictures lie, and how many classes they have, is the user's.
    here, there = (
        recipe.replace({"data": f"folder:{path}", "model.num_classes": k})
        for path, k in (("here", 10), ("there", 4))
    )
    assert here.fingerprint() == there.fingerprint()
    assert here.fingerprint() != print_


def test_toml_holds_any_text_and_number():
    recipe = Recipe.from_dict(
        SMALL | {"data": 'folder:C:\\new "pictures" é😀\x7f', "clip_norm": 1e-05}
    )
    assert Recipe.from_dict(tomllib.loads(recipe.to_toml())) == recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epoch": 3}, "unknown recipe key 'epoch'; did you mean 'epochs'?"),
        (
            {"optimizer.learning_rate": 3},
            "unknown recipe key 'optimizer.learning_rate'",
        ),
        ({"schedule.warmup": 3}, "did you mean 'schedule.warmup_steps'?"),
        ({"lr": 0.1}, "unknown recipe key 'lr'; did you mean 'optimizer.lr'?"),
        ({"schedule.layer_decay": 0.7}, "did you mean 'optimizer.layer_decay'?"),
        ({"depth": 3}, "unknown recipe key 'depth'; did you mean 'model.depth'?"),
        ({"optimiser.lr": 3}, "unknown recipe table 'optimiser'; did you mean"),
        ({"model.depht": 3}, "unknown configuration key 'depht'; did you mean 'depth'"),
        ({"preset": "network9"}, "unknown preset 'network9'; did you mean 'network"),
        ({"augment": [{"name": "flop"}]}, "unknown augment 'flop'; did you mean 'flip"),
        (
            {"augment": [{"name": "pad_crop", "pading": 2}]},
            "unknown pad_crop parameter",
        ),
        ({"batch_size": 0}, "batch_size must be at least 1, got batch_size=0"),
        ({"optimizer.lr": -1.0}, "optimizer.lr must be above 0"),
        ({"optimizer.weight_decay": -1.0}, "weight_decay must be at least 0"),
        ({"optimizer.betas": [0.9, 1.0]}, r"betas must be in \[0, 1\)"),
        ({"optimizer.layer_decay": 1.5}, r"layer_decay must be in \(0, 1\]"),
        ({"schedule.floor": 2.0}, r"schedule.floor must be in \[0, 1\]"),
        (
            {"schedule.decay": "step", "schedule.drop_after": [5, 3]},
            r"schedule.drop_after must increase, got \[5, 3\]",
        ),
        ({"optimizer.momentum": 0.9}, "optimizer.momentum is no option of 'adamw'"),
        ({"schedule.drop_after": [5]}, "belong to decay='step'"),
        ({"schedule.decay": "step"}, "belong to decay='step'"),
    ],
)
def test_bad_values_name_the_rule(change, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        Recipe.from_dict(SMALL).replace(change)


def test_wrong_kinds_are_type_errors():
    with pytest.raises(TypeError, match="epochs must be an int"):
        Recipe.from_dict(SMALL | {"epochs": "many"})
    with pytest.raises(TypeError, match="optimizer must be a table"):
        Recipe.from_dict(SMALL | {"optimizer": "adamw"})
    with pytest.raises(TypeError, match="model must be a table, got 3"):
        Recipe.from_dict(SMALL | {"model": 3})
    with pytest.raises(TypeError, match="augment must be an array of tables, got 3"):
        Recipe.from_dict(SMALL | {"augment": 3})
    with pytest.raises(TypeError, match="data must be a string, got data=5"):
        Recipe.from_dict(SMALL | {"data": 5})
    with pytest.raises(TypeError, match="name must be a string, got name=5"):
        Recipe.from_dict(SMALL | {"name": 5})
    schedule = {"decay": "step", "drop_after": 3}
    with pytest.raises(TypeError, match=r"drop_after must be .* write \[3\]"):
        Recipe.from_dict(SMALL | {"schedule": schedule})
    with pytest.raises(ValueError, match=r"seed must be below 2\*\*64"):
        Recipe.from_dict(SMALL | {"seed": 2**64})


def test_missing_keys_are_named():
    with pytest.raises(ValueError, match=r"the recipe needs 'optimizer\.lr'"):
        Recipe.from_dict(SMALL | {"optimizer": {"name": "sgd"}})
    with pytest.raises(ValueError, match="the recipe needs 'epochs'"):
        Recipe.from_dict({k: v for k, v in SMALL.items() if k != "epochs"})


def test_replace_leaves_the_rest():
    recipe = Recipe.from_dict(SMALL)
    changed = recipe.replace({"optimizer.lr": 0.5, "model.depth": 1, "seed": 4})
    assert changed.optimizer == OptimizerSpec(name="adamw", lr=0.5)
    assert changed.config() == dataclasses.replace(recipe.config(), depth=1)
    assert changed.seed == 4
    assert recipe.seed == 0


def test_unknown_names_and_files_are_answered(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'network1'"):
        recipes.load("netwrok1")
    with pytest.raises(FileNotFoundError, match=r"no recipe file .*absent\.toml"):
        recipes.load(tmp_path / "absent.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("epochs = ")
    with pytest.raises(ValueError, match=r"broken\.toml: "):
        recipes.load(broken)
    broken.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"broken\.toml is not written in UTF-8"):
        recipes.load(broken)
    broken.write_text("x = " + 5000 * "[", "utf-8")
    with pytest.raises(ValueError, match=r"broken\.toml has arrays within arrays"):
        recipes.load(broken)
    marked = tmp_path / "marked.toml"
    marked.write_text(recipes.load("network1").to_toml(), "utf-8-sig")
    assert recipes.load(marked) == recipes.load("network1")
