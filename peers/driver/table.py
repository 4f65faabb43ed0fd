"""The tables, in Markdown."""

from .figures import METRICS, Figures
from .variants import WORKLOADS, variant

#: What is shown beside the figure that a workload is judged by, if it was measured.
_COLUMNS = ("p50_us", "p99_us", "calls_per_s", "cpu_us")


def markdown(run):
    """The whole report."""
    figures = Figures(run)
    lines = ["# daffi and its peers, side by side", "", *_about(run), ""]
    for workload in WORKLOADS:
        rows = _memory(figures, run) if workload.name == "memory" else _rows(figures, workload)
        if rows:
            lines += [f"## {workload.title}", "", *rows, ""]
    lines += _notes(figures)
    return "\n".join(lines)


def _about(run):
    machine, settings = run["machine"], run["settings"]
    yield f"{run['date']}, daffi at {run['commit']}."
    yield ""
    yield "- Machine: " + ", ".join(f"{key} {value}" for key, value in machine.items())
    yield "- Versions: " + ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    yield (f"- Rounds: {settings['rounds']}, each with all of them in turn; windows of {settings['window']} s after "
           f"{settings['warm_up']} s of warm-up. Each figure is the median (least–most) of the rounds.")
    yield (f"- Thrown away, because the host took more than {settings['steal_max']:.0%} of the machine's time: "
           f"{run['discarded']} of {len(run['measurements'])} measurements. In those that were kept it took "
           f"{_steal(run)}.")
    yield ("- × relay and × peer: daffi's figure as a multiple of the raw relay's over the same transport, and of that of "
           "the best peer that routes; the median of what each round says.")


def _steal(run):
    kept = [one["steal"] for one in run["measurements"] if one["kept"]]
    return f"{sum(kept) / max(1, len(kept)):.1%} on average, {max(kept, default=0):.1%} at most"


def _rows(figures, workload):
    names = figures.measured(workload.name, workload.metric)
    if not names:
        return []
    columns = [workload.metric] + [
        metric for metric in _COLUMNS if metric != workload.metric and figures.measured(workload.name, metric)
    ]
    rows = [["who", *(METRICS[metric][0] for metric in columns), "× relay", "× peer", "rounds"]]
    for name in names:
        one = variant(name)
        cells = [_cell(figures.get(name, workload.name, metric), metric) for metric in columns]
        ratios = ["", ""]
        if one.peer == "daffi":
            peer = figures.best_peer(workload.name, workload.metric, one.transport)
            others = (f"relay-{one.transport}", peer)
            ratios = [_times(figures.ratio(name, other, workload.name, workload.metric)) for other in others]
        rounds = figures.get(name, workload.name, workload.metric).rounds
        rows.append([_name(one), *cells, *ratios, str(rounds)])
    return _table(rows)


def _memory(figures, run):
    counts = run["settings"]["nodes"]
    largest = next((f"kib_per_node@{count}" for count in reversed(counts)
                    if figures.measured("memory", f"kib_per_node@{count}")), None)
    if not largest:
        return []
    rows = [["who", "alone, KiB", *(f"{count} nodes, KiB" for count in counts),
             *(f"KiB per node of {count}" for count in counts if count > 1)]]
    metrics = ["kib@0", *(f"kib@{count}" for count in counts),
               *(f"kib_per_node@{count}" for count in counts if count > 1)]
    names = figures.measured("memory", largest)
    names += [name for name in figures.measured("memory", "kib@0") if name not in names]
    for name in names:
        rows.append([_name(variant(name)), *(_cell(figures.get(name, "memory", metric), metric) for metric in metrics)])
    return _table(rows)


def _notes(figures):
    run = figures.run
    missing = [f"- {variant(one['variant']).label}, {one['workload']}: {one['reason']}" for one in run["missing"]]
    if missing:
        yield from ["## Not run", "", *dict.fromkeys(missing), ""]
    failed = [f"- {label}, {name}: {count}" for (label, name), count in figures.failed_calls().items()]
    if failed:
        yield from ["## Calls that failed", "", *failed, ""]


def _name(one):
    return f"**{one.label}**" if one.peer == "daffi" else one.label


def _cell(figure, metric):
    if figure is None:
        return "–"
    decimals = METRICS.get(metric.split("@")[0], ("", 0))[1]
    numbers = [f"{number:,.{decimals}f}" for number in (figure.median, figure.low, figure.high)]
    if figure.rounds == 1:
        return numbers[0]
    return "{} ({}–{})".format(*numbers)


def _times(ratio):
    return "–" if ratio is None else f"{ratio:.2f}×"


def _table(rows):
    head, *rest = rows
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] + ["---:"] * (len(head) - 1), *rest)]
