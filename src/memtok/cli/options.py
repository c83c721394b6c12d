"""Options of the sub-commands: jsonargparse (YAML files, overrides) with types that explain themselves in one line."""

from __future__ import annotations

import argparse
import math
import re
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from jsonargparse import ActionYesNo, ArgumentParser, Namespace

from memtok.cli.errors import UsageError, arguments
from memtok.cli.suggestions import options_like
from memtok.regular import check_regular
from memtok.training.settings import DEFAULTS, SETTINGS, Settings, settings_of
from memtok.values import Number, OneOf, Place, Switch, Values, Whole, YesNo


class Parser(ArgumentParser):
    """A parser that raises UsageError instead of printing and leaving.

    options: what it knows, in the order in which it was added.
    """

    options: list[argparse.Action]

    def add_argument(self, *args: Any, **kwargs: Any) -> Any:
        """As in argparse."""
        action = super().add_argument(*args, **kwargs)
        self.options = [*getattr(self, "options", ()), action]  # argparse's own --help comes before any attribute
        return action

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raises `message` as a UsageError of one line."""
        if isinstance(ex, UsageError):
            raise ex
        raise UsageError(explain(self, message)) from ex

    def _check_value_key(
        self, action: argparse.Action, value: Any, key: str, cfg: Namespace | None, append: bool = False
    ) -> Any:
        # jsonargparse's own complaints name neither the option nor the value, and this is all that comes before them.
        check_shape(action, value)
        return super()._check_value_key(action, value, key, cfg, append)


def check_shape(action: argparse.Action, value: Any) -> None:
    """UsageError for a list option whose value in a YAML file is no list, and for a switch whose value is no switch."""
    flag = action.option_strings[0] if action.option_strings else action.dest
    found = short(value)
    if isinstance(action, Several) and not (value is None or isinstance(value, list)):
        advice = "[a, b]" if isinstance(value, dict) else f"[{found}]"
        raise UsageError(f"expected a list for {flag} in the configuration, found {found}; write {advice}")
    switch = isinstance(action, ActionYesNo) or (action.nargs == 0 and action.const is True)
    words = ("true", "false", "yes", "no") if isinstance(action, ActionYesNo) else ()  # jsonargparse reads them too
    if switch and not (value is None or isinstance(value, bool) or (isinstance(value, str) and value.lower() in words)):
        raise UsageError(f"expected true or false for {flag} in the configuration, found {found}; write one of them")


def short(value: Any) -> str:
    """A value of a YAML file in one line."""
    return textwrap.shorten(repr(value), 80, placeholder=" ...")


class Several(argparse.Action):
    """A list option: `--data a b --data c` gives a, b and c; given on the command line it replaces the file's list."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Called once per occurrence on the command line, after the configuration file before it was read."""
        given: set[str] = vars(parser).setdefault("given_lists", set())
        if not values:
            return
        before = getattr(namespace, self.dest, None) if self.dest in given else None
        given.add(self.dest)
        setattr(namespace, self.dest, [*(before or []), *values])


class Kind:
    """What an option accepts: `convert` makes a value of a text or raises ValueError; `expected` says what is right."""

    def __init__(self, flag: str, expected: str, convert: Callable[[str], Any]) -> None:
        self.flag, self.expected, self.convert = flag, expected, convert
        self.__name__ = expected

    def __call__(self, value: Any) -> Any:
        """The value; None (`null` in a YAML file) stays None. Raises argparse's error, which the parser reports."""
        if value is None:
            return None
        try:
            if isinstance(value, list | dict | bool):  # of a YAML file, where a number may stand for a text
                raise ValueError
            return self.convert(str(value))
        except ValueError:
            found = short(value if isinstance(value, list | dict) else str(value))
            raise argparse.ArgumentTypeError(
                f"expected {self.flag} as {self.expected}, found {found}; change it"
            ) from None


def text(flag: str) -> Kind:
    """Any text but an empty one, or one with a zero byte, which no file name can have."""

    def convert(value: str) -> str:
        if "\0" in value:
            raise argparse.ArgumentTypeError(f"expected {flag} without a zero byte, found {short(value)}; leave it out")
        if not value.strip():
            raise ValueError
        return value

    return Kind(flag, "a text that is not empty", convert)


def whole(flag: str, least: int = 0) -> Kind:
    """A whole number of at least `least`."""
    return kind_of(flag, Whole(least))


def positive(flag: str) -> Kind:
    """A finite number above zero."""
    return kind_of(flag, Number(above_zero=True))


def one_of(flag: str, choices: Sequence[str]) -> Kind:
    """One of a few words."""
    return kind_of(flag, OneOf(tuple(choices)))


def kind_of(flag: str, values: Values) -> Kind:
    """What is declared of an argument, for its option."""
    return text(flag) if isinstance(values, Place) else Kind(flag, values.expected, values.read)


def number(flag: str) -> Kind:
    """A finite number."""

    def convert(value: str) -> float:
        found = float(value)
        if not math.isfinite(found):
            raise ValueError
        return found

    return Kind(flag, "a finite number", convert)


def build_parser(command: str, description: str, usage: str, examples: str) -> Parser:
    """A parser of `memtok COMMAND` that knows --help, --config, --print-config and --debug.

    usage: the arguments that matter. examples: commands as one would type them.
    """
    parser = Parser(
        prog=f"memtok {command}",
        usage=f"memtok {command} {usage} [OPTIONS]".replace("  ", " "),
        description=description[0].upper() + description[1:],
        epilog=f"examples:\n{examples.strip(chr(10))}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        default_env=False,
        allow_abbrev=False,
        print_config="--print-%s",
    )
    parser.add_argument(
        "--config", action="config", metavar="YAML", help="read options from a file; what is typed after it overrides"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def add_files(parser: Parser, help: str) -> None:
    """The list `FILE...`, as `options.files`."""
    parser.add_argument("files", type=text("FILE"), nargs="*", action=Several, default=[], metavar="FILE", help=help)


def add_list(parser: Parser, flag: str, metavar: str, help: str, kind: Kind | None = None) -> None:
    """A list option, which can also be repeated; every value is a `kind`, or a text."""
    parser.add_argument(flag, type=kind or text(flag), nargs="+", action=Several, metavar=metavar, help=help)


def add(parser: Parser, flag: str, kind: Kind | None, metavar: str, help: str, default: Any = None) -> None:
    """An option with one value. The help names the default unless it is None."""
    shown = help if default is None else f"{help} (default: {default})"
    parser.add_argument(flag, type=kind or text(flag), default=default, metavar=metavar, help=shown)


def add_switch(parser: Parser, flag: str, help: str) -> None:
    """An option without value, False unless given."""
    parser.add_argument(flag, action="store_true", help=help)


def add_yes_no(parser: Parser, flag: str, help: str) -> None:
    """`--flag` and `--no-flag`; None unless one is given."""
    action: Any = ActionYesNo(yes_prefix="", no_prefix="no-")
    parser.add_argument(flag, action=action, default=None, help=help)


def add_backbone(parser: Parser, default: str = "") -> None:
    """`--backbone SRC`; `default` says what holds without it."""
    sources = "a folder, a .safetensors file, a Hub id, a timm name, or `small`, which memtok ships"
    add(parser, "--backbone", None, "SRC", f"the pre-trained model: {sources}{default and f' (default: {default})'}")


def add_settings(parser: Parser, command: str) -> None:
    """The settings of a training that `command` has as options; those that are there already stay as they are."""
    there = option_names(parser)
    for name in settings_of(command):
        if name not in there:
            add_setting(parser, name)


def add_setting(parser: Parser, name: str, *, help: str = "", unset: str = "", default: Any = ...) -> None:
    """A setting of a training as an option.

    help, unset, default: where a command has others than those that are declared; `unset` says what None means.
    """
    declared, flag = SETTINGS[name], f"--{name.replace('_', '-')}"
    if default is ...:
        default = None if unset else DEFAULTS[name]
    words = help or declared.help
    if default is None and (unset or declared.unset):
        words += f" (default: {unset or declared.unset})"
    words = words.replace("%", "%%")  # argparse fills in what stands behind a %
    if isinstance(declared.values, YesNo):
        add_yes_no(parser, flag, words)
    elif isinstance(declared.values, Switch):
        add_switch(parser, flag, words)
    else:
        add(parser, flag, kind_of(flag, declared.values), declared.values.metavar, words, default)


def settings_in(options: Namespace, command: str) -> dict[str, Any]:
    """The settings that were given to `command`, as keyword arguments; UsageError for those that cannot be."""
    given = {name: options[name] for name in settings_of(command)}
    found = {name: value for name, value in given.items() if value is not None}
    with arguments():
        Settings(**found)
    return found


def add_device(parser: Parser) -> None:
    """`--device` and `--precision`."""
    add(parser, "--device", None, "NAME", "cpu, cuda, cuda:0 ...; auto takes a GPU if there is one", "auto")
    add_setting(parser, "precision")


def add_on_bad_image(parser: Parser, default: str) -> None:
    """`--on-bad-image` with another default."""
    add_setting(parser, "on_bad_image", default=default)


def add_data_options(parser: Parser, workers: bool = True) -> None:
    """`--data-dir`, `--on-bad-image` and perhaps `--workers`."""
    add_setting(parser, "data_dir")
    add_setting(parser, "on_bad_image")
    if workers:
        add(parser, "--workers", whole("--workers"), "N", "processes that read images; 0 reads in this one", 0)


def add_split(parser: Parser, default: str) -> None:
    """`--split`; `default` says what holds without it."""
    add_setting(parser, "split", unset=default)


def add_json(parser: Parser) -> None:
    """`--json FILE`."""
    add(parser, "--json", None, "FILE", "also write the result as JSON; - is standard output, and then nothing else is")


def option_names(parser: Parser) -> dict[str, str]:
    """The option of each argument: {"trace_dir": "--trace-dir"}."""
    actions = [action for action in parser.options if action.option_strings]
    return {action.dest: next(iter(action.option_strings)) for action in actions}


def parse(parser: Parser, words: list[str]) -> Namespace | None:
    """The options in `words`; None where --help or --print-config was answered. Raises UsageError."""
    check_configs(words)
    try:
        options: Namespace = parser.parse_args(words)
        for key, default in vars(parser.get_defaults()).items():
            if default is not None and options[key] is None:  # `null` in a YAML file: as if it were not there
                options[key] = default
        return options
    except SystemExit as end:
        if not end.code:
            return None
        raise UsageError(f"expected other arguments; see `{parser.prog} --help`") from end
    except RecursionError as error:
        raise UsageError(
            "expected options of this command in the configuration, found values that hold themselves or are nested "
            "too deep; write them out"
        ) from error
    except (argparse.ArgumentError, argparse.ArgumentTypeError, TypeError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(explain(parser, str(error))) from error


def check_configs(words: Sequence[str]) -> None:
    """UsageError if a `--config` among the words names a pipe or a device, which reading may never end."""
    for index, word in enumerate(words):
        option, _, value = word.partition("=")
        if option == "--config":
            with arguments():
                check_regular(value or "".join(words[index + 1 : index + 2]), "a YAML file", streams=True)


def require(options: Namespace, *flags: str) -> None:
    """UsageError unless every one of `flags` (`FILE` stands for the files) has a value."""
    for flag in flags:
        key = "files" if flag == "FILE" else flag.removeprefix("--").replace("-", "_")
        if options[key] in (None, []):
            raise UsageError(f"expected {flag}, found none; see the examples of --help")


def require_backbone(options: Namespace, flag: str = "FILE") -> None:
    """UsageError without --backbone and without a task file after `flag`, which would name it."""
    files = options.files if flag == "FILE" else options[flag.removeprefix("--")]
    if options.backbone is None and not files:
        raise UsageError(f"expected --backbone, found none, nor a task file ({flag}) that names it; see --help")


def explain(parser: Parser, message: str) -> str:
    """The one line that argparse's or jsonargparse's `message` to the user of `parser` amounts to."""
    line = " ".join(message.split())
    line = re.sub(r"^(error: )?argument [^:]+: (?=expected (--|[A-Z]+ ))", "", line)
    if re.match(r"expected (--|[A-Z]+ )", line):
        return line
    help = f"see `{parser.prog} --help`"
    options = [option for action in parser.options for option in action.option_strings]
    if match := re.match(r"argument ([^:]+): expected (at least )?one argument", line):
        return f"expected a value after {match[1].split('/')[0]}, found none; {help}"
    if match := re.match(r"unrecognized arguments: (.+)", line, flags=re.IGNORECASE):
        unknown = [word for word in match[1].split() if word.startswith("-")]
        return f"expected options of this command, found {match[1]}{options_like(unknown, options)}; {help}"
    if match := re.match(r"Option '([^']+)' is not accepted", line):
        like = options_like([f"--{match[1]}"], options)
        return f"expected options of this command in the configuration, found {match[1]!r}{like}; {help}"
    if match := re.match(r'Parser key "config": (.+)', line):
        return f"expected a readable YAML file after --config, found: {match[1]}; name another"
    if match := re.match(r"Problems parsing config: (.+)", line):
        return f"expected YAML in the configuration, found: {match[1]}; mend it"
    return f"expected other arguments, found: {line}; {help}"
