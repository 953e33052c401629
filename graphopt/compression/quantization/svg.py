"""Small plots as inline SVG: no scripts, no external files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 960, 260, 46, 22
CEILING = 80.0
"""In dB; what is better is drawn there."""


def sqnr_plot(
    names: Sequence[str], lines: Sequence[float | None], bars: Sequence[float | None]
) -> str:
    """A curve and bars in dB over the layers; a layer's name shows on hovering.

    Args:
        lines: SQNR of each layer's output. bars: of the model's output with it alone quantized.
    """
    count = max(len(names), 1)
    step = (_WIDTH - _LEFT) / count
    parts = [_grid()]
    for place, (name, value) in enumerate(zip(names, bars, strict=True)):
        if value is None or math.isnan(value):
            continue
        top = _height(value)
        label = f"{name}: alone {_words(value)}, cumulative {_words(lines[place])}"
        parts.append(
            f'<rect class="bar" x="{_LEFT + place * step + 0.1 * step:.1f}" y="{top:.1f}" '
            f'width="{0.8 * step:.1f}" height="{_HEIGHT - _BOTTOM - top:.1f}">'
            f"<title>{escape(label)}</title></rect>"
        )
    points = [
        (_LEFT + (place + 0.5) * step, _height(value), name, value)
        for place, (name, value) in enumerate(zip(names, lines, strict=True))
        if value is not None and not math.isnan(value)
    ]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in points)
    parts.append(f'<polyline class="line" points="{path}"/>')
    for x, y, name, value in points:
        label = f"{name}: {_words(value)}"
        parts.append(
            f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3">'
            f"<title>{escape(label)}</title></circle>"
        )
    return _svg(_WIDTH, _HEIGHT, parts)


def _grid() -> str:
    found = []
    for value in range(0, int(CEILING) + 1, 20):
        y = _height(value)
        found.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
        found.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value}</text>')
    found.append(f'<text x="4" y="12">dB</text><text x="{_LEFT}" y="{_HEIGHT - 4}">layers</text>')
    return "".join(found)


def _height(value: float) -> float:
    inside = min(max(value, 0.0), CEILING) / CEILING
    return (_HEIGHT - _BOTTOM) - inside * (_HEIGHT - _BOTTOM - 14)


def histogram(counts: Sequence[int], least: float, largest: float, low: float, high: float) -> str:
    """Bars on a logarithmic scale, with the kept range [low, high] marked."""
    width, height = 180, 36
    start, end = min(least, 0.0), max(largest, 0.0)
    span = end - start or 1.0
    top = math.log1p(max(counts, default=0)) or 1.0
    bar = width / max(len(counts), 1)
    parts = [
        f'<rect class="bar" x="{k * bar:.1f}" width="{bar:.1f}" '
        f'y="{height - size:.1f}" height="{size:.1f}"/>'
        for k, count in enumerate(counts)
        if (size := height * math.log1p(count) / top) > 0
    ]
    for edge in (low, high):
        x = min(max((edge - start) / span, 0.0), 1.0) * width
        parts.append(f'<line class="edge" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}"/>')
    return _svg(width, height, parts)


def _svg(width: int, height: int, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">'
        + "".join(parts)
        + "</svg>"
    )


def _words(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "not measured"
    if math.isinf(value):
        return "no noise" if value > 0 else "no signal"
    return f"{value:.1f} dB"
