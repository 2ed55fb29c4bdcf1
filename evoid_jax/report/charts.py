"""Draw charts as inline SVG: lines, stacked areas, intervals. Text in, text out, no dependency.

Colours are CSS variables of the page (assets/report.html), so that one chart serves the light and
the dark theme. Each chart carries its numbers as JSON in `data-chart`, from which the page's script
shows values under the pointer or the arrow keys; without the script the picture is complete.

Why not a library (compared in 2026 by drawing one chart of 70 steps): matplotlib's SVG has fixed
colours, a style rule for every element of the page (`*{}`), ids that repeat from chart to chart, no
labels for screen readers and no values to show, takes 18 kB instead of 7 and 3 s a page instead of
0.03, and brings 75 MB of packages; pygal is LGPL, takes 34 kB and a script from a foreign server;
leather (MIT) draws neither stacks nor intervals, and its colours are fixed; Altair, Bokeh and
Plotly put 1 to 4 MB of script into every page. The theme, the text alternatives and the values
under the pointer would remain ours to write on each of them.
"""

import html
import json
import math
from collections.abc import Sequence
from typing import NamedTuple

from evoid_jax.report.text import number

LEFT, RIGHT, TOP, BOTTOM = 44, 12, 10, 24  # margins of the plot in user units


class Series(NamedTuple):
    """One curve: its name, a CSS colour and a value (or None) per step."""

    name: str
    colour: str
    values: Sequence[float | None]
    foreign: frozenset[int] = frozenset()  # places of steps that only other curves have


class Frame(NamedTuple):
    """Where the data lie: size in user units, first and last step, value range."""

    width: int
    height: int
    first: float
    last: float
    low: float
    high: float

    def x(self, step):
        """Return a step's place in user units; a lone step stands in the middle."""
        share = (step - self.first) / (self.last - self.first) if self.last > self.first else 0.5
        return LEFT + share * (self.width - LEFT - RIGHT)

    def y(self, value):
        """Return a value's place in user units; SVG counts from the top."""
        share = (value - self.low) / (self.high - self.low)
        return self.height - BOTTOM - share * (self.height - TOP - BOTTOM)


def lines(label, steps, series, width=560, height=260, smooth=1, low=None, high=None) -> str:
    """Draw curves over steps. smooth > 1: running mean over that many steps, points behind it."""
    values = [value for one in series for value in one.values if value is not None]
    frame = _frame(steps, values, width, height, low, high)
    body = [_axes(frame)]
    for one in series:
        style = f'style="--c:{one.colour}"'
        curve = running_mean(one.values, smooth)
        if smooth > 1:
            body.append(f'<g class="dots" {style}>{_dots(frame, steps, one.values)}</g>')
        path = _path(frame, steps, curve, one.foreign)
        body.append(f'<path class="curve" {style} d="{path}"/>')
        if sum(value is not None for value in curve) == 1:  # a path of one point is not seen
            body.append(f'<g class="dots one" {style}>{_dots(frame, steps, curve)}</g>')
    return _svg(label, frame, steps, series, "".join(body))


def areas(label, steps, series, width=560, height=260, high=None) -> str:
    """Draw non-negative series stacked on each other, the first at the bottom; None counts as 0."""
    base = [0.0] * len(steps)
    tops = [base]
    for one in series:
        base = [low + (value or 0.0) for low, value in zip(base, one.values, strict=True)]
        tops.append(base)
    frame = _frame(steps, base, width, height, 0.0, high)
    xs = [frame.x(step) for step in steps]
    if len(steps) == 1:  # a lone step becomes a bar
        xs = [xs[0] - 20, xs[0] + 20]
        tops = [top * 2 for top in tops]
    body = []
    for one, lower, upper in zip(series, tops[:-1], tops[1:], strict=True):
        # once around the area: along its upper edge, and back along its lower one
        forth = [f"{_n(x)},{_n(frame.y(y))}" for x, y in zip(xs, upper, strict=True)]
        back = [f"{_n(x)},{_n(frame.y(y))}" for x, y in zip(xs, lower, strict=True)]
        points = " ".join(forth + back[::-1])
        body.append(f'<polygon class="area" style="--c:{one.colour}" points="{points}"/>')
    return _svg(label, frame, steps, series, "".join(body) + _axes(frame))


def interval(label, delta, low, high, span, kind="flat") -> str:
    """Draw a delta and its interval on the range [-span, span] around zero.

    kind: "up", "down" or "flat", see proof.direction; the numbers alone do not tell, since an
    interval over too few identities must not be green.
    """
    width, height, mid = 180, 22, 90
    # What lies outside of [-span, span] is drawn at the edge.
    x = lambda value: mid + max(-1.0, min(1.0, value / span)) * (mid - 6)
    body = f'<line class="zero" x1="{mid}" x2="{mid}" y1="1" y2="{height - 1}"/>'
    if delta is not None:
        if low is not None and high is not None:
            body += (
                f'<line class="range {kind}" x1="{_n(x(low))}" x2="{_n(x(high))}" y1="11" y2="11"/>'
            )
        body += f'<circle class="{kind}" cx="{_n(x(delta))}" cy="11" r="4.5"/>'
    text = html.escape(label, quote=True)
    return (
        f'<svg class="interval" viewBox="0 0 {width} {height}" role="img" aria-label="{text}">'
        f"{body}</svg>"
    )


def running_mean(values, window) -> list[float | None]:
    """Return the centred mean over `window` steps, over the values that exist; None stays None."""
    if window <= 1:
        return list(values)
    half, out = window // 2, []
    for i, value in enumerate(values):
        near = [x for x in values[max(0, i - half) : i + half + 1] if x is not None]
        out.append(sum(near) / len(near) if near and value is not None else None)
    return out


def ticks(low, high, count=4) -> list[float]:
    """Return about `count` round numbers that span [low, high] or a little less."""
    rough = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = min((1, 2, 5, 10), key=lambda k: abs(k * unit - rough)) * unit
    # 1e-9: an end that is a multiple of the step, but for rounding, has a tick
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def _frame(steps, values, width, height, low, high):
    least = min(values, default=0.0) if low is None else low
    most = max(values, default=1.0) if high is None else high
    # A little air above and below, unless the caller fixed the end; a flat curve needs a range too.
    pad = (most - least) * 0.06 or max(abs(most) * 0.1, 1e-6)
    if low is None:
        least -= pad
    if high is None:
        most += pad
    if most <= least:
        most = least + 1.0
    return Frame(width, height, first=steps[0], last=steps[-1], low=least, high=most)


def _axes(frame):
    parts = []
    for value in ticks(frame.low, frame.high, 4 if frame.height > 200 else 3):
        y = _n(frame.y(value))
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{frame.width - RIGHT}" y1="{y}" y2="{y}"/>'
        )
        parts.append(f'<text class="tick" x="{LEFT - 7}" y="{y}" dy=".32em" text-anchor="end">')
        parts.append(f"{number(value, 4)}</text>")
    y = frame.height - 7
    for step in _step_ticks(frame):
        parts.append(f'<text class="tick" x="{_n(frame.x(step))}" y="{y}" text-anchor="middle">')
        parts.append(f"{number(step, 6)}</text>")
    return f'<g aria-hidden="true">{"".join(parts)}</g>'


def _step_ticks(frame):
    if frame.last <= frame.first:
        return [frame.first]
    count = 6 if frame.width > 400 else 4
    return [step for step in ticks(frame.first, frame.last, count) if step == int(step)]


def _path(frame, steps, values, foreign):
    out, pen = [], "M"
    for i, (step, value) in enumerate(zip(steps, values, strict=True)):
        if i in foreign:
            continue  # the curve goes on over another's step
        if value is None:
            pen = "M"  # a missing value leaves a gap
            continue
        out.append(f"{pen}{_n(frame.x(step))} {_n(frame.y(value))}")
        pen = "L"
    return "".join(out)


def _dots(frame, steps, values):
    return "".join(
        f'<circle cx="{_n(frame.x(step))}" cy="{_n(frame.y(value))}" r="1.8"/>'
        for step, value in zip(steps, values, strict=True)
        if value is not None
    )


def _svg(label, frame, steps, series, body):
    data = {
        "steps": list(steps),
        "x": [round(frame.x(step), 1) for step in steps],
        "top": TOP,
        "bottom": frame.height - BOTTOM,
        "series": [
            {"name": one.name, "colour": one.colour, "values": [number(v) for v in one.values]}
            for one in series
        ],
    }
    text = html.escape(f"{label}. {_spoken(steps, series)}", quote=True)
    return (
        f'<svg class="chart" viewBox="0 0 {frame.width} {frame.height}" role="img" tabindex="0" '
        f'aria-label="{text}" data-chart="{html.escape(json.dumps(data), quote=True)}">'
        f'{body}<line class="cursor" y1="{TOP}" y2="{frame.height - BOTTOM}"/></svg>'
    )


def _spoken(steps, series):
    """Return the text alternative: where each curve starts and ends."""
    parts = []
    for one in series:
        seen = [(s, v) for s, v in zip(steps, one.values, strict=True) if v is not None]
        if seen:
            (first, start), (last, end) = seen[0], seen[-1]
            parts.append(
                f"{one.name}: {number(start)} at step {first}, {number(end)} at step {last}"
            )
    return "; ".join(parts)


def _n(value):
    return f"{value:.1f}".removesuffix(".0")
