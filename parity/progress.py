"""A progress bar where a person is watching, nothing elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(
    title: str, total: int | None, unit: str, *, shown: bool | None = None
) -> Iterator[Callable[[int], object]]:
    """Yield a function that advances the bar by a number of units.

    Parameters
    ----------
    title : str
        What is being done.
    total : int or None
        How many units there are, if known.
    unit : str
        Its unit; ``'B'`` is scaled to KB, MB …
    shown : bool, optional
        By default the bar is shown if standard error is a terminal.  It needs tqdm;
        without it there is none.
    """
    if shown is None:
        shown = sys.stderr.isatty()
    if shown:
        try:
            from tqdm import tqdm
        except ImportError:
            shown = False
    if not shown:
        yield lambda count: None
        return
    # No thread that watches over bars: a process with threads had better not fork.
    tqdm.monitor_interval = 0
    scale = unit == "B"
    with tqdm(desc=title, total=total, unit=unit, unit_scale=scale, leave=False) as bar:
        yield bar.update
