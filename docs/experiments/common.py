"""What the experiments share: where the two modules are, the command line, the end of a pipe."""
import argparse
import os
import sys
from pathlib import Path
sys.path[:0] = map(str, Path(__file__).resolve().parents[1:3])


def command_line(doc, quick):
    """A parser with the option --quick, to which a script may add its own."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=quick)
    return parser


def at_least(lowest, text):
    """The type of an option that is a whole number: partial(at_least, lowest)."""
    if text.isdecimal() and int(text) >= lowest:
        return int(text)
    raise argparse.ArgumentTypeError(f"must be a whole number, {lowest} or more: got {text}")


def start(main):
    """main(), in a terminal without UTF-8 too, and in silence if nobody reads on (`| head`)."""
    try:
        sys.stdout.reconfigure(errors="replace")
        main()
        sys.stdout.flush()
    except BrokenPipeError:
        os._exit(1)    # another flush, at the exit, would fail again
