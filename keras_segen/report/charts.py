"""Charts for pages, with lines that differ in color and dash."""

import numpy as np
from matplotlib.ticker import MaxNLocator

from keras_segen.plot import INK_COLOR, Picture, plain_axes
from keras_segen.report.html import svg

# Two colors that color-blind readers can distinguish, and dashes for readers who see no color.
COLORS = {"tensorflow": "#e8710a", "torch": "#c2185b"}
OTHER_COLORS = ("#1a73e8", "#188038")
DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))


class Chart:
    """One small line chart that takes its text color from the page around it.

    Args:
        x_label: str.
        y_label: str.

    Attributes:
        axes: a `matplotlib.axes.Axes`.
    """

    def __init__(self, x_label, y_label):
        self.figure = Picture(figsize=(4.7, 2.7), layout="constrained")
        self.axes = self.figure.subplots()
        plain_axes(self.axes, x_label, y_label)
        self.axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, nbins=6))
        self.count = 0

    def line(self, values, label, color, marker=None):
        """Draws values over 1, 2, …; nothing if none is finite."""
        index = self.count
        self.count += 1
        if not np.isfinite(values).any():
            return
        self.axes.plot(
            np.arange(1, len(values) + 1),
            values,
            color=color,
            linestyle=DASHES[index % len(DASHES)],
            linewidth=2.4 if index == 0 else 1.5,  # so that the first shows under the second
            marker=marker or ("o" if len(values) == 1 else None),
            markersize=4,
            label=label,
        )

    def logarithmic(self, values, label, dash="-"):
        """Draws positive values over 1, 2, …, in the color of the text, on a logarithmic axis."""
        self.axes.semilogy(
            np.arange(1, len(values) + 1),
            values,
            color=INK_COLOR,
            linestyle=dash,
            linewidth=1.4,
            marker="o" if len(values) == 1 else None,
            label=label,
        )

    def svg(self, columns=4):
        """The chart as inline SVG, with a legend of `columns` columns: `markupsafe.Markup`."""
        if len(self.axes.get_legend_handles_labels()[1]) > 1:
            self.axes.legend(
                loc="lower left",
                bbox_to_anchor=(0, 1.0),
                ncols=columns,
                frameon=False,
                labelcolor=INK_COLOR,
                fontsize=9.5 if columns > 2 else 8.5,
                borderaxespad=0.2,
                handlelength=2.6,
            )
        label = f"{self.axes.get_ylabel()} over {self.axes.get_xlabel()}"
        colors = [(code, f"var(--{name})") for name, code in COLORS.items()]
        return svg(self.figure, label, colors)
