"""Become a program whose descriptors 3 and 4 are two pipes, for browser.py.

python start_with_pipes.py READ WRITE PROGRAM ARGUMENTS..

Chromium's DevTools reads its commands from 3 and writes its answers to 4.
"""

import os
import sys

if __name__ == "__main__":
    read_end, write_end, *command = sys.argv[1:]
    os.dup2(int(read_end), 3)
    os.dup2(int(write_end), 4)
    os.execv(command[0], command)
