"""The twins draw initial weights from the same distributions, and augment alike."""

import numpy as np
import pytest
import torch

from vit_numpy import augment as numpy_augment
from vit_numpy import draws
from vit_numpy import init as numpy_init
from vit_numpy import layers as numpy_layers
from vit_numpy import model as numpy_model
from vit_numpy.config import ViTConfig
from vit_torch import augment as torch_augment
from vit_torch import config as torch_config
from vit_torch import draws as torch_draws
from vit_torch import init as torch_init
from vit_torch import layers as torch_layers
from vit_torch import model as torch_model

FIELDS = dict(
    image_size=32, patch_size=4, dim=64, depth=1, num_heads=4, mlp_dim=128,
    num_classes=10, num_registers=8, pool="map", distillation_token=False,
)  # fmt: skip


def kolmogorov_smirnov(a, b):
    """Return the largest distance between two empirical distribution functions."""
    both = np.sort(np.concatenate([a, b]))
    steps = [np.searchsorted(np.sort(x), both, side="right") / x.size for x in (a, b)]
    return np.abs(steps[0] - steps[1]).max()


@pytest.mark.parametrize("method", ["trunc_normal", "xavier", "mimetic"])
@pytest.mark.parametrize("zero_head", [True, False])
def test_same_distributions(method, zero_head):
    ours = numpy_model.VisionTransformer(ViTConfig(**FIELDS))
    theirs = torch_model.VisionTransformer(torch_config.ViTConfig(**FIELDS))
    numpy_init.init_weights(ours, 0, method, zero_head=zero_head)
    torch_init.init_weights(theirs, 0, method, zero_head=zero_head)
    state = theirs.state_dict()
    assert ours.state_dict().keys() == state.keys()
    for name, value in ours.state_dict().items():
        a, b = value.ravel(), state[name].numpy().ravel()
        if np.ptp(a) == 0:
            np.testing.assert_array_equal(a, b, err_msg=name)
            continue
        # 2.2: by chance about once in ten thousand, for samples of equal size.
        assert kolmogorov_smirnov(a, b) < 2.2 * (2 / a.size) ** 0.5, name
        assert (a != b).any()


def test_mimetic_attention_starts_local_in_both():
    """Each matrix by itself may have the right distribution, and the products not."""
    ours = numpy_model.VisionTransformer(ViTConfig(**FIELDS))
    theirs = torch_model.VisionTransformer(torch_config.ViTConfig(**FIELDS))
    numpy_init.init_weights(ours, 0, "mimetic")
    torch_init.init_weights(theirs, 0, "mimetic")
    torch_state = {k: v.numpy() for k, v in theirs.state_dict().items()}
    positions = ours.pos_embed[:, -64:]
    np.testing.assert_array_equal(positions, torch_state["pos_embed"][:, -64:])
    for state in (ours.state_dict(), torch_state):
        heads = state["blocks.0.attn.qkv.weight"].reshape(3, 4, 16, 64)
        for q, k in zip(heads[0], heads[1], strict=True):
            # Both are the diagonal of singular values near 1, by a float32 SVD of 64.
            np.testing.assert_allclose(q @ q.T, k @ k.T, atol=5e-6)
            assert np.trace(q.T @ k) > 0.3 * np.linalg.norm(q) ** 2
        product = state["blocks.0.attn.proj.weight"] @ heads[2].reshape(64, 64)
        noise = product / 0.4 + np.eye(64)
        assert noise.std() == pytest.approx(1 / 8, rel=0.05)
        assert abs(np.diag(noise).mean()) < 0.05


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_same_pixels_from_the_same_seed(dtype):
    rng = np.random.default_rng(0)
    images = (255 * rng.random((20, 3, 8, 12))).astype(dtype)
    transforms = [draws.HorizontalFlip(), draws.PadCrop(2), draws.PadCrop(1)]
    ours = numpy_augment.Augment(transforms, 5)(images, 3, range(100, 120))
    twins = [
        torch_draws.HorizontalFlip(),
        torch_draws.PadCrop(2),
        torch_draws.PadCrop(1),
    ]
    theirs = torch_augment.Augment(twins, 5)(
        torch.from_numpy(images), 3, range(100, 120)
    )
    np.testing.assert_array_equal(ours, theirs.numpy())
    assert (ours != images).any()


def test_layer_scale_starts_where_it_is_told():
    """Parity draws every parameter anew, and so cannot see where one starts."""
    ours = numpy_layers.LayerScale(3, 0.25).gamma
    theirs = torch_layers.LayerScale(3, 0.25).gamma
    assert ours.tolist() == theirs.tolist() == [0.25] * 3
