"""What the raw measurements say: medians, their range, and ratios."""

from dataclasses import dataclass
from statistics import median

from .variants import VARIANTS, WORKLOADS, variant

#: How a figure is written: its unit, and its decimals.
METRICS = {
    "p50_us": ("p50, µs", 1),
    "p99_us": ("p99, µs", 0),
    "calls_per_s": ("calls/s", 0),
    "mib_per_s": ("MiB/s one way", 0),
    "cpu_us": ("CPU µs per call", 2),
    "kib_per_node": ("KiB per node", 1),
}


@dataclass(frozen=True)
class Figure:
    median: float
    low: float
    high: float
    rounds: int


class Figures:
    """The measurements of a run that were kept."""

    def __init__(self, run):
        self.run = run
        self.values = {}
        self.rounds = {}
        for measurement in run["measurements"]:
            if measurement["kept"]:
                for metric, value in _metrics(measurement, _size(measurement["workload"])).items():
                    key = measurement["variant"], measurement["workload"], metric
                    self.values.setdefault(key, []).append(value)
                    self.rounds.setdefault(key, {})[measurement["round"]] = value

    def get(self, variant_name, workload_name, metric):
        """A figure, or None if it was not measured."""
        values = self.values.get((variant_name, workload_name, metric))
        return values and Figure(median(values), min(values), max(values), len(values))

    def ratio(self, variant_name, other_name, workload_name, metric):
        """The first one's figure as a multiple of the other's, or None: the median of what each round says.

        A round measures them within a minute, in which the machine is as fast for both.
        """
        one, other = (self.rounds.get((name, workload_name, metric), {}) for name in (variant_name, other_name))
        ratios = [value / other[round] for round, value in one.items() if other.get(round)]
        return median(ratios) if ratios else None

    def best_peer(self, workload_name, metric, transport):
        """The best of those that route as daffi does. Over TCP only TCP counts; over UNIX sockets everybody does."""
        found = {
            one.name: figure.median
            for one in VARIANTS
            if one.routed and one.peer not in ("daffi", "relay") and (transport == "unix" or one.transport == "tcp")
            if (figure := self.get(one.name, workload_name, metric))
        }
        best = max if metric in ("calls_per_s", "mib_per_s") else min
        return best(found, key=found.get) if found else None

    def measured(self, workload_name, metric):
        """The variants that have this figure, best first."""
        names = [one.name for one in VARIANTS if self.get(one.name, workload_name, metric)]
        more_is_better = metric in ("calls_per_s", "mib_per_s")
        return sorted(names, key=lambda name: self.get(name, workload_name, metric).median, reverse=more_is_better)

    def failed_calls(self):
        """How many calls failed, by variant and workload."""
        failed = {}
        for one in self.run["measurements"]:
            if one["kept"] and one.get("failed"):
                key = variant(one["variant"]).label, one["workload"]
                failed[key] = failed.get(key, 0) + one["failed"]
        return failed


def _size(workload_name):
    return next(dict(one.options).get("size", 0) for one in WORKLOADS if one.name == workload_name)


def _metrics(measurement, size):
    if memory := measurement.get("memory_kib"):
        return {
            f"kib_per_node@{count}": (kib - memory["0"]) / int(count)
            for count, kib in memory.items() if int(count) > 0
        } | {f"kib@{count}": kib for count, kib in memory.items()}
    calls = measurement["calls"]
    if not calls:
        return {}
    per_second = calls / measurement["seconds"]
    found = {
        "calls_per_s": per_second,
        "mib_per_s": per_second * size / (1 << 20),
        "cpu_us": sum(measurement["cpu_seconds"]) * 1e6 / calls,
    }
    return found | {metric: measurement[metric] for metric in ("p50_us", "p99_us") if metric in measurement}
