"""Lines in a frame, as coordinates: the report's template draws them as SVG."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, log10

WIDTH, HEIGHT = 560, 200
NUM_TICKS = 4

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Line:
    """A name, and the points of an SVG polyline."""

    name: str
    points: str


@dataclass(frozen=True, slots=True)
class Tick:
    """A place on an axis, in pixels, and what it says there."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Plot:
    title: str
    x_label: str
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]


def plot(title: str, x_label: str, lines: dict[str, Points]) -> Plot:
    """From 0 to a little above the largest, on both axes."""
    every = [point for points in lines.values() for point in points]
    x_ticks, x_end = _ticks(max((x for x, _ in every), default=1.0))
    y_ticks, y_end = _ticks(max((y for _, y in every), default=1.0))
    return Plot(
        title,
        x_label,
        [
            Line(name, " ".join(f"{_x(x, x_end):.1f},{_y(y, y_end):.1f}" for x, y in points))
            for name, points in lines.items()
        ],
        [Tick(_x(at, x_end), f"{at:g}") for at in x_ticks],
        [Tick(_y(at, y_end), f"{at:g}") for at in y_ticks],
    )


def _x(value: float, end: float) -> float:
    return value / end * WIDTH


def _y(value: float, end: float) -> float:
    return HEIGHT - value / end * HEIGHT


def _ticks(largest: float) -> tuple[list[float], float]:
    """Round numbers from 0 on, and where the axis ends."""
    rough = (largest or 1.0) / NUM_TICKS
    power = 10.0 ** floor(log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    end = max(largest, step)
    ticks = [round(number * step, 9) for number in range(NUM_TICKS + 1)]
    return [each for each in ticks if each <= end], end
