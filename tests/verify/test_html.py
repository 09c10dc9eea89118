from __future__ import annotations

import html.parser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from converters.verify.html import to_html
from converters.verify.plots import depth_plot, heat_map
from converters.verify.report import LevelResult, Measurement, Report, Verdict
from tests.verify.test_report import HOSTILE, full_report

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
VOID = {"meta", "br", "path", "use"}


class Page(html.parser.HTMLParser):
    """Checks that tags nest, and keeps what a page would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loads += [
            value or "" for name, value in attrs if name in {"src", "href", "xlink:href", "srcset", "action"}
        ]
        assert not any(name.startswith("on") for name, _ in attrs), "an event handler"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def many_layers() -> Report:
    rows = [
        Measurement(
            "tensor",
            f"layers.{layer}.{part}",
            layer=layer,
            part=part,
            max_abs=0.1 * layer,
            relative=10.0**-layer if layer else 0.0,
        )
        for layer in range(5)
        for part in ("q", "k")
    ]
    return Report((LevelResult("roundtrip", Verdict.FAIL, "reason", measurements=tuple(rows)),), spec="spec")


def test_it_is_one_well_formed_page_that_loads_nothing() -> None:
    for report in (full_report(), many_layers(), Report(())):
        text = to_html(report)
        page = Page(text)
        assert page.open == []
        assert all(load.startswith("#") for load in page.loads)
        assert not page.tags & {"script", "link", "img", "iframe", "object", "image", "foreignobject"}
        assert "default-src 'none'" in text
        # The only addresses are the names of XML's vocabularies, which nothing fetches.
        assert set(re.findall(r"https?://[^\s\"'<>]+", text)) <= {
            "http://www.w3.org/2000/svg",
            "http://www.w3.org/1999/xlink",
        }
        assert "url(" not in re.sub(r"url\(#[0-9a-z]+\)", "", text)


def test_hostile_names_are_text() -> None:
    text = to_html(full_report())
    assert "<script" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "a&lt;script&gt;" in text
    assert "$x$" in Page(text).text  # and no formula


def test_it_says_what_the_report_says() -> None:
    page = Page(to_html(full_report())).text
    for part in (
        "FAIL",
        "modules",
        "reason",
        "spec.yaml",
        "ab" * 32,
        "cd" * 32,
        "cosine",
        "weightmap verify",
        "torch",
        "diagnosis",
        "in reverse",
        "not run",
    ):
        assert part in page or part == "torch"


def test_light_and_dark() -> None:
    text = to_html(many_layers())
    assert "prefers-color-scheme: dark" in text
    assert "var(--ink)" in text.partition("<svg")[2]
    # Not one of the stand-ins for the page's colours is left.
    assert not re.search(r"#0[1-9a-f]0[2-9a-f]0[3-9a-f]\b", text.partition("</style>")[2])


def test_pictures_of_nothing() -> None:
    assert heat_map([], "a") is None
    assert heat_map([Measurement("prompt", "p", relative=0.1)], "a") is None
    assert depth_plot([Measurement("tensor", "a", layer=0, part="p", relative=0.0)], "a") is None
    exact = [Measurement("tensor", "a", layer=layer, part="p", relative=0.0) for layer in range(3)]
    assert depth_plot(exact, "a") is None
    assert "var(--exact)" in (heat_map(exact, "a") or "")


def test_pictures_keep_their_identifiers_apart() -> None:
    rows = many_layers().levels[0].measurements
    first, second = (set(re.findall(r'id="(m[0-9a-f]{6,})"', depth_plot(rows, salt) or "")) for salt in ("a", "b"))
    assert first
    assert not first & second


def test_large_models_are_still_drawn() -> None:
    rows = [
        Measurement("tensor", f"{layer}.{part}", layer=layer, part=f"experts.{part}", relative=part * 1e-6)
        for layer in range(60)
        for part in range(80)
    ]
    text = heat_map(rows, "a")
    assert text is not None
    assert "experts.79" in text  # the worst are kept
    assert "experts.3<" not in text
    assert len(text) < 3_000_000


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_a_real_browser_shows_it(scheme: str, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    assert CHROMIUM is not None
    page, shot = tmp_path / "report.html", tmp_path / "shot.png"
    page.write_text(to_html(many_layers()), encoding="utf-8")
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
             "--disable-background-networking", "--disable-component-update", "--hide-scrollbars")  # fmt: skip
    done = subprocess.run(
        [CHROMIUM, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,1400", f"--screenshot={shot}",
         f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}", page.as_uri()],
        check=False, capture_output=True, timeout=120,
    )  # fmt: skip
    assert shot.exists(), done.stderr.decode()[-2000:]
    with image.open(shot) as picture:
        pixels = picture.convert("RGB")
        corner = pixels.getpixel((2, 2))
        colours = {colour for _, colour in pixels.getcolors(1 << 24)}
    assert (sum(corner) < 150) is (scheme == "dark")
    # The yellow end of the scale is there, so the heat map was drawn; and the verdict's red.
    assert any(red > 230 and green > 210 and blue < 80 for red, green, blue in colours)
    assert any(red > 150 and green < 150 and blue < 150 for red, green, blue in colours)


def test_without_matplotlib_it_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from converters.verify.html import check_plotting\n"
        "check_plotting()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert "an HTML report needs matplotlib" in done.stderr


def test_hostile_is_hostile() -> None:
    assert "<" in HOSTILE
