"""Proxies inside the test process: HTTP as an ASGI app, SOCKS5 as threads."""

import contextlib
import socket
import threading


def http(app):
    """Return an app for a proxy of plain HTTP, whose requests name the whole address.

    Whatever server is asked for, `app` answers.
    """

    async def proxy(scope, receive, send):
        if scope["type"] == "http" and "://" in scope["path"]:
            path = "/" + scope["path"].split("://", 1)[1].partition("/")[2]
            scope = scope | {"path": path, "raw_path": path.encode()}
        await app(scope, receive, send)

    return proxy


@contextlib.contextmanager
def socks(url):
    """Run a SOCKS5 proxy whose every connection leads to the server at `url`.

    Yields its address, and the list of (host, port) that clients wanted.
    """
    target = url.removeprefix("http://").split(":")
    listener = socket.create_server(("127.0.0.1", 0))
    wanted = []

    def accept():
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=connect, args=(client,), daemon=True).start()

    def connect(client):
        client.recv(client.recv(2)[1])  # the methods that it offers
        client.sendall(b"\x05\x00")  # no password
        *_, kind = client.recv(4)
        if kind == 3:
            host = client.recv(client.recv(1)[0]).decode()
        else:
            host = socket.inet_ntoa(client.recv(4))
        wanted.append((host, int.from_bytes(client.recv(2), "big")))
        server = socket.create_connection((target[0], int(target[1])))
        client.sendall(b"\x05\x00\x00\x01" + bytes(6))
        for one, other in ((client, server), (server, client)):
            threading.Thread(target=pipe, args=(one, other), daemon=True).start()

    def pipe(one, other):
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}", wanted
    finally:
        listener.close()
