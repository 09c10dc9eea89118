"""What goes wrong when keys meet rules, in words: the keys, the rules and their lines, and what to write instead."""

from __future__ import annotations

from collections.abc import Sequence

from converters.bind import BoundRule, BoundSpec
from converters.errors import Problem
from converters.keys import is_index
from converters.spec import Drop
from converters.text import printable

NEAREST_TRIED = 2000
"""Keys among which the nearest one is looked for; comparing texts is slow, and a hint isn't worth more."""


CLAIMS_SHOWN = 8
"""Rules that a message lists of those that claim one key."""

MAX_CONTESTED = 100
"""Keys that several rules claim after which no more are looked at: with a thousand such rules each takes its time."""


class MatchProblems:
    """Collects the problems of a match."""

    def __init__(self, bound: BoundSpec) -> None:
        self.bound = bound
        self.problems: list[Problem] = []

    def add(self, what: str, rule: BoundRule | None = None, hint: str | None = None) -> None:
        """Note a problem, with the rule's path and line."""
        if rule is None:
            self.problems.append(Problem(what, self.bound.spec.path or None, hint))
        else:
            self.problems.append(Problem(f"{rule.rule.path}: {what}", rule.rule.location, hint))

    def claimed_twice(self, key: str, rules: Sequence[BoundRule], drops: Sequence[Drop]) -> None:
        """A source key that two rules claim."""
        places = [(rule.rule.path, rule.rule.location) for rule in rules]
        places += [(f"drop {drop.pattern!r}", drop.location) for drop in drops]
        where = [f"{path} (line {location.line if location else '?'})" for path, location in places[:CLAIMS_SHOWN]]
        if len(places) > CLAIMS_SHOWN:
            where.append(f"{len(places) - CLAIMS_SHOWN:,} more")
        self.add(
            f"{printable(key)} is claimed by {' and '.join(where)}",
            rules[0],
            "each key goes to one rule; narrow a pattern, for instance {p:weight} in place of {p}",
        )

    def unclaimed(self, keys: Sequence[str], patterns: Sequence[str]) -> None:
        """Source keys that no rule claims, those that differ in their indices together."""
        groups: dict[str, list[str]] = {}
        for key in keys:
            shape = ".".join("#" if is_index(segment) else segment for segment in key.split("."))
            groups.setdefault(shape, []).append(key)
        for members in groups.values():
            first = printable(members[0])
            others = f" and {len(members) - 1} more like it" if len(members) > 1 else ""
            close = nearest(members[0], patterns)
            near = f"the nearest pattern is '{close}'; " if close else ""
            self.add(
                f"no rule claims the key {first}{others}",
                None,
                f'{near}add a rule for it, or leave it out by name: drop: {{"{first}": "the reason"}}',
            )

    def matches_nothing(self, rule: BoundRule, names: Sequence[str]) -> None:
        """A rule without any key."""
        pattern = str(rule.sources[0].term.keys[0])
        close = nearest(pattern, [printable(name) for name in names[:NEAREST_TRIED]])
        near = f"the nearest key is {close}; " if close else ""
        self.add(f"no key matches '{pattern}'", rule, f"{near}correct the pattern, or say 'optional: true'")


def nearest(text: str, known: Sequence[str]) -> str | None:
    """The known text that looks most like this one."""
    import difflib  # only a failure needs it

    return next(iter(difflib.get_close_matches(text, known, 1, 0.5)), None)
