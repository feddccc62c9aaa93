"""The MLP: two linear layers with an activation between them."""

from typing import Any, NamedTuple

from vit_numpy.config import check_rate
from vit_numpy.layers.activation import activation
from vit_numpy.layers.dropout import Dropout, MaskSource
from vit_numpy.layers.linear import Linear
from vit_numpy.masks import name_dropouts
from vit_numpy.module import Array, Grads, Module, saved, scoped


class MLPCache(NamedTuple):
    """What `MLP.backward` needs: the caches of its layers."""

    c_fc1: Any
    c_act: Any
    c_drop1: Any
    c_fc2: Any
    c_drop2: Any


class MLP(Module):
    """Map each token to `hidden_dim` features and back.

    Parameters
    ----------
    dim : int
        Width D of the tokens.
    hidden_dim : int
        Width M between the two layers.
    act : {'gelu', 'gelu_tanh', 'relu'}, default 'gelu'
        Activation after the first layer.
    act_drop, drop : float in [0, 1), default 0
        Dropout after the activation, and after the second layer.

    Attributes
    ----------
    fc1, fc2 : Linear
        D to M, and M to D.
    act : ReLU or GELU
    drop1, drop2 : Dropout

    Raises
    ------
    TypeError, ValueError
        If a size is no int or below 1, `act` is unknown, or a rate is not in [0, 1).

    References
    ----------
    Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", equation 3.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        act: str = "gelu",
        act_drop: float = 0.0,
        drop: float = 0.0,
    ) -> None:
        check_rate("act_drop", act_drop)
        check_rate("drop", drop)
        self.fc1 = Linear(dim, hidden_dim)
        self.act = activation(act)
        self.drop1 = Dropout(act_drop)
        self.fc2 = Linear(hidden_dim, dim)
        self.drop2 = Dropout(drop)
        name_dropouts(self)

    def forward(
        self, x: Array, masks: MaskSource | None = None
    ) -> tuple[Array, MLPCache | None]:
        """(B, T, D) -> (B, T, D)."""
        x, c_fc1 = self.fc1.forward(x)
        x, c_act = self.act.forward(x)
        x, c_drop1 = self.drop1.forward(x, masks)
        x, c_fc2 = self.fc2.forward(x)
        x, c_drop2 = self.drop2.forward(x, masks)
        return x, saved(MLPCache(c_fc1, c_act, c_drop1, c_fc2, c_drop2))

    def backward(self, dy: Array, cache: MLPCache) -> tuple[Array, Grads]:
        """(B, T, D) -> (B, T, D), and the gradients of fc1 and fc2."""
        dx, _ = self.drop2.backward(dy, cache.c_drop2)
        dx, g_fc2 = self.fc2.backward(dx, cache.c_fc2)
        dx, _ = self.drop1.backward(dx, cache.c_drop1)
        dx, _ = self.act.backward(dx, cache.c_act)
        dx, g_fc1 = self.fc1.backward(dx, cache.c_fc1)
        return dx, scoped("fc1", g_fc1) | scoped("fc2", g_fc2)
