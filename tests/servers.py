"""HTTP servers inside the test process."""

import contextlib
import socket
import threading
import time

import uvicorn


def plain(app) -> uvicorn.Server:
    """Return a server without the limits of ours."""
    return uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))


@contextlib.contextmanager
def serve(app, port=0, make=plain):
    """Run an ASGI app on a port of this machine, 0 for a free one; yields its URL.

    make: of an app its uvicorn.Server.
    """
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(64)
    server = make(app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)
        listener.close()


def dead_url():
    """Return the URL of a port where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"
