"""The Python daffi 3: router, callee, caller and idle nodes, driven as the Rust programs are.

The caller's calls outstanding are threads, which its documentation offers for that. Payloads are `bytes` in the format
OPAQUE, which is the fastest it has.
"""

import json
import os
import sys
import threading
import time

from daffi import Client, Router, SerdeFormat, callback

TICKS_PER_SECOND = 100
OPTIONS = dict(arg.split("=", 1) for arg in sys.argv[2:])
PATIENCE = 10


def address():
    host, port = OPTIONS["address"].rsplit(":", 1)
    return {"host": host, "port": int(port)}


@callback
def echo(payload):
    return payload


def router():
    router = Router(**address())
    router.start()
    print("ready", flush=True)
    router.join()


def callee():
    client = Client(app_name=OPTIONS["name"], **address())
    client.connect()
    print("ready", flush=True)
    client.join()


def nodes():
    first, clients = int(OPTIONS["first"]), []
    for number in range(first, first + int(OPTIONS["count"])):
        clients.append(Client(app_name=f"idle {number}", **address()))
        clients[-1].connect()
    print("ready", flush=True)
    clients[0].join()


def caller():
    connection = Client(app_name="caller", **address()).connect()
    time.sleep(0.5)  # It does not tell when it knows of the callee.
    size = int(OPTIONS["size"])

    def call(number):
        sent = payload(size, number)
        if connection.rpc(timeout=PATIENCE, serde=SerdeFormat.OPAQUE).echo(sent) != sent:
            raise ValueError("a reply is not what was sent")

    def gather(number):
        sent = payload(size, number)
        replies = connection.cast(timeout=PATIENCE, serde=SerdeFormat.OPAQUE).echo(sent)
        if len(replies) != int(OPTIONS["callees"]) or any(reply != sent for reply in replies.values()):
            raise ValueError(f"{len(replies)} callees answered, or not what was sent")

    if OPTIONS["workload"] == "throughput":
        many(call, int(OPTIONS["outstanding"]))
    else:
        one_by_one(gather if OPTIONS["workload"] == "broadcast" else call)


def payload(size, number):
    return bytes(48 + (number >> 6 * place & 63) for place in range(8)) + b"z" * (size - 8)


def one_by_one(call):
    begin, end = time.perf_counter() + float(OPTIONS["warm_up"]), None
    before, nanos, failed, number = None, [], 0, 0
    while end is None or time.perf_counter() < end:
        if before is None and time.perf_counter() >= begin:
            before = usage()
            end = before[0] + float(OPTIONS["window"])
        called = time.perf_counter_ns()
        try:
            call(number)
            if before:
                nanos.append(time.perf_counter_ns() - called)
        except Exception as error:  # Whatever it is, the call failed.
            failed += 1
            print(f"a call failed: {error!r}", file=sys.stderr)
        number += 1
    nanos.sort()
    report(len(nanos), failed, before, usage(), nanos)


def many(call, outstanding):
    done, failed = [0] * outstanding, [0] * outstanding

    def run(place):
        number = place
        while True:
            try:
                call(number)
                done[place] += 1
            except Exception as error:
                if sum(failed) == 0:
                    print(f"a call failed: {error!r}", file=sys.stderr)
                failed[place] += 1
            number += outstanding

    threading.stack_size(256 * 1024)
    for place in range(outstanding):
        threading.Thread(target=run, args=(place,), daemon=True).start()
    time.sleep(float(OPTIONS["warm_up"]))
    before, calls, failures = usage(), sum(done), sum(failed)
    time.sleep(float(OPTIONS["window"]))
    after = usage()
    report(sum(done) - calls, sum(failed) - failures, before, after)


def usage():
    processes = [int(process) for process in OPTIONS["processes"].split(",") if process] + [os.getpid()]
    with open("/proc/stat") as stat:
        ticks = [int(field) for field in stat.readline().split()[1:9]]
    return time.perf_counter(), [processor_seconds(process) for process in processes], sum(ticks), ticks[7]


def processor_seconds(process):
    with open(f"/proc/{process}/stat") as stat:
        fields = stat.read().rsplit(") ", 1)[1].split(" ")
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


def report(calls, failed, before, after, nanos=None):
    result = {
        "calls": calls,
        "failed": failed,
        "seconds": round(after[0] - before[0], 4),
        "cpu_seconds": [round(b - a, 2) for a, b in zip(before[1], after[1])],
        "steal": round((after[3] - before[3]) / max(1, after[2] - before[2]), 4),
    }
    if nanos:
        result["p50_us"] = nanos[len(nanos) // 2] / 1000
        result["p99_us"] = nanos[len(nanos) * 99 // 100] / 1000
    print(json.dumps(result), flush=True)
    os._exit(0)  # Threads with calls outstanding would keep it alive.


{"router": router, "callee": callee, "caller": caller, "nodes": nodes}[sys.argv[1]]()
