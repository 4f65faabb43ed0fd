"""Where the CPU time of a call goes, by Linux `perf`: what the kernel does for it, and what the programs do."""

import os
import re
import shutil
import subprocess
import threading
import time
from collections import Counter

from .processes import Failed

FREQUENCY = 2000

#: What a sample is counted for: the first of these that any function on its stack belongs to. Waking and page faults come
#: first, since both happen within something else.
_KERNEL = [
    ("page faults", r"exc_page_fault|handle_mm_fault|do_user_addr_fault"),
    ("giving memory back", r"__do_sys_brk|__x64_sys_brk|__x64_sys_munmap|madvise"),
    ("waking others", r"try_to_wake_up|__wake_up|ep_poll_callback|sock_def_readable|unix_write_space|futex_wake"),
    ("copying", r"_copy_(from|to)_iter|copy_user|rep_movs"),
    ("waiting", r"epoll_wait|epoll_pwait|ppoll|__x64_sys_poll|futex_wait|do_futex|schedule|nanosleep"),
    ("writing, the rest", r"sys_(sendto|sendmsg|write|writev)|do_writev|ksys_write|__sys_send"),
    ("reading, the rest", r"sys_(recvfrom|recvmsg|read|readv)|do_readv|ksys_read|__sys_recv"),
]
_USER = [
    ("copying in user space", r"^__?(mem(move|cpy|set|cmp)|GI_mem)"),
    ("allocator", r"^(__libc_)?(malloc|free|cfree|calloc|realloc|_int_\w+|malloc_consolidate|unlink_chunk|sysmalloc|systrim.*)$"),
]
_COMPILED = {place: [(part, re.compile(names)) for part, names in parts] for place, parts in (("k", _KERNEL), ("u", _USER))}
#: Kernel addresses are in the upper half.
_KERNEL_BEGINS = 1 << 63

PARTS = [part for part, _ in _KERNEL] + ["the kernel's rest"] + [part for part, _ in _USER] + ["the program itself"]


def part_of(stack):
    """What a stack of addresses and functions, the innermost first, is counted for."""
    kernel = [name for address, name in stack if address >= _KERNEL_BEGINS]
    if kernel:
        return next((part for part, names in _COMPILED["k"] if any(map(names.search, kernel))), "the kernel's rest")
    innermost = stack[0][1] if stack else ""
    return next((part for part, names in _COMPILED["u"] if names.search(innermost)), "the program itself")


def samples(script):
    """Process and part of each sample in what `perf script -F pid,ip,sym` prints."""
    for block in script.split("\n\n"):
        head, *lines = block.strip("\n").split("\n")
        if not head.strip():
            continue
        # The head ends with the process; of a function nothing may be known but its address.
        stack = [(int(at, 16), name) for at, _, name in (line.strip().partition(" ") for line in lines if line.strip())]
        yield int(head.split()[-1]), part_of(stack)


def measure(cast, warm_up, window):
    """Runs the caller of a cast and looks at all its processes meanwhile: µs of each call by part, for each role."""
    if not shutil.which("perf"):
        raise Failed("there is no perf")
    found = {}

    def call():
        try:
            found["calls"] = cast.call(warm_up, window)
        except (Failed, OSError) as problem:
            found["problem"] = problem

    before = len(cast.processes)
    caller = threading.Thread(target=call)
    caller.start()
    while len(cast.processes) == before and caller.is_alive():
        time.sleep(0.01)
    time.sleep(warm_up)
    data = cast.folder / "perf.data"
    pids = ",".join(str(process.pid) for process in cast.processes)
    record = ["perf", "record", "-q", "-F", str(FREQUENCY), "-g", "-o", data, "-p", pids, "sleep", str(window * 0.8)]
    said = subprocess.run(record, capture_output=True, text=True)
    caller.join()
    if problem := found.get("problem"):
        raise problem
    if said.returncode:
        raise Failed(f"perf record: {said.stderr.strip()[-200:]}")
    command = ["perf", "script", "-i", data, "-F", "pid,ip,sym"]
    script = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}).stdout
    calls = found["calls"]
    return by_role(script, {process.pid: process.role for process in cast.processes}, calls)


def by_role(script, roles, calls):
    """µs of CPU of each call by role and part: the samples' share of what the processes used in the window."""
    counts = Counter()
    for pid, part in samples(script):
        if pid in roles:
            counts[roles[pid], part] += 1
    total = sum(counts.values())
    if not total or not calls["calls"]:
        raise Failed("nothing was sampled")
    us = sum(calls["cpu_seconds"]) * 1e6 / calls["calls"]
    return {key: us * count / total for key, count in counts.items()}


def markdown(title, found):
    """A table of one measurement for each variant: `found` has the result of `measure` by its label."""
    lines = [f"## {title}", "", "| µs of CPU of a call | " + " | ".join(found) + " |", "|---|" + "---:|" * len(found)]
    for part in PARTS:
        cells = [sum(us for (_, one), us in parts.items() if one == part) for parts in found.values()]
        if any(cells):
            lines.append(f"| {part} | " + " | ".join(_cell(us) for us in cells) + " |")
    for role in ("router", "callee", "caller"):
        cells = [sum(us for (one, _), us in parts.items() if one == role) for parts in found.values()]
        if any(cells):
            lines.append(f"| *all of the {role}'s* | " + " | ".join(_cell(us) for us in cells) + " |")
    lines.append("| **all** | " + " | ".join(_cell(sum(parts.values())) for parts in found.values()) + " |")
    return "\n".join(lines)


def _cell(us):
    return f"{us:,.0f}" if us >= 100 else f"{us:.2f}" if us < 10 else f"{us:.1f}"
