"""Plot of the plane: gain upwards, forgetting to the right; what is good is at the top left."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

MARKERS = "os^vDPX*<>hp"


def plot(plane: Mapping[str, Mapping[str, Mapping[str, Any]]], path: Path) -> None:
    """Plot one panel a backbone and task, three beside one another."""
    from matplotlib.figure import Figure

    columns = min(len(plane), 3)
    rows = -(-len(plane) // columns)
    figure = Figure(figsize=(5.4 * columns, 5 * rows + 1), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    # The same sign for the same way in each of them.
    ways = list(dict.fromkeys(way for figures in plane.values() for way in figures))
    signs = {way: (MARKERS[n % len(MARKERS)], f"C{n % 10}") for n, way in enumerate(ways)}
    shown = {}
    for panel, (name, figures) in zip(panels, plane.items(), strict=False):
        largest = max((one["gain"][0] for one in figures.values()), default=0.0)
        # A way that hardly learns would press all others together.
        outside = [way for way, one in figures.items() if one["gain"][0] < largest / 2]
        for way, one in figures.items():
            if way in outside:
                continue
            (x, left, right), (y, low, high) = one["forgetting"], one["gain"]
            marker, color = signs[way]
            shown[way] = panel.errorbar(
                x, y, xerr=[[x - left], [right - x]], yerr=[[y - low], [high - y]], fmt=marker,
                color=color, markersize=6, linewidth=0.6, alpha=0.85,
            )  # fmt: skip
        panel.axvline(0, color="0.7", linewidth=0.8)
        title = name + (f" (outside: {', '.join(outside)})" if outside else "")
        panel.set(title=title, xlabel="forgetting (nats)", ylabel="gain (nats per token)")
    for panel in panels[len(plane) :]:
        panel.set_visible(False)
    figure.legend(shown.values(), shown, loc="outside lower center", ncols=6, fontsize=8)
    figure.savefig(path, dpi=120)
