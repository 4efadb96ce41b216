"""The one exception a user is meant to read, and the spelling help that goes with it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user can mend. The message names the place, what was got, what is accepted and the remedy."""


def nearest(word: str, accepted: Iterable[str], quoted: bool = False) -> str:
    """`accepted` as a list for an error message, with the likeliest meant first: ``did you mean 'x'? accepted: ...``.

    quoted  each name in quotes: for names that hold commas
    """
    names = sorted(set(accepted))
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}accepted: {', '.join(map(repr, names) if quoted else names) if names else '(none)'}"
