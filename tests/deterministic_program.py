"""Compile a program deterministically, with XLA's own record of its options, for test_platform.py.

python deterministic_program.py FOLDER
"""

import os
import sys

import jax

from evoid_jax.models import platform

if __name__ == "__main__":
    (folder,) = sys.argv[1:]
    os.environ["XLA_FLAGS"] = f"--xla_dump_to={folder}"
    platform.make_deterministic()
    print(jax.jit(lambda x: x + 1)(1.0))
