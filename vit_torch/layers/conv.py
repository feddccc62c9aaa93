"""Convolution of images: every window, as a row, times the same matrix."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from vit_torch.config import check_int


class Conv2d(nn.Conv2d):
    """Correlate images with learned kernels.

    The twin of `vit_numpy.layers.conv`, which derives the gradients.

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
    weight : Parameter of shape (O, C, R, S)
    bias : Parameter of shape (O,), or None

    Raises
    ------
    TypeError, ValueError
        If a size is no int or pair of ints, or is out of range. From forward: if an
        image with its padding is smaller than the kernel.

    References
    ----------
    LeCun et al. 1989, "Backpropagation Applied to Handwritten Zip Code Recognition".
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
        super().__init__(
            in_chans,
            out_chans,
            _pair("kernel_size", kernel_size, 1),
            _pair("stride", stride, 1),
            _pair("padding", padding, 0),
            bias=bias,
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, O, H', W')."""
        self.output_size(*x.shape[2:])
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding)

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
