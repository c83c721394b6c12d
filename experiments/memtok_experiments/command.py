"""`memtok reproduce`: the experiments of the paper and of its reproduction, with their figures beside the new ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from memtok.cli.errors import UsageError, arguments
from memtok.cli.options import (
    Parser,
    add,
    add_json,
    add_list,
    add_setting,
    add_settings,
    add_switch,
    positive,
    require,
    settings_in,
    text,
    whole,
)
from memtok.cli.output import check_apart, check_outputs, say, table, write_result
from memtok.launch import check_launch
from memtok_experiments.beyond import command as beyond

if TYPE_CHECKING:
    from memtok_experiments.presets import Preset
    from memtok_experiments.records import RunRecord
    from memtok_experiments.settings import GridSettings

EXPERIMENTS = {
    "table2": "every regime on every data set, as in Table 2 of the paper",
    "architectures": "the same on several backbones",
    "concat": "tasks trained separately and composed, with and without the mask",
    "extension": "tasks that extend others, mixed with concatenation",
    "beyond": "what composes against full fine-tuning, LoRA and VPT, on many data sets",
}

USAGE = f"{{{','.join(EXPERIMENTS)}}} --out DIR"
EXAMPLES = """
  memtok reproduce table2 --preset paper-cifar100 --out cifar100
  memtok reproduce table2 --backbone small --data digits mnist --columns all --recipe default --steps 300 --out small
  memtok reproduce table2 --data cifar100 --columns memory-1 --recipe reproduction --split 80-20 --out reproduction
  memtok reproduce concat --backbone small --data digits mnist --recipe default --steps 300 --out small
  memtok reproduce beyond --backbone small --rows digits digits@5-per-class --seeds 0 --rates 1 --steps 300 --out beyond
"""

PAPER_DATA = ("sun397", "inaturalist2017", "cifar100", "places365")
DEFAULT_CELLS = 5
RESULTS = ("json", "csv", "md", "png")


def configure(parser: Parser) -> None:
    """Adds the options."""
    listed = "; ".join(f"{name}: {text}" for name, text in EXPERIMENTS.items())
    parser.add_argument("experiment", nargs="?", type=text("EXPERIMENT"), metavar="EXPERIMENT", help=listed)
    add(
        parser, "--preset", None, "NAME", "a published experiment, which fills in what is not given: paper-cifar100 ..."
    )
    add_list(
        parser, "--backbone", "SRC", "pre-trained models (default: the paper's ViT-B/32; architectures takes several)"
    )
    add_list(parser, "--data", "SPEC", f"data sets (default: {' '.join(PAPER_DATA)})")
    add_list(
        parser,
        "--columns",
        "NAME",
        "regimes to compare: full head class memory-N class-unmasked memory-N-unmasked propagated-N additive-N; "
        "`paper` (default) and `all` stand for several",
    )
    add(parser, "--memory", whole("--memory"), "N", "cells per layer in concat and extension (default: 5)")
    add_list(
        parser, "--seeds", "S", "seeds; the learning rate is chosen with the first (default: 0 1 2)", whole("--seeds")
    )
    add_setting(parser, "recipe", unset="paper")
    add(parser, "--image-size", whole("--image-size", 1), "N", "pixels (default: the checkpoint's)")
    rates = "learning rates to choose among on the validation part (default: three around the recipe's)"
    add_list(parser, "--learning-rates", "X", rates, positive("--learning-rates"))
    add_list(parser, "--full-learning-rates", "X", "the same for full fine-tuning", positive("--full-learning-rates"))
    add_settings(parser, "reproduce")
    images = "use so many images of the test part only, stratified by class (default: all)"
    add(parser, "--test-images", whole("--test-images", 1), "N", images)
    add(parser, "--together", whole("--together", 1), "N", "configurations that share a pass of the trunk, at most", 24)
    add_switch(parser, "--keep-models", "keep the fully fine-tuned models too, not only the task files")
    beyond.configure(parser)
    add(parser, "--out", None, "DIR", "the folder for all that is written; the same command goes on where it stopped")
    add_json(parser)


def run(options: Namespace) -> int:
    """Applies the preset, checks, runs what is missing, prints."""
    if options.experiment not in EXPERIMENTS:
        found = repr(options.experiment) if options.experiment else "none"
        raise UsageError(
            f"expected an experiment ({', '.join(EXPERIMENTS)}), found {found}; see the examples of --help"
        )
    beyond.check_options(options)
    composes = options.experiment in ("concat", "extension")
    wrong = ("--columns", options.columns) if composes else ("--memory", options.memory)
    if wrong[1] is not None:
        advice = "give --memory N" if composes else "give --columns memory-N"
        raise UsageError(f"expected no {wrong[0]} for {options.experiment}, found one; {advice}")
    require(options, "--out")
    settings_in(options, "reproduce")
    check_launch()
    check_places(options)
    check_apart(options.data or (), out=options.out, trace_dir=options.trace_dir)
    if options.experiment == "beyond":
        return beyond.run(options)
    preset = apply_preset(options)
    with arguments():
        plans = settings_of(options)
    if options.experiment in ("table2", "architectures"):
        result = tables(options, plans, preset)
    else:
        result = compositions(options, plans[0], preset)
    write_result(options.json, result)
    return 0


def check_places(options: Namespace) -> None:
    """Raises for results that could not be written, and for a --json that would replace a file of the grid."""
    out = Path(options.out)
    check_outputs(options.json, *(str(out / f"{options.experiment}.{ending}") for ending in RESULTS))
    if options.json is not None:
        json, folder = Path(options.json).resolve(), out.resolve()
        kept = [folder / "grid.json", folder / "runs", folder / "extended"]
        if any(place in (json, *json.parents) for place in kept):
            raise UsageError(f"expected a file of its own after --json, found {options.json}, which the grid keeps")


def apply_preset(options: Namespace) -> Preset | None:
    """Sets the options that are not given to those of the preset."""
    if options.preset is None:
        return None
    from memtok_experiments.presets import find_preset

    with arguments():
        preset = find_preset(options.preset)
    if preset.experiment != options.experiment:
        raise UsageError(
            f"expected a preset of {options.experiment}, found {preset.name!r} of {preset.experiment}; "
            f"run `memtok reproduce {preset.experiment} --preset {preset.name}`"
        )
    given: dict[str, Any] = {
        "backbone": preset.backbones,
        "data": preset.data,
        "columns": preset.columns if preset.memory is None else None,
        "recipe": preset.recipe,
        "steps": None if options.epochs else preset.steps,
        "image_size": preset.image_size,
        "split": preset.split,
        "learning_rates": preset.learning_rates,
        "memory": preset.memory,
    }
    for key, value in given.items():
        if options[key] is None and value is not None:
            options[key] = list(value) if isinstance(value, tuple) else value
    return preset


def settings_of(options: Namespace) -> list[GridSettings]:
    """The settings of a grid per backbone; MemtokError for invalid arguments."""
    from memtok.folders import slug
    from memtok_experiments.presets import find_preset
    from memtok_experiments.settings import GridSettings

    several = options.experiment == "architectures"
    backbones = options.backbone or find_preset("paper-architectures" if several else "paper-cifar100").backbones
    if len(set(backbones)) < len(backbones):
        raise UsageError(f"expected every --backbone once, found {', '.join(backbones)}; leave one out")
    if options.data is not None and len(options.data) < 2 and options.experiment in ("concat", "extension"):
        raise UsageError(f"expected two data sets or more for {options.experiment}, found one; name more with --data")
    if len(backbones) > 1 and not several:
        raise UsageError(
            f"expected one --backbone for {options.experiment}, found {len(backbones)}; use `reproduce architectures`"
        )
    names = {field.name for field in fields(GridSettings)} - {"backbone", "out", "trace_dir"}
    given = {name: options[name] for name in names if options.get(name) is not None}
    shared: dict[str, Any] = {"data": PAPER_DATA, "seeds": (0, 1, 2)}
    shared |= {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}

    def place(folder: str, backbone: str) -> Path:
        return Path(folder) / slug(backbone) if several else Path(folder)

    return [
        GridSettings(
            backbone=backbone,
            out=place(options.out, backbone),
            trace_dir=None if options.trace_dir is None else place(options.trace_dir, backbone),
            **shared,
        )
        for backbone in backbones
    ]


def tables(options: Namespace, plans: Sequence[GridSettings], preset: Preset | None) -> dict[str, Any]:
    """Runs the grids, prints and writes the table."""
    from memtok_experiments.grid import Grid
    from memtok_experiments.opening import open_backbone
    from memtok_experiments.progress import GridDisplay
    from memtok_experiments.render import to_console, to_json
    from memtok_experiments.saving import save
    from memtok_experiments.table import make_table

    for plan in plans:  # before the first grid, which may take days
        backbone = open_backbone(plan)
        if preset is not None:
            preset.check_backbone(backbone)
    records: list[RunRecord] = []
    for plan in plans:
        backbone = backbone if len(plans) == 1 else open_backbone(plan)
        with closing(GridDisplay()) as display:
            records += Grid(plan, backbone, listener=display).run()
    made = make_table(records)
    for title, columns, rows, right in to_console(made):
        say(title)
        table(columns, rows, right)
        say()
    for path in save(made, Path(options.out), options.experiment):
        say(f"wrote {path}")
    result = to_json(made)
    if preset is not None and len(preset.data) == 1:
        means = [
            (column, cell.mean) for row in made.rows for column, cell in row.cells.items() if row.data in preset.data
        ]
        result["preset"] = compared(preset, {column: 100 * mean for column, mean in means if mean is not None})
    return result


def compared(preset: Preset, found: Mapping[str, float]) -> dict[str, Any]:
    """Prints and returns whether accuracies in percent, by column, are in the expected range of the preset."""
    columns = {}
    for column, value in found.items():
        if column in preset.expected:
            low, high = preset.expected[column]
            place = "within" if preset.within(column, value) else "outside"
            say(f"{column}: {value:.1f} %, {place} {low:g} to {high:g} %, which {preset.name} expects")
            columns[column] = {"percent": value, "low": low, "high": high}
    return {"name": preset.name, "source": preset.source, "published": preset.published, "columns": columns}


def compositions(options: Namespace, plan: GridSettings, preset: Preset | None) -> dict[str, Any]:
    """Runs concat or extension, prints and writes the accuracies before and after."""
    from memtok_experiments import composition
    from memtok_experiments.opening import open_backbone
    from memtok_experiments.progress import GridDisplay

    if preset is not None:
        preset.check_backbone(open_backbone(plan))
    experiment = composition.concat if options.experiment == "concat" else composition.extension
    with closing(GridDisplay()) as display:
        cells = DEFAULT_CELLS if options.memory is None else options.memory
        outcome = experiment(plan, cells=cells, listener=display)
    say(outcome.caption())
    headings, rows = outcome.table()
    table(headings, rows, right=headings[1:])
    say(outcome.sentence())
    for path in outcome.save(Path(options.out)):
        say(f"wrote {path}")
    result = outcome.to_json()
    if preset is not None:
        fields = {"alone": "alone", "masked": "together", "unmasked": "together_unmasked"}
        means = {name: outcome.mean(preset.data[0], field) for name, field in fields.items()}
        result["preset"] = compared(preset, {name: 100 * mean for name, mean in means.items() if mean is not None})
    return result
