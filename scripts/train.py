#!/usr/bin/env python3
"""Train a network by a recipe, in NumPy or in PyTorch.

python scripts/train.py network1 --backend numpy --data mnist-subset --epochs 3
python scripts/train.py network1 --backend numpy --resume
python scripts/train.py folder-224 --backend torch --data folder:pictures \
    --from model.safetensors --linear-probe
"""

from parity.program import (
    Parser,
    answer_interrupts,
    main_of,
    minutes,
    positive,
    summary_of,
)

answer_interrupts()

import argparse
import sys
import tomllib
from pathlib import Path
from typing import Any

from parity import recipes
from parity.plots import read_metrics, run_curves, save
from parity.progress import progress_bar
from parity.training import (
    BACKENDS,
    Backend,
    Epoch,
    RunFolder,
    Step,
    StopSignals,
    TrainingStopped,
    build_model,
    build_trainer,
    check_processes,
    exit_status,
    fitted,
    open_data,
    open_stream,
    refitted,
    split_data,
    train,
    warmup_advice,
)
from vit_numpy.finetune import MODES


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=summary_of(__doc__))
    parser.add_argument(
        "recipe", help=f"a .toml file, or one of {', '.join(recipes.names())}"
    )
    parser.add_argument("--backend", choices=BACKENDS, required=True)
    parser.add_argument(
        "--data", metavar="NAME", help="another data set than the recipe's"
    )
    parser.add_argument("--epochs", type=int, metavar="N")
    parser.add_argument("--batch-size", type=int, metavar="N")
    parser.add_argument("--lr", type=float, metavar="RATE")
    parser.add_argument("--seed", type=int, metavar="N")
    parser.add_argument("--dtype", choices=recipes.DTYPES)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any other key of the recipe: model.depth=2, schedule.warmup_steps=50",
    )
    parser.add_argument("--threads", type=positive, metavar="N")
    parser.add_argument(
        "--processes",
        type=positive,
        metavar="N",
        help="numpy only: processes that share each step, to the same bits "
        "(default: as many as pay; 1: threads alone)",
    )
    parser.add_argument(
        "--recompute",
        action="store_true",
        help="compute blocks again in backward: less memory, the same bits",
    )
    tune = parser.add_argument_group("starting from a trained network")
    tune.add_argument(
        "--from", dest="source", metavar="CKPT", help="its file; it gets a new head"
    )
    tune.add_argument(
        "--freeze", type=positive, metavar="N", help="leave the first N blocks alone"
    )
    tune.add_argument(
        "--linear-probe", action="store_true", help="train the new head alone"
    )
    tune.add_argument(
        "--image-size", type=positive, metavar="N", help="of a folder's pictures"
    )
    tune.add_argument(
        "--resize", choices=MODES, help="how its positions get to another size"
    )
    only_torch = parser.add_argument_group("torch only")
    only_torch.add_argument("--device", help="where to compute: cuda, cuda:1, mps")
    only_torch.add_argument("--amp", action="store_true", help="bfloat16 autocast")
    only_torch.add_argument("--compile", action="store_true", help="torch.compile")
    saving = parser.add_argument_group("saving within an epoch")
    saving.add_argument("--save-steps", type=positive, metavar="N")
    saving.add_argument(
        "--save-minutes", type=minutes, default=10.0, metavar="N", help="default 10"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="default runs/RECIPE-BACKEND"
    )
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument(
        "--resume", action="store_true", help="continue the run that --out holds"
    )
    existing.add_argument(
        "--overwrite", action="store_true", help="replace the run that --out holds"
    )
    return parser.parse_args(argv)


def changes(args: argparse.Namespace, recipe: recipes.Recipe) -> dict[str, Any]:
    """Return the recipe's keys that the command line sets."""
    tunes = bool(args.source or recipe.finetune)
    flags = {
        "data": args.data,
        "epochs": args.epochs,
        "batch_size": args.batch_size,
        "optimizer.lr": args.lr,
        "seed": args.seed,
        "dtype": args.dtype,
        f"{'finetune' if tunes else 'model'}.image_size": args.image_size,
        "finetune.source": args.source,
        "finetune.freeze": args.freeze,
        "finetune.linear_probe": args.linear_probe or None,
        "finetune.resize": args.resize,
    }
    chosen = {key: value for key, value in flags.items() if value is not None}
    for item in args.set:
        key, equals, text = item.partition("=")
        if not equals:
            raise ValueError(f"--set needs KEY=VALUE, got {item!r}")
        key = key.strip()
        if tunes and key.startswith("model.") and "drop" not in key:
            raise ValueError(
                "the network is that of the file to start from, "
                f"got --set {item}; leave it out"
            )
        try:
            chosen[key] = tomllib.loads(f"value = {text}")["value"]
        except (RecursionError, tomllib.TOMLDecodeError):
            # Quotes that a shell has taken away are not asked for again.
            chosen[key] = text
    return chosen


def run(args: argparse.Namespace) -> int:
    options = {
        name: value
        for name in ("device", "amp", "compile", "recompute")
        if (value := getattr(args, name))
    }
    backend = Backend.load(args.backend, **options)
    check_processes(backend, args.processes)
    recipe = recipes.load(args.recipe)
    folder = RunFolder(args.out or Path("runs") / f"{recipe.name}-{backend.name}")
    if args.resume:
        recipe = to_resume(folder, recipe, args)
        folder.check_backend(backend)
    else:
        recipe = refitted(recipe.replace(changes(args, recipe)))
        folder.check_free(overwrite=args.overwrite)
    dataset = open_data(recipe)
    recipe = fitted(recipe, dataset)
    backend.prepare()
    if args.threads:
        backend.set_threads(args.threads)
    part, validation = split_data(recipe, dataset)
    steps = len(open_stream(recipe, part))
    advice = warmup_advice(recipe, steps)
    if advice and recipe.schedule.decay in ("cosine", "linear"):
        raise ValueError(advice)
    images = f"{len(part):,} images, {len(dataset.test):,} to test with"
    if validation:
        images += f", {len(validation):,} to validate with"
    if not args.resume:
        # What cannot be trained must not take the place of a run.
        folder.check_source(recipe)
        build_trainer(recipe, backend, build_model(recipe, backend), steps)
        next(open_stream(recipe, part).epoch(0))
    with folder.held(), StopSignals() as signals:
        if args.resume:
            lengthen(folder, recipe)
        else:
            folder.create(recipe, backend, overwrite=args.overwrite)
        print(
            f"{recipe.name} in {backend.name} on {recipe.data} ({images}) "
            f"-> {folder.path}" + (f"\n{advice}" if advice else ""),
            flush=True,
        )
        records = train(
            recipe,
            backend,
            dataset,
            folder,
            stop=lambda: bool(signals),
            save_steps=args.save_steps,
            save_minutes=args.save_minutes,
            processes=args.processes,
        )
        record = None
        try:
            # One bar an epoch; between two, its line is printed.
            for record in records:
                if isinstance(record, Step):
                    record = follow(records, record, steps)
                print(line(record, recipe.epochs), flush=True)
        except TrainingStopped as stopped:
            print(f"train.py: {stopped}", file=sys.stderr)
            return exit_status(signals)
        finally:
            if record is not None:
                draw(folder)
    if record is None:
        print(
            "nothing is left to train; --epochs N lets the run go on to epoch N"
            + (", unless its patience is over" if recipe.patience else "")
        )
    return 0


def to_resume(
    folder: RunFolder, recipe: recipes.Recipe, args: argparse.Namespace
) -> recipes.Recipe:
    """Return the recipe of the run in a folder, with the epochs that flags give it."""
    old = folder.reopen()
    if old.name != recipe.name:
        raise ValueError(
            f"{folder.path} holds a run of {old.name!r}, got recipe {recipe.name!r}; "
            "resume it with its own"
        )
    new = old.replace(changes(args, old)).resolved()
    before, after = flat(old.to_dict()), flat(new.to_dict())
    for key in after:
        if key != "epochs" and before.get(key) != after[key]:
            raise ValueError(
                f"{folder.path} was run with {key}={before.get(key)!r}, "
                f"got {after[key]!r}; resume it with the same settings"
            )
    done = [r["epoch"] for r in read_metrics(folder.path) if r.get("kind") == "epoch"]
    if done and new.epochs < done[-1]:
        raise ValueError(
            f"{folder.path} was trained for {done[-1]} epochs already, "
            f"got epochs={new.epochs}; ask for as many or more"
        )
    return new


def lengthen(folder: RunFolder, recipe: recipes.Recipe) -> None:
    """Let the run in a folder have the recipe's epochs, and say what follows."""
    old = folder.reopen()
    if recipe == old:
        return
    decay = recipe.schedule.decay
    if decay in ("cosine", "linear"):
        print(
            f"the {decay} decay, begun for {old.epochs} epochs, ends with the new ones"
        )
    folder.write_recipe(recipe)


def follow(records: Any, step: Step, steps: int) -> Epoch:
    """Show the steps of an epoch, one of which is made, and return its record."""
    with progress_bar("training", steps, "step") as advance:
        advance((step.step - 1) % steps + 1)
        for record in records:
            if isinstance(record, Epoch):
                return record
            advance(1)
    raise ValueError("the run ended in the middle of an epoch")


def draw(folder: RunFolder) -> None:
    """Draw the run's curves into its folder, where matplotlib is installed."""
    try:
        save(run_curves(read_metrics(folder.path), folder.path.name), folder.curves)
    except (ModuleNotFoundError, OSError, ValueError) as error:
        print(f"train.py: no curves drawn: {error}", file=sys.stderr)


def line(epoch: Epoch, epochs: int) -> str:
    return (
        f"epoch {epoch.epoch:>{len(str(epochs))}}/{epochs}  "
        f"loss {epoch.train_loss:.4f}  train {epoch.train_accuracy:7.2%}  "
        + (
            ""
            if epoch.validation_accuracy is None
            else f"validation {epoch.validation_accuracy:7.2%}  "
        )
        + f"test {epoch.test_accuracy:7.2%}  {epoch.seconds:.1f} s"
    )


def flat(tables: dict[str, Any]) -> dict[str, Any]:
    """Return nested tables as one, with dotted keys."""
    result: dict[str, Any] = {}
    for key, value in tables.items():
        if isinstance(value, dict):
            result |= {f"{key}.{inner}": v for inner, v in value.items()}
        else:
            result[key] = value
    return result


if __name__ == "__main__":
    sys.exit(main_of(run, parse))
