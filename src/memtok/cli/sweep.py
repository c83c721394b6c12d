"""`memtok sweep`: many configurations of a task trained at once; the best one by the validation part is written."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from memtok.cli.errors import UsageError, arguments, check_spec
from memtok.cli.options import (
    Kind,
    Parser,
    add,
    add_backbone,
    add_json,
    add_list,
    add_setting,
    add_settings,
    add_switch,
    add_yes_no,
    one_of,
    positive,
    require,
    settings_in,
    whole,
)
from memtok.cli.output import check_apart, check_outputs, note, say, table, write_result
from memtok.cli.train import check_compiler
from memtok.data.registry import DATASETS
from memtok.display import percent
from memtok.launch import check_launch
from memtok.parts import OPTIONS, Option
from memtok.regimes import COMPOSABLE
from memtok.sweeps.space import LARGEST, SEARCHES, Axis, Range

if TYPE_CHECKING:
    from memtok.sweeps import SweepResult

USAGE = "--backbone SRC --data SPEC... --out DIR"
EXAMPLES = """
  memtok sweep --backbone small --data digits --learning-rates 1e-3 1e-2 1e-1 --memory 1 5 10 --out digits
  memtok sweep --backbone small --data digits mnist --steps 300 --halving 3 --out both
  memtok sweep --backbone facebook/dinov2-small --data folder:photos --search random --trials 24 \\
      --learning-rates 1e-4..1e-1 --weight-decays 1e-4..1e-1 --memory 0..20 --out photos
"""

SHOWN = 20  # lines of the table for each data set
AXES = ("learning_rates", "weight_decays", *(option.axis for option in OPTIONS), "seeds", "regimes")


def configure(parser: Parser) -> None:
    """Adds the options."""
    add_backbone(parser)
    kinds = f"{', '.join(DATASETS)}, or folder:PATH with one folder of images per class; several are swept in turn"
    add_list(parser, "--data", "SPEC", kinds)
    add_setting(parser, "split")
    add(parser, "--out", None, "DIR", "the folder for all that is written; the same command goes on where it stopped")
    add(parser, "--name", None, "NAME", "what the winner's task is called (default: as the data)")
    rates = "peak rates, or a range such as 1e-4..1e-1 to draw from (default: around the recipe's)"
    add_list(parser, "--learning-rates", "X", rates, numbers("--learning-rates", above_zero=True))
    decays = "weight decays, or a range (default: the recipe's)"
    add_list(parser, "--weight-decays", "X", decays, numbers("--weight-decays", above_zero=False))
    for option in OPTIONS:
        flag = f"--{option.axis.replace('_', '-')}"
        words = f"{option.help}, or a range such as {option.least}..{option.least + 8} (default: {option.defaults})"
        add_list(parser, flag, option.values.metavar, words, counts(flag, option))
    add_list(parser, "--seeds", "S", "seeds of the initial values (default: 0)", whole("--seeds"))
    add_list(parser, "--regimes", "R", f"{', '.join(COMPOSABLE)} (default: memory)", one_of("--regimes", COMPOSABLE))
    search = "grid tries all, random draws --trials, optuna proposes them"
    add(parser, "--search", one_of("--search", SEARCHES), "S", search, "grid")
    add(parser, "--trials", whole("--trials", 1), "N", "configurations of a random or Optuna search")
    halving = "stop the worse ones early: at each rung one in ETA goes on (default: none is stopped)"
    add(parser, "--halving", whole("--halving", 2), "ETA", halving)
    limit = "memory that a pass may take (default: 60 %% of what is free)"
    add(parser, "--memory-limit", positive("--memory-limit"), "GB", limit)
    together = "configurations that share a pass, at most (default: as many as fit the memory)"
    add(parser, "--together", whole("--together", 1), "N", together)
    add_switch(parser, "--keep-all", "keep the task file of every configuration, not only the winner's")
    line = "train heads alone beside the others, as the line to beat, or not (default: yes)"
    add_yes_no(parser, "--compare-head", line)
    add_setting(parser, "seed", help="of order, augmentation and search, shared by all")
    add_settings(parser, "sweep")
    add(parser, "--image-size", whole("--image-size", 1), "N", "pixels (default: the checkpoint's)")
    add_json(parser)


def numbers(flag: str, *, above_zero: bool) -> Kind:
    """A number above 0, or one of 0 or more, or a range of numbers above 0."""

    def convert(value: str) -> float | Range:
        found = Range.parse(value, float) or float(value)
        low, high = (found.low, found.high) if isinstance(found, Range) else (found, found)
        least_in = above_zero or isinstance(found, Range)
        if not 0 <= low <= high <= LARGEST or (low == 0 and least_in):
            raise ValueError
        return found

    bound = "above 0" if above_zero else "of 0 or more"
    example = "LOW..HIGH above 0 with the lower end first, such as 1e-4..1e-1"
    return Kind(flag, f"a number {bound} (at most {LARGEST:g}), or a range {example}", convert)


def counts(flag: str, option: Option) -> Kind:
    """A value of an option, or a range of whole numbers."""

    def convert(value: str) -> int | str | Range:
        found = Range.parse(value, int)
        if found is not None and found.low < option.least:
            raise ValueError
        return found or option.values.read(value)

    example = f"LOW..HIGH with the lower end first, such as {option.least}..20"
    return Kind(flag, f"{option.values.expected}, or a range {example}", convert)


def run(options: Namespace) -> int:
    """Checks all arguments, then loads, trains what is missing, prints."""
    require(options, "--backbone", "--data", "--out")
    for spec in options.data:
        check_spec(spec)
    if len(set(options.data)) < len(options.data):
        raise UsageError(f"expected every --data once, found {', '.join(options.data)}; leave one out")
    shared = settings_in(options, "sweep")
    check_places(options)
    check_apart(options.data, out=options.out, trace_dir=options.trace_dir)
    check_launch()
    space = check_space_of(options, shared)
    check_compiler(options)
    from memtok.cli.sources import open_backbone
    from memtok.sweeps import RichSweepListener, sweep

    device = "cpu" if options.device == "cpu" else device_for(options.device)
    backbone = open_backbone(options.backbone, image_size=options.image_size, device=device)
    result = sweep(
        backbone,
        options.data,
        out=options.out,
        **space,
        **{name: options[name] for name in ("halving", "memory_limit", "together", "keep_all", "name")},
        compare_head=options.compare_head is not False,
        progress=RichSweepListener(),
        **shared,
    )
    write_result(options.json, result.to_json())
    show(result, options)
    return 0 if all(one.winner is not None for one in result.data) else 1


def check_places(options: Namespace) -> None:
    """Raises for results that could not be written, or that would take the place of what is read or kept."""
    out = Path(options.out)
    if out.exists() and not out.is_dir():
        raise UsageError(f"expected a folder after --out, found the file {out}; name a folder")
    inputs = [options.backbone, str(Path(options.backbone) / "model.safetensors")]
    results = [str(out / name) for name in ("result.json", "result.csv", "result.md", "sweep.png", "best.safetensors")]
    check_outputs(options.json, *results, inputs=inputs, pictures=options.data)
    if options.json is not None:
        json, kept = Path(options.json).resolve(), [out.resolve() / name for name in ("runs", "sweep.json")]
        if any(place in (json, *json.parents) for place in kept):
            raise UsageError(f"expected a file of its own after --json, found {options.json}, which the sweep keeps")
        if json in (out.resolve(), *out.resolve().parents):
            raise UsageError(
                f"expected a file after --json, found {options.json}, a folder of --out; name a file in it"
            )


def check_space_of(options: Namespace, shared: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `memtok.sweep` for its space, checked with those that all configurations share."""
    space: dict[str, Any] = {name: axis(options, name) for name in AXES if options[name] is not None}
    space |= {"search": options.search, "trials": options.trials}
    from memtok.sweeps.settings import SweepSettings, check_space, make_space

    with arguments():
        check_space(**space)  # before what follows loads torch
        made = make_space(recipe=options.recipe, solver=options.solver, **space)
        SweepSettings(space=made, out=Path(options.out), halving=options.halving, name=options.name, shared=shared)
        if options.name is not None and len(options.data) > 1:
            raise UsageError(f"expected no --name for {len(options.data)} data sets, found one; leave it out")
    return space


def axis(options: Namespace, name: str) -> Axis:
    """The values of one axis; UsageError for a range beside other values."""
    values = options[name]
    if not any(isinstance(value, Range) for value in values):
        return tuple(values)
    if len(values) > 1:
        flag = "--" + name.replace("_", "-")
        found = " ".join(str(value) for value in values)
        raise UsageError(f"expected values or one range after {flag}, found {found}; give one of them")
    found_range: Range = values[0]
    return found_range


def device_for(word: str) -> str:
    """Where the backbone is loaded to."""
    import torch

    return "cuda" if torch.cuda.is_available() and word in ("auto", "cuda") else "cpu"


def show(result: SweepResult, options: Namespace) -> None:
    """Prints the table, the winners, where things are and what to type next."""
    heads, lines, right = result.table(SHOWN)
    table(heads, lines, right)
    for one in result.data:
        if len(one.trials) > SHOWN:
            say(
                f"{one.data}: the best {SHOWN} of {len(one.trials):,} configurations; all are in {result.out}/result.md"
            )
    for one in result.data:
        for path in one.skipped_images:
            note(f"not readable, left out: {path}")
    say()
    for sentence in result.sentences():
        say(sentence)
    for one in result.data:
        look = None if one.winner is None else one.winner.last
        if look is not None and look.balanced is not None:  # records of version 0.1 have none
            say(
                f"{one.data}: the winner's balanced accuracy (mean recall of the classes) on the validation images is "
                f"{percent(look.balanced)}"
            )
    for name in ("result.json", "result.csv", "result.md"):
        say(f"wrote {result.out / name}")
    say(f"wrote {result.picture}: the plot")
    best = [one for one in result.data if one.best is not None]
    for one in best:
        say(f"wrote {one.best}: the winner's task")
    if best:
        say()
        say("next:")
        for command in next_commands(result, options):
            say(f"  {command}")


def next_commands(result: SweepResult, options: Namespace) -> list[str]:
    """What can be done with the files of the winners, as it is typed."""
    backbone = shlex.quote(options.backbone)
    place = f" --data-dir {shlex.quote(options.data_dir)}" if options.data_dir else ""
    commands = []
    for one in result.data:
        if one.best is not None:
            file = shlex.quote(str(one.best))
            commands.append(f"memtok evaluate {file} --backbone {backbone} --data {shlex.quote(one.data)}{place}")
    files = " ".join(shlex.quote(str(one.best)) for one in result.data if one.best is not None)
    commands.append(f"memtok verify {files} --backbone {backbone}")
    commands.append(f"memtok predict {files} --backbone {backbone} --images PATH")
    return commands
