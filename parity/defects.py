"""Defects written by hand: what people really get wrong when they port a network.

Each puts one known cause of mismatch into the source of `vit_numpy`, consistently in
forward and backward where a porter would have been consistent. They measure the checks
beside the mutants, which are systematic but blind to what is likely, and they test
the naming of causes.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Defect:
    """A defect of one file.

    Attributes
    ----------
    name : str
    file : str
        Path below `vit_numpy`, with slashes.
    cause : str
        What it stands for; several defects may have the same.
    changes : tuple of (str, str)
        Text that stands exactly once in the file, and what takes its place.
    """

    name: str
    file: str
    cause: str
    changes: tuple[tuple[str, str], ...]

    def applied(self, source: str) -> str:
        """Return the file with the defect.

        Raises
        ------
        ValueError
            If the file has changed, so that a text does not stand exactly once in it.
        """
        for old, new in self.changes:
            if (count := source.count(old)) != 1:
                raise ValueError(
                    f"defect {self.name} must match once in {self.file}, matches "
                    f"{count} times: {old!r}; rewrite it for the new source"
                )
            source = source.replace(old, new)
        return source

    def lines(self, source: str) -> set[int]:
        """Return the lines that are changed, from 1."""
        lines: set[int] = set()
        for old, _ in self.changes:
            first = source[: source.index(old)].count("\n") + 1
            lines |= set(range(first, first + old.rstrip().count("\n") + 1))
        return lines


def _defect(name: str, file: str, cause: str, *changes: tuple[str, str]) -> Defect:
    return Defect(name, file, cause, changes)


_ACTIVATION = "layers/activation.py"
_ATTENTION = "layers/attention.py"
_BLOCK = "layers/block.py"
_DROPOUT = "layers/dropout.py"
_NORM = "layers/layer_norm.py"

_EXP_SCORES = "        e, total = exp_scores(q, k)\n        e_kept"
_HEADS = (
    "        x = x.reshape(batch, tokens, -1, self.num_heads, head_dim)\n"
    "        return x.transpose(2, 0, 3, 1, 4)\n"
)
_SUM = "        dlogits -= row_dot(e, dlogits) / total\n"
_SMOOTHED = "            picked = (1 - s) * picked + s / log_p.shape[1] * log_p.sum()\n"

DEFECTS: tuple[Defect, ...] = (
    # Activations.
    _defect(
        "gelu by tanh",
        _ACTIVATION,
        "GELU tanh against erf",
        ('gelu if self.approximate == "none" else gelu_tanh', "gelu_tanh"),
    ),
    _defect(
        "gelu by erf",
        _ACTIVATION,
        "GELU tanh against erf",
        ('gelu if self.approximate == "none" else gelu_tanh', "gelu"),
    ),
    _defect(
        "gelu ignores its upstream gradient",
        _ACTIVATION,
        "upstream gradient ignored",
        ("return dy * derivative, {}", "return derivative, {}"),
    ),
    _defect(
        "relu ignores its upstream gradient",
        _ACTIVATION,
        "upstream gradient ignored",
        ("return dy * (y > 0), {}", "return (y > 0).astype(dy.dtype), {}"),
    ),
    # LayerNorm.
    _defect(
        "eps of torch's LayerNorm",
        _NORM,
        "LayerNorm eps",
        ("self.eps = eps", "self.eps = 1e-5"),
    ),
    _defect(
        "eps of BERT",
        _NORM,
        "LayerNorm eps",
        ("self.eps = eps", "self.eps = 1e-12"),
    ),
    _defect(
        "eps outside the root",
        _NORM,
        "eps outside the root",
        (
            "1 / np.sqrt(variance + x.dtype.type(self.eps))",
            "1 / (np.sqrt(variance) + x.dtype.type(self.eps))",
        ),
    ),
    _defect(
        "variance with Bessel's correction",
        _NORM,
        "variance not biased",
        ("x.dtype.type(x.shape[-1])", "x.dtype.type(x.shape[-1] - 1)"),
    ),
    _defect(
        "layer norm writes into its upstream gradient",
        _NORM,
        "input written to",
        (
            "        dx = dy * self.weight\n"
            "        dx -= (dy @ mean_weight)[..., None]\n",
            "        mean = (dy @ mean_weight)[..., None]\n"
            "        dx = dy\n"
            "        dx *= self.weight\n"
            "        dx -= mean\n",
        ),
    ),
    _defect(
        "layer norm writes into its input",
        _NORM,
        "input written to",
        (
            "        x_hat = x - row_mean(x)\n",
            "        x_hat = x\n        x_hat -= row_mean(x)\n",
        ),
    ),
    # Linear layers, convolutions, patches.
    _defect(
        "weight read as (in, out)",
        "layers/linear.py",
        "weight transposed",
        (
            "x.reshape(-1, x.shape[-1]) @ self.weight.T",
            "x.reshape(-1, x.shape[-1]) @ self.weight.reshape(x.shape[-1], -1)",
        ),
        (
            "dx = (dy_rows @ self.weight).reshape(x.shape)",
            "dx = (dy_rows @ self.weight.reshape(x.shape[-1], -1).T).reshape(x.shape)",
        ),
        (
            "dy_rows.T @ x.reshape(-1, x.shape[-1])}",
            "(x.reshape(-1, x.shape[-1]).T @ dy_rows).reshape(self.weight.shape)}",
        ),
    ),
    _defect(
        "linear keeps its first input",
        "layers/linear.py",
        "stale cache",
        (
            "return y.reshape(*x.shape[:-1], -1), saved(LinearCache(x))",
            "self.last = (x,)\n"
            "        return y.reshape(*x.shape[:-1], -1), saved(LinearCache(x))",
        ),
        ("        (x,) = cache\n", "        (x,) = self.last\n"),
    ),
    _defect(
        "weight gradient not summed over tokens",
        "layers/linear.py",
        "gradient not summed over the batch",
        ('grads["bias"] = column_sum(dy)', 'grads["bias"] = column_sum(dy[-1:])'),
    ),
    _defect(
        "kernels read as HWIO",
        "layers/conv.py",
        "kernel layout HWIO",
        (
            "columns @ self.weight.reshape(out_chans, -1).T",
            "columns @ self.weight.reshape(-1, out_chans)",
        ),
        (
            "dy_rows @ self.weight.reshape(out_chans, -1)",
            "dy_rows @ self.weight.reshape(-1, out_chans).T",
        ),
        (
            "(dy_rows.T @ columns).reshape(self.weight.shape)",
            "(columns.T @ dy_rows).reshape(self.weight.shape)",
        ),
    ),
    _defect(
        "patch features in the order (p1 p2 c)",
        "layers/patch_embed.py",
        "patch feature order",
        (
            "x = x.transpose(0, 2, 4, 1, 3, 5)",
            "x = x.transpose(0, 2, 4, 3, 5, 1)",
        ),
        (
            "dx.reshape(batch, height // side, width // side, chans, side, side)",
            "dx.reshape(batch, height // side, width // side, side, side, chans)",
        ),
        (
            "dx = dx.transpose(0, 3, 1, 4, 2, 5)",
            "dx = dx.transpose(0, 5, 1, 3, 2, 4)",
        ),
    ),
    # Attention.
    _defect(
        "qkv packed (h, 3, d)",
        _ATTENTION,
        "qkv packing",
        (
            _HEADS,
            "        x = x.reshape(batch, tokens, self.num_heads, -1, head_dim)\n"
            "        return x.transpose(3, 0, 2, 1, 4)\n",
        ),
    ),
    _defect(
        "qkv interleaved",
        _ATTENTION,
        "qkv packing",
        (
            _HEADS,
            "        x = x.reshape(batch, tokens, self.num_heads, head_dim, -1)\n"
            "        return x.transpose(4, 0, 2, 1, 3)\n",
        ),
    ),
    _defect(
        "k and v swapped",
        _ATTENTION,
        "k and v swapped",
        ("q, k, v = self._heads(qkv)", "q, v, k = self._heads(qkv)"),
        ("dq, dk, dv = self._heads(dqkv)", "dq, dv, dk = self._heads(dqkv)"),
    ),
    _defect(
        "attention not scaled",
        _ATTENTION,
        "attention scale missing",
        ("(dim // num_heads) ** -0.5", "1.0"),
    ),
    _defect(
        "attention scaled by the whole width",
        _ATTENTION,
        "attention scale by D",
        ("(dim // num_heads) ** -0.5", "dim**-0.5"),
    ),
    _defect(
        "attention's pool not scaled",
        "layers/heads.py",
        "attention scale missing",
        ("(dim // num_heads) ** -0.5", "1.0"),
    ),
    _defect(
        "softmax over the queries",
        _ATTENTION,
        "softmax over the wrong axis",
        (
            _EXP_SCORES,
            "        e, total = exp_scores(q, k)\n"
            "        e = e / e.sum(axis=-2, keepdims=True)\n"
            "        total = np.ones_like(total)\n"
            "        e_kept",
        ),
        (
            _SUM,
            "        dlogits -= (e * dlogits).sum(axis=-2, keepdims=True)\n",
        ),
    ),
    _defect(
        "largest score of the column subtracted",
        "functional.py",
        "maximum over the wrong axis",
        ("e -= e.max(axis=-1, keepdims=True)", "e -= e.max(axis=-2, keepdims=True)"),
    ),
    _defect(
        "softmax backward without its sum",
        _ATTENTION,
        "softmax backward only diagonal",
        (_SUM, "        dlogits *= 1 - e / total\n"),
    ),
    _defect(
        "softmax backward divided by the batch",
        _ATTENTION,
        "softmax backward divided by the batch size",
        ("        dlogits *= e\n", "        dlogits *= e / len(e)\n"),
    ),
    # Residual branches.
    _defect(
        "gradient past the MLP dropped",
        _BLOCK,
        "residual gradient dropped",
        ("dx = dy + dh", "dx = dh"),
    ),
    _defect(
        "gradient past the attention dropped",
        _BLOCK,
        "residual gradient dropped",
        ("dx = dx + dh", "dx = dh"),
    ),
    _defect(
        "residual dropped",
        _BLOCK,
        "residual dropped",
        (
            "h, c_drop_path1 = self.drop_path1.forward(h, masks)\n        x = x + h",
            "h, c_drop_path1 = self.drop_path1.forward(h, masks)\n        x = h",
        ),
    ),
    _defect(
        "norm skipped in forward",
        _BLOCK,
        "norm skipped in forward but not in backward",
        (
            "h, c_norm2 = self.norm2.forward(x)",
            "h, c_norm2 = x, self.norm2.forward(x)[1]",
        ),
    ),
    # Tokens and positions.
    _defect(
        "position gradient of the first image",
        "model.py",
        "gradient not summed over the batch",
        (
            'grads["pos_embed"] = total if',
            'grads["pos_embed"] = dx[:1].copy() if',
        ),
    ),
    _defect(
        "position gradient averaged",
        "model.py",
        "gradient averaged over the batch",
        (
            'grads["pos_embed"] = total if',
            'grads["pos_embed"] = total / len(dx) if',
        ),
    ),
    _defect(
        "class token not trained",
        "model.py",
        "class token not trained",
        (
            "grads[name] = total[:, start : start + token.shape[1]].copy()",
            "grads[name] = np.zeros_like(token)",
        ),
    ),
    _defect(
        "positions added after the prefix",
        "model.py",
        "positions shifted",
        (
            "            x += self.pos_embed\n",
            "            x += np.roll(self.pos_embed, 1, axis=1)\n",
        ),
    ),
    # Dropout and drop path.
    _defect(
        "dropout drawn again in backward",
        _DROPOUT,
        "dropout drawn again in backward",
        (
            "return dy if keep is None else self._scaled(dy, keep), {}",
            "if keep is None:\n"
            "            return dy, {}\n"
            "        rng = np.random.default_rng(len(dy))\n"
            "        return self._scaled(dy, rng.random(keep.shape) >= self.p), {}",
        ),
    ),
    _defect(
        "dropout left on in evaluation",
        _DROPOUT,
        "dropout on in evaluation",
        ("if masks is None or self.p == 0:", "if self.p == 0:"),
        (
            "keep = masks.keep(self.name, self.mask_shape(x.shape), self.p)",
            "shape = self.mask_shape(x.shape)\n"
            "        if masks is None:\n"
            "            keep = np.random.default_rng(0).random(shape) >= self.p\n"
            "        else:\n"
            "            keep = masks.keep(self.name, shape, self.p)",
        ),
    ),
    _defect(
        "dropout off in training",
        _DROPOUT,
        "dropout off in training",
        ("if masks is None or self.p == 0:", "if True:"),
    ),
    _defect(
        "dropout scaled by p",
        _DROPOUT,
        "dropout scale",
        ("y *= 1 / (1 - self.p)", "y *= self.p"),
    ),
    _defect(
        "dropout not scaled",
        _DROPOUT,
        "dropout scale",
        ("        y *= 1 / (1 - self.p)\n", ""),
    ),
    _defect(
        "dropout's mask promotes",
        _DROPOUT,
        "dtype promotion",
        ("y: Array = x * keep", "y: Array = x * keep.astype(np.float64)"),
    ),
    _defect(
        "drop path drawn once a batch",
        "layers/drop_path.py",
        "drop path per batch",
        (
            "return (shape[0],) + (1,) * (len(shape) - 1)",
            "return (1,) * len(shape)",
        ),
    ),
    _defect(
        "drop path drawn for each element",
        "layers/drop_path.py",
        "drop path per element",
        ("return (shape[0],) + (1,) * (len(shape) - 1)", "return shape"),
    ),
    _defect(
        "drop path's rate the same in all blocks",
        "config.py",
        "drop path rate by depth",
        ("self.drop_path * i / last for", "self.drop_path for"),
    ),
    # Losses.
    _defect(
        "loss averaged twice",
        "loss.py",
        "loss averaged twice",
        ("return -picked / batch_size,", "return -picked / batch_size**2,"),
        ("        dlogits /= batch_size\n", "        dlogits /= batch_size**2\n"),
    ),
    _defect(
        "loss's gradient not averaged",
        "loss.py",
        "gradient not divided by the batch size",
        ("        dlogits /= batch_size\n", ""),
    ),
    _defect(
        "logarithm of p + 1e-10",
        "loss.py",
        "log(p + 1e-10)",
        (
            "        if targets.ndim == 1:\n            picked = log_p[",
            "        log_p = np.log(np.exp(log_p) + log_p.dtype.type(1e-10))\n"
            "        if targets.ndim == 1:\n            picked = log_p[",
        ),
    ),
    _defect(
        "softmax applied twice",
        "loss.py",
        "softmax applied twice",
        (
            "        log_p: Array = logits - logits.max(axis=1, keepdims=True)\n",
            "        logits = np.exp(logits - logits.max(axis=1, keepdims=True))\n"
            "        logits /= logits.sum(axis=1, keepdims=True)\n"
            "        log_p: Array = logits - logits.max(axis=1, keepdims=True)\n",
        ),
    ),
    _defect(
        "labels smoothed over the other classes",
        "loss.py",
        "label smoothing over K - 1",
        (
            _SMOOTHED,
            "            others = s / (log_p.shape[1] - 1 or 1)\n"
            "            picked = (1 - s - others) * picked + others * log_p.sum()\n",
        ),
        (
            "targets] -= 1 - s\n",
            "targets] -= 1 - s - s / (log_p.shape[1] - 1 or 1)\n",
        ),
        (
            "            dlogits -= s / log_p.shape[1]\n",
            "            dlogits -= s / (log_p.shape[1] - 1 or 1)\n",
        ),
    ),
    _defect(
        "squared error summed over classes",
        "loss.py",
        "squared error averaged over the batch only",
        ("total = batch_size * outputs.shape[1]", "total = batch_size"),
    ),
    # Optimizers.
    _defect(
        "Adam's eps inside the root",
        "optim.py",
        "Adam eps inside the root",
        (
            "        np.sqrt(v, out=a)\n        a += self.eps * root\n",
            "        np.divide(v, root * root, out=a)\n"
            "        a += self.eps\n"
            "        np.sqrt(a, out=a)\n",
        ),
        ("a *= lr * root / (1 -", "a *= lr / (1 -"),
    ),
    _defect(
        "Adam's eps before the correction",
        "optim.py",
        "Adam eps before bias correction",
        ("a += self.eps * root", "a += self.eps"),
    ),
    _defect(
        "Adam without bias correction",
        "optim.py",
        "Adam bias correction missing",
        ("root = math.sqrt(1 - beta2**self.steps)", "root = 1.0"),
        ("a *= lr * root / (1 - beta1**self.steps)", "a *= lr"),
    ),
    _defect(
        "Adam counts no steps",
        "optim.py",
        "Adam step counter stuck",
        ("self.steps += 1", "self.steps = 1"),
    ),
    _defect(
        "root over both moments",
        "optim.py",
        "Adam root over both moments",
        (
            "        np.divide(m, a, out=a)\n",
            "        np.divide(np.sign(m) * np.sqrt(np.abs(m)), a, out=a)\n",
        ),
    ),
    _defect(
        "AdamW's decay coupled",
        "optim.py",
        "weight decay coupled",
        ("    decoupled = True", "    decoupled = False"),
    ),
    _defect(
        "Adam's decay decoupled",
        "optim.py",
        "weight decay decoupled",
        ("    decoupled = False", "    decoupled = True"),
    ),
    _defect(
        "decay not times the learning rate",
        "optim.py",
        "weight decay not times lr",
        ("p *= 1 - lr * block.weight_decay", "p *= 1 - block.weight_decay"),
    ),
    _defect(
        "decay of every parameter",
        "optim.py",
        "weight decay on biases and norms",
        (
            'return param.ndim >= 2 and name.rpartition(".")[2] == "weight"',
            "return True",
        ),
    ),
    _defect(
        "gradients clipped in secret",
        "optim.py",
        "hidden gradient clipping",
        (
            "        self.steps += 1\n",
            "        self.steps += 1\n"
            "        length = math.sqrt(sum(float(np.vdot(g, g)) "
            "for g in grads.values()))\n"
            "        grads = {n: g * g.dtype.type(min(1.0, 1 / (length + 1e-6)))\n"
            "                 for n, g in grads.items()}\n",
        ),
    ),
    _defect(
        "momentum damped",
        "optim.py",
        "momentum damped",
        ("            b += a\n", "            b += (1 - self.momentum) * a\n"),
    ),
    _defect(
        "clipped to each gradient's own norm",
        "optim.py",
        "gradients clipped one by one",
        (
            "            grad *= factor\n",
            "            grad *= min(1, max_norm / (np.sqrt(np.vdot(grad, grad)) "
            "+ 1e-6))\n",
        ),
    ),
    # Schedules.
    _defect(
        "learning rate zero at first",
        "schedule.py",
        "learning rate zero at step 0",
        ("(step + 1) / self.warmup", "step / self.warmup"),
    ),
    _defect(
        "schedule one step ahead",
        "schedule.py",
        "learning rate off by one step",
        (
            '        check_int("step", step, 0)\n',
            '        check_int("step", step, 0)\n        step += 1\n',
        ),
    ),
    # Memory layout.
    _defect(
        "rows taken in the order of memory",
        "functional.py",
        "strides ignored",
        (
            "    rows = x.reshape(-1, x.shape[-1])\n    return _constant",
            '    rows = x.ravel("K").reshape(-1, x.shape[-1])\n    return _constant',
        ),
    ),
    _defect(
        "a table in float64",
        "functional.py",
        "dtype promotion",
        ("_constant(len(rows), 1, x.dtype) @ rows", "np.ones(len(rows)) @ rows"),
    ),
)
