"""`parity compare`: two networks, layer by layer."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parity.cli import AGREE, MISMATCH
from parity.program import check_target, positive

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from parity.diverge import Network, NetworkComparison

# Images that are run where nothing else is said, and fields or weights that are listed.
_IMAGES = 4
_LISTED = 8

_NETWORK = (
    "a checkpoint, numpy:FILE or torch:FILE, or module:attribute for any torch module "
    "or function from images to logits"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    parser.add_argument("a", metavar="A", help=_NETWORK)
    parser.add_argument("b", metavar="B", help="the same")
    add_image_arguments(parser)
    parser.add_argument(
        "--dtype",
        choices=("float64", "float32"),
        default="float64",
        help="float64 (the default) compares formulas, float32 accuracy too",
    )
    parser.add_argument(
        "--names",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="TOML or JSON map of names for module:attribute; twice if both are such",
    )
    parser.add_argument(
        "--scale",
        choices=("measured", "coarse"),
        help="how the error bound is come by; coarse is for large networks, and what "
        "they get by default",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument(
        "--all", action="store_true", help="list every tensor, not the worst of a layer"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")


def add_image_arguments(parser: argparse.ArgumentParser) -> None:
    """Define which images are run."""
    parser.add_argument(
        "--images",
        type=Path,
        metavar="FILE.npy|FOLDER",
        help="by default the digits that ship where they fit, else random numbers",
    )
    parser.add_argument(
        "--count",
        type=positive,
        default=_IMAGES,
        metavar="N",
        help=f"how many of them (default {_IMAGES})",
    )


def run(args: argparse.Namespace) -> int:
    """Compare, print, and return the exit status."""
    check_target("--json", args.json)
    from parity.diverge import compare

    a, b = open_networks([args.a, args.b], args.names)
    images, what = open_images(args.images, args.count, a, b)
    found = compare(a, b, images, dtype=args.dtype, seed=args.seed, scale=args.scale)
    if args.json is not None:
        from parity.files import write_json

        write_json(args.json, found.to_dict() | {"images_from": what})
    print(report(found, what, every=args.all))
    return AGREE if found.agree else MISMATCH


def open_networks(specs: list[str], names: list[Path]) -> list[Network]:
    """Open the sides, each `module:attribute` with its map of names."""
    from parity.diverge import open_network, read_names

    maps = [read_names(path) for path in names]
    networks = []
    for spec in specs:
        prefix, colon, _ = spec.partition(":")
        foreign = bool(colon) and prefix not in ("numpy", "torch")
        given = maps.pop(0) if foreign and maps else None
        networks.append(open_network(spec, given))
    if maps:
        raise ValueError(
            f"--names is for a module:attribute each, got {len(maps)} too many"
        )
    return networks


def open_images(
    path: Path | None, count: int, *networks: Network
) -> tuple[NDArray[np.float64], str]:
    """Return the images to run, and say what they are.

    Integers from a file, pictures and the digits that ship are brought to 0..1 and
    normalised as the first checkpoint that says so was trained.
    """
    import numpy as np

    from parity.data import load, normalise

    config = next((n.config for n in networks if n.config is not None), None)
    said = next((n.preprocessing for n in networks if n.preprocessing), None)
    shape = None
    if config is not None:
        shape = (config["in_chans"], *config["image_size"])
    if path is not None and path.suffix == ".npy":
        images = load_array("--images", path)[:count]
        if images.ndim != 4:
            raise ValueError(
                f"{path} must hold images (B, C, H, W), got {images.shape}"
            )
        what = f"{len(images)} images of {path}"
        if not np.issubdtype(images.dtype, np.integer):
            return images.astype(np.float64), what
    elif path is not None:
        if shape is None:
            raise ValueError(
                "--images FOLDER needs a checkpoint, which says their size"
            )
        images = _pictures(path, shape, count)
        what = f"{len(images)} pictures of {path}"
    elif shape in (None, (1, 28, 28)):
        part = load("mnist-subset", channels=1).test
        images = np.asarray(part.images[:count])
        said = said or {"mean": part.mean.tolist(), "std": part.std.tolist()}
        what = f"{count} of the digits that ship"
    else:
        rng = np.random.default_rng(0)
        return rng.standard_normal((count, *shape)), f"{count} images of random numbers"
    mean, std = (None, None) if said is None else (said["mean"], said["std"])
    if mean is None or std is None:
        return images.astype(np.float64) / 255, what
    return np.asarray(normalise(images, mean, std), np.float64), what


def load_array(option: str, path: Path) -> NDArray[Any]:
    """Read an .npy file of numbers."""
    import numpy as np

    if not path.is_file():
        raise FileNotFoundError(f"{option} {path} does not exist; give an .npy file")
    try:
        array: NDArray[Any] = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{option} {path} is no .npy file: {error}") from None
    if not np.issubdtype(array.dtype, np.number):
        raise ValueError(f"{option} {path} must hold numbers, got {array.dtype}")
    return array


def _pictures(
    folder: Path, shape: tuple[int, int, int], count: int
) -> NDArray[np.uint8]:
    from parity.data.folder import SUFFIXES, FolderImages, list_pictures

    if not folder.is_dir():
        raise FileNotFoundError(f"--images {folder} does not exist; give a folder")
    paths = list_pictures(folder)[:count]
    if not paths:
        raise ValueError(f"--images {folder} holds no pictures: {', '.join(SUFFIXES)}")
    images = FolderImages(paths, shape[1:], shape[0])
    return images[: len(paths)]


def report(found: NetworkComparison, what: str, *, every: bool = False) -> str:
    """Return what was compared, the table, and the conclusion."""
    lines = [f"A  {found.a}", f"B  {found.b}", f"   {what}, in {found.dtype}", ""]
    lines += _listed(
        "configuration",
        [f"{n}: {one} in A, {other} in B" for n, one, other in found.configuration],
    )
    lines += _listed(
        "weights",
        [
            f"{w.name}: {w.kind}"
            + ("" if w.largest is None else f", by up to {w.largest:.1e}")
            + (f" ({w.says})" if w.says else "")
            for w in found.weights
        ],
    )
    if found.uncompared:
        lines.append(
            f"weights: {found.uncompared} of either side have no name in the other's"
        )
    if found.rows:
        lines += ["", *_table(found, every=every), ""]
    lines.append(found.conclusion)
    return "\n".join(lines)


def _listed(what: str, differences: list[str]) -> list[str]:
    if not differences:
        return [f"{what}: the same"]
    more = len(differences) - _LISTED
    lines = [f"{what}: {len(differences)} not the same"]
    lines += [f"  {text}" for text in differences[:_LISTED]]
    return lines + ([f"  … and {more} more"] if more > 0 else [])


def _table(found: NetworkComparison, *, every: bool) -> list[str]:
    """Return the rows; of the parameters of a layer the worst stands for all."""
    rows = found.rows
    if not every:
        worst: dict[str, float] = {}
        for row in rows:
            key = _group(row)
            worst[key] = max(worst.get(key, 0.0), row.share)
        seen: set[str] = set()
        kept = []
        for row in rows:
            key = _group(row)
            if row.share >= worst[key] and key not in seen:
                seen.add(key)
                kept.append(row)
        rows = kept
    parted = any(row.part == "forward" and not row.agrees for row in rows)
    if parted and not every:
        # Gradients of what differs differ as well.
        rows = [row for row in rows if row.part == "forward"]
    width = max(len(row.tensor) for row in rows)
    bound = "bound" if found.scale == "measured" else "coarse bound"
    lines = [f"{'tensor':<{width}}  |difference|  share of {bound}  verdict"]
    lines.append("─" * len(lines[0]))
    size = len(f"share of {bound}")
    for row in rows:
        verdict = "agrees" if row.agrees else "DIFFERS"
        note = f", {row.says}" if row.says else ""
        lines.append(
            f"{row.tensor:<{width}}  {row.difference:12.1e}  "
            f"{_number(row.share):>{size}}  {verdict}{note}"
        )
    if parted and not every:
        lines.append("(gradients differ where the forward does; --all lists them)")
    return lines


def _group(row: Any) -> str:
    """Return what rows stand together: the parameters of half a block, say."""
    if row.part != "parameters":
        return f"{row.part} {row.name}"
    parts = row.name.split(".")
    return "parameters " + ".".join(parts[:3] if parts[0] == "blocks" else parts[:1])


def _number(share: float) -> str:
    return f"{share:.2f}" if share < 100 else f"{share:.1e}"
