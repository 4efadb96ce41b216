"""The one exception a user is meant to read, and the spelling help that goes with it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST = 100
"""Names that a sentence lists; of more (users, columns of a wide table) only the first `FEW` are read by anybody."""

FEW = 20


class UserError(ValueError):
    """Something the user can mend. The message names the place, what was got, what is accepted and the remedy."""


def nearest(word: str, accepted: Iterable[str], quoted: bool = False) -> str:
    """`accepted` as a list for an error message, with the likeliest meant first: ``did you mean 'x'? accepted: ...``.

    quoted  each name in quotes: for names that hold commas
    Of more than `MOST` names the first are listed, and how many more there are.
    """
    names = sorted(set(accepted))
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    hint = f"did you mean {close[0]!r}? " if close else ""
    listed = names if len(names) <= MOST else names[:FEW]
    more = f" and {len(names) - len(listed):,} more" if len(listed) < len(names) else ""
    return f"{hint}accepted: {', '.join(map(repr, listed) if quoted else listed) if names else '(none)'}{more}"
