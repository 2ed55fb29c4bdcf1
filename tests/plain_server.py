"""A server that starts in a moment and answers /health, for test_local.py, which ends and stops it.

python -m plain_server [once] --port PORT --port-file FILE      once: it starts no second time
"""

import http.server
import sys
from pathlib import Path


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()


def main(*words: str) -> None:
    port, file = int(words[-3]), Path(words[-1])
    if words[0] == "once" and port:
        sys.exit("not again")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    part = file.with_suffix(".part")
    part.write_text(str(server.server_port))
    part.replace(file)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
