"""A program that takes settings, as train and plan do, and prints what it was given.

Flags: --count, how often it prints; --interrupt, to be stopped as by Ctrl-C.
"""

import signal

from absl import app, flags

from evoid_jax import commandline, config


def stop() -> None:
    """Be stopped by Ctrl-C, and say what is saved, as train does."""
    # A shell starts background jobs deaf to it, and what they start in turn.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped after step 3; the same command goes on") from None


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    if flags.FLAGS.interrupt:
        stop()
    cfg = config.from_dict(flags.FLAGS.config.to_dict())
    print(config.dumps(cfg) * flags.FLAGS.count)


if __name__ == "__main__":
    flags.DEFINE_integer("count", None, "How often to print.", required=True)
    flags.DEFINE_bool("interrupt", False, "Stop as after Ctrl-C.")
    commandline.run(main, settings=config.Config)
