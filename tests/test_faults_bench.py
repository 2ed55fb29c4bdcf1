"""Sidecars and judges that fail in all ways cost no score that could be had, and give no wrong one.

The calls are those of bench/faults.py: here some of them, on demand all.
"""

import programs
import pytest


@pytest.mark.parametrize(
    ("options", "met"),
    [
        (("--each=1", "--every=4"), 15),
        pytest.param(("--each=14",), 1000, marks=pytest.mark.slow),
    ],
    ids=["some", "all"],
)
def test_no_hang_no_wrong_score_no_video_lost(options, met):
    printed = programs.python("bench/faults.py", *options, timeout=3000)
    *_, faults, had, _, wrong, lost, _, _ = printed.splitlines()[-1].split()
    assert int(faults) >= met and int(had) > 0 and (wrong, lost) == ("0", "0"), printed
