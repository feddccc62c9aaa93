"""Answering an unknown name with the nearest known one."""

import difflib
from collections.abc import Iterable


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ValueError:
    """Return the error for `name`, which is none of the `known` names of that kind."""
    known = list(known)
    nearest = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.4)
    hint = f"did you mean {nearest[0]!r}?" if nearest else "choose one of them"
    return ValueError(f"{kind} must be one of {', '.join(known)}, got {name!r}; {hint}")
