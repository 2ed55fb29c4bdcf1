"""Start a local judge, print its process id, and stay, for test_client.py.

python parent_of_judge.py LOGS
"""

import sys
import time

from evoid_jax.rewards import local

if __name__ == "__main__":
    (logs,) = sys.argv[1:]
    print(local.start_judge(logs).pid, flush=True)
    time.sleep(600)
