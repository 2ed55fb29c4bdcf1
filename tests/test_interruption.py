"""Signals end a process as they should: in time, with its code, and with what is done saved."""

import signal
import subprocess
import sys
import threading

import programs
import pytest

from evoid_jax import interruption

TERM, HUP, INT = signal.SIGTERM, signal.SIGHUP, signal.SIGINT


def hearing():
    """Hear all signals: a shell's background jobs are deaf to Ctrl-C, what nohup starts to HUP."""
    signal.signal(INT, signal.default_int_handler)
    signal.signal(HUP, signal.SIG_DFL)


def stopped(doing: str, *numbers: int) -> tuple[int, list[str], str]:
    """Send signals to the program that is doing so; return its code, its lines, and its errors."""
    process = subprocess.Popen(
        [sys.executable, programs.TESTS / "stopped_program.py", doing],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=programs.environment(),
        preexec_fn=hearing,
    )
    try:
        assert process.stdout.readline() == "ready\n"
        for number in numbers[:-1]:
            process.send_signal(number)
            if doing == "ignoring":
                continue
            assert process.stderr.readline() == "\n"
            assert "saving what is done" in process.stderr.readline()
        process.send_signal(numbers[-1])
        out, errors = process.communicate(timeout=50)
    finally:
        process.kill()
    return process.returncode, out.splitlines(), errors


@pytest.mark.parametrize(("number", "code"), [(TERM, 75), (HUP, 75), (INT, 130)])
def test_what_is_done_is_saved_and_the_code_tells(number, code):
    came, out, errors = stopped("plain", number)
    assert (came, out) == (code, ["saved"])
    assert f"{signal.Signals(number).name}: saving what is done" in errors
    assert errors.rstrip().endswith("7 steps are saved") and "Traceback" not in errors


def test_what_the_process_ignores_stays_ignored():
    """As under nohup, whose runs go on when their user leaves."""
    assert stopped("ignoring", HUP, TERM)[:2] == (75, ["saved"])


def test_a_signal_that_meets_a_finalizer_is_not_lost():
    assert stopped("finalizing", TERM)[:2] == (75, ["lost"])


def test_what_must_be_whole_is_brought_to_its_end():
    assert stopped("shielded", TERM)[:2] == (75, ["whole"])


def test_what_hangs_is_ended_when_the_grace_is_over():
    code, out, errors = stopped("stuck", TERM)
    assert (code, out) == (75, []) and "still not done after 1 s" in errors


def test_a_second_signal_ends_at_once():
    code, out, errors = stopped("shielded", TERM, INT)
    assert (code, out) == (75, []) and "SIGINT, the second" in errors


def test_a_thread_cannot_keep_the_process_from_ending():
    assert stopped("held_up", TERM)[0] == 75


def test_signals_have_their_usual_meaning_afterwards():
    assert stopped("afterwards", TERM)[0] == -TERM


def test_other_threads_do_not_listen():
    seen = []

    def work():
        with interruption.listening(grace=1.0):
            seen.append(signal.getsignal(TERM))

    thread = threading.Thread(target=work)
    before = signal.getsignal(TERM)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_pause_ends_early_for_all_of_several_processes(monkeypatch):
    """Another process was asked: this one, which was not, raises at the same point."""
    monkeypatch.setattr(interruption.jax, "process_count", lambda: 2)
    monkeypatch.setattr(interruption.distributed, "exchange", lambda asked: [asked, int(TERM)])
    with interruption.listening(grace=5.0), pytest.raises(interruption.Interrupted) as error:
        interruption.pause(3600.0)
    assert error.value.code == 75


def test_nobody_raises_where_nobody_was_asked(monkeypatch):
    monkeypatch.setattr(interruption.jax, "process_count", lambda: 2)
    monkeypatch.setattr(interruption.distributed, "exchange", lambda asked: [asked, 0])
    with interruption.listening(grace=5.0):
        interruption.point()
        interruption.pause(0.01)
