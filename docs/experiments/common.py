"""What the experiments share: where the modules are, command line, errors, the end of a pipe."""
import argparse, os, sys    # noqa: E401
from pathlib import Path
import numpy as np
sys.path[:0] = map(str, Path(__file__).resolve().parents[1:3])


def command_line(doc, quick):    # a parser with --quick, to which a script may add its own options
    title, more, *_ = doc.split("\n\n")
    parser = argparse.ArgumentParser(description=title, epilog=more)
    parser.add_argument("--quick", action="store_true", help=quick)
    return parser


def at_least(lowest):            # the type of an option that is a whole number
    def number(text):
        if text.isdecimal() and int(text) >= lowest:
            return int(text)
        raise argparse.ArgumentTypeError(f"must be a whole number, {lowest} or more: got {text}")
    return number


def progress(text, end="\n"):    # on stderr, so that it is not part of the table
    print(text, end=end, file=sys.stderr, flush=True)


def mean_and_error(x):           # over the first axis; of one alone the error is not known: 0
    return np.mean(x, axis=0), np.std(x, axis=0) / max(len(x) - 1, 1) ** 0.5


def told(main):                  # main, for which a file that is not sound is one line and exit 2
    def run(argv=None):
        try:
            return main(argv)
        except BrokenPipeError:
            raise
        except (MemoryError, OSError, ValueError) as error:
            progress(f"{Path(main.__code__.co_filename).name}: {str(error) or 'not enough memory'}")
            return 2
    return run


def start(main):                 # main(), also without UTF-8, and if nobody reads on (`| head`)
    try:
        sys.stdout.reconfigure(errors="replace")
        code = told(main)()
        sys.stdout.flush()
    except OSError:              # another flush, at the exit, would fail again
        os._exit(1)
    sys.exit(code)


def script(main):                # a decorator: starts main if its file is run, and not imported
    if main.__module__ == "__main__":
        start(main)
    return main
