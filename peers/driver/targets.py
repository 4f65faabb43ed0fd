"""What daffi is to reach, as ratios within one run, and whether it does."""

from dataclasses import dataclass

from .figures import Figures

#: By how much a figure that is to be "at least as good" may be worse: two runs of one program differ by that.
NOISE = 0.05

#: workload, metric, and the bounds: against whom, and which multiple of its figure at most or at least.
_MAIN = [
    ("pinned", "p50_us", [("relay", "<=", 1.5), ("best", "<=", 0.5)]),
    ("latency", "p50_us", [("relay", "<=", 1.9), ("best", "<=", 0.5)]),
    ("calls-512", "calls_per_s", [("relay", ">=", 0.45), ("zeromq", ">=", 2.3), ("nats", ">=", 7)]),
    ("calls-4096", "calls_per_s", [("relay", ">=", 0.2), ("zeromq", ">=", 3.5)]),
    ("calls-512", "cpu_us", [("relay", "<=", 2.5), ("zeromq", "<=", 0.3)]),
    ("64KiB", "mib_per_s", [("relay", ">=", 0.9), ("zeromq", ">=", 2)]),
    ("1MiB", "mib_per_s", [("relay", ">=", 1.5), ("zeromq", ">=", 1.3), ("nats", ">=", 3)]),
    ("broadcast", "calls_per_s", [("relay", ">=", 0.65), ("nats", ">=", 1.8)]),
]
_NODE_KIB = 12


@dataclass(frozen=True)
class Line:
    what: str
    bound: str
    reached: str
    #: None if it was not measured.
    holds: object


def lines(run, caller):
    """Every target, with daffi's calls made by `caller`: `tasks` or `thread`."""
    figures = Figures(run)
    for transport in ("unix", "tcp"):
        async_fn = f"daffi-async-{caller}-{transport}"
        for workload, metric, bounds in _MAIN:
            for against, relation, bound in bounds:
                other = _other(figures, against, workload, metric, transport)
                yield _line(figures, async_fn, other, workload, metric, relation, bound)
    for count in run["settings"]["nodes"][1:]:
        for transport in ("unix", "tcp"):
            yield _memory(figures, f"daffi-async-tasks-{transport}", count)
    unix = f"daffi-async-{caller}-unix"
    yield _line(figures, f"daffi-fn-{caller}-unix", unix, "calls-512", "calls_per_s", ">=", 0.5)
    inline = f"daffi-inline-{caller}-unix"
    for workload, metric, _ in _MAIN:
        relation, bound = ("<=", 1 + NOISE) if metric in ("p50_us", "cpu_us") else (">=", 1 - NOISE)
        yield _line(figures, inline, unix, workload, metric, relation, bound)
    yield _line(figures, inline, "relay-unix", "calls-512", "calls_per_s", ">=", 0.5)
    for transport in ("unix", "tcp"):
        for controller in ("callee", "caller"):
            embedded, tarpc = f"daffi-async-{caller}-{transport}-in-{controller}", f"tarpc-{transport}"
            for workload in ("pinned", "latency"):
                yield _line(figures, embedded, tarpc, workload, "p50_us", "<=", 1.3)
            yield _line(figures, embedded, tarpc, "calls-512", "calls_per_s", ">=", 3)


def text(run, caller):
    """The table, and whether all of it holds."""
    found = list(lines(run, caller))
    rows = [("", "target", "reached", "")] + [
        (line.what, line.bound, line.reached, {True: "PASS", False: "FAIL", None: "not measured"}[line.holds])
        for line in found
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    counts = {state: sum(line.holds is state for line in found) for state in (True, False, None)}
    table.append(f"{counts[True]} of {len(found)} hold, {counts[False]} do not, {counts[None]} were not measured "
                 f"(daffi's calls: {caller})")
    return "\n".join(table), counts[False] == counts[None] == 0


def _other(figures, against, workload, metric, transport):
    if against == "best":
        return figures.best_peer(workload, metric, transport)
    return against if against == "nats" else f"{against}-{transport}"


def _line(figures, name, other, workload, metric, relation, bound):
    what = f"{name}: {workload} {metric}"
    ratio = other and figures.ratio(name, other, workload, metric)
    holds = None if ratio is None else ratio <= bound if relation == "<=" else ratio >= bound
    reached = "–" if ratio is None else f"{ratio:.2f}× {other}"
    return Line(what, f"{relation} {bound:g}×", reached, holds)


def _memory(figures, name, count):
    figure = figures.get(name, "memory", f"kib_per_node@{count}")
    reached = "–" if figure is None else f"{figure.median:.1f} KiB"
    return Line(f"{name}: memory of each of {count} nodes", f"<= {_NODE_KIB} KiB", reached,
                None if figure is None else figure.median <= _NODE_KIB)
