"""The command `memtok`: its sub-commands, and how their errors are reported.

Each sub-command is a module beside this one, or one of MODULES, with `configure(parser)` and `run(options) -> int`.
Only the module of the command that was typed is imported, and torch only when its work starts, so that help is fast.

Exit codes: 0 done; 1 the check or the work failed; 2 wrong arguments, found from the arguments and the configuration
file alone; 130 interrupted by Ctrl-C, 143 by SIGTERM. See docs/cli.md.
"""

from __future__ import annotations

import importlib
import io
import logging
import os
import shlex
import signal
import sys
import textwrap
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType

from memtok import __version__
from memtok.cli.errors import UsageError
from memtok.errors import MemtokError, printable, spelled

DONE, FAILED, WRONG_ARGUMENTS, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143

# Command -> what it does, in the order of the help. The module has the name of the command, with underscores for
# hyphens.
COMMANDS = {
    "quickstart": "train two small tasks, compose, verify and predict, with nothing but what is installed",
    "train": "train a task on a data set and write a task file",
    "evaluate": "measure the accuracy of tasks, each alone and all composed in one model",
    "predict": "classify images with every task in one pass",
    "concat": "put task files together in one file",
    "rename": "give tasks in a file, or their classes, other names",
    "verify": "prove that tasks change neither the backbone nor each other",
    "export": "write tasks and backbone as one ONNX file, compared with PyTorch before it is kept",
    "serve": "answer over HTTP, for many tasks and tenants, with a page to look at",
    "inspect": "show what is in a file",
    "import-legacy": "turn checkpoints of the public reproduction into task files",
    "sweep": "train many configurations of a task at once and write the best",
    "reproduce": "run the experiments of the paper, with its figures beside the new ones",
    "bench": "time memtok, its peers and the floor that arithmetic sets, on this machine",
}

# Commands whose code is not part of the library.
MODULES = {"reproduce": "memtok_experiments.command", "bench": "memtok_benchmarks.command"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `memtok` with `arguments` (without the program's name; the process's own if None); returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # closed by the parent process
            setattr(sys, stream, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - open until the process ends
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for names outside the encoding of the terminal
    debug = "--debug" in words
    known = [word for word in words if word != "--debug"]
    program = f"memtok {known[0]}" if known and known[0] in COMMANDS else "memtok"
    try:
        with terminable():
            code = dispatch(known)
        sys.stdout.flush()  # raises BrokenPipeError here, not when Python exits
        return code
    except (KeyboardInterrupt, Terminated) as error:
        complain(program, f"interrupted, what was written stays{going_on(known)}")
        return INTERRUPTED if isinstance(error, KeyboardInterrupt) else TERMINATED
    except BrokenPipeError:
        # The reader of the output has exited. Without this Python prints an error when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if debug:
            traceback.print_exc()
        complain(program, "error: " + describe(error, debug))
        return WRONG_ARGUMENTS if isinstance(error, UsageError) else FAILED


class Terminated(BaseException):
    """The process received SIGTERM. Not an Exception, like KeyboardInterrupt, so that `except Exception` ignores it."""


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM raises Terminated in the block, so that cleanup runs, unless there is a handler for it already."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def terminate(*_: object) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def going_on(words: Sequence[str]) -> str:
    """How to continue interrupted work, for a message."""
    if words[:1] == ["train"]:
        resumed = [word for word in words if word not in ("--overwrite", "--resume")]
        return f"; go on with: {shlex.join(['memtok', *resumed, '--resume'])}"
    return "; the same command goes on" if words[:1] in (["sweep"], ["reproduce"]) else ""


def dispatch(words: list[str]) -> int:
    """Answers `--help` and `--version`, or runs the command that `words` name."""
    if words[:1] in (["--help"], ["-h"], ["help"]):
        if words[1:]:
            return dispatch([words[1], "--help"])
        print(overview())
        return DONE
    if words[:1] == ["--version"]:
        print(f"memtok {__version__}")
        return DONE
    if not words or words[0] not in COMMANDS:
        from memtok.cli.suggestions import command_like

        found = f"{words[0]!r}{command_like(words[0], list(COMMANDS))}" if words else "none"
        raise UsageError(f"expected a command ({', '.join(COMMANDS)}), found {found}; see `memtok --help`")
    from memtok.cli.options import build_parser, option_names, parse  # imports jsonargparse
    from memtok.cli.output import result_on_stdout

    command = words[0]
    module = module_of(command)
    parser = build_parser(command, f"{COMMANDS[command]}.", module.USAGE, module.EXAMPLES)
    module.configure(parser)
    options = parse(parser, words[1:])
    if options is None:  # help or the configuration was printed
        return DONE
    with messages_on_stderr(), result_on_stdout(vars(options)):
        try:
            return int(module.run(options))
        except MemtokError as error:
            error.args = (spelled(error.message, option_names(parser)),)
            raise


def module_of(command: str) -> ModuleType:
    """The module of a command."""
    return importlib.import_module(MODULES.get(command, f"memtok.cli.{command.replace('-', '_')}"))


def overview() -> str:
    """What `memtok --help` prints."""
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    return (
        "usage: memtok COMMAND [OPTIONS]\n\n"
        "Adds tasks to a pre-trained Vision Transformer by learnable memory, and changes nothing that it does.\n\n"
        f"commands:\n{listed}\n\n"
        "options:\n"
        "  --help     show this, or with a command its options: memtok train --help\n"
        "  --version  show the version\n"
        "  --debug    show the traceback of an error\n\n"
        "Start with `memtok quickstart`: it needs neither data nor a network."
    )


def describe(error: Exception, debug: bool) -> str:
    """One line that says what went wrong."""
    text = " ".join(str(error).split())
    if isinstance(error, MemtokError):
        return text
    if isinstance(error, OSError) and error.filename is not None:
        return f"expected to reach {error.filename}, found: {error.strerror}; check the path and its permissions"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in text:
        return (
            f"expected enough memory, found too little ({textwrap.shorten(text, 120) or 'Python ran out of it'}); try "
            "smaller numbers, such as --batch-size, --memory, --views or --image-size"
        )
    hint = "" if debug else "; run again with --debug for the traceback"
    return f"unexpected {type(error).__name__}: {text}{hint}"


def complain(program: str, text: str) -> None:
    """One line on the standard error stream."""
    print(f"{program}: {printable(text)}", file=sys.stderr)


@contextmanager
def messages_on_stderr() -> Iterator[None]:
    """In the block, log messages of the library are printed on the standard error stream."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("memtok: note: %(message)s"))
    logger = logging.getLogger("memtok")
    propagated = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagated
