"""The processes of one measurement: a router, callees, and a caller or idle nodes."""

import ctypes
import json
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

READY_SECONDS = 30
#: One process cannot have more descriptors than the system lets it, and some peers' nodes need several.
NODES_OF_PROCESS = 1000
#: How long connecting those may take, and how long their router may take to settle.
NODES_SECONDS = 60
SETTLE_SECONDS = 1.0
#: Beyond warm-up and window, for connecting and for what is waited for in vain.
CALLER_SECONDS = 40

_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)
_HERE = Path(__file__).parent.parent


class Failed(Exception):
    """A measurement that came to nothing, and why."""


class Programs:
    """Where the programs are; `missing` says why a peer cannot run."""

    def __init__(self, release, python, nats_server, missing):
        self.release, self.python, self.nats_server, self.missing = release, python, nats_server, missing

    def command(self, variant, role, options):
        """What starts a role, and whether it says when it is ready."""
        pairs = [f"{key}={value}" for key, value in options.items()]
        if role == "router" and variant.peer == "nats":
            host, port = options["address"].removeprefix("nats://").split(":")
            return [self.nats_server, "--addr", host, "--port", port], False
        if role == "router" and variant.peer == "daffi":
            return [self.release / "daffi-controller", "--listen", options["address"]], True
        if variant.peer == "daffi":
            # Callbacks belong to a program, and a caller that offers some is another kind of caller.
            return [self.release / f"peer-daffi-{'caller' if role == 'caller' else 'callee'}", role, *pairs], True
        if variant.peer == "python":
            start = [self.python, _HERE / "python" / "daffi3.py"]
        else:
            start = [self.release / f"peer-{variant.peer}"]
        return [*start, role, *pairs], True


class Cast:
    """The processes of one measurement. All of them end with it."""

    def __init__(self, programs, variant, workload):
        self.programs, self.variant, self.workload = programs, variant, workload
        self.processes = []

    def __enter__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="peers-"))
        self.options = {**self._addresses(), **dict(self.variant.options)}
        self.options["broadcast"] = "yes" if self.workload.name == "broadcast" else "no"
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()
            process.stdout.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self, callees):
        if self.variant.routed:
            self._start("router")
        for number in range(callees):
            self._start("callee", name=f"callee {number}")

    def call(self, warm_up, window):
        """Runs the caller, and gives what it found out."""
        processes = ",".join(str(process.pid) for process in self.processes)
        times = {"warm_up": warm_up, "window": window, "processes": processes}
        caller = self._spawn("caller", {**dict(self.workload.options), **times})
        line = self._line(caller, warm_up + window + CALLER_SECONDS)
        try:
            return json.loads(line)
        except ValueError:
            raise self._failed(caller, f"printed {line!r}") from None

    def memory(self, counts):
        """Connects idle nodes, and gives the router's KiB by their number; and why there are not more."""
        router = self.processes[0]
        connected, before, memory = 0, descriptors(router.pid), {0: resident_kib(router.pid)}
        try:
            for count in counts:
                while connected < count:
                    new = min(count - connected, NODES_OF_PROCESS)
                    self._start("nodes", NODES_SECONDS, first=connected, count=new)
                    connected += new
                deadline = time.monotonic() + READY_SECONDS
                while descriptors(router.pid) < before + count:
                    if time.monotonic() > deadline:
                        raise Failed(f"the router has fewer than {count} connections")
                    time.sleep(0.05)
                time.sleep(SETTLE_SECONDS)
                memory[count] = resident_kib(router.pid)
        except (Failed, OSError) as problem:
            return memory, f"{count} idle nodes: {problem}"
        return memory, None

    def _addresses(self):
        unix = self.variant.transport == "unix"
        paths = (self.folder / "s", self.folder / "b")
        tcp = [f"127.0.0.1:{port}" for port in free_ports(2)]
        pattern = {
            ("relay", True): "unix:{}", ("tarpc", True): "unix:{}",
            ("daffi", True): "unix://{}", ("daffi", False): "tcp://{}",
            ("zenoh", True): "unixsock-stream/{}", ("zenoh", False): "tcp/{}",
            ("zeromq", True): "ipc://{}", ("zeromq", False): "tcp://{}",
            ("nats", False): "nats://{}",
        }.get((self.variant.peer, unix), "{}")
        address, back = (pattern.format(place) for place in (paths if unix else tcp))
        return {"address": address, "back": back}

    def _start(self, role, seconds=READY_SECONDS, **options):
        process = self._spawn(role, options)
        if self.programs.command(self.variant, role, self.options)[1]:
            self._line(process, seconds)
        else:
            self._wait_listening(process)

    def _spawn(self, role, options):
        command, _ = self.programs.command(self.variant, role, {**self.options, **options})
        cpus = {max(os.sched_getaffinity(0))} if self.workload.pinned else os.sched_getaffinity(0)

        def prepare():
            _LIBC.prctl(_PDEATHSIG, signal.SIGKILL)
            os.sched_setaffinity(0, cpus)
            hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

        with open(self._log(len(self.processes)), "w") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True,
                                       preexec_fn=prepare, cwd=self.folder)
        process.role = role
        self.processes.append(process)
        return process

    def _line(self, process, seconds):
        if not select.select([process.stdout], [], [], seconds)[0]:
            raise self._failed(process, f"said nothing for {seconds:.0f} s")
        line = process.stdout.readline()
        if not line:
            raise self._failed(process, f"ended with code {process.wait()}")
        return line.strip()

    def _wait_listening(self, process):
        host, port = self.options["address"].rsplit("/", 1)[1].split(":")
        deadline = time.monotonic() + READY_SECONDS
        while True:
            try:
                return socket.create_connection((host, int(port)), 1).close()
            except OSError:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise self._failed(process, "does not listen") from None
                time.sleep(0.02)

    def _failed(self, process, what):
        log = self._log(self.processes.index(process)).read_text(errors="replace").splitlines()
        # The panic, if there was one, and not its backtrace.
        begin = next((place for place, line in enumerate(log) if " panicked at " in line), max(0, len(log) - 3))
        told = " | ".join(line.strip() for line in log[begin:begin + 3] if line.strip())
        return Failed(f"the {process.role} {what}: {told or 'it gave no reason'}"[:500])

    def _log(self, place):
        return self.folder / f"{place}.log"


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def resident_kib(process):
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise Failed("the router is gone")


def descriptors(process):
    return len(os.listdir(f"/proc/{process}/fd"))
