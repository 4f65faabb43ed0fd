"""The evaluation, on measurements that are made up."""

import unittest

from driver import plot, table, targets
from driver.figures import Figures
from driver.variants import VARIANTS, WORKLOADS, variant


def measurement(name, workload, round=1, kept=True, **found):
    found = {"calls": 1000, "failed": 0, "seconds": 2.0, "cpu_seconds": [0.5, 0.5], "steal": 0.01} | found
    return {"variant": name, "workload": workload, "round": round, "attempt": 1, "kept": kept, **found}


def run(*measurements):
    settings = {"rounds": 3, "window": 2, "warm_up": 0.5, "nodes": [1, 500, 5000], "steal_max": 0.05}
    return {"date": "today", "commit": "abc", "machine": {"CPUs": "2"}, "versions": {"rustc": "1"}, "settings": settings,
            "discarded": 0, "measurements": list(measurements), "missing": []}


class FiguresTest(unittest.TestCase):
    def test_a_figure_is_the_median_of_what_was_kept(self):
        calls = [(100, True), (300, True), (200, True), (9000, False)]
        figures = Figures(run(*(measurement("nats", "calls-512", calls=n, kept=kept) for n, kept in calls)))
        figure = figures.get("nats", "calls-512", "calls_per_s")
        self.assertEqual((figure.median, figure.low, figure.high, figure.rounds), (100, 50, 150, 3))
        self.assertEqual(figures.get("nats", "calls-512", "cpu_us").median, 1e6 / 200)
        self.assertIsNone(figures.get("nats", "calls-64", "calls_per_s"))

    def test_large_payloads_count_once(self):
        figures = Figures(run(measurement("nats", "1MiB", calls=800)))
        self.assertEqual(figures.get("nats", "1MiB", "mib_per_s").median, 400)

    def test_memory_is_what_the_nodes_add(self):
        memory = {"0": 1000, "1": 1010, "500": 6000}
        figures = Figures(run({**measurement("nats", "memory"), "memory_kib": memory}))
        self.assertEqual(figures.get("nats", "memory", "kib_per_node@500").median, 10)
        self.assertEqual(figures.get("nats", "memory", "kib@0").median, 1000)
        self.assertIsNone(figures.get("nats", "memory", "kib_per_node@5000"))

    def test_the_best_peer_routes_and_is_neither_daffi_nor_the_relay(self):
        p50 = {"relay-unix": 1, "daffi-async-tasks-unix": 2, "tarpc-unix": 3, "zeromq-unix": 4, "nats": 5}
        figures = Figures(run(*(measurement(name, "latency", p50_us=us) for name, us in p50.items())))
        self.assertEqual(figures.best_peer("latency", "p50_us", "unix"), "zeromq-unix")
        self.assertEqual(figures.best_peer("latency", "p50_us", "tcp"), "nats")
        self.assertEqual(figures.measured("latency", "p50_us")[0], "relay-unix")


class TargetsTest(unittest.TestCase):
    def lines(self, *measurements):
        return {(line.what, line.bound): line for line in targets.lines(run(*measurements), "tasks")}

    def test_each_bound_holds_or_does_not(self):
        lines = self.lines(
            measurement("relay-unix", "calls-512", calls=1000),
            measurement("zeromq-unix", "calls-512", calls=200),
            measurement("daffi-async-tasks-unix", "calls-512", calls=450),
        )
        what = "daffi-async-tasks-unix: calls-512 calls_per_s"
        self.assertIs(lines[what, ">= 0.45×"].holds, True)
        self.assertIs(lines[what, ">= 2.3×"].holds, False)
        self.assertIsNone(lines[what, ">= 7×"].holds)
        self.assertIs(lines["daffi-async-tasks-unix: calls-512 cpu_us", "<= 2.5×"].holds, True)

    def test_less_is_better_for_latency(self):
        measurements = measurement("relay-unix", "pinned", p50_us=10), measurement("daffi-async-tasks-unix", "pinned", p50_us=16)
        self.assertIs(self.lines(*measurements)["daffi-async-tasks-unix: pinned p50_us", "<= 1.5×"].holds, False)

    def test_every_target_is_about_something_that_is_measured(self):
        measured = {(one.name, workload) for one in VARIANTS for workload in one.workloads}
        for line in targets.lines(run(), "tasks"):
            name, rest = line.what.split(": ")
            workload = "memory" if rest.startswith("memory") else rest.split()[0]
            self.assertIn((name, workload), measured)


class ReportTest(unittest.TestCase):
    def test_everything_that_was_measured_is_shown(self):
        every = []
        for one in VARIANTS:
            for workload in one.workloads:
                found = {"memory_kib": {"0": 1, "500": 9, "5000": 90}} if workload == "memory" else {"p50_us": 5, "p99_us": 9}
                every.append({**measurement(one.name, workload), **found})
        whole = run(*every)
        report = table.markdown(whole)
        for one in VARIANTS:
            self.assertIn(one.label, report)
        for workload in WORKLOADS:
            self.assertIn(f"## {workload.title}", report)
        self.assertEqual(len(plot.plots(whole)), len(WORKLOADS) + 1)

    def test_what_was_not_run_says_why(self):
        whole = run()
        whole["missing"].append({"variant": "nats", "workload": "latency", "reason": "no server"})
        self.assertIn(f"{variant('nats').label}, latency: no server", table.markdown(whole))


if __name__ == "__main__":
    unittest.main()
