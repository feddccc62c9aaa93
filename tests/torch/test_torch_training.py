"""What the torch twin of training promises beside parity."""

import pytest
import torch

from vit_torch import optim
from vit_torch.config import ViTConfig
from vit_torch.init import init_weights
from vit_torch.model import VisionTransformer
from vit_torch.optim import SGD, Adam, AdamW, param_groups
from vit_torch.train import Trainer, evaluate

CONFIG = ViTConfig(
    image_size=8, patch_size=4, in_chans=1, dim=16, depth=2, num_heads=2, mlp_dim=32,
    num_classes=4, act_drop=0.1, attn_drop=0.1, drop_path=0.1,
)  # fmt: skip

MAKERS = {
    "sgd": (lambda p: SGD(p, 0.1), lambda p: torch.optim.SGD(p, 0.1)),
    "nesterov": (
        lambda p: SGD(p, 0.1, momentum=0.9, nesterov=True),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    ),
    "adam": (lambda p: Adam(p, 0.01), lambda p: torch.optim.Adam(p, 0.01)),
    "adamw": (
        lambda p: AdamW(p, 0.01),
        lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.01),
    ),
    "fused": (
        lambda p: AdamW(p, 0.01, fused=True),
        lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.01, fused=True),
    ),
}


def small_model(seed=0):
    model = VisionTransformer(CONFIG)
    init_weights(model, seed, "xavier")
    return model


def batch(seed, size=16):
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (size,), generator=g)
    patterns = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(99))
    return patterns[labels] + 0.5 * torch.randn(size, 1, 8, 8, generator=g), labels


def set_grads(model, seed):
    g = torch.Generator().manual_seed(seed)
    for param in model.parameters():
        param.grad = torch.randn(param.shape, generator=g)


@pytest.mark.parametrize("name", MAKERS)
def test_an_optimizer_is_torchs_own(name):
    ours, theirs = MAKERS[name]
    a, b = small_model(), small_model()
    mine, reference = ours(a.named_parameters()), theirs(b.parameters())
    for step in range(3):
        set_grads(a, step)
        set_grads(b, step)
        mine.step()
        reference.step()
    for x, y in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("name", MAKERS)
def test_saved_state_continues_exactly(name):
    make, _ = MAKERS[name]
    a, b = small_model(), small_model()
    first, resumed = make(a.named_parameters()), make(b.named_parameters())
    set_grads(a, 0)
    first.step()
    b.load_state_dict(a.state_dict())
    resumed.load_state_dict(first.state_dict())
    for model, optimizer in ((a, first), (b, resumed)):
        set_grads(model, 1)
        optimizer.step()
    for x, y in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(x, y)


def test_clipping_is_torchs_own():
    a, b = small_model(), small_model()
    set_grads(a, 0)
    set_grads(b, 0)
    grads = {name: param.grad for name, param in a.named_parameters()}
    ours = optim.clip_grad_norm(grads, 2.0)
    theirs = torch.nn.utils.clip_grad_norm_(b.parameters(), 2.0)
    assert torch.equal(ours, theirs)
    for x, y in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(x.grad, y.grad, rtol=1e-6, atol=0)


def test_missing_gradient_is_named():
    model = small_model()
    with pytest.raises(ValueError, match="no gradient for 'cls_token'"):
        AdamW(model.named_parameters()).step()


def test_resuming_gives_the_same_bits():
    def make(seed=0):
        model = small_model()
        return Trainer(model, AdamW(param_groups(model, 0.01), 0.01), seed=seed)

    straight, first, resumed = make(), make(), make(seed=5)
    for i in range(6):
        straight.step(*batch(i))
    for i in range(3):
        first.step(*batch(i))
    resumed.load_state_dict(first.state_dict())
    for i in range(3, 6):
        resumed.step(*batch(i))
    for x, y in zip(
        straight.model.parameters(), resumed.model.parameters(), strict=True
    ):
        assert torch.equal(x, y)


def test_it_learns_and_evaluates_without_dropout():
    model = small_model()
    trainer = Trainer(model, AdamW(param_groups(model, 0.01), 0.01), clip_norm=1.0)
    for i in range(120):
        trainer.step(*batch(i))
    images, labels = batch(999, 200)
    logits = evaluate(model, images, 64)
    assert model.training
    assert torch.equal(logits, evaluate(model, images, 64))
    assert (logits.argmax(1) == labels).float().mean() > 0.95


def test_a_step_that_is_not_finite_changes_nothing():
    model = small_model()
    trainer = Trainer(model, AdamW(param_groups(model, 0.01), 0.01))
    trainer.step(*batch(0))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    images, labels = batch(1)
    images[3, 0, 0, 0] = torch.inf
    with pytest.raises(
        FloatingPointError, match=r"loss is nan at step 2; first in 'emb"
    ):
        trainer.step(images, labels)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
