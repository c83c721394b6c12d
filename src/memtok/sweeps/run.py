"""`sweep`: many configurations of a task trained at once, compared on the validation part, the best one tested."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from memtok.backbone import Backbone
from memtok.bundle import load_task
from memtok.checks import check_name
from memtok.data import DataSource, open_data
from memtok.digests import read_sealed, write_sealed
from memtok.errors import MemtokError
from memtok.evaluation import evaluate
from memtok.files import atomic_write
from memtok.folders import check_fixed, locked, slug
from memtok.model import MemoryViT
from memtok.parts import OPTIONS
from memtok.sweeps import picture
from memtok.sweeps.choice import choose
from memtok.sweeps.progress import RichSweepListener, SweepListener
from memtok.sweeps.proposals import Proposals
from memtok.sweeps.result import DataResult, SweepResult, Test
from memtok.sweeps.settings import SweepSettings, make_space
from memtok.sweeps.space import Axis, Configuration
from memtok.sweeps.stages import Stages
from memtok.sweeps.trials import Trial, ranked
from memtok.training.compiler import make_compiler
from memtok.training.device import chosen_device, moved
from memtok.training.settings import DEFAULTS, GRADIENT, default_workers

Data = str | DataSource


def sweep(
    backbone: Backbone,
    data: Data | Sequence[Data],
    *,
    out: str | Path,
    learning_rates: Axis | None = None,
    weight_decays: Axis | None = None,
    seeds: Axis = (0,),
    regimes: Axis = ("memory",),
    search: str = "grid",
    trials: int | None = None,
    halving: int | None = None,
    memory_limit: float | None = None,
    together: int | None = None,
    keep_all: bool = False,
    compare_head: bool = True,
    name: str | None = None,
    progress: bool | SweepListener = False,
    **shared: Any,
) -> SweepResult:
    """Trains many configurations of a task over few passes of the trunk; returns them ranked, the best one tested.

    data: a source as on the command line or a DataSource; of several, each is a sweep with a winner of its own.
    learning_rates ... regimes: the axes of the space, lists of values or `Range(low, high)`; the options of a task are
        axes too: memory, queries, adapter_ranks. Without rates three around the recipe's are tried, or drawn from a
        tenth of it to ten times it. seeds: of the initial values only.
    search: "grid", all of the product of lists; "random", `trials` drawn ones; "optuna", `trials` that Optuna proposes.
    halving: ETA of successive halving, of which one in ETA goes on at each rung; see docs/sweep.md. None stops nobody.
    memory_limit: GB that a pass may take (default: 60 % of what is free). together: most configurations in one pass.
    out: the folder for all that is written; the same call goes on where it stopped. keep_all: keep every task file.
    compare_head: also train a head alone for each rate, decay and seed, as the line to beat; it cannot win unless it is
        among the regimes.
    name: of the written task, by default that of the data. progress: True for a bar, or a SweepListener.
    shared: arguments of `train_together` and `open_data` that all share; their `seed` is that of order, augmentation
        and search, which cannot differ inside a pass. With keep_traces the trunk runs once per image and view for the
        whole sweep; trace_dir has a folder for each of several data sets.

    The winner is the simplest of the settings whose accuracy on the validation part cannot be told apart from the
    highest one: see docs/sweep.md. Raises MemtokError for bad arguments, before anything is written.
    """
    space = make_space(
        recipe=shared.get("recipe", "default"),
        search=search,
        trials=trials,
        learning_rates=learning_rates,
        weight_decays=weight_decays,
        seeds=seeds,
        regimes=regimes,
        trunk=backbone,
        solver=shared.get("solver", GRADIENT),
        **{option.axis: shared.pop(option.axis) for option in OPTIONS if option.axis in shared},
    )
    settings = SweepSettings(
        space=space,
        out=Path(out),
        halving=halving,
        memory_limit=memory_limit,
        together=together,
        keep_all=keep_all,
        compare_head=compare_head,
        name=name,
        shared=shared,
    )
    listener = progress if isinstance(progress, SweepListener) else RichSweepListener() if progress else SweepListener()
    try:
        return Sweep(settings, backbone, [data] if isinstance(data, Data) else list(data), listener).run()
    finally:
        listener.close()


class Sweep:
    """A sweep of one or several data sets in `settings.out`."""

    def __init__(
        self, settings: SweepSettings, backbone: Backbone, data: Sequence[Data], listener: SweepListener
    ) -> None:
        self.settings, self.backbone, self.data, self.listener = settings, backbone, data, listener
        specs = [spec_of(one) for one in data]
        if not specs or len(set(specs)) != len(specs):
            found = ", ".join(specs) or "none"
            raise MemtokError(f"expected data sets to sweep, each once, found {found}; name each once")
        if settings.name is not None and len(specs) > 1:
            raise MemtokError(f"expected no name for tasks of {len(specs)} data sets, found one; leave it out")

    def run(self) -> SweepResult:
        """Does all that is missing, data set after data set, and writes table and picture."""
        settings, backbone = self.settings, self.backbone
        sources = [self.open(one) for one in self.data]  # what cannot be opened is found before the first step
        device = self.device()
        make_compiler(settings.shared.get("compile", False), device)  # or says what is missing
        with moved([backbone], device):
            everything = [
                self.stages(source, spec_of(one), device) for source, one in zip(sources, self.data, strict=True)
            ]
            for stages in everything:  # what does not fit the memory is found before the first step, too
                stages.passes(settings.space.listed(stages.plan.seed) or settings.space.largest())
            fixed = settings.fixed(backbone.fingerprint, backbone.preprocessing)
            with locked(settings.out):
                tasks = settings.out.glob("runs/*/*.safetensors")
                check_fixed(settings.out / "sweep.json", fixed, "sweep", tasks, DEFAULTS)
                found = []
                for stages in everything:
                    with stages.stores:
                        found.append(self.run_data(stages))
                result = SweepResult(tuple(found), settings.out)
                result.save()
                picture.draw(result, result.picture)
        return result

    def open(self, one: Data) -> DataSource:
        """The data, opened."""
        if isinstance(one, DataSource):
            return one
        return open_data(one, **self.settings.opening(), progress=self.listener.reading)

    def device(self) -> torch.device:
        """Where the sweep trains."""
        home, wanted = self.backbone.device, self.settings.shared.get("device", "auto")
        return home if wanted == "auto" and home.type != "cpu" else chosen_device(wanted)

    def stages(self, source: DataSource, spec: str, device: torch.device) -> Stages:
        """The configurations of a data set, and what they share."""
        training = self.settings.training()
        if training.get("trace_dir") is not None and len(self.data) > 1:
            training["trace_dir"] = Path(training["trace_dir"]) / slug(spec)
        return Stages(
            self.settings,
            self.backbone,
            source,
            spec,
            name=self.settings.name or name_of(spec),
            training=training,
            device=device,
            listener=self.listener,
        )

    def run_data(self, stages: Stages) -> DataResult:
        """Trains what is missing on one data set, chooses, tests the winner."""
        space, heads = self.settings.space, stages.heads
        configurations = space.listed(stages.plan.seed)
        if configurations is None:
            configurations = self.ask(stages)
        else:
            stages.run(configurations, heads=[each for each in heads if each not in configurations])
        trials = [stages.trial(each) for each in dict.fromkeys([*configurations, *heads])]
        choice = choose(trials, configurations, stages.plan)
        kept = test = best = None
        if choice is not None:
            winner = choice.winner
            kept = stages.model_path(winner.configuration)
            if not kept.exists():  # its task went when another one was better
                stages.path(winner.configuration).unlink()
                (winner,) = stages.run([winner.configuration])
            test, best = self.test(stages, winner), self.write_best(stages, kept)
        if not self.settings.keep_all:
            for path in stages.folder.glob("*.safetensors"):
                if path != kept:
                    path.unlink()
        return DataResult(
            data=stages.spec,
            trials=tuple(ranked(trials)),
            order=tuple(configurations),
            test=test,
            best=best,
            plan=stages.plan,
            space=space,
            halving=stages.eta,
            skipped_images=tuple(stages.source.skipped),
        )

    def ask(self, stages: Stages) -> list[Configuration]:
        """Trains batch after batch of what Optuna proposes, heads beside the first; returns all that it proposed."""
        proposals = Proposals(self.settings.space, stages.folder, seed=stages.plan.seed, fits=stages.budget.fits)
        for batch in proposals.batches():
            new = proposals.new(batch)
            beside = [each for each in stages.untrained(stages.heads) if each not in new]
            if beside or stages.untrained(new):
                stages.run(new, share=len(batch) / max(len(batch), proposals.left), heads=beside)
            proposals.tell({each: stages.trial(each) for each in batch})
        missing = stages.untrained(stages.heads)
        if missing:  # of a search that was done before heads were compared with
            stages.run([], heads=missing)
        return proposals.proposed()

    def test(self, stages: Stages, winner: Trial) -> Test | None:
        """The winner's accuracy on the test part, looked at once; None where no part is kept apart for testing."""
        source = stages.source
        if not source.has_test:
            return None
        path = stages.folder / "test" / "score.json"
        task = load_task(stages.model_path(winner.configuration), self.backbone)
        key = {"name": winner.configuration.name, "fingerprint": task.fingerprint}
        known = read_test(path, key)
        if known is not None:
            return known
        given = self.settings.shared.get("workers")
        workers = default_workers(self.backbone.device) if given is None else given
        model = MemoryViT(self.backbone, [task])
        score = evaluate(model, source.test, batch_size=stages.plan.batch_size, workers=workers).tasks[task.name]
        found = Test(top1=score.top1, top5=score.top5, images=score.images)
        write_sealed(path, key | asdict(found))
        self.listener.tested(stages.spec, winner, found.top1, found.images)
        return found

    def write_best(self, stages: Stages, kept: Path) -> Path:
        """The winner's task file, where it is looked for."""
        file = "best.safetensors" if len(self.data) == 1 else f"best-{slug(stages.spec)}.safetensors"
        path = self.settings.out / file
        with atomic_write(path) as temporary:
            shutil.copyfile(kept, temporary)
        return path


def read_test(path: Path, key: dict[str, str]) -> Test | None:
    """What an earlier look at the test part found, if it was of the same task; a damaged file is as none."""

    def parse(value: dict[str, Any]) -> Test | None:
        same = {name: value[name] for name in key} == key
        return Test(top1=float(value["top1"]), top5=float(value["top5"]), images=int(value["images"])) if same else None

    try:
        return read_sealed(path, "the score of a test", parse, "remove it")
    except MemtokError:
        return None


def spec_of(one: Data) -> str:
    """The data as they are named."""
    if not isinstance(one, Data):
        raise MemtokError(
            f"expected data by name or as a DataSource, found {type(one).__name__}; open it with memtok.open_data or "
            "memtok.data.from_dataset"
        )
    return one if isinstance(one, str) else one.spec


def name_of(spec: str) -> str:
    """What a task of these data is called unless told otherwise."""
    try:
        return check_name(Path(spec.removeprefix("folder:")).name)
    except MemtokError:  # a folder may be called what a task may not
        return "task"
