"""Figures as inline SVG: axes, marks and labels, for every screen and for screen readers.

Colours are classes of the page's style sheet, so that a figure follows light and dark. A figure is
drawn for a width of ``WIDTH`` units and scales with its place; its text stays legible on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from markupsafe import Markup

WIDTH, HEIGHT = 380, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 14, 14, 42
COLOURS = 8  # of the palette; more series than that share the last, grey one


@dataclass(frozen=True)
class Range:
    """Values from ``low`` to ``high``, with round ticks."""

    low: float
    high: float

    @classmethod
    def around(cls, values: Iterable[float], *, zero: bool = False, room: float = 0.06) -> Range:
        """All finite values and a little room; ``zero``: from 0 on."""
        found = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
        low, high = min(found), max(found)
        if zero:
            low, high = min(0.0, low), max(0.0, high)
        span = (high - low) or abs(high) or 1.0
        return cls(low if zero and low == 0.0 else low - room * span, high + room * span)

    def ticks(self, most: int = 5) -> list[float]:
        """Multiples of 1, 2 or 5 times a power of ten within the range, at most ``most`` + 1."""
        span = self.high - self.low
        power = 10.0 ** math.floor(math.log10(span / most))
        step = next(power * m for m in (1, 2, 5, 10, 20) if span / (power * m) <= most)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(step * place, 12) for place in range(first, last + 1)]


def number(value: float, digits: int = 3) -> str:
    """As a reader writes it: no exponent where none is needed."""
    if value == 0:
        return "0"
    if abs(value) >= 10_000:
        return f"{value:,.0f}"
    text = f"{value:.{digits}g}"
    return f"{float(text):g}" if "e" in text and abs(value) >= 1 else text


def _tag(name: str, content: object = "", /, **attributes: object) -> Markup:
    given = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _short(value))
        for key, value in attributes.items()
    )
    return Markup("<{0}{1}>{2}</{0}>").format(name, given, content)


def _short(value: object) -> object:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


@dataclass
class Plot:
    """A figure with axes. Marks are added in the units of the axes, in the order of drawing."""

    title: str
    description: str
    x: Range
    y: Range
    x_label: str
    y_label: str
    height: int = HEIGHT
    left: int = _LEFT
    _marks: list[Markup] = field(default_factory=list)

    def px(self, value: float) -> float:
        return self.left + (value - self.x.low) / (self.x.high - self.x.low) * (
            WIDTH - self.left - _RIGHT
        )

    def py(self, value: float) -> float:
        inner = self.height - _TOP - _BOTTOM
        return _TOP + inner - (value - self.y.low) / (self.y.high - self.y.low) * inner

    def line(self, points: Sequence[tuple[float, float]], style: str) -> None:
        path = " ".join(f"{self.px(x):.1f},{self.py(y):.1f}" for x, y in points)
        self._marks.append(_tag("polyline", points=path, class_=f"line {style}"))

    def steps(self, points: Sequence[tuple[float, float]], style: str) -> None:
        """A line that rises at its points and is level between them."""
        path = [points[0]]
        for (_, before), (x, y) in pairwise(points):
            path += [(x, before), (x, y)]
        self.line(path, style)

    def band(
        self, low: Sequence[tuple[float, float]], high: Sequence[tuple[float, float]], style: str
    ) -> None:
        """What lies between two lines over the same places."""
        around = [*low, *reversed(high)]
        path = " ".join(f"{self.px(x):.1f},{self.py(y):.1f}" for x, y in around)
        self._marks.append(_tag("polygon", points=path, class_=f"band {style}"))

    def dot(self, x: float, y: float, style: str, *, size: float = 2.5, title: str = "") -> None:
        tip = _tag("title", title) if title else Markup("")
        self._marks.append(
            _tag("circle", tip, cx=self.px(x), cy=self.py(y), r=size, class_=f"dot {style}")
        )

    def bar(self, low: float, high: float, y: float, style: str, thickness: float = 9.0) -> None:
        """A horizontal bar in a place of its own, ``y`` in the units of the axis."""
        left, right = sorted((self.px(low), self.px(high)))
        self._marks.append(
            _tag(
                "rect",
                x=left,
                y=self.py(y) - thickness / 2,
                width=max(right - left, 0.5),
                height=thickness,
                class_=f"bar {style}",
            )
        )

    def error(self, low: float, high: float, y: float, cap: float = 3.5) -> None:
        """A horizontal error bar with its caps."""
        left, right, middle = self.px(low), self.px(high), self.py(y)
        path = (
            f"M{left:.1f} {middle - cap:.1f}v{2 * cap:g}m0 {-cap:g}H{right:.1f}"
            f"m0 {-cap:g}v{2 * cap:g}"
        )
        self._marks.append(_tag("path", d=path, class_="error"))

    def rule(self, value: float, text: str, *, across: bool = True) -> None:
        """A dashed line at a value of the y axis (``across``) or of the x axis, with its text."""
        if across:
            ends = {
                "x1": self.left,
                "x2": WIDTH - _RIGHT,
                "y1": self.py(value),
                "y2": self.py(value),
            }
            place = {"x": WIDTH - _RIGHT - 3, "y": self.py(value) - 5, "text_anchor": "end"}
        else:
            bottom = self.height - _BOTTOM
            ends = {"x1": self.px(value), "x2": self.px(value), "y1": _TOP, "y2": bottom}
            on_left = self.px(value) + 6 * len(text) > WIDTH - _RIGHT
            at = self.px(value) + (-4 if on_left else 4)
            place = {"x": at, "y": _TOP + 9, "text_anchor": "end" if on_left else "start"}
        self._marks.append(_tag("line", class_="rule", **ends))
        self._marks.append(_tag("text", text, class_="note", **place))

    def note(self, x: float, y: float, text: str, *, drop: float = -5.0) -> None:
        self._marks.append(_tag("text", text, x=self.px(x), y=self.py(y) + drop, class_="note"))

    def svg(
        self,
        *,
        x_ticks: Sequence[tuple[float, str]] | None = None,
        y_ticks: Sequence[tuple[float, str]] | None = None,
    ) -> Markup:
        """The figure. ``x_ticks``, ``y_ticks``: values with their text, instead of numbers."""
        bottom = self.height - _BOTTOM
        across = x_ticks if x_ticks is not None else [(t, number(t)) for t in self.x.ticks()]
        along = y_ticks if y_ticks is not None else [(t, number(t)) for t in self.y.ticks()]
        grid: list[Markup] = []
        for value, text in across:
            at = self.px(value)
            grid.append(_tag("line", x1=at, x2=at, y1=_TOP, y2=bottom, class_="grid"))
            grid.append(
                _tag("text", text, x=at, y=bottom + 15, class_="tick", text_anchor="middle")
            )
        for value, text in along:
            at = self.py(value)
            grid.append(_tag("line", x1=self.left, x2=WIDTH - _RIGHT, y1=at, y2=at, class_="grid"))
            grid.append(
                _tag("text", text, x=self.left - 6, y=at + 4, class_="tick", text_anchor="end")
            )
        middle = (self.left + WIDTH - _RIGHT) / 2
        names = [
            _tag(
                "text",
                self.x_label,
                x=middle,
                y=self.height - 6,
                class_="axis",
                text_anchor="middle",
            )
        ]
        if self.y_label:
            turned = f"translate(12 {(_TOP + bottom) / 2:.0f}) rotate(-90)"
            names.append(
                _tag("text", self.y_label, transform=turned, class_="axis", text_anchor="middle")
            )
        return picture(self.title, self.description, self.height, [*grid, *self._marks, *names])


def picture(
    title: str, description: str, height: float, content: Iterable[Markup], width: float = WIDTH
) -> Markup:
    """An ``svg`` element with what a screen reader says of it."""
    inside = Markup("").join([_tag("title", title), _tag("desc", description), *content])
    return _tag("svg", inside, viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=title)


def text(x: float, y: float, content: str, style: str, anchor: str = "middle") -> Markup:
    return _tag("text", content, x=x, y=y, class_=style, text_anchor=anchor)


def rect(x: float, y: float, width: float, height: float, style: str, **more: object) -> Markup:
    return _tag("rect", x=x, y=y, width=width, height=height, class_=style, **more)


def shortened(name: str, most: int = 14) -> str:
    """A name that fits its place; the whole one is in the table."""
    return name if len(name) <= most else name[: most - 1] + "…"
