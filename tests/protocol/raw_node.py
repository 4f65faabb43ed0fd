#!/usr/bin/env python3
"""A daffi node without daffi: written from docs/PROTOCOL.md, with the Python standard library alone.

    raw_node.py tcp://127.0.0.1:8888 unix:///tmp/daffi/.sock

Two nodes join a controller, each over one of the addresses (which may be the same). The first offers `add`, the second
calls it: once with a result, once with a failure. Everything that was promised is checked; the exit code is 0 if it held.
"""

import json
import os
import socket
import struct
import sys
import threading

HELLO, WELCOME, REFUSE, REGISTER, REGISTERED, REQUEST, REPLY, FAILURE = range(1, 9)
ASK, PING, PONG, GOODBYE = 13, 14, 15, 16

JSON = 1
UNROUTED = 0xFFFFFFFF
WAIT_FUNCTION, PROCESSES = 2, 3
FAILED = 16

HEAD = struct.Struct("<IBBBBQ")  # length, kind, flags, codec, hops, id


class CallFailed(Exception):
    """What a FAILURE says."""

    def __init__(self, kind, node, message, type_name):
        super().__init__(f"{node}: {message} ({type_name}, fault {kind})")
        self.kind, self.node, self.message, self.type_name = kind, node, message, type_name


class Node:
    """A connection to a controller, after the handshake."""

    def __init__(self, address, name):
        self.socket, self.name, self.pings, self.last_id = connect(address), name, 0, 0
        hello = b"DAFI" + struct.pack("<HHI", 1, 1, 0) + os.urandom(8) + short(name) + text("")
        self.send(HELLO, content=hello)
        kind, _, _, content = self.receive()
        if kind == REFUSE:
            raise SystemExit(f"refused with code {content[0]}: {content[1:].decode()}")
        assert kind == WELCOME, kind
        version, _, number, heartbeat, payload_max = struct.unpack_from("<HIIIQ", content)
        print(f"{name}: joined over {address} as node {number}, version {version},", end=" ")
        print(f"heartbeat every {heartbeat} ms, payloads up to {payload_max} bytes")

    # ---- frames

    def send(self, kind, ident=0, content=b"", codec=0, hops=0):
        self.socket.sendall(HEAD.pack(len(content), kind, 0, codec, hops, ident) + content)

    def receive(self):
        """The next frame that is not a ping: kind, codec, id, content."""
        while True:
            length, kind, _, codec, _, ident = HEAD.unpack(self.read(HEAD.size))
            content = self.read(length)
            if kind != PING:
                return kind, codec, ident, content
            self.send(PONG, ident)
            self.pings += 1

    def read(self, length):
        data = b""
        while len(data) < length:
            part = self.socket.recv(length - len(data))
            if not part:
                raise ConnectionError("the controller closed the connection")
            data += part
        return data

    # ---- what a node does

    def register(self, *callbacks):
        """Offers functions under their own names; the list index is what comes back in requests."""
        offers = b"".join(
            struct.pack("<IQB", index, 0, 1) + short(callback.__name__) + text("(a, b)")
            for index, callback in enumerate(callbacks)
        )
        self.send(REGISTER, 1, offers)
        kind, _, ident, _ = self.receive()
        assert (kind, ident) == (REGISTERED, 1), kind
        print(f"{self.name}: offers {', '.join(callback.__name__ for callback in callbacks)}")

    def serve(self, *callbacks):
        """Answers requests, until the connection closes or the controller says goodbye."""
        while True:
            try:
                kind, codec, ident, content = self.receive()
            except (ConnectionError, OSError):
                return
            if kind == GOODBYE:
                return
            if kind != REQUEST:
                continue
            _, _, index, total, name_len, node_len = struct.unpack_from("<QQIIBxH", content)
            caller = content[28 + name_len : 28 + name_len + node_len].decode()
            body = content[28 + name_len + node_len :]
            assert codec == JSON and len(body) == total, "this node takes small payloads in JSON"
            arguments = json.loads(body)
            print(f"{self.name}: {caller} calls {callbacks[index].__name__}{tuple(arguments)}")
            try:
                result = json.dumps(callbacks[index](*arguments)).encode()
            except Exception as error:  # a callback may raise anything
                fault = struct.pack("<IBQQ", 0, FAILED, 0, 0) + text(self.name) + text(str(error))
                fault += text(type(error).__name__) + text("") + b"\0" + text("")
                self.send(FAILURE, ident, fault)
            else:
                self.send(REPLY, ident, struct.pack("<II", 0, len(result)) + result, JSON)

    def call(self, name, *arguments, node="", deadline=0.0):
        body = json.dumps(arguments).encode()
        name, node = name.encode(), node.encode()
        head = struct.pack("<QQIIBxH", int(deadline * 1e6), 0, UNROUTED, len(body), len(name), len(node))
        return self.outcome(REQUEST, head + name + node + body, hops=1)

    def ask(self, question, content=b""):
        return self.outcome(ASK, bytes([question]) + content)

    def outcome(self, kind, content, hops=0):
        """Sends a request or question and waits for its answer."""
        self.last_id += 1
        self.send(kind, self.last_id, content, JSON, hops)
        kind, _, ident, content = self.receive()
        assert ident == self.last_id, "one question at a time"
        if kind == FAILURE:
            raise failure(content)
        assert kind == REPLY, kind
        _, total = struct.unpack_from("<II", content)
        assert len(content) == 8 + total, "an answer of one frame"
        return json.loads(content[8:])

    def ping(self):
        self.send(PING, 7)
        kind, _, ident, _ = self.receive()
        assert (kind, ident) == (PONG, 7), kind

    def leave(self):
        self.send(GOODBYE, content=b"done")
        self.socket.close()


def connect(address):
    scheme, _, rest = address.partition("://")
    if scheme == "unix":
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(rest)
    else:
        host, _, port = rest.rpartition(":")
        connection = socket.create_connection((host, int(port)))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.settimeout(10)
    return connection


def short(name):
    """A name: one byte of length, and UTF-8."""
    return bytes([len(name.encode())]) + name.encode()


def text(string):
    """A text: two bytes of length, and UTF-8."""
    return struct.pack("<H", len(string.encode())) + string.encode()


def failure(content):
    _, kind, _, _ = struct.unpack_from("<IBQQ", content)
    texts, at = [], 21
    for _ in range(3):  # node, message, type_name; what follows is not needed here
        (length,) = struct.unpack_from("<H", content, at)
        texts.append(content[at + 2 : at + 2 + length].decode())
        at += 2 + length
    return CallFailed(kind, *texts)


def add(a, b):
    return a + b


def main(first, second):
    callee = Node(first, "python callee")
    callee.register(add)
    threading.Thread(target=callee.serve, args=(add,), daemon=True).start()

    caller = Node(second, "python caller")
    caller.register()
    caller.ask(WAIT_FUNCTION, short("add"))
    total = caller.call("add", 2, 3, deadline=5.0)
    print(f"{caller.name}: add(2, 3) is {total}")
    assert total == 5

    try:
        caller.call("add", 2, "x", node="python callee")
        raise SystemExit("adding a text to a number was to fail")
    except CallFailed as failed:
        print(f"{caller.name}: {failed}")
        assert (failed.kind, failed.node, failed.type_name) == (FAILED, "python callee", "TypeError")

    try:
        caller.call("ad", 1, 2)
        raise SystemExit("nobody offers `ad`")
    except CallFailed as failed:
        print(f"{caller.name}: {failed}")
        assert failed.kind == 1

    processes = {process["name"]: process["callbacks"] for process in caller.ask(PROCESSES)}
    print(f"{caller.name}: connected are {processes}")
    assert processes["python callee"] == ["add"] and processes["python caller"] == []

    # A heartbeat passes before the next answer comes, so pings are answered on the way.
    while caller.pings == 0:
        caller.ping()
    print(f"{caller.name}: the controller asked {caller.pings} times whether it lives")
    caller.leave()
    callee.leave()
    print("all of it held")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(sys.argv[1], sys.argv[2])
