"""What the comparison needs and where it ran: programs, their versions, the machine."""

import json
import os
import re
import shutil
import subprocess
import venv
from pathlib import Path

from .processes import Programs

HERE = Path(__file__).parent.parent
#: Crates whose versions say what was compared.
_CRATES = ("async-nats", "zenoh", "zmq", "zeromq-src", "tarpc", "tonic", "prost", "tokio")


def target_folder():
    """Where cargo puts what it builds here."""
    command = ["cargo", "metadata", "--format-version", "1", "--no-deps", "--offline"]
    metadata = subprocess.run(command, cwd=HERE, capture_output=True, text=True)
    if metadata.returncode == 0:
        return Path(json.loads(metadata.stdout)["target_directory"])
    return Path(os.environ.get("CARGO_TARGET_DIR", HERE / "target")).absolute()


def build(peers, target):
    """Builds what can be built. Says where it all is, and what is missing for which peer."""
    missing = {}
    packages = {peer: [f"peer-{peer}"] for peer in peers if peer != "python"}
    if "daffi" in packages:
        packages["daffi"].append("daffi-controller")
    if packages and not _cargo(sum(packages.values(), [])):
        # One of them cannot be built here: the others are to be compared nevertheless.
        missing = {peer: "it cannot be built here" for peer, names in packages.items() if not _cargo(names)}
    python, problem = _python(target / "python") if {"nats", "python"} & set(peers) else (None, None)
    if problem and "python" in peers:
        missing["python"] = problem
    server = python and python.parent / "nats-server"
    server = server if server and server.exists() else shutil.which("nats-server")
    if "nats" in peers and server is None:
        missing["nats"] = f"there is no nats-server, neither on the PATH nor from the wheel: {problem}"
    return Programs(target / "release", python, server, missing)


def _cargo(packages):
    print(f"building {', '.join(packages)}", flush=True)
    # Not --locked: what daffi itself depends on may have changed since the peers were last measured.
    command = ["cargo", "build", "--release"]
    for package in packages:
        command += ["--package", package]
    return subprocess.run(command, cwd=HERE).returncode == 0


def _python(folder):
    """A Python with the packages of `requirements.txt`, or why there is none."""
    requirements = HERE / "python" / "requirements.txt"
    python, installed = folder / "bin" / "python", folder / "installed.txt"
    if installed.exists() and installed.read_text() == requirements.read_text():
        return python, None
    print(f"installing {requirements} into {folder}", flush=True)
    try:
        venv.create(folder, with_pip=True, clear=True)
    except (OSError, subprocess.CalledProcessError) as problem:
        return None, f"no virtual environment can be made: {problem}"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    result = subprocess.run([*pip, "--requirement", requirements], capture_output=True, text=True)
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["pip failed"])[-1]
        # Without the one there may still be the other.
        subprocess.run([*pip, *re.findall(r"^nats-server.*$", requirements.read_text(), re.M)], capture_output=True)
        return python, f"pip: {last}"
    installed.write_text(requirements.read_text())
    return python, None


def versions(programs):
    """What was compared, by name."""
    lock = (HERE / "Cargo.lock").read_text()
    packages = dict(re.findall(r'name = "([^"]+)"\nversion = "([^"]+)"', lock))
    found = {"rustc": _output("rustc", "--version").removeprefix("rustc ")}
    found |= {crate: packages[crate] for crate in _CRATES if crate in packages}
    if programs.nats_server:
        found["nats-server"] = _output(programs.nats_server, "--version").removeprefix("nats-server: ")
    if programs.python and "python" not in programs.missing:
        found["CPython"] = _output(programs.python, "--version").removeprefix("Python ")
        requirements = (HERE / "python" / "requirements.txt").read_text()
        found["daffi for Python"] = re.search(r"^daffi==(.*)$", requirements, re.M).group(1)
    return found


def commit():
    """Of the repository, with a mark if there are changes beside it."""
    return _output("git", "-C", HERE, "describe", "--always", "--dirty") or "an unknown commit"


def machine():
    """What the numbers depend on."""
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    memory = re.search(r"^MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text(), re.M)
    idle = Path("/sys/devices/system/cpu/cpuidle")
    idle = [(idle / name).read_text().strip() for name in ("current_driver", "current_governor") if (idle / name).exists()]
    return {
        "CPUs": f"{len(os.sched_getaffinity(0))} ({model.group(1) if model else os.uname().machine})",
        "memory": f"{int(memory.group(1)) >> 20} GiB",
        "kernel": os.uname().release,
        "cpuidle": "/".join(idle) or "none",
    }


def _output(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""
