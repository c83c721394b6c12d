"""What tells wrong arguments from work that failed, and how messages of the library read on the command line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from memtok.errors import MemtokError


class UsageError(MemtokError):
    """Arguments that are wrong by themselves, whatever the files hold. Exit code 2."""


NAME = r"(?<![\w./'\"=-])(?P<name>[a-z]\w*)"  # not of a path, a quotation or an option
# Where a word is the name of an argument, though it may be a common one, such as `memory`.
NAMED = (
    r"^expected (no )?(?P<name>[a-z]+)"
    r"(?=, each once| (as|among|where|outside|below|in GB|for the search|for a grid)\b"
    r"| of (at most|\S+ (or more|at most))\b)",
    r"^expected (?P<name>[a-z]+)(?= or [a-z]+, found both)",
    r"^expected \S+ or (?P<name>[a-z]+)(?=, found both)",
    r"\bleave (?P<name>[a-z]+)(?= out\b)",
    r"\b(raise|lower) (?P<name>[a-z]+)(?=[;,]|$)",
    r"^expected the settings of the \w+ in .+?, (?P<name>(space\.)?[a-z]\w*)(?= .*, found )",
)


def as_typed(message: str, options: Mapping[str, str]) -> str:
    """A message of the library with its arguments as they are typed: `trace_dir` is `--trace-dir`.

    options: the option of each argument. `views=None` becomes `no --views`, `device='cpu'` becomes `--device cpu`, and
    `resume=True` becomes `--resume`.
    """

    def assigned(match: re.Match[str]) -> str:
        option, value = options.get(match["name"]), match["value"].strip("'")
        if option is None:
            return match[0]
        return {"None": f"no {option}", "True": option, "": option}.get(value, f"{option} {value}")

    def named(match: re.Match[str]) -> str:
        option = options.get(match["name"].removeprefix("space."), match["name"])
        start, end = match.start("name") - match.start(), match.end("name") - match.start()
        return match[0][:start] + option + match[0][end:]

    message = re.sub(NAME + r"=(?P<value>'[^']*'|[^\s;,]*)", assigned, message)
    for pattern in NAMED:
        message = re.sub(pattern, named, message)
    message = re.sub(NAME.replace(r"\w*", r"\w*_\w*") + r"(?![\w./'\"=(])", named, message)
    message = re.sub(r"^(expected the settings of the .*, )(--[\w-]+) null(?=, found )", r"\1no \2", message)
    return re.sub(r"^(expected the settings of the .*, found )null(?=;)", r"\1none", message)


@contextmanager
def arguments() -> Iterator[None]:
    """Around library calls that only look at arguments: their MemtokError becomes a UsageError."""
    try:
        yield
    except MemtokError as error:
        raise UsageError(str(error)) from error


def check_pairs(options: Mapping[str, Any]) -> None:
    """UsageError for options of a training that exclude or need each other. Brings no torch along."""
    from memtok.checks import check_length, check_trace_options

    with arguments():
        check_length(options["steps"], options["epochs"])
        check_trace_options(*(options[name] for name in ("keep_traces", "trace_dir", "trace_limit", "views")))


def check_spec(spec: str) -> str:
    """A data source as it may be typed; UsageError for a name that no data set has. Brings no torch along."""
    from memtok.data import check_spec as check

    with arguments():
        return check(spec)
