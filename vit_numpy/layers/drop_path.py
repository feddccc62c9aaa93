"""Drop path, or stochastic depth: skip a residual branch for random images."""

from vit_numpy.layers.dropout import Dropout


class DropPath(Dropout):
    """Zero whole samples of the first axis, and scale the rest by 1 / (1 - p).

    Parameters
    ----------
    p : float in [0, 1), default 0
        Probability that a sample is dropped.

    Attributes
    ----------
    name : str
        The name under which masks are asked for, as in `Dropout`.

    Raises
    ------
    TypeError, ValueError
        If `p` is no number, or not in [0, 1).

    Notes
    -----
    The equations are `Dropout`'s with one keep a sample, broadcast over its elements:
    x (B, ...), keep (B, 1, ..., 1). On a residual branch, x + drop_path(f(x)) is then x
    for the samples that are dropped, as if the network were one layer less deep.

    References
    ----------
    Huang et al. 2016, "Deep Networks with Stochastic Depth", equation 2; they scale in
    evaluation by 1 - p, here the training side is divided by it.
    """

    name = "drop_path"

    def mask_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the mask: (B, ...) -> (B, 1, ..., 1)."""
        return (shape[0],) + (1,) * (len(shape) - 1)
