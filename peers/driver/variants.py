"""Who is compared, and doing what."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Workload:
    """What a caller does, or `memory`, where idle nodes do nothing."""

    name: str
    title: str
    #: What is judged first, and whether more of it is better.
    metric: str
    more_is_better: bool
    #: The caller's options.
    options: tuple = ()
    pinned: bool = False
    callees: int = 1


def _throughput(name, title, outstanding, size, metric):
    options = (("workload", "throughput"), ("outstanding", outstanding), ("size", size))
    return Workload(name, title, metric, True, options)


_ONE_BY_ONE = (("workload", "latency"), ("size", 32))

WORKLOADS = [
    Workload("latency", "One call of 32 bytes at a time, default placement", "p50_us", False, _ONE_BY_ONE),
    Workload("pinned", "One call of 32 bytes at a time, all processes on one CPU", "p50_us", False, _ONE_BY_ONE, True),
    _throughput("calls-64", "64 calls of 32 bytes outstanding", 64, 32, "calls_per_s"),
    _throughput("calls-512", "512 calls of 32 bytes outstanding", 512, 32, "calls_per_s"),
    _throughput("calls-4096", "4096 calls of 32 bytes outstanding", 4096, 32, "calls_per_s"),
    _throughput("64KiB", "8 calls of 64 KiB outstanding", 8, 65536, "mib_per_s"),
    _throughput("1MiB", "8 calls of 1 MiB outstanding", 8, 1 << 20, "mib_per_s"),
    Workload("broadcast", "One call of 32 bytes at a time to 8 nodes, all replies gathered", "calls_per_s", True,
             (("workload", "broadcast"), ("callees", 8), ("size", 32)), callees=8),
    Workload("memory", "Memory of the router with idle nodes", "kib_per_node", False),
]
_CALLS = [workload.name for workload in WORKLOADS if workload.name != "memory"]
_BASICS = ["latency", "pinned", "calls-512"]


@dataclass(frozen=True)
class Variant:
    """One row of the tables: a peer over one transport, in one of its ways."""

    name: str
    label: str
    peer: str
    transport: str
    workloads: tuple
    #: Whether a third process is between caller and callee.
    routed: bool = True
    #: What its programs are told besides the workload.
    options: tuple = ()
    #: Workloads that it has no means for, and why.
    lacks: tuple = ()


_CALLBACKS = {"async": "async fn", "fn": "fn", "inline": "inline fn"}
_TRANSPORTS = {"unix": "UNIX", "tcp": "TCP"}


def _daffi(callback, caller, transport, controller, workloads):
    name = f"daffi-{callback}-{caller}-{transport}"
    label = f"daffi, {_CALLBACKS[callback]}, {caller}, {_TRANSPORTS[transport]}"
    if controller != "standalone":
        name += f"-in-{controller}"
        label += f", controller in the {controller}"
    options = (("callback", callback), ("caller", caller), ("controller", controller))
    return Variant(name, label, "daffi", transport, tuple(workloads), controller == "standalone", options)


def _peer(name, label, peer, transport, workloads=(*_CALLS, "memory"), routed=True, lacks=()):
    without = {workload for workload, _ in lacks}
    return Variant(name, label, peer, transport, tuple(w for w in workloads if w not in without), routed, (), lacks)


def _variants():
    yield _peer("relay-unix", "raw relay, UNIX", "relay", "unix")
    yield _peer("relay-tcp", "raw relay, TCP", "relay", "tcp", _CALLS)
    for transport in _TRANSPORTS:
        yield _daffi("async", "tasks", transport, "standalone", [*_CALLS, "memory"])
        yield _daffi("async", "thread", transport, "standalone", _CALLS)
        for callback in ("fn", "inline"):
            yield _daffi(callback, "tasks", transport, "standalone", _CALLS if transport == "unix" else _BASICS)
    yield _daffi("fn", "thread", "unix", "standalone", _BASICS)
    yield _daffi("inline", "thread", "unix", "standalone", _CALLS)
    for transport in _TRANSPORTS:
        for controller in ("callee", "caller"):
            for caller in ("tasks", "thread"):
                yield _daffi("async", caller, transport, controller, _BASICS)
    yield _peer("nats", "NATS, TCP", "nats", "tcp")
    one_callee = (("broadcast", "its proxy passes a message on to one callee"),)
    yield _peer("zeromq-unix", "ZeroMQ, UNIX", "zeromq", "unix", lacks=one_callee)
    yield _peer("zeromq-tcp", "ZeroMQ, TCP", "zeromq", "tcp", _CALLS, lacks=one_callee)
    yield _peer("zenoh-unix", "Zenoh, UNIX", "zenoh", "unix")
    yield _peer("zenoh-tcp", "Zenoh, TCP", "zenoh", "tcp", _BASICS)
    direct = (("broadcast", "it calls one callee"),)
    yield _peer("tarpc-unix", "tarpc, direct, UNIX", "tarpc", "unix", routed=False, lacks=direct)
    yield _peer("tarpc-tcp", "tarpc, direct, TCP", "tarpc", "tcp", _BASICS, routed=False)
    yield _peer("tonic", "tonic, direct, TCP", "tonic", "tcp", routed=False, lacks=direct)
    yield _peer("python", "daffi 3 for Python, TCP", "python", "tcp")


VARIANTS = list(_variants())
PEERS = list(dict.fromkeys(variant.peer for variant in VARIANTS))


def workload(name):
    return next(workload for workload in WORKLOADS if workload.name == name)


def variant(name):
    return next(variant for variant in VARIANTS if variant.name == name)
