"""The report of the quickstart: what was done, what came out, and pictures of it."""

from __future__ import annotations

from pathlib import Path

from memtok import plots, report
from memtok.intervals import wilson
from memtok.quickstart.result import PredictedImage, QuickstartResult, TrainedRun
from memtok.quickstart.views import View
from memtok.quickstart.words import base_words, comparison_words, next_commands, verification_words
from memtok.report import percent, size

BASE = "base"


def write_report(path: Path, result: QuickstartResult, view: View) -> None:
    """Writes the report to `path`, atomically."""
    sections = [
        apart_section(result),
        composed_section(result, view),
        answers_section(result, view),
        comparison_section(result),
        attention_section(result, view),
        files_section(result),
    ]
    report.write_page(path, "memtok quickstart", lead(result), sections)


def lead(result: QuickstartResult) -> str:
    """The outcome in a few sentences."""
    names = " and ".join(f"“{run.name}”" for run in result.tasks)
    said = (
        f"A small Vision Transformer that was trained on pictures of clothes learned to read handwritten digits: two "
        f"tasks, {names}, trained apart on different digits and then put into one model."
    )
    if not result.verification["ok"]:
        return f"{said} {verification_words(result.verification)}."
    return (
        f"{said} Both now answer in one pass, each as it does alone, and the transformer answers bit for bit as it did "
        "before."
    )


def apart_section(result: QuickstartResult) -> str:
    """The two tasks."""
    backbone = result.backbone
    images = sum(result.data[part] for part in ("train", "validation", "test"))
    columns = ["task", "digits", "training images", "test images", "alone", "composed", "trained parameters", "file"]
    rows = [
        [
            run.name,
            f"{run.classes[0]} to {run.classes[-1]}",
            f"{run.train_images:,}",
            f"{run.test_images:,}",
            percent(run.test_top1),
            percent(run.composed_top1 if run.composed_top1 is not None else run.test_top1),
            f"{run.trainable_parameters:,}",
            size(run.bytes),
        ]
        for run in result.tasks
    ]
    return report.section(
        "Two tasks, trained apart",
        report.paragraph(
            f"The backbone has {backbone['parameters']:,} parameters in {backbone['layers']} layers and reads images "
            f"of {backbone['image_size'][0]} x {backbone['image_size'][1]} pixels; its file has "
            f"{size(backbone['bytes'])}. It never changes. The {images:,} digits are real ones, 8 x 8 pixels each. "
            "As if two people had trained them who share no data, each task saw its own digits only. What is learned "
            f"is a class token, {result.tasks[0].cells} memory cells in every layer and a head."
        ),
        report.table(columns, rows, right=columns[2:]),
        report.paragraph("“Alone” and “composed” are shares of the test images of a task's own digits.", "note"),
        curves(
            "tasks",
            result.tasks,
            "Left: loss on the training images. Right: accuracy on validation images, on which nothing is trained.",
        ),
    )


def curves(name: str, runs: tuple[TrainedRun, ...], caption: str) -> str:
    """Loss and accuracy while training."""
    losses = {run.label: unzip(run.loss) for run in runs}
    accuracies = {run.label: unzip(run.validation) for run in runs}
    last = "; ".join(f"{run.label} {percent(run.validation[-1][1])}" for run in runs)
    return report.figure(
        plots.curves(losses, accuracies, name=name), caption, f"Training curves. Validation at the end: {last}."
    )


def unzip(points: tuple[tuple[int, float], ...]) -> plots.Curve:
    """Steps and values."""
    return [step for step, _ in points], [value for _, value in points]


def composed_section(result: QuickstartResult, view: View) -> str:
    """The composed model, its mask and the proof."""
    proof = result.verification
    verdict = {True: "ok", False: "FAILED", None: ""}
    bitwise = {True: "bit for bit", False: "different", None: "the backbone has no classifier"}
    rows = [
        [f"{what} of the backbone", bitwise[same], verdict[same]]
        for what, same in (("features", proof["base"]["features_bitwise"]), ("answer", proof["base"]["bitwise"]))
    ]
    for name, found in proof["tasks"].items():
        difference = found["difference"]
        shown = f"{difference:.1e}" if isinstance(difference, float) else difference
        rows.append([f"answer of “{name}”, against itself alone", shown, verdict[found["ok"]]])
    unchanged = proof["weights_unchanged"]
    rows.append(["bytes of all weights, before and after", "the same" if unchanged else "changed", verdict[unchanged]])
    size_of_both = size(result.composed["bytes"])
    return report.section(
        "Put together, and verified",
        report.paragraph(
            f"The two files became one of {size_of_both}. In every layer each class token sees the image, itself and "
            "its own memory; nothing of another task, and the image sees no task at all. So nothing that was there "
            "before can change, whatever is added."
        ),
        report.figure(
            plots.mask(view.mask, view.rows, view.columns),
            "Who sees whom in this model (Table 1 of Sandler et al., 2022): the token of a row attends to the tokens "
            "of the columns that are filled. “Image and base” are the image tokens and the backbone's own class token. "
            "Memory asks nothing, so it has no rows.",
            "Attention mask: image tokens see image tokens; each class token sees these, itself and its own memory.",
        ),
        report.table(["what was compared", "found", "check"], rows),
        report.paragraph(
            f"{sentence(verification_words(proof))}. Differences are of logits, over the largest logit of the task; "
            "the comparison is with the method written down literally, one masked attention per layer, in double "
            "precision. The limit follows from what rounding does to that form in single precision.",
            "note",
        ),
    )


def answers_section(result: QuickstartResult, view: View) -> str:
    """Some images and all answers."""
    pieces = []
    for image in result.predictions:
        answers = [answer(result, image, name) for name in image.answers]
        pieces.append(report.card(plots.png(view.images[image.truth], 160), f"handwritten {image.truth}", answers))
    asked = [(image, run) for image in result.predictions for run in result.tasks if image.truth in run.classes]
    right = sum(image.answers[run.name][0] == image.truth for image, run in asked)
    return report.section(
        "One pass, all answers",
        report.paragraph(
            f"Test images, one of each digit, drawn at random. The task that knows the digit is right on {right} of "
            f"{len(asked)}. A task that never saw such a digit can only name one of its own; these answers are grey. "
            "The backbone's own answer is a piece of clothing, for it knows nothing else."
        ),
        report.cards(pieces),
    )


def answer(result: QuickstartResult, image: PredictedImage, name: str) -> str:
    """What one task, or the backbone, says of an image."""
    said, sure = image.answers[name]
    if name == BASE:
        return report.answer("backbone", said, sure, "aside")
    run = next(run for run in result.tasks if run.name == name)
    if image.truth not in run.classes:
        return report.answer(f"{name}, knows no {image.truth}", said, sure, "aside")
    if said == image.truth:
        return report.answer(f"{name}: right", said, sure)
    return report.answer(f"{name}: wrong, a {image.truth}", said, sure, "wrong")


def comparison_section(result: QuickstartResult) -> str:
    """Five regimes on the same digits."""
    runs, settings = result.comparison, result.settings
    columns = ["regime", "test accuracy", "trained parameters", "task file", "base answer"]
    rows = [
        [run.label, percent(run.test_top1), f"{run.trainable_parameters:,}", size(run.bytes), base_words(run)]
        for run in runs
    ]
    shares, ranges = [run.test_top1 for run in runs], [wilson(run.test_top1, run.test_images) for run in runs]
    labels = [run.label for run in runs]
    alone = [run.label for run in runs if run.base_bitwise is None]
    note = (
        f"All with {settings.steps} steps of {settings.batch_size} images, learning rate "
        f"{settings.learning_rate:g} and seed {result.seed}; a rate chosen for each regime might order them "
        "differently."
    )
    if alone:
        note += (
            f" “Needs a pass of its own” ({', '.join(alone)}): the image tokens see what was learned, so it can share "
            "a pass neither with the backbone's answer nor with other tasks."
        )
    return report.section(
        "Five ways to learn the same ten digits",
        report.paragraph(comparison_words(runs)),
        report.table(columns, rows, right=columns[1:4]),
        report.figure(
            plots.bars(labels, shares, ranges, f"Accuracy on {runs[0].test_images} test images"),
            "The whiskers are the 95 % interval of every accuracy alone. The sentences above compare image by image; "
            "that tells apart more, for two tasks answer most images alike.",
            "; ".join(f"{run.label}: {percent(run.test_top1)}" for run in runs),
        ),
        report.paragraph(note, "note"),
        curves("comparison", runs, "The same for the five runs of this comparison."),
    )


def attention_section(result: QuickstartResult, view: View) -> str:
    """The attention weights of the class tokens."""
    layers = result.backbone["layers"]
    rows = []
    height, width = next(iter(view.maps.values()))[1].shape[1:]
    for digit in spread(list(view.maps)):
        task, maps = view.maps[digit]
        row = [(plots.png(view.images[digit], 96), f"handwritten {digit}")]
        for layer, heat in enumerate(maps, start=1):
            picture = plots.png(plots.heat_map(heat), 96)
            row.append((picture, f"attention weights of {task} on a {digit} in layer {layer}"))
        rows.append(row)
    return report.section(
        "Attention weights of the class token",
        report.paragraph(" ".join(memory_words(name, parts) for name, parts in result.attention.items())),
        report.figure(
            plots.layer_shares({f"Class token “{name}”": parts for name, parts in result.attention.items()}),
            "Where the attention of a task's class token goes in each layer, averaged over heads and over test images "
            "of its digits.",
            "Shares of attention per layer: " + " ".join(memory_words(*item) for item in result.attention.items()),
        ),
        report.picture_grid(
            ["image", *(f"layer {layer}" for layer in range(1, layers + 1))],
            rows,
            "The image, and beside it the attention weights of the class token of the task that knows the digit, over "
            f"its {height} x {width} patches, averaged over heads: the darker, the larger. Each map has its own scale.",
        ),
    )


def memory_words(name: str, parts: dict[str, tuple[float, ...]]) -> str:
    """How much of its attention a task gives to its memory."""
    memory = parts["own memory"]
    most = max(range(len(memory)), key=memory.__getitem__)
    mean = sum(memory) / len(memory)
    return (
        f"The class token of “{name}” gives {percent(mean)} of its attention to its memory on average over the layers, "
        f"and most in layer {most + 1} ({percent(memory[most])})."
    )


def spread(digits: list[str], count: int = 6) -> list[str]:
    """A few of them, evenly chosen."""
    if len(digits) <= count:
        return digits
    return [digits[round(index * (len(digits) - 1) / (count - 1))] for index in range(count)]


def files_section(result: QuickstartResult) -> str:
    """What was written, and what to type next."""
    files = [[run.file, f"task “{run.name}”", size(run.bytes)] for run in result.tasks]
    files.append([result.composed["file"], "both tasks", size(result.composed["bytes"])])
    files += [[run.file, f"comparison: {run.label}", size(run.bytes)] for run in result.comparison]
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    pieces = [report.table(["file", "what it is", "size"], files, right=["size"])]
    for title, lines in next_commands(result.out):
        pieces += [report.paragraph(title), report.commands(lines)]
    return report.section(
        "What is there now, and what to type next",
        *pieces,
        report.paragraph(
            f"Made by “{result.command}” in {result.seconds:.0f} seconds on the CPU, with {versions}. All numbers of "
            "this page are in results.json beside it.",
            "note",
        ),
    )


def sentence(text: str) -> str:
    """With a capital letter."""
    return text[:1].upper() + text[1:]
