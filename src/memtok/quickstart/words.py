"""What the numbers of the quickstart say, in words. Every sentence is worked out from them."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memtok.quickstart.result import TrainedRun
from memtok.report import percent

EXAMPLE_BACKBONE = "facebook/dinov2-small"
CONFIDENCE = 1.96  # standard errors, for 95 of 100


def margin(share: float, images: int) -> float:
    """Half of the 95 % interval of a share that was counted on `images` images (Agresti and Coull, 1998)."""
    trials = images + CONFIDENCE**2
    centre = (share * images + CONFIDENCE**2 / 2) / trials
    return CONFIDENCE * math.sqrt(centre * (1 - centre) / trials)


def apart(one: TrainedRun, other: TrainedRun) -> bool:
    """Whether two accuracies differ by more than the choice of images explains, taking both as independent."""
    room = math.hypot(margin(one.test_top1, one.test_images), margin(other.test_top1, other.test_images))
    return abs(one.test_top1 - other.test_top1) > room


def comparison_words(runs: Sequence[TrainedRun]) -> str:
    """Who was best, and what that is worth."""
    best = max(runs, key=lambda run: run.test_top1)
    said = [f"Best here: {best.label} with {percent(best.test_top1)} of {best.test_images} test images."]
    worse = [run for run in runs if run is not best and apart(run, best)]
    alike = [run for run in runs if run is not best and run not in worse]
    if not worse:
        said.append("On so few images none of the others can be told apart from it.")
    elif alike:
        said.append(f"On so few images {listed(alike)} cannot be told apart from it.")
    if worse:
        said.append(f"Behind by more than so few images explain: {listed(worse)}.")
    said += cells_words([run for run in runs if run.cells])
    said.append("One run each: another seed may order them differently.")
    return " ".join(said)


def cells_words(runs: Sequence[TrainedRun]) -> list[str]:
    """Whether more memory cells helped."""
    if len(runs) < 2:
        return []
    fewest, most = min(runs, key=lambda run: run.cells), max(runs, key=lambda run: run.cells)
    gain = 100 * (most.test_top1 - fewest.test_top1)
    counted = f"{most.cells} cells against {fewest.cells}"
    if not apart(fewest, most):
        return [f"More memory made no difference that these images show ({counted}: {gain:+.1f} points)."]
    return [f"More memory {'helped' if gain > 0 else 'did harm'} ({counted}: {gain:+.1f} points)."]


def listed(runs: Sequence[TrainedRun]) -> str:
    """Labels with their accuracies, as people list them; commas stand inside the labels already."""
    return "; ".join(f"{run.label} ({percent(run.test_top1)})" for run in runs)


def verification_words(proof: Mapping[str, Any]) -> str:
    """What the proof says, in a line. proof: `VerifyReport.to_json`."""
    if not proof["ok"]:
        return f"NOT verified: {'; '.join(proof['failures'])}"
    return (
        f"verified on {proof['images']} images: the backbone answers bit for bit as without tasks, each task as alone "
        f"(largest difference {proof['largest_difference']:.1e}, limit {proof['tolerance']:.0e})"
    )


def base_words(run: TrainedRun) -> str:
    """What becomes of the backbone's own answer."""
    if run.base_bitwise is None:
        return "needs a pass of its own"
    return "bitwise the same" if run.base_bitwise else "FAILED: changed"


def next_commands(out: Path) -> list[tuple[str, list[str]]]:
    """What can be typed next: on the files of the quickstart, and on a folder of one's own."""
    both, images = shlex.quote(str(out / "both.safetensors")), shlex.quote(str(out / "images"))
    backbone = f"--backbone {EXAMPLE_BACKBONE}"
    return [
        (
            "The same files by hand:",
            [
                f"memtok inspect {both}",
                f"memtok verify {both} --backbone small --data digits",
                f"memtok predict {both} --backbone small --images {images}",
            ],
        ),
        (
            "Your own pictures, one folder per class (photos/cat, photos/dog), 20 % of them set aside to test on; the "
            "backbone is downloaded once:",
            [
                f"memtok train {backbone} --data folder:photos --split 80-20 --out photos.safetensors",
                f"memtok evaluate photos.safetensors {backbone} --data folder:photos",
                f"memtok predict photos.safetensors {backbone} --images photos",
            ],
        ),
        (
            "And a second task beside it, yours or somebody else's:",
            [
                f"memtok train {backbone} --data folder:more --out more.safetensors",
                "memtok concat photos.safetensors more.safetensors --out all.safetensors",
                f"memtok verify all.safetensors {backbone} --data folder:photos",
            ],
        ),
    ]
