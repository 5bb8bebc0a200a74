"""What the experiments share: where the two modules are, the command line, the end of a pipe."""
import argparse, os, sys    # noqa: E401
from pathlib import Path
sys.path[:0] = map(str, Path(__file__).resolve().parents[1:3])


def command_line(doc, quick):    # a parser with --quick, to which a script may add its own options
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=quick)
    return parser


def at_least(lowest, text):      # the type of an option that is a number: partial(at_least, lowest)
    if text.isdecimal() and int(text) >= lowest:
        return int(text)
    raise argparse.ArgumentTypeError(f"must be a whole number, {lowest} or more: got {text}")


def start(main):                 # main(), also without UTF-8, and if nobody reads on (`| head`)
    try:
        sys.stdout.reconfigure(errors="replace")
        main()
        sys.stdout.flush()
    except BrokenPipeError:
        os._exit(1)              # another flush, at the exit, would fail again
