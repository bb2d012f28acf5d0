"""Results as a picture: a bar for each measure, how much of its target it reaches.

Targets are in many units, so what is drawn is the share: a bar at the line reaches its target, one
beyond it is better. The scale is logarithmic. A picture is a list of shapes first; an SVG is written
from these by hand, a PNG drawn by Pillow, which `pip install 'perdure[bench]'` brings.

Invariants:
    Both kinds of file show the same shapes.
"""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any, Final
from xml.sax.saxutils import escape

import msgspec

from perdure.benchmarks.page import settings
from perdure.benchmarks.results import Measure, Results, figure, percents
from perdure.errors import InvalidArgumentError

WIDTH: Final = 960
LINE: Final = 24
TOP: Final = 64
LABELS: Final = 380
BARS: Final = 360
LOWEST: Final = 1 / 16
HIGHEST: Final = 16.0
PNG_SCALE: Final = 2
GOOD, BAD, DARK, PALE = "#2f855a", "#c05621", "#1a202c", "#cbd5e0"


class Bar(msgspec.Struct, frozen=True, kw_only=True):
    """A filled rectangle."""

    x: float
    y: float
    width: float
    height: float
    colour: str


class Label(msgspec.Struct, frozen=True, kw_only=True):
    """A line of text; `y` is its middle, `x` its left or right end."""

    x: float
    y: float
    text: str
    size: int = 13
    right: bool = False
    colour: str = DARK


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """Shapes on white, in the order in which they are drawn."""

    width: int
    height: int
    shapes: list[Bar | Label]


def check(file: Path) -> None:
    """Raise `InvalidArgumentError` where no picture can be drawn into `file`: before it is measured."""
    if file.suffix not in (".svg", ".png"):
        raise InvalidArgumentError(f"--plot {file}: it must end in .svg or .png")
    if not file.absolute().parent.is_dir():
        raise InvalidArgumentError(f"--plot {file}: there is no folder {file.parent}")
    if file.suffix == ".png":
        _pillow()


def draw(results: Results, file: Path) -> None:
    """Write the picture of some results. Errors as in `check`."""
    check(file)
    made = picture(results)
    if file.suffix == ".svg":
        file.write_text(svg(made), "utf-8")
    else:
        png(made, file)


def shares(measure: Measure) -> list[tuple[str, float]]:
    """Return how much of its targets a measure reaches, with the words for each. 1.0 is the target.

    >>> shares(Measure(key="k", what="a chain", unit="steps/s", value=5.0, target=10.0))
    [('a chain: 5.00 steps/s', 0.5)]
    """
    found: list[tuple[str, float]] = []
    if measure.value and measure.target:
        of = measure.value / measure.target
        words = f"{measure.what}: {figure(measure.value)} {measure.unit}"
        found.append((words, 1 / of if measure.better == "less" else of))
    if measure.share is not None and measure.share_target:
        words = f"{measure.what}: {percents(measure.share)} of the bare loop"
        found.append((words, measure.share / measure.share_target))
    return found


def picture(results: Results) -> Picture:
    """Return the shapes for some results."""
    lines = [
        (f"{result.benchmark}  {words}", share)
        for result in results.results
        for measure in result.measures
        for words, share in shares(measure)
    ]
    shapes: list[Bar | Label] = [
        Label(x=16, y=22, text="Perdure: how much of each target is reached", size=16),
        Label(x=16, y=44, text=settings(results), size=11, colour="#4a5568"),
    ]
    bottom = TOP + LINE * len(lines)
    for power in range(-4, 5, 2):
        x = _x(2.0**power)
        shapes.append(
            Bar(
                x=x,
                y=TOP,
                width=2 if power == 0 else 1,
                height=bottom - TOP,
                colour=DARK if power == 0 else PALE,
            )
        )
        shapes.append(Label(x=x + 12, y=bottom + 12, text=_power(power), size=11, right=True))
    for number, (words, share) in enumerate(lines):
        shapes += _line(TOP + LINE * number, words, share)
    return Picture(width=WIDTH, height=bottom + 32, shapes=shapes)


def _line(y: float, words: str, share: float) -> list[Bar | Label]:
    begin, end = sorted((_x(1.0), _x(share)))
    middle = y + LINE / 2
    return [
        Label(x=LABELS - 12, y=middle, text=words, size=11, right=True),
        Bar(
            x=begin,
            y=y + 6,
            width=max(2.0, end - begin),
            height=LINE - 12,
            colour=GOOD if share >= 1 else BAD,
        ),
        Label(x=LABELS + BARS + 24, y=middle, text=f"{figure(share)} of the target", size=11),
    ]


def _x(share: float) -> float:
    inside = min(max(share, LOWEST), HIGHEST)
    return LABELS + BARS * math.log(inside / LOWEST) / math.log(HIGHEST / LOWEST)


def _power(power: int) -> str:
    return f"1/{2**-power}" if power < 0 else f"{2**power}"


# -- SVG -------------------------------------------------------------------------------------


def svg(drawn: Picture) -> str:
    """Return the picture as the text of an SVG file."""
    box = f'viewBox="0 0 {drawn.width} {drawn.height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {box} font-family="sans-serif">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
    ]
    return "\n".join([*parts, *(_svg_shape(shape) for shape in drawn.shapes), "</svg>\n"])


def _svg_shape(shape: Bar | Label) -> str:
    match shape:
        case Bar():
            return (
                f'<rect x="{shape.x:.1f}" y="{shape.y:.1f}" width="{shape.width:.1f}"'
                f' height="{shape.height:.1f}" fill="{shape.colour}"/>'
            )
        case Label():
            anchor = "end" if shape.right else "start"
            return (
                f'<text x="{shape.x:.1f}" y="{shape.y:.1f}" font-size="{shape.size}" text-anchor="{anchor}"'
                f' dominant-baseline="middle" fill="{shape.colour}">{escape(shape.text)}</text>'
            )


# -- PNG -------------------------------------------------------------------------------------


def png(drawn: Picture, file: Path) -> None:
    """Write the picture as a PNG file. Raises `InvalidArgumentError` where Pillow is not installed."""
    pillow, fonts, drawing = _pillow()
    image = pillow.new("RGB", (drawn.width * PNG_SCALE, drawn.height * PNG_SCALE), "#ffffff")
    canvas = drawing.Draw(image)
    for shape in drawn.shapes:
        match shape:
            case Bar():
                box = (shape.x, shape.y, shape.x + shape.width, shape.y + shape.height)
                canvas.rectangle([PNG_SCALE * value for value in box], fill=shape.colour)
            case Label():
                canvas.text(
                    (PNG_SCALE * shape.x, PNG_SCALE * shape.y),
                    shape.text,
                    fill=shape.colour,
                    font=fonts.load_default(PNG_SCALE * shape.size),
                    anchor="rm" if shape.right else "lm",
                )
    image.save(file)


def _pillow() -> tuple[Any, Any, Any]:
    try:
        return tuple(importlib.import_module(f"PIL.{name}") for name in ("Image", "ImageFont", "ImageDraw"))  # type: ignore[return-value]  # three names make three modules
    except ImportError as error:
        raise InvalidArgumentError(
            "a PNG is drawn by Pillow: pip install 'perdure[bench]', or name a file that ends in .svg"
        ) from error
