"""A server that fails on purpose, for test_client.py, which starts it as a module.

python -m failing_server HOW PORT     HOW: ends at once, or is never ready
"""

import sys
import time


def main(how: str) -> None:
    if how == "ends":
        print("no such weights: face.pt")
        sys.exit(3)
    print("still loading", flush=True)
    time.sleep(600)


if __name__ == "__main__":
    main(sys.argv[1])
