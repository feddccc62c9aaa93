"""The known causes of mismatch: what each says, and what to change.

Names are stable, so that a cause can be searched for.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cause:
    """A known way in which two implementations come to differ.

    Attributes
    ----------
    name : str
        Stable, with hyphens: 'gelu-form'.
    says : str
        What is the matter.
    advice : str
        What to change.
    """

    name: str
    says: str
    advice: str


def _by_name(*rows: tuple[str, str, str]) -> dict[str, Cause]:
    return {name: Cause(name, says, advice) for name, says, advice in rows}


CAUSES: dict[str, Cause] = _by_name(
    # Activations.
    (
        "gelu-form",
        "another form of GELU (tanh, erf or sigmoid) than the reference's",
        "use the reference's form: they differ by up to 5e-4 near x = -2.7",
    ),
    (
        "activation-kind",
        "another activation than the reference's, or one with other constants",
        "compare the activation's name and constants with the reference's",
    ),
    (
        "activation-derivative",
        "a term of the activation's derivative is wrong or missing",
        "derive it again: the product rule leaves one term for each factor",
    ),
    # Normalisation.
    (
        "norm-eps",
        "another eps in the normalisation",
        "pass the same eps: 1e-6, 1e-5 and 1e-12 are all in use",
    ),
    (
        "norm-eps-placement",
        "eps is not added to the variance under the root",
        "compute (x - mean) / sqrt(variance + eps)",
    ),
    (
        "variance-unbiased",
        "the variance is divided by N - 1 where the reference divides by N",
        "use the biased variance (ddof=0, unbiased=False), or the other way round",
    ),
    (
        "norm-statistics",
        "the normalisation is computed otherwise: over other axes, without the mean, "
        "or without the root",
        "take mean and variance over the last axis; divide by the standard deviation",
    ),
    (
        "norm-affine",
        "scale or shift of the normalisation is left out or applied otherwise",
        "compute x_hat * weight + bias, and dx from dy * weight",
    ),
    (
        "norm-backward",
        "the backward of the normalisation treats its statistics as constants, or "
        "weighs them wrongly",
        "dx = rstd (d - mean(d) - x_hat mean(d x_hat)) with d = dy * weight",
    ),
    (
        "norm-skipped",
        "a normalisation is skipped",
        "apply it in forward, and its backward in backward",
    ),
    # Linear maps and layouts.
    (
        "weight-transposed",
        "a weight matrix is used transposed",
        "with weight (out, in): y = x Wᵀ, dx = dy W, dW = dyᵀ x",
    ),
    (
        "bias-missing",
        "a bias is left out",
        "add the bias",
    ),
    (
        "conv-layout",
        "a convolution kernel is read in another layout, transposed or flipped",
        "keep kernels as (out, in, height, width), and correlate: do not flip",
    ),
    (
        "patch-order",
        "the features of a patch are in another order",
        "flatten patches as (channel, row, column)",
    ),
    (
        "channel-order",
        "the channels are in reverse order",
        "convert BGR to RGB, or the other way round, once",
    ),
    (
        "qkv-packing",
        "the rows of the fused projection are taken in another order than "
        "(q, k, v) x heads x features",
        "view its output as (..., 3, heads, head_dim), or reorder the weight's rows",
    ),
    (
        "qkv-swapped",
        "two of queries, keys and values are exchanged",
        "take them in the order q, k, v",
    ),
    (
        "head-merge",
        "heads are split or merged without moving the axes, or in another order",
        "transpose (B, h, T, Dh) to (B, T, h, Dh) before the reshape",
    ),
    (
        "input-transposed",
        "an input is used with its axes exchanged",
        "compare the order of axes with the reference's",
    ),
    # Attention.
    (
        "attention-scale",
        "the attention logits are not multiplied by 1 / sqrt(head_dim)",
        "scale by the width of a head, once, in forward and in backward",
    ),
    (
        "softmax-axis",
        "softmax runs over the wrong axis",
        "normalise over the keys, the last axis of q kᵀ",
    ),
    (
        "softmax-max-axis",
        "the maximum that softmax subtracts is taken over the wrong axis",
        "subtract the maximum of the axis that is summed, with keepdims=True",
    ),
    (
        "softmax-not-normalised",
        "softmax does not divide by its sum",
        "divide the exponentials by their sum over the axis",
    ),
    (
        "softmax-backward",
        "the backward of softmax leaves terms out, as with the diagonal alone",
        "dx = y (dy - sum(dy y)) over the axis of the softmax",
    ),
    (
        "gradient-missing",
        "the gradient does not reach one operand of a product",
        "let backward return a gradient for both operands",
    ),
    # Structure.
    (
        "residual-dropped",
        "a residual connection is left out",
        "y = x + f(x), and dx = dy + (gradient through f)",
    ),
    (
        "branch-dropped",
        "the branch beside a residual connection is left out",
        "y = x + f(x), and dx = dy + (gradient through f)",
    ),
    (
        "term-missing",
        "a broadcast term, such as the positions, is not added",
        "add it",
    ),
    (
        "broadcast-gradient",
        "the gradient of what serves the whole batch (weights, positions, class token) "
        "is not summed over it",
        "sum the gradient over every axis along which forward broadcasts",
    ),
    (
        "not-trained",
        "a parameter gets no gradient",
        "return its gradient; the class token and positions are forgotten most often",
    ),
    (
        "layer-scale",
        "a learned factor is left out, in forward or in backward",
        "y = x * gamma, dx = dy * gamma, dgamma = sum(dy * x)",
    ),
    (
        "pooling",
        "the tokens are pooled otherwise: other tokens, or a sum for a mean",
        "compare which tokens are pooled, and by what their sum is divided",
    ),
    (
        "factor-missing",
        "a constant factor is left out or applied otherwise",
        "compare the constants with the reference's",
    ),
    # The upstream gradient.
    (
        "upstream-ignored",
        "a backward ignores its upstream gradient, as if it were ones",
        "multiply the local derivative by dy",
    ),
    (
        "backward-skipped",
        "the backward of an operator is skipped: it passes dy on unchanged",
        "multiply dy by the local derivative",
    ),
    (
        "batch-division",
        "a gradient is divided by the batch size, or multiplied by it",
        "divide by the batch once, in the loss; layers sum over the batch",
    ),
    # Dropout.
    (
        "dropout-scale",
        "what dropout keeps is scaled otherwise than by 1 / (1 - p)",
        "scale by 1 / (1 - p) in training, and not at all in evaluation",
    ),
    (
        "dropout-backward",
        "the backward of dropout does not use the forward's mask",
        "keep the mask in the cache, and multiply dy by the same mask and scale",
    ),
    (
        "dropout-mask",
        "the mask of dropout is inverted or not used",
        "multiply by keep, which is True where an element stays",
    ),
    (
        "dropout-ignored",
        "dropout is not applied where the reference applies it",
        "hand the masks, or the training mode, down to every nested layer",
    ),
    (
        "dropout-in-evaluation",
        "dropout is applied where the reference does not",
        "switch it off in evaluation, in every nested layer",
    ),
    (
        "dropout-mask-shape",
        "the mask of dropout is drawn in another shape: for the batch, each sample or "
        "each element",
        "draw one a sample for drop path, (B, 1, ..., 1), and one an element otherwise",
    ),
    (
        "drop-path-rates",
        "the rate of drop path depends otherwise on the depth",
        "let it rise evenly from 0 at the first block to the given rate at the last",
    ),
    # Positions.
    (
        "position-shift",
        "what is added to the tokens of every image, as positions are, is shifted "
        "along them",
        "let row i of the table belong to token i, the prefix counted or not",
    ),
    (
        "position-resize",
        "positions are resized in another mode",
        "use the reference's mode: bicubic a = -0.75, antialias, align_corners",
    ),
    # Losses.
    (
        "loss-averaged-twice",
        "the loss is averaged twice, or its gradient is",
        "divide by the batch size once",
    ),
    (
        "loss-not-averaged",
        "the loss or its gradient is summed where the reference takes a mean",
        "divide by the batch size",
    ),
    (
        "loss-log-eps",
        "a small number is added inside the logarithm of the loss",
        "compute log_softmax from the logits: x - max - log(sum(exp(x - max)))",
    ),
    (
        "label-smoothing",
        "label smoothing is spread over other classes, or left out",
        "targets are (1 - s) onehot + s / K, over all K classes",
    ),
    (
        "softmax-twice",
        "softmax is applied twice",
        "give logits, not probabilities, to the cross entropy",
    ),
    # Optimizers and schedules.
    (
        "adam-eps",
        "eps of Adam stands elsewhere: inside the root, or before bias correction",
        "divide by sqrt(v / (1 - beta2^t)) + eps",
    ),
    (
        "adam-bias-correction",
        "the bias correction of Adam's moments is missing",
        "divide the moments by 1 - beta1^t and 1 - beta2^t",
    ),
    (
        "adam-step-count",
        "the step counter of Adam is stuck or off by one",
        "count steps from 1, once per update",
    ),
    (
        "adam-moments",
        "the moments of Adam are updated otherwise: betas swapped, no square, no root",
        "m = beta1 m + (1 - beta1) g, v = beta2 v + (1 - beta2) g², p -= lr m / √v",
    ),
    (
        "weight-decay-coupling",
        "weight decay is added to the gradient where the reference shrinks the "
        "parameter, or the other way round",
        "Adam couples (L2), AdamW does not",
    ),
    (
        "weight-decay-lr",
        "weight decay is not multiplied by the learning rate",
        "p -= lr * weight_decay * p",
    ),
    (
        "weight-decay-groups",
        "weight decay is applied to parameters that the reference leaves alone",
        "leave biases, norms, tokens and positions out of it",
    ),
    (
        "weight-decay-ignored",
        "weight decay is not applied",
        "apply it where the reference does",
    ),
    (
        "weight-decay-order",
        "weight decay comes after the step where the reference applies it before",
        "shrink the parameter first, then update it",
    ),
    (
        "momentum",
        "momentum is accumulated otherwise: ignored, damped, or Nesterov's exchanged",
        "b = mu b + g; p -= lr b, or lr (g + mu b) for Nesterov's",
    ),
    (
        "clipping",
        "gradients are clipped otherwise: one by one, by value, or not at all",
        "scale all by the same min(1, max_norm / norm), norm that of all together",
    ),
    (
        "schedule-off-by-one",
        "the learning rate is that of another step",
        "use the factor of step i, counted from 0, for the update i + 1",
    ),
    (
        "schedule-zero-start",
        "warm-up starts from zero, so that the first update does nothing",
        "use (step + 1) / warmup",
    ),
    (
        "configuration",
        "an option has another value, or is ignored",
        "pass the option on to where it is used",
    ),
    # What no numbers of the reference explain.
    (
        "dtype-promotion",
        "a result has another dtype than the inputs",
        "make constants and masks of the inputs' dtype: a float64 array promotes",
    ),
    (
        "aliasing",
        "an array that belongs to the caller is written to",
        "work on a copy, or write with out= only into arrays made here",
    ),
    (
        "stale-cache",
        "a result depends on an earlier call",
        "keep what backward needs in the returned cache, not on the object",
    ),
    (
        "cache-kept",
        "forward keeps a cache, or gives another result, where it must keep nothing",
        "return saved(cache), which is None under no_grad",
    ),
    (
        "random-backward",
        "the same call gives another result each time",
        "draw random numbers in forward only, from a seeded source, and keep them",
    ),
    (
        "strides-ignored",
        "arrays that are not contiguous are read as if they were",
        "index through strides, or copy with ascontiguousarray first",
    ),
    (
        "precision",
        "the formula is right, but less accurate than the reference's formulation",
        "subtract the maximum before exp; centre before squaring; keep sums wide",
    ),
    (
        "overflow",
        "the formula is right, but overflows where the reference does not",
        "subtract the row's maximum before exp; avoid squares of large numbers",
    ),
    # What numbers alone show.
    ("sign", "the sign is wrong", "negate it"),
    ("transposed", "the result is transposed", "exchange the axes"),
    (
        "shifted",
        "the result is the reference's, shifted along an axis",
        "look for an index that is off by one",
    ),
    (
        "permuted",
        "the result is the reference's in another order",
        "compare the order of axes and the packing with the reference's",
    ),
)
"""All causes by name."""
