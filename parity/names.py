"""Names that people give: the nearest known one, and whether a file can hold them."""

import difflib
from collections.abc import Iterable


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ValueError:
    """Return the error for `name`, which is none of the `known` names of that kind."""
    known = list(known)
    small = name.lower()
    nearest = difflib.get_close_matches(small, known, n=1, cutoff=0.75)
    # A name cut short is nearer than one that is merely alike.
    nearest += [other for other in known if _abbreviates(small, other)]
    nearest += difflib.get_close_matches(small, known, n=1, cutoff=0.4)
    hint = f"did you mean {nearest[0]!r}?" if nearest else "choose one of them"
    return ValueError(f"{kind} must be one of {', '.join(known)}, got {name!r}; {hint}")


def _abbreviates(short: str, name: str) -> bool:
    """Tell whether a name begins alike, and has the letters of the other in order."""
    letters = iter(name)
    return short[:2] == name[:2] != "" and all(letter in letters for letter in short)


def is_utf8(text: str) -> bool:
    """Tell whether a text can be written in UTF-8: no path of other bytes can."""
    return not any("\ud800" <= sign <= "\udfff" for sign in text)
