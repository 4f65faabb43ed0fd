"""The plots, in SVG."""

from html import escape
from math import ceil, floor, log10

from .figures import METRICS, Figures
from .variants import WORKLOADS, variant

_COLOURS = {"daffi": "#d1495b", "relay": "#8d99ae", "zeromq": "#66a182", "nats": "#2e86ab", "zenoh": "#a37c27",
            "tarpc": "#7a5195", "tonic": "#b58db6", "python": "#444444"}
_FONT = 'font-family="sans-serif" font-size="12"'
_LABEL_WIDTH, _PLOT_WIDTH, _RIGHT, _ROW = 390, 520, 90, 20
#: What the lines over the calls outstanding are for: one of each peer.
_LINES = ["relay-unix", "daffi-async-tasks-unix", "daffi-async-thread-unix", "zeromq-unix", "nats", "zenoh-unix",
          "tarpc-unix", "tonic", "python"]
_OUTSTANDING = [(1, "latency"), (64, "calls-64"), (512, "calls-512"), (4096, "calls-4096")]


def plots(run):
    """Each plot by its file's name."""
    figures = Figures(run)
    found = {f"{one.name}.svg": _dots(figures, one.name, one.metric, one.title) for one in WORKLOADS
             if one.name != "memory"}
    largest = f"kib_per_node@{run['settings']['nodes'][-1]}"
    title = f"Memory of the router with {run['settings']['nodes'][-1]} idle nodes"
    found["memory.svg"] = _dots(figures, "memory", largest, title)
    found["outstanding.svg"] = _lines(figures)
    return {name: svg for name, svg in found.items() if svg}


def _dots(figures, workload, metric, title):
    """A dot for each variant's median, on a line from the least to the most; the scale is one of powers of ten."""
    names = figures.measured(workload, metric)
    found = [figures.get(name, workload, metric) for name in names]
    shown = [(name, figure) for name, figure in zip(names, found) if figure.low > 0]
    if not shown:
        return None
    scale = Scale([figure.low for _, figure in shown] + [figure.high for _, figure in shown], _LABEL_WIDTH, _PLOT_WIDTH)
    unit, decimals = METRICS[metric.split("@")[0]]
    height = 60 + _ROW * len(shown)
    parts = [_text(10, 20, f"{title}: {unit}", weight="bold"), *scale.grid(35, height - 20)]
    for row, (name, figure) in enumerate(shown):
        y = 40 + _ROW * row
        one = variant(name)
        parts.append(_text(_LABEL_WIDTH - 8, y + 13, one.label, "end", "bold" if one.peer == "daffi" else "normal"))
        low, high, middle = scale(figure.low), scale(figure.high), y + _ROW / 2 - 1
        colour = _COLOURS[one.peer]
        parts.append(f'<path d="M{_LABEL_WIDTH} {middle}H{low:.1f}" stroke="#ccc" stroke-dasharray="1 3"/>')
        parts.append(f'<path d="M{low:.1f} {middle}H{high:.1f}" stroke="{colour}" stroke-width="3"/>')
        parts.append(f'<circle cx="{scale(figure.median):.1f}" cy="{middle}" r="5" fill="{colour}"/>')
        parts.append(_text(high + 10, y + 13, f"{figure.median:,.{decimals}f}"))
    return _svg(_LABEL_WIDTH + _PLOT_WIDTH + _RIGHT, height, parts)


def _lines(figures):
    """Calls per second over the calls outstanding."""
    series = {}
    for name in _LINES:
        points = [(count, figures.get(name, workload, "calls_per_s")) for count, workload in _OUTSTANDING]
        if points := [(count, figure.median) for count, figure in points if figure]:
            series[name] = points
    if not series:
        return None
    left, top, width, height = 70, 40, 560, 360
    across = Scale([1, 4096], left, width)
    up = Scale([value for points in series.values() for _, value in points], 0, height)
    parts = [_text(10, 20, "Calls of 32 bytes per second over calls outstanding", weight="bold")]
    for value in up.ticks():
        y = top + height - up(value)
        parts.append(f'<path d="M{left} {y:.1f}h{width}" stroke="#ddd"/>')
        parts.append(_text(left - 6, y + 4, _short(value), "end"))
    for count, _ in _OUTSTANDING:
        parts.append(_text(across(count), top + height + 18, str(count), "middle"))
    ends = []
    for name, points in series.items():
        places = [(across(count), top + height - up(value)) for count, value in points]
        colour, dash = _COLOURS[variant(name).peer], ' stroke-dasharray="6 3"' if "thread" in name else ""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        ends.append((places[-1][1], variant(name).label, colour))
    below = 0
    for y, label, colour in sorted(ends):
        below = max(y + 4, below + 14)  # Labels do not lie on each other.
        parts.append(_text(left + width + 10, below, label, colour=colour))
    return _svg(left + width + 240, top + height + 30, parts)


class Scale:
    """Powers of ten on a line of so many pixels."""

    def __init__(self, values, begin, width):
        self.low, self.high = floor(log10(min(values))), max(ceil(log10(max(values))), floor(log10(min(values))) + 1)
        self.begin, self.width = begin, width

    def __call__(self, value):
        return self.begin + (log10(value) - self.low) / (self.high - self.low) * self.width

    def ticks(self):
        steps = (1, 2, 5) if self.high - self.low < 3 else (1,)
        every = [step * 10.0 ** power for power in range(self.low, self.high) for step in steps]
        return [*every, 10.0 ** self.high]

    def grid(self, top, bottom):
        for tick in self.ticks():
            x = self(tick)
            yield f'<path d="M{x:.1f} {top}V{bottom}" stroke="#ddd"/>'
            yield _text(x, bottom + 14, _short(tick), "middle")


def _short(value):
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g}"


def _text(x, y, text, anchor="start", weight="normal", colour="#222"):
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" fill="{colour}">'
            f"{escape(text)}</text>")


def _svg(width, height, parts):
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" {_FONT}><rect width="100%" height="100%" fill="white"/>\n'
            + "\n".join(parts) + "\n</svg>\n")
