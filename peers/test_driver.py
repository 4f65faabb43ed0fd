"""The evaluation, on measurements that are made up."""

import unittest

from driver import plot, profile, table, targets
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

    def test_ratios_are_those_of_each_round_since_machines_change_their_speed(self):
        calls = {1: (100, 50), 2: (1000, 500), 3: (400, 100)}
        measurements = [
            measurement(name, "calls-512", round, calls=n)
            for round, counts in calls.items() for name, n in zip(("daffi-async-tasks-unix", "nats"), counts)
        ]
        # One that the other one has no counterpart for says nothing.
        measurements.append(measurement("nats", "calls-512", 4, calls=1))
        ratio = Figures(run(*measurements)).ratio("daffi-async-tasks-unix", "nats", "calls-512", "calls_per_s")
        self.assertEqual(ratio, 2)

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


class ProfileTest(unittest.TestCase):
    KERNEL = 0xFFFFFFFF81000000

    def part(self, *kernel, user=("main",)):
        stack = [(self.KERNEL + place, name) for place, name in enumerate(kernel)]
        return profile.part_of(stack + [(0x1000 + place, name) for place, name in enumerate(user)])

    def test_a_sample_is_counted_for_what_the_kernel_was_asked_for(self):
        self.assertEqual(self.part("_copy_from_iter", "unix_stream_sendmsg", "__x64_sys_sendto"), "copying")
        self.assertEqual(self.part("skb_alloc", "__x64_sys_writev"), "writing, the rest")
        self.assertEqual(self.part("kfree", "__x64_sys_recvfrom"), "reading, the rest")
        self.assertEqual(self.part("ttwu", "try_to_wake_up", "ep_poll_callback", "__x64_sys_sendto"), "waking others")
        self.assertEqual(self.part("clear_page_erms", "exc_page_fault", user=("__memset_avx2",)), "page faults")
        self.assertEqual(self.part("__schedule", "do_epoll_wait"), "waiting")
        self.assertEqual(self.part("something"), "the kernel's rest")

    def test_a_sample_in_user_space_is_counted_for_its_function(self):
        self.assertEqual(self.part(user=("__memmove_avx_unaligned_erms", "f")), "copying in user space")
        self.assertEqual(self.part(user=("_int_free", "f")), "allocator")
        self.assertEqual(self.part(user=("route", "malloc")), "the program itself")
        self.assertEqual(profile.part_of([]), "the program itself")

    def test_parts_add_up_to_what_the_processes_used(self):
        script = " 7 \n\tffffffff81baf0b4 _copy_to_iter\n\n 8 \n\tee6eb call::get\n\n 8 \n\tee6ec \n\n 9 \n\t1 x\n\n"
        calls = {"calls": 1000, "cpu_seconds": [0.001, 0.002]}
        found = profile.by_role(script, {7: "router", 8: "caller"}, calls)
        self.assertEqual(found, {("router", "copying"): 1.0, ("caller", "the program itself"): 2.0})
        table = profile.markdown("Calls", {"daffi": found})
        self.assertIn("| copying | 1.00 |", table)
        self.assertIn("| **all** | 3.00 |", table)


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
