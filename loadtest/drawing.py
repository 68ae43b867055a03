"""Figures as SVG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pygal
from pygal.style import CleanStyle

#: Of one thing that was measured: by what is on the axis, the figure; None where there is none.
Series = Mapping[str, float | None]


def bars(path: Path, title: str, series: Mapping[str, Series]) -> None:
    """A bar for each figure, side by side where they have a name in common."""
    _draw(pygal.Bar, path, title, series, logarithmic=False)


def lines(path: Path, title: str, series: Mapping[str, Series]) -> None:
    """A line for each of the series, on an axis on which twice as dear is as far everywhere."""
    _draw(pygal.Line, path, title, series, logarithmic=True)


def _draw(
    kind: type[pygal.graph.graph.Graph], path: Path, title: str, series: Mapping[str, Series], **more: bool
) -> None:
    # Without the script that pygal would load from its own site: a page that shows the drawing asks nobody.
    chart = kind(
        title=title, style=CleanStyle, js=[], width=900, height=420, legend_at_bottom=True, print_values=True,
        value_formatter=lambda value: f"{value:.0f}", **more,
    )  # fmt: skip
    chart.x_labels = list(dict.fromkeys(name for figures in series.values() for name in figures))
    for name, figures in series.items():
        chart.add(name, [figures.get(label) for label in chart.x_labels])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(chart.render(disable_xml_declaration=True).encode())
