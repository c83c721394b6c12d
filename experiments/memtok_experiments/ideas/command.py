"""What else a task could read: forms over the kept tokens of all levels, trained alike.

    python -m memtok_experiments.ideas --backbone FOLDER --image-size 56 --rows fashion-mnist@1000 --sets sets --out OUT

Trains every form at each rate with the first seed, chooses the rate by the validation images, trains it with the other
seeds, and tests the last state. Equal steps, batch size, schedule and label smoothing for all, images as they are.
Written to OUT/ideas.csv: a line per row and form; for the readout also what test-time views, an average of the weights
and twice the steps give.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import memtok
from memtok.files import csv_text, write_csv
from memtok.training.recipes import RECIPES, learning_rate_at
from memtok_experiments.beyond.rows import Row, find_rows
from memtok_experiments.ideas.forms import EARLIER, FORMS, Form, Given
from memtok_experiments.ideas.tokens import PLAIN, VIEWS, Tokens, read_tokens

EARLIER_RATE = 1e-2  # at which the side stream of an earlier task trains
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
RECIPE = RECIPES["default"]
AVERAGED = 0.98  # of a running average of weights that each step keeps
AT_ONCE = 100  # images of a test pass


@dataclass(frozen=True)
class Trained:
    """A form after its steps. average: running averages of its parameters. seconds: of the steps."""

    form: Form
    average: Sequence[Tensor]
    seconds: float

    def averaged(self) -> Form:
        """A copy of the form with the averages in the place of its parameters."""
        found = copy.deepcopy(self.form, {id(self.form.trunk): self.form.trunk})
        for parameter, average in zip(found.parameters(), self.average, strict=True):
            parameter.data = average
        return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the tokens of each row, and tries the forms on them."""
    parser = argparse.ArgumentParser(prog="python -m memtok_experiments.ideas", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--rows", nargs="+", required=True, help="as of `memtok reproduce beyond`")
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=list(FORMS), metavar="FORM")
    parser.add_argument("--earlier", help="a row whose side stream the forms of an extension read; they are tried too")
    parser.add_argument("--sets", type=Path)
    parser.add_argument("--data-dir")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--test-images", type=int, default=1000)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    backbone = memtok.load_backbone(options.backbone, image_size=options.image_size)
    found: list[dict[str, str]] = []
    for row in find_rows(tuple(options.rows)):
        for line in lines(backbone, row, options):
            print(", ".join(f"{name} {value}" for name, value in line.items() if value), flush=True)
            found.append(line)
            write_csv(options.out / "ideas.csv", csv_text([list(found[0]), *(list(each.values()) for each in found)]))


@dataclass(frozen=True)
class Read:
    """The tokens of one row and seed. test: by view."""

    train: Tokens
    validation: Tokens
    test: dict[str, Tokens]
    classes: int


def read(backbone: memtok.Backbone, row: Row, seed: int, options: argparse.Namespace) -> Read:
    """The images of a row, as `memtok reproduce beyond` draws them, through the trunk."""
    source = row.drawn(memtok.open_data(row.spec(options.sets), data_dir=options.data_dir), seed, options.test_images)
    return Read(
        read_tokens(backbone, source.train),
        read_tokens(backbone, source.validation),
        {view: read_tokens(backbone, source.test, view) for view in VIEWS},
        len(source.classes),
    )


def lines(backbone: memtok.Backbone, row: Row, options: argparse.Namespace) -> Iterator[dict[str, str]]:
    """A line of the table per form: what it gives with each seed, at the rate that the first one chose."""
    rows = {seed: read(backbone, row, seed, options) for seed in options.seeds}
    first = options.seeds[0]
    forms = {**FORMS, **EARLIER}
    earlier: dict[int, Form] = {}
    if options.earlier:
        (before,) = find_rows((options.earlier,))
        for seed in options.seeds:
            own = read(backbone, before, seed, options)
            made = FORMS["side"](Given(backbone, own.classes, own.train.values, seed))
            earlier[seed] = train(made, own.train, options.steps, options.batch_size, EARLIER_RATE, seed).form
            print(f"{before.name}, side, seed {seed}: {accuracy(earlier[seed], [own.test[PLAIN]]):.4f}", flush=True)

    def trained(name: str, seed: int, rate: float, times: int = 1) -> Trained:
        own = rows[seed]
        torch.manual_seed(seed)  # dropout
        form = forms[name](Given(backbone, own.classes, own.train.values, seed, earlier.get(seed)))
        return train(form, own.train, options.steps * times, options.batch_size, rate, seed)

    for name in [*options.forms, *(EARLIER if options.earlier else [])]:
        tried = {rate: trained(name, first, rate) for rate in options.rates}
        validated = {rate: accuracy(one.form, [rows[first].validation]) for rate, one in tried.items()}
        rate = max(validated, key=lambda each: (validated[each], -each))
        runs = {seed: tried[rate] if seed == first else trained(name, seed, rate) for seed in options.seeds}
        parameters = sum(parameter.numel() for parameter in runs[first].form.parameters() if parameter.requires_grad)

        def line(form: str, right: list[float], rate: float = rate, parameters: int = parameters) -> dict[str, str]:
            return {
                "row": row.name,
                "form": form,
                "rate": f"{rate:g}",
                "top1": f"{np.mean(right):.4f}",
                "std": f"{np.std(right, ddof=1):.4f}" if len(right) > 1 else "",
                "seeds": str(len(right)),
                "parameters": str(parameters),
                "seconds": "",
            }

        result = line(name, [accuracy(runs[seed].form, [rows[seed].test[PLAIN]]) for seed in runs])
        yield result | {"seconds": f"{np.median([one.seconds for one in runs.values()]):.1f}"}
        if name != "readout":
            continue
        for view in VIEWS[1:]:
            right = [accuracy(runs[seed].form, [rows[seed].test[PLAIN], rows[seed].test[view]]) for seed in runs]
            yield line(f"readout, tested on plain + {view}", right)
        right = [accuracy(runs[seed].form, list(rows[seed].test.values())) for seed in runs]
        yield line("readout, tested on all three views", right)
        yield line("readout, average of weights", [accuracy(runs[s].averaged(), [rows[s].test[PLAIN]]) for s in runs])
        longer = {seed: trained(name, seed, rate, 2) for seed in options.seeds}
        yield line("readout, twice the steps", [accuracy(longer[s].form, [rows[s].test[PLAIN]]) for s in longer])


def train(form: Form, tokens: Tokens, steps: int, batch_size: int, rate: float, seed: int) -> Trained:
    """AdamW on the cross-entropy with label smoothing, warm-up and cosine, as in the recipe `default`."""
    groups = [{"params": some, "times": times} for some, times in form.groups()]
    optimizer = torch.optim.AdamW(groups, lr=rate, weight_decay=RECIPE.weight_decay)
    average = [parameter.detach().clone() for parameter in form.parameters()]
    order = shuffled(len(tokens), batch_size, seed)
    form.train()
    begun = time.perf_counter()
    for step in range(steps):
        now = learning_rate_at(step, peak=rate, warmup=RECIPE.warmup(steps), steps=steps)
        for group in optimizer.param_groups:
            group["lr"] = now * group["times"]
        rows = next(order)
        logits = form.logits(tokens.values[rows].float())
        optimizer.zero_grad()
        loss = F.cross_entropy(logits, tokens.labels[rows], label_smoothing=RECIPE.label_smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(form.parameters(), RECIPE.clip_norm)
        optimizer.step()
        for mean, parameter in zip(average, form.parameters(), strict=True):
            mean.lerp_(parameter.detach(), 1 - AVERAGED)
    return Trained(form.eval(), average, time.perf_counter() - begun)


def shuffled(count: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Batches of image numbers, all images once per epoch, for ever."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.split(torch.randperm(count, generator=generator), batch_size)


@torch.no_grad()
def accuracy(form: Form, views: Sequence[Tokens]) -> float:
    """The share of images that the mean probability over their views classifies correctly."""
    right = 0
    for start in range(0, len(views[0]), AT_ONCE):
        some = slice(start, start + AT_ONCE)
        answers = torch.stack([form.logits(view.values[some].float()).softmax(dim=1) for view in views]).mean(dim=0)
        right += int((answers.argmax(dim=1) == views[0].labels[some]).sum())
    return right / len(views[0])


if __name__ == "__main__":
    main(sys.argv[1:])
