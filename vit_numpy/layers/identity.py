"""The identity, which stands where an optional layer is left out."""

from vit_numpy.module import Array, Grads, Module


class Identity(Module):
    """Return the input itself.

    Notes
    -----
    ::

        y  = x
        dx = dy
    """

    def forward(self, x: Array) -> tuple[Array, None]:
        """(...) -> (...)."""
        return x, None

    def backward(self, dy: Array, cache: None) -> tuple[Array, Grads]:
        """(...) -> (...), and no parameters."""
        return dy, {}
