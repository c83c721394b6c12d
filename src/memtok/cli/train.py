"""`memtok train`: trains a task, or a whole model, and writes it to a file."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from memtok.cli.errors import UsageError, arguments, check_spec
from memtok.cli.options import (
    Parser,
    add,
    add_backbone,
    add_json,
    add_list,
    add_setting,
    add_settings,
    kind_of,
    number,
    one_of,
    require,
    require_backbone,
    settings_in,
    text,
    whole,
)
from memtok.cli.output import check_apart, check_outputs, note, note_left_out, recall_words, say, table, write_result
from memtok.data.registry import DATASETS
from memtok.display import percent, shown_bytes
from memtok.errors import MemtokError
from memtok.launch import check_launch, is_first_process, launched_processes
from memtok.parts import CHOICES, OPTIONS, choose, combined, more_than_head
from memtok.preprocessing import check_range
from memtok.regimes import COMPOSABLE, REGIMES
from memtok.training.recipes import GRADIENT
from memtok.training.settings import DEFAULTS, OF_STEPS

if TYPE_CHECKING:
    from memtok.backbone import Backbone
    from memtok.data import DataSource
    from memtok.training import FormChoice, TrainResult
    from memtok.training.forms import Form
    from memtok.training.regimes import Trainable

USAGE = "--backbone SRC --data SPEC --out FILE.safetensors"
EXAMPLES = """
  memtok train --backbone facebook/dinov2-small --data folder:photos --split 80-20 --out pets.safetensors
  memtok train --backbone small --data digits --steps 300 --out digits.safetensors
  memtok train --backbone small --data folder:more --extends pets.safetensors --out more.safetensors
  memtok train --config train.yaml --seed 1 --out pets-1.safetensors
"""

# What memtok.training knows, without importing it; a test compares the two.
RECIPES = ("default", "paper", "reproduction")
AUGMENTATIONS = ("inception", "light", "crop", "none")
SELECT = ("balanced", "top1", "loss")

FORM_NAMES = ("ridge-low-rank", "ridge-class-mean", "ridge", "readout", "side", "readout+side", "memory")

AUTO = "auto"  # in place of a regime: one that cross-validation chooses
NAMED = "memory"  # the regime of a command that says what a task has, but names none
# The options that hold for that choice as for the run; others are about views, validations, files, or the length.
OF_CHOICE: tuple[str, ...] = (
    "seed",
    "recipe",
    "batch_size",
    "accumulate",
    "learning_rate",
    "label_smoothing",
    "balance",
)
OF_CHOICE += ("device", "precision", "workers", "trace_limit", "compile")


def configure(parser: Parser) -> None:
    """Adds the options."""
    add_backbone(parser, "with --extends as the files there say")
    add(
        parser,
        "--data",
        None,
        "SPEC",
        f"{', '.join(DATASETS)}, or folder:PATH with one folder of images per class",
    )
    add_setting(parser, "split")
    add_setting(parser, "out")
    add(parser, "--name", None, "NAME", "what the task is called (default: FILE without its ending)")
    regimes = "; ".join(f"{regime.name}: {regime.trains}" for regime in REGIMES.values())
    regimes += f"; {AUTO}: readout, side or both, whichever cross-validation favours"
    regimes += f" (default: {AUTO}; {NAMED} with options that it does not choose among)"
    add(parser, "--regime", one_of("--regime", (*REGIMES, AUTO)), "R", regimes)
    help = f"what --regime {AUTO} chooses among: {', '.join(FORM_NAMES)} (default: all but memory, which takes long)"
    add_list(parser, "--forms", "F", help, one_of("--forms", FORM_NAMES))
    for option in OPTIONS:
        flag = f"--{option.name.replace('_', '-')}"
        values = option.values
        add(parser, flag, kind_of(flag, values), values.metavar, f"{option.help} (default: {option.defaults})")
    for choice in CHOICES:
        flag, words = f"--{choice.name.replace('_', '-')}", ", ".join(choice.values)
        help = f"{choice.help}: {'some of ' if choice.several else ''}{words} (default: {choice.default})"
        add(parser, flag, text(flag) if choice.several else one_of(flag, choice.values), "P", help)
    add_list(parser, "--extends", "FILE", "task files that this task builds upon; they stay as they are")
    add_settings(parser, "train")
    add(parser, "--image-size", whole("--image-size", 1), "N", "pixels (default: the checkpoint's)")
    help = "values of black and white in images with more than 8 bits: 0 4095 for 12 bits (default: 0 65535)"
    add_list(parser, "--pixel-range", "N", help, number("--pixel-range"))
    add_json(parser)


def run(options: Namespace) -> int:
    """Checks all arguments, then loads, trains, prints."""
    require(options, "--data", "--out")
    require_backbone(options, "--extends")
    backbone_file = None if options.backbone is None else str(Path(options.backbone) / "model.safetensors")
    inputs = [*(options.extends or []), backbone_file]
    # The task of a run that began in the backbone's folder is no part of the backbone.
    own = (
        backbone_file is not None and Path(options.backbone).is_dir() and Path(options.out).with_suffix(".run").is_dir()
    )
    check_outputs(options.out, inputs=[*inputs, *([] if own else [options.backbone])], pictures=[options.data])
    check_outputs(options.json, options.out, inputs=inputs, pictures=[options.data])
    check_outputs(options.json, inputs=[options.backbone])
    check_apart([options.data], out=Path(options.out).with_suffix(".run"), trace_dir=options.trace_dir)
    unnamed = options.regime is None and not said_of_task(options)
    options.regime = options.regime or usual_regime(options)
    check_regime(options)
    if options.pixel_range is not None:
        with arguments():
            check_range(options.pixel_range)
    settings = check_settings(options)
    check_spec(options.data)
    check_launch()
    if unnamed and launched_processes() > 1 and is_first_process():
        note(f"several processes train --regime {options.regime}; one alone chooses by cross-validation what to train")
    from memtok.training import train

    check_compiler(options)
    trainable, data, choice = prepare(options, settings)
    settings["solver"] = options.solver
    result = train(trainable, data, progress=True, **settings)
    if is_first_process():  # the first of several processes speaks for all
        write_result(options.json, summary(trainable, result, choice))
        show(trainable, result, options, has_test=data.has_test)
    return 0


def usual_regime(options: Namespace) -> str:
    """That of a command which names none; of a run that goes on, the one that it began with."""
    if options.forms:
        return AUTO
    began = str(begun_run(options).get("regime", AUTO))
    if began not in (AUTO, "readout", "side"):
        return began
    named = said_of_task(options) or options.compare_head or options.recipe != "default" or launched_processes() > 1
    return NAMED if named else AUTO


def begun_run(options: Namespace) -> dict[str, Any]:
    """The configuration of the run that goes on, empty where there is none."""
    path = Path(options.out).with_suffix(".run") / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if options.resume else {}
    except (OSError, ValueError):  # what the run goes on from is its state, which is checked when it is read
        return {}
    return found if isinstance(found, dict) else {}


def said_of_task(options: Namespace) -> list[str]:
    """The options given of what a task has and how it is trained, which `auto` chooses."""
    given = [name for name, value in part_options(options).items() if value is not None]
    given += [name for name in ("solver", "start") if options[name] != DEFAULTS[name]]
    return [*given, *(["extends"] if options.extends else [])]


def said_of_steps(options: Namespace) -> list[str]:
    """The options given that say nothing to a ridge regression."""
    return [name for name in OF_STEPS if name in options and options[name] != DEFAULTS[name]]


def check_regime(options: Namespace) -> None:
    """UsageError for options that the regime does not have."""
    if options.regime == AUTO:
        for name in said_of_task(options):
            raise UsageError(
                f"expected no --{name.replace('_', '-')} with --regime {AUTO}, which chooses what a task has and how "
                "it is trained, found one; leave it out, or name a regime"
            )
        solved = [name for name in options.forms or () if name.startswith("ridge")]
        for name in said_of_steps(options) if solved else ():
            raise UsageError(
                f"expected no --{name.replace('_', '-')} with --forms {' '.join(solved)}, which takes no steps, found "
                "one; leave one of them out"
            )
        return
    if options.forms:
        raise UsageError(
            f"expected --regime {AUTO} with --forms, found --regime {options.regime}; leave one of them out"
        )
    regime, parts = combined(REGIMES[options.regime], part_options(options))
    options.regime = regime.name
    for name, value in parts.items():
        options[name] = value
    with arguments():
        sizes, _ = choose(regime, parts)
    without = " with a side stream" if sizes["side"] else "" if regime.class_token else " without a readout"
    if options.solver != GRADIENT and (regime.class_token or not sizes["readout"] or sizes["side"]):
        raise UsageError(
            f"expected --regime readout with --solver {options.solver}, or head with --readout N, found --regime "
            f"{regime.name}{without}; use one of these, or --start ridge"
        )
    if options.extends and not regime.streams:
        raise UsageError(f"expected no --extends in regime {regime.name!r}, found one; use --regime memory")
    if options.compare_head and (regime.whole or not more_than_head(regime, sizes)):
        raise UsageError(f"expected no --compare-head in regime {regime.name!r}, found one; leave it out")
    if options.keep_traces and not regime.composable:
        raise UsageError(
            f"expected a composable task (--regime {' or '.join(COMPOSABLE)}) with --keep-traces, found --regime "
            f"{regime.name}, whose image tokens change as it trains; leave --keep-traces out"
        )


def part_options(options: Namespace) -> dict[str, Any]:
    """The options and choices of the parts, None for those that were not given."""
    names = *(option.name for option in OPTIONS), *(choice.name for choice in CHOICES)
    return {name: options[name] for name in names}


def check_settings(options: Namespace) -> dict[str, Any]:
    """The arguments of `memtok.train` for data that are open, checked before anything is loaded."""
    from memtok.checks import check_name

    settings = settings_in(options, "train")
    settings.pop("split", None)
    with arguments():
        options.name = check_name(options.name or Path(options.out).stem)
    return settings


def check_compiler(options: Namespace) -> None:
    """MemtokError for --compile where no compiler works, before data are opened and their split is written."""
    if not options.compile:
        return
    import torch

    from memtok.training.compiler import check_inductor

    gpu = options.device != "cpu" and torch.cuda.is_available()
    check_inductor(torch.device("cuda" if gpu else "cpu"))


def prepare(options: Namespace, settings: dict[str, Any]) -> tuple[Trainable, DataSource, FormChoice | None]:
    """What is to be trained, new, its data, and the choice of its form where that was asked for."""
    from memtok.cli.sources import open_backbone, read_files, revived
    from memtok.task import check_extends
    from memtok.training import RichProgress, create
    from memtok.training.saving import check_replaces_nothing
    from memtok.training.settings import Settings

    stored = read_files(options.extends or [])
    backbone: Backbone = open_backbone(
        options.backbone,
        stored,
        results=[options.out, options.json],
        image_size=options.image_size,
    )
    if options.pixel_range is not None:
        backbone.preprocessing = replace(backbone.preprocessing, pixel_range=options.pixel_range)
    tasks = revived(stored, backbone)
    seen = {id(ancestor) for task in tasks for ancestor in task.ancestors()}
    extends = [task for task in tasks if id(task) not in seen]
    if options.regime != AUTO:  # before the data is opened and its split written
        check_extends(options.name, backbone, REGIMES[options.regime], extends)
    data = open_shown(options, RichProgress())
    if options.regime == AUTO:
        check_replaces_nothing(Settings(**settings))  # before the time that a choice takes
        choice = take_form(options, backbone, data)
    else:
        choice = None
    trainable = create(
        backbone,
        regime=options.regime,
        name=options.name,
        classes=data.classes,
        extends=extends,
        seed=options.seed,
        **part_options(options),
    )
    wanted, taken = backbone.preprocessing.pixel_range, trainable.preprocessing.pixel_range
    if options.pixel_range is not None and wanted != taken:
        raise MemtokError(f"expected the pixel range of what it extends, {taken}, found {wanted}; leave it out")
    return trainable, data, choice


def take_form(options: Namespace, backbone: Backbone, data: DataSource) -> FormChoice | None:
    """Chooses regime and parts, and sets these options; None where a run goes on with what it has."""
    from memtok.training import choose_form
    from memtok.training.forms import FORMS, STEPS, TRIED, form_of_run

    begun = form_of_run(begun_run(options), backbone, data.classes)
    if begun is not None:
        take(options, FORMS[begun])
        say(f"form {begun}, as this run began")
        return None
    shared = {name: options[name] for name in OF_CHOICE if options[name] is not None}
    steps = STEPS if options.steps is None else min(STEPS, options.steps)
    forms = options.forms or [name for name in TRIED if FORMS[name].solver == GRADIENT or not said_of_steps(options)]
    metric = "top1" if options.select == "top1" else "balanced"
    choice = choose_form(backbone, data, steps=steps, forms=forms, metric=metric, progress=True, **shared)
    take(options, FORMS[choice.name])
    say(str(choice))
    return choice


def take(options: Namespace, form: Form) -> None:
    """Sets the options that make a form."""
    for name, value in {**form.options, "solver": form.solver}.items():
        options[name] = value


def open_shown(options: Namespace, progress: Any) -> DataSource:
    """The data; looking at its files moves a bar."""
    from memtok.data import open_data

    try:
        return open_data(
            options.data,
            data_dir=options.data_dir,
            split=options.split,
            on_bad_image=options.on_bad_image,
            progress=progress.reading,
        )
    finally:
        progress.close()


def summary(trainable: Trainable, result: TrainResult, choice: FormChoice | None) -> dict[str, Any]:
    """What `--json` holds."""
    return {
        "file": str(result.out),
        "name": trainable.name,
        "regime": trainable.regime,
        "form": None if choice is None else choice.to_json(),
        "classes": list(trainable.classes),
        "steps": result.steps,
        "best_step": result.best_step,
        "best_accuracy": result.best_accuracy,
        "final_accuracy": result.final_accuracy,
        "best_balanced": result.best_balanced,
        "final_balanced": result.final_balanced,
        "validation": None if result.score is None else result.score.to_json(),
        "trainable_parameters": result.trainable_parameters,
        "total_parameters": result.total_parameters,
        "seconds": result.seconds,
        "images_per_second": result.images_per_second,
        "skipped_images": len(result.left_out),
        "left_out": [one._asdict() for one in result.left_out],
        "split_digest": result.split_digest,
        "head_alone": None if result.head_alone is None else result.head_alone.to_json(),
        "warnings": result.warnings,
        "record": result.record,
    }


def show(trainable: Trainable, result: TrainResult, options: Namespace, *, has_test: bool) -> None:
    """Prints the result and what to type next."""
    out = result.out
    assert out is not None
    trained, total = result.trainable_parameters, result.total_parameters
    rows = [
        ("task", f"{trainable.name}: regime {trainable.regime}, {len(trainable.classes)} classes"),
        ("validation top-1", accuracy_words(result)),
        *validation_rows(result),
        ("trained", f"{trained:,} of {total:,} parameters ({100 * trained / total:.3g} %)"),
        ("time", f"{result.seconds:.1f} s, {result.images_per_second:,.0f} images/s"),
        ("file", f"{out}, {shown_bytes(out.stat().st_size)}"),
    ]
    if result.head_alone is not None:
        rows.insert(2, ("head alone", str(result.head_alone)))
    kept = result.record.get("traces")
    if kept:
        taken = shown_bytes(kept["bytes"] + kept["validation_bytes"])
        there = kept["reused"] + kept["validation_reused"]
        count = f"{kept['records']:,} of training, {kept['validation_records']:,} of validation"
        rows.append(("traces", f"kept ({kept['kept']}): {count}, {taken}; {there:,} were there before"))
    table(["", ""], rows)
    note_left_out(result.left_out)
    if not has_test:
        say("no test part: --split 80-20, or a folder test/, keeps images that choose nothing to measure on")
    say()
    say("next:")
    for command in next_commands(trainable.name, str(out), options):
        say(f"  {command}")


def accuracy_words(result: TrainResult) -> str:
    """The accuracy of the best state, and of the last one where there were several."""
    best = percent(result.best_accuracy)
    if result.record["hyperparameters"].get("solver", GRADIENT) != GRADIENT:
        return best
    return f"{best} at step {result.best_step:,} (last: {percent(result.final_accuracy)})"


def validation_rows(result: TrainResult) -> list[tuple[str, str]]:
    """What the best state answers on the validation images, beside top-1; nothing where version 0.1 found it."""
    score, select = result.score, result.record["hyperparameters"].get("select")
    if score is None or result.out is None:
        return []
    best, last = score.balanced, result.final_balanced
    shown = f"{percent(best)}" + ("" if last is None else f" (last: {percent(last)})")
    if result.record["hyperparameters"].get("solver", GRADIENT) == GRADIENT:
        shown += f"; best state chosen by {select}"
    what, recalls = recall_words(score).split(": ", 1)
    return [
        ("balanced", shown),
        (what, recalls),
        ("confusion matrix", f"{result.out.with_suffix('.run') / 'confusion.png'}, .csv, .json"),
    ]


def next_commands(name: str, out: str, options: Namespace) -> list[str]:
    """What can be done with the file, as it is typed."""
    data = options.data
    backbone = "" if options.backbone is None else f" --backbone {shlex.quote(options.backbone)}"
    place = f" --data-dir {shlex.quote(options.data_dir)}" if options.data_dir else ""
    place += " --on-bad-image skip" if options.on_bad_image == "skip" else ""
    if REGIMES[options.regime].whole:
        return [
            f"memtok evaluate --backbone {shlex.quote(out)} --data {shlex.quote('base=' + data)}{place}",
            f"memtok predict --backbone {shlex.quote(out)} --images PATH",
        ]
    files = " ".join(shlex.quote(file) for file in (*(options.extends or []), out))
    return [
        f"memtok evaluate {files}{backbone} --data {shlex.quote(f'{name}={data}')}{place}",
        f"memtok verify {files}{backbone}",
        f"memtok predict {files}{backbone} --images PATH",
    ]
