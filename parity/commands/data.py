"""`parity data`: which data sets there are, and fetching those that do not ship."""

from __future__ import annotations

import argparse

from parity.cli import AGREE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    parser.add_argument("action", choices=("fetch", "list"))
    parser.add_argument(
        "name", nargs="?", help="for fetch: mnist, fashion-mnist or cifar10"
    )


def run(args: argparse.Namespace) -> int:
    """List the data sets, or fetch one."""
    from parity.data import SOURCES, DataNotFoundError, cache_folder, fetch, load

    if args.action == "list":
        if args.name is not None:
            raise ValueError(f"list takes no name, got {args.name!r}; leave it out")
        print("mnist-subset   ships with the project")
        for name in SOURCES:
            try:
                load(name)
            except DataNotFoundError:
                print(f"{name:13}  not here; parity data fetch {name}")
            except ValueError:
                print(f"{name:13}  damaged; parity data fetch {name}")
            else:
                print(f"{name:13}  {cache_folder() / name}")
        return AGREE
    if args.name is None:
        raise ValueError(f"name a data set to fetch: {', '.join(SOURCES)}")
    fetched = fetch(args.name, report=print)
    print(f"{fetched.name} is in {fetched.folder} ({fetched.way})")
    return AGREE
