"""Names of sibling keys, gathered under one label: `{0..31}`, `{q,k,v}_proj`, `norm{1,2}`.

Names are gathered only where the label stays readable: indices, names that share a word at one end, and what is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

MAX_LABEL_ITEMS = 8
"""Names or runs of indices between braces; the rest becomes an ellipsis."""

_CUSTOMARY_ORDER = {"q": 0, "k": 1, "v": 2, "o": 3, "query": 0, "key": 1, "value": 2, "weight": 0, "bias": 1}
_DIGITS = "0123456789"
_LONGEST_INDEX = 18


def is_index(name: str) -> bool:
    """Whether it is a whole number as one writes it, without zeros in front."""
    return (
        name.isdecimal()
        and name.isascii()
        and (name[0] != "0" or name == "0")
        and len(name) <= _LONGEST_INDEX  # no tensor has more siblings, and int() of a long text is slow
    )


def customary_place(name: str) -> int:
    """Where people put a name among its siblings: weight before bias, q before k before v."""
    return _CUSTOMARY_ORDER.get(name, len(_CUSTOMARY_ORDER))


def gather(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Names that are equal in all else, in the groups that get one label each; every name is in one of them."""
    indices = sorted((name for name in names if is_index(name)), key=int)
    groups: list[tuple[str, ...]] = [tuple(indices)] if indices else []
    rest = [name for name in names if not is_index(name)]
    for shared_word in (_word_before_index, _last_word, _first_word):
        found, rest = _grouped(rest, shared_word)
        groups += found
    return [*groups, tuple(rest)] if rest else groups


def label_of(names: Sequence[str]) -> str:
    """The label of a group that `gather` made; a name alone is its own label."""
    if len(names) == 1:
        return names[0]
    prefix, suffix = _shared_words(names)
    middles = [name[len(prefix) : len(name) - len(suffix)] for name in names]
    if all(map(is_index, middles)):
        items = runs_of(sorted(map(int, middles)))
    else:
        items = sorted(middles, key=lambda middle: (customary_place(middle), middle))
    if len(items) > MAX_LABEL_ITEMS:
        items = [*items[: MAX_LABEL_ITEMS - 1], "…", items[-1]]
    return f"{prefix}{{{','.join(items)}}}{suffix}"


def runs_of(indices: Sequence[int]) -> list[str]:
    """Indices in ascending order as runs: `0..3` for neighbours, `0..30..2` with a step, a number alone as itself."""
    runs: list[str] = []
    start = 0
    while start < len(indices):
        stop = start + 1
        step = indices[stop] - indices[start] if stop < len(indices) else 1
        while stop < len(indices) and indices[stop] - indices[stop - 1] == step:
            stop += 1
        if stop - start > (2 if step == 1 else 3):
            runs.append(f"{indices[start]}..{indices[stop - 1]}" + ("" if step == 1 else f"..{step}"))
        else:
            # Too few for a run: the next one may begin with any but the first.
            stop = start + 1
            runs.append(str(indices[start]))
        start = stop
    return runs


def _grouped(names: Iterable[str], shared_word: Callable[[str], str | None]) -> tuple[list[tuple[str, ...]], list[str]]:
    """Groups of at least two names with the same word, and the names left over."""
    by_word: dict[str, list[str]] = {}
    rest: list[str] = []
    for name in names:
        word = shared_word(name)
        if word is None:
            rest.append(name)
        else:
            by_word.setdefault(word, []).append(name)
    groups = []
    for members in by_word.values():
        if len(members) > 1:
            groups.append(tuple(members))
        else:
            rest += members
    return groups, rest


def _word_before_index(name: str) -> str | None:
    word = name.rstrip(_DIGITS)
    return word if word and is_index(name[len(word) :]) else None


def _last_word(name: str) -> str | None:
    before, _, word = name.rpartition("_")
    return word if before and word else None


def _first_word(name: str) -> str | None:
    word, _, after = name.partition("_")
    return word if word and after else None


def _shared_words(names: Sequence[str]) -> tuple[str, str]:
    """What all names begin and end with, cut at an underscore or before an index, with something left between."""
    shortest = min(map(len, names))
    first, last = min(names), max(names)
    common = _common_length(first, last)
    before_index = first[:common].rstrip(_DIGITS)
    if before_index and all(is_index(name[len(before_index) :]) for name in names):
        return before_index, ""
    prefix = first[: first.rfind("_", 0, min(common, shortest - 1)) + 1]
    backwards = [name[len(prefix) :][::-1] for name in names]
    first, last = min(backwards), max(backwards)
    common = min(_common_length(first, last), shortest - len(prefix) - 1)
    suffix = first[: first.rfind("_", 0, common) + 1][::-1]
    return prefix, suffix


def _common_length(first: str, last: str) -> int:
    for place, (one, other) in enumerate(zip(first, last, strict=False)):
        if one != other:
            return place
    return min(len(first), len(last))
