"""The end of a run: the best state, its record, the comparison with a head alone, and the result."""

from __future__ import annotations

from memtok.confusion import write_confusion
from memtok.files import write_json
from memtok.metrics import Score, score_of
from memtok.task import Task
from memtok.training.head_alone import HeadAlone, is_due, train_head
from memtok.training.regimes import FullModel, Trainable, count_parameters
from memtok.training.result import TrainResult, make_record
from memtok.training.setup import Setup
from memtok.training.state import CONFUSION, RunFolder, RunState
from memtok.training.trainer import Trainer, load


def finish(setup: Setup, trainer: Trainer, state: RunState, number: int) -> TrainResult:
    """Loads the best state of task `number`, writes it with its final record, and reports."""
    task, own, plan = setup.tasks[number], state.tasks[number], setup.plan
    last = own.last
    assert last
    best = own.best or last
    if own.best or own.diverged is not None:
        load(task, own.good)
    if isinstance(task, Task):
        task.fold()
    task.record = make_record(setup, state, number, best)
    answers = None if own.diverged is not None else own.best_answers
    score = None if answers is None else score_of(task.classes, answers)
    write(setup, task, score)
    if not setup.together:
        for warning in [] if score is None else score.warnings():
            setup.progress.message(f"warning: {warning} (best state, validation images)")
    head = None if setup.together else compare_head(setup, trainer)
    trained, total = count_parameters(task)
    seen = plan.images_seen(state.step)
    return TrainResult(
        model=task,
        steps=state.step,
        best_step=best.step,
        best_accuracy=best.top1,
        final_accuracy=last.top1,
        best_balanced=best.balanced,
        final_balanced=last.balanced,
        score=score,
        history=own.history,
        seconds=state.seconds,
        images_per_second=seen / max(state.training_seconds, 1e-9),
        trainable_parameters=trained,
        total_parameters=total,
        left_out=setup.data.left_out,
        split_digest=setup.data.split_digest,
        out=setup.settings.task_file,
        record=task.record,
        diverged_at=own.diverged,
        validation_right=(answers[2] < 1).numpy() if setup.together and answers is not None else None,
        head_alone=head,
    )


def compare_head(setup: Setup, trainer: Trainer) -> HeadAlone | None:
    """What a head alone gives on the same images, where that is to be told; the record says it too."""
    (task,) = setup.tasks
    wanted, processes = setup.settings.compare_head, setup.processes.num_processes
    if not is_due(wanted, task, setup.plan, setup.feed, processes) or isinstance(task, FullModel):
        return None
    setup.progress.message("comparing with a head alone on the same images")
    head = train_head(task, setup.plan, setup.feed, trainer)
    if head is not None:
        task.record = task.record | {"head_alone": head.to_json()}
        write(setup, task, None)
    return head


def write(setup: Setup, task: Trainable, score: Score | None) -> None:
    """Writes a task and its record, and the confusion matrix where there is a score."""
    out = setup.settings.task_file
    if out is None or not setup.writes:
        return
    folder = RunFolder(out)
    task.save(out)
    write_json(folder.record, task.record)
    if score is not None:
        write_confusion(folder.path, CONFUSION, score, f"{task.name}: validation part of {setup.data.spec}")
