"""`python -m tests.hostile.coverage_fuzz PARSER [-max_total_time=60 ...]`: one parser, guided by its coverage; by hand.

It needs atheris (`pip install atheris`), which is no requirement of the tests. Options after the parser's name are
libFuzzer's. What comes out but documented errors ends it, with the input written to a file.
"""

from __future__ import annotations

import sys
from contextlib import suppress


def main() -> None:
    """Instrument the parsers, and feed one of them."""
    import atheris

    # Before anything else imports them.
    with atheris.instrument_imports(include=["converters"]):
        from converters.errors import WeightmapError
        from tests.hostile.parsers import FEEDS

    name, *options = sys.argv[1:] or [""]
    if name not in FEEDS:
        sys.exit(f"Give one of these parsers: {', '.join(FEEDS)}.")
    feed, _ = FEEDS[name]

    def once(content: bytes) -> None:
        with suppress(WeightmapError):
            feed(content)

    atheris.Setup([sys.argv[0], *options], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
