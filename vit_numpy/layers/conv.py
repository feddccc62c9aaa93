"""Convolution of images: every window, as a row, times the same matrix."""

from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from vit_numpy.config import check_int
from vit_numpy.functional import column_sum
from vit_numpy.module import Array, Grads, Module, saved


class Conv2dCache(NamedTuple):
    """What `Conv2d.backward` needs: the windows as rows, and the input's shape."""

    columns: Array
    shape: tuple[int, ...]


class Conv2d(Module):
    """Correlate images with learned kernels.

    Parameters
    ----------
    in_chans, out_chans : int
        Channels C of the input, and O of the output.
    kernel_size : int or (int, int)
        Height R and width S of the kernels, in pixels.
    stride : int or (int, int), default 1
        Steps from one window to the next, downwards and to the right.
    padding : int or (int, int), default 0
        Rows of zeros above and below, columns of zeros to the left and right.
    bias : bool, default True
        Whether to add an offset to each output channel.

    Attributes
    ----------
    weight : ndarray of shape (O, C, R, S)
    bias : ndarray of shape (O,), or None
        Both are zero until `vit_numpy.init_weights` or `load_state_dict` fills them.

    Raises
    ------
    TypeError, ValueError
        If a size is no int or pair of ints, or is out of range. From forward: if an
        image with its padding is smaller than the kernel.

    Notes
    -----
    A row x̄ for each window, all its C·R·S elements, and W̄ the kernels as (O, C·R·S)
    make the convolution one product (as in Chellapilla et al. 2006), the layer linear::

        y  = x̄ W̄ᵀ + b
        dx̄ = dȳ W̄            each element of a window reaches every output channel
        dx = Σ_windows dx̄     and a pixel lies in many windows, unless they are disjoint
        dW = dȳᵀ x̄            a kernel is used by every window, so these are summed
        db = Σ_windows dȳ      and so is the offset

    Windows are disjoint where the stride is the kernel's size, as in the embedding of
    patches: then dx only puts every element back in its place.

    References
    ----------
    LeCun et al. 1989, "Backpropagation Applied to Handwritten Zip Code Recognition".
    Chellapilla, Puri, Simard 2006, "High Performance Convolutional Neural Networks for
    Document Processing", section 3.1.
    """

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        bias: bool = True,
    ) -> None:
        check_int("in_chans", in_chans, 1)
        check_int("out_chans", out_chans, 1)
        self.kernel_size = _pair("kernel_size", kernel_size, 1)
        self.stride = _pair("stride", stride, 1)
        self.padding = _pair("padding", padding, 0)
        shape = (out_chans, in_chans, *self.kernel_size)
        self.weight: Array = np.zeros(shape, np.float32)
        self.bias: Array | None = np.zeros(out_chans, np.float32) if bias else None

    def forward(self, x: Array) -> tuple[Array, Conv2dCache | None]:
        """(B, C, H, W) -> (B, O, H', W')."""
        out_h, out_w = self.output_size(*x.shape[2:])
        out_chans = len(self.weight)
        columns = self._columns(x, out_h, out_w)
        y: Array = columns @ self.weight.reshape(out_chans, -1).T
        if self.bias is not None:
            y += self.bias
        y = y.reshape(len(x), out_h, out_w, out_chans).transpose(0, 3, 1, 2)
        return y, saved(Conv2dCache(columns, x.shape))

    def backward(
        self, dy: Array, cache: Conv2dCache, input_grad: bool = True
    ) -> tuple[Array | None, Grads]:
        """(B, O, H', W') -> (B, C, H, W), and dW (O, C, R, S), db (O,).

        Without `input_grad`, None stands in the place of the first.
        """
        columns, shape = cache
        out_chans, *window = self.weight.shape
        dy_rows = dy.transpose(0, 2, 3, 1).reshape(-1, out_chans)
        dx = None
        if input_grad:
            dcolumns = dy_rows @ self.weight.reshape(out_chans, -1)
            dx = self._images(dcolumns.reshape(-1, *dy.shape[2:], *window), shape)
        dweight = (dy_rows.T @ columns).reshape(self.weight.shape)
        grads: Grads = {"weight": dweight}
        if self.bias is not None:
            grads["bias"] = column_sum(dy_rows)
        return dx, grads

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of the output for an image of this size.

        Raises
        ------
        ValueError
            If the image with its padding is smaller than the kernel.
        """
        rows = height + 2 * self.padding[0] - self.kernel_size[0]
        columns = width + 2 * self.padding[1] - self.kernel_size[1]
        if rows < 0 or columns < 0:
            raise ValueError(
                "image with its padding must be at least as large as the kernel, got "
                f"image {(height, width)}, padding={self.padding}, "
                f"kernel_size={self.kernel_size}"
            )
        return rows // self.stride[0] + 1, columns // self.stride[1] + 1

    @property
    def _disjoint(self) -> bool:
        return self.stride == self.kernel_size and self.padding == (0, 0)

    def _columns(self, x: Array, out_h: int, out_w: int) -> Array:
        """Windows as rows: (B, C, H, W) -> (B·H'·W', C·R·S)."""
        (r, s), (pad_h, pad_w) = self.kernel_size, self.padding
        if self._disjoint:
            cropped = x[:, :, : out_h * r, : out_w * s]
            windows = cropped.reshape(*x.shape[:2], out_h, r, out_w, s)
            windows = windows.transpose(0, 2, 4, 1, 3, 5)  # (B, H', W', C, R, S)
        else:
            padded = np.pad(x, ((0, 0), (0, 0), (pad_h, pad_h), (pad_w, pad_w)))
            windows = sliding_window_view(padded, (r, s), (2, 3))
            windows = windows[:, :, :: self.stride[0], :: self.stride[1]]
            windows = windows.transpose(0, 2, 3, 1, 4, 5)
        return windows.reshape(-1, x.shape[1] * r * s)

    def _images(self, windows: Array, shape: tuple[int, ...]) -> Array:
        """Sum windows (B, H', W', C, R, S) into images of the given shape."""
        batch, chans, height, width = shape
        _, out_h, out_w, _, r, s = windows.shape
        if self._disjoint:
            x = windows.transpose(0, 3, 1, 4, 2, 5)
            x = x.reshape(batch, chans, out_h * r, out_w * s)
            if x.shape == shape:
                return x
            # Pixels below and right of the last window reach nothing.
            rest = (0, height - out_h * r), (0, width - out_w * s)
            return np.pad(x, ((0, 0), (0, 0), *rest))
        (step_h, step_w), (pad_h, pad_w) = self.stride, self.padding
        padded = np.zeros(
            (batch, chans, height + 2 * pad_h, width + 2 * pad_w), windows.dtype
        )
        # Over the positions in the kernel: at each, the windows' pixels are distinct.
        for i in range(r):
            rows = slice(i, i + step_h * out_h, step_h)
            for j in range(s):
                columns = slice(j, j + step_w * out_w, step_w)
                at_ij = windows[..., i, j].transpose(0, 3, 1, 2)
                padded[:, :, rows, columns] += at_ij
        return padded[:, :, pad_h : pad_h + height, pad_w : pad_w + width]


def _pair(name: str, value: Any, least: int) -> tuple[int, int]:
    """Return an int twice, a pair as it is; raise unless all are at least `least`."""
    pair = tuple(value) if isinstance(value, list | tuple) else (value, value)
    if len(pair) != 2:
        raise ValueError(
            f"{name} must be one number or (height, width), got {name}={value!r}"
        )
    for side in pair:
        check_int(name, side, least)
    return pair
