"""Records what a command shows on a terminal as an SVG that plays by itself.

    python docs/images/record.py docs/images/demo.svg --until '^6 ' -- perdure demo --state /tmp/audit

The command runs on a pseudo-terminal; what it draws is followed by a terminal that knows the few
sequences rich writes. A row of the screen is drawn once for each of its contents and shown, by CSS,
while it had them. Where nothing is animated (a reader who asked for less motion, a converter), the
last screen stands.

Nobody imports this; the pictures are made by hand, when the output has changed.
"""  # noqa: INP001 - a program, not a package

from __future__ import annotations

import argparse
import codecs
import html
import os
import pty
import re
import select
import signal
import time
from pathlib import Path
from typing import Final, NamedTuple

from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from rich.terminal_theme import SVG_EXPORT_THEME as THEME
from rich.text import Text

COLUMNS: Final = 100
CHAR_W: Final = 8.4
LINE_H: Final = 18.0
BASELINE: Final = 13.5
MARGIN: Final = 16.0
TITLE_H: Final = 36.0
FRAME_S: Final = 0.3
"""How long a screen stays at least; what changes faster is not seen."""
HOLD_S: Final = 8.0
"""How long the last screen stays before it begins again."""
TOKENS: Final = re.compile(r"(\x1b\[[0-9;?]*[A-Za-z]|\r|\n)")
UNFINISHED: Final = re.compile(r"\x1b(\[[0-9;?]*)?\Z")


class Screen:
    """The rows of a terminal, each as the text and colours that were last written to it."""

    def __init__(self) -> None:
        self.rows: list[str] = [""]
        self._row = 0
        self._held = ""

    def feed(self, output: str) -> None:
        """Write to the terminal. The beginning of a sequence is held until its end comes."""
        output = self._held + output
        cut = UNFINISHED.search(output)
        self._held = cut.group() if cut else ""
        for part in TOKENS.split(output.removesuffix(self._held)):
            if part == "\n":
                self._row += 1
                self.rows += [""] * (self._row + 1 - len(self.rows))
            elif part.startswith("\x1b[") and part.endswith("A"):
                self._row = max(0, self._row - int(part[2:-1] or 1))
            elif part == "\x1b[2K":
                self.rows[self._row] = ""
            elif part != "\r" and not part.startswith("\x1b[?"):
                self.rows[self._row] += part


class Frame(NamedTuple):
    """The screen from `at_s` on."""

    at_s: float
    rows: tuple[str, ...]


def record(command: list[str], until: re.Pattern[str] | None) -> list[Frame]:
    """Run the command and return what its screen showed, up to a row that `until` finds."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ |= {"COLUMNS": str(COLUMNS), "LINES": "60", "TERM": "xterm-256color"}
        os.execvp(command[0], command)  # noqa: S606 - the command is what whoever records gave
    screen, frames, began_s = Screen(), [Frame(0.0, ("",))], time.monotonic()
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    while True:
        ready, _, _ = select.select([terminal], [], [], 0.02)
        if ready:
            try:
                chunk = os.read(terminal, 65536)
            except OSError:
                break
            if not chunk:
                break
            screen.feed(decoder.decode(chunk))
        now_s = time.monotonic() - began_s
        if until is not None and any(until.search(plain(row)) for row in screen.rows):
            break
        if now_s - frames[-1].at_s >= FRAME_S and tuple(screen.rows) != frames[-1].rows:
            frames.append(Frame(now_s, tuple(screen.rows)))
    os.kill(pid, signal.SIGTERM)
    os.waitpid(pid, 0)
    end = next(
        (i for i, row in enumerate(screen.rows) if until and until.search(plain(row))), len(screen.rows)
    )
    last = list(screen.rows[:end])
    while last and not plain(last[-1]).strip():
        last.pop()
    return [*frames, Frame(frames[-1].at_s + FRAME_S, tuple(last))]


def plain(row: str) -> str:
    """Return a row without its colours."""
    return TOKENS.sub("", row)


def spans_of(frames: list[Frame]) -> list[tuple[int, str, float, float]]:
    """Return (row, content, from, to) for all a row showed; `to` is infinite for what stays."""
    spans: list[tuple[int, str, float, float]] = []
    for row in range(max(len(frame.rows) for frame in frames)):
        content, since_s = "", 0.0
        for frame in [*frames, Frame(float("inf"), ())]:
            new = frame.rows[row] if row < len(frame.rows) else ""
            if new != content or frame.at_s == float("inf"):
                if plain(content).strip():
                    spans.append((row, content, since_s, frame.at_s))
                content, since_s = new, frame.at_s
    return spans


def drawn(row: int, content: str, console: Console) -> str:
    """Return a row as SVG text."""
    column, parts = 0, list[str]()
    for text, style, _ in Segment.simplify(Text.from_ansi(content).render(console)):
        chars = text.rstrip("\n")
        if chars.strip():
            x, width = MARGIN + column * CHAR_W, len(chars) * CHAR_W
            parts.append(
                f'<text x="{x:.1f}" y="{TITLE_H + row * LINE_H + BASELINE:.1f}" textLength="{width:.1f}"'
                f"{attributes(style)}>{html.escape(chars).replace(' ', '&#160;')}</text>"
            )
        column += len(chars)
    return "".join(parts)


def attributes(style: Style | None) -> str:
    """Return the colours of a segment as SVG attributes."""
    if style is None:
        return ""
    colour = style.color.get_truecolor(THEME).hex if style.color and not style.color.is_default else ""
    fill = f' fill="{colour}"' if colour else ""
    return fill + (' font-weight="bold"' if style.bold else "") + (' opacity="0.6"' if style.dim else "")


def svg(frames: list[Frame], title: str) -> str:
    """Return the recording."""
    console = Console(width=COLUMNS, force_terminal=True, color_system="truecolor")
    total_s = frames[-1].at_s + HOLD_S
    rows = max(len(frame.rows) for frame in frames)
    width, height = COLUMNS * CHAR_W + 2 * MARGIN, rows * LINE_H + TITLE_H + MARGIN
    names: dict[tuple[float, float], str] = {}
    body = []
    for row, content, from_s, to_s in spans_of(frames):
        name = names.setdefault((from_s, to_s), f"k{len(names)}")
        body.append(f'<g class="{name}">{drawn(row, content, console)}</g>')
    rules = "".join(rule(name, from_s, to_s, total_s) for (from_s, to_s), name in names.items())
    lights = "".join(
        f'<circle cx="{20 + 18 * i}" cy="17" r="5.5" fill="{fill}"/>'
        for i, fill in enumerate(("#ff5f57", "#febc2e", "#28c840"))
    )
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img">
<title>{html.escape(title)}</title>
<style>
text {{ font-family: "Fira Code", "DejaVu Sans Mono", Menlo, Consolas, monospace; font-size: 14px; }}
{rules}@media (prefers-reduced-motion: reduce) {{ g {{ animation: none !important; }} }}
</style>
<rect width="{width:.0f}" height="{height:.0f}" rx="8" fill="#1b1d23"/>{lights}
<text x="{width / 2:.0f}" y="22" text-anchor="middle" fill="#8a8f98">{html.escape(title)}</text>
<g fill="#d6d9df">
{os.linesep.join(body)}
</g>
</svg>
"""


def rule(name: str, from_s: float, to_s: float, total_s: float) -> str:
    """Return the style of what is shown between two moments."""
    stays = to_s == float("inf")
    start = 100 * from_s / total_s
    end = "" if stays else f" {100 * to_s / total_s:.2f}% {{ visibility: hidden; }}"
    shown = "visible" if stays else "hidden"
    return (
        f".{name} {{ visibility: {shown}; animation: {name} {total_s:.1f}s step-end infinite; }}\n"
        f"@keyframes {name} {{ 0% {{ visibility: hidden; }} {start:.2f}% {{ visibility: visible; }}{end} }}\n"
    )


def main() -> None:
    """Record a command."""
    parser = argparse.ArgumentParser(description="Record what a command shows on a terminal as an SVG.")
    parser.add_argument("svg", type=Path)
    parser.add_argument("--until", type=re.compile, help="end before a row that this pattern finds")
    parser.add_argument("--title")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    frames = record(options.command, options.until)
    options.svg.write_text(svg(frames, options.title or " ".join(options.command)), encoding="utf-8")


if __name__ == "__main__":
    main()
