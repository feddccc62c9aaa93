"""The MLP: two linear layers with an activation between them."""

from torch import Tensor, nn

from vit_torch.config import check_rate
from vit_torch.layers.activation import activation
from vit_torch.layers.dropout import Dropout, MaskSource
from vit_torch.layers.linear import Linear
from vit_torch.masks import name_dropouts


class MLP(nn.Module):
    """Map each token to `hidden_dim` features and back.

    The twin of `vit_numpy.layers.mlp`, which derives the gradients.

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
        super().__init__()
        self.fc1 = Linear(dim, hidden_dim)
        self.act = activation(act)
        self.drop1 = Dropout(act_drop)
        self.fc2 = Linear(hidden_dim, dim)
        self.drop2 = Dropout(drop)
        name_dropouts(self)

    def forward(self, x: Tensor, masks: MaskSource | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = self.fc1(x)
        x = self.act(x)
        x = self.drop1(x, masks)
        x = self.fc2(x)
        x = self.drop2(x, masks)
        return x
