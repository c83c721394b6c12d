"""`memtok export`: tasks and their backbone as one file that runs without memtok."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jsonargparse import Namespace

from memtok.cli.errors import UsageError, check_spec
from memtok.cli.options import (
    Kind,
    Parser,
    add,
    add_backbone,
    add_data_options,
    add_files,
    add_json,
    add_switch,
    one_of,
    require,
    require_backbone,
    whole,
)
from memtok.cli.output import check_outputs, say, table, write_result
from memtok.display import shown_bytes
from memtok.exports.description import ENDINGS, FORMATS, WEIGHTS
from memtok.values import Number

if TYPE_CHECKING:
    from memtok.exports.writing import ExportResult

USAGE = "FILE... [--backbone SRC] --out FILE.onnx"
EXAMPLES = """
  memtok export pets.safetensors digits.safetensors --backbone small --out model.onnx
  memtok export all.safetensors --backbone small --weights int8 --parity folder:photos --out model.onnx
  memtok export all.safetensors --backbone small --format torch --out model.pt2
"""


def configure(parser: Parser) -> None:
    """Adds the options."""
    add_files(parser, "task files, those among them that others extend; any order")
    add_backbone(parser, "as the task files say")
    add(parser, "--out", None, "FILE", "the file to write, FILE.onnx, or FILE.pt2 with --format torch")
    add(parser, "--format", one_of("--format", FORMATS), "FORMAT", "onnx, or torch: a program of torch.export", "onnx")
    weights = "float32; float16, half the file; or int8, of the trunk alone, by onnxruntime's dynamic quantisation"
    add(parser, "--weights", one_of("--weights", WEIGHTS), "WEIGHTS", weights, "float32")
    add_switch(parser, "--probabilities", "write probabilities where logits are written otherwise")
    add_switch(parser, "--base", "also the backbone's own output, as `base`; so without any FILE")
    add_switch(parser, "--embedding", "also the backbone's features, as `embedding`")
    add(parser, "--parity", None, "SPEC", "compare with PyTorch on images of its test or validation part", "digits")
    add(parser, "--images", whole("--images", 1), "N", "how many images to compare on", 64)
    add(
        parser,
        "--tolerance",
        Kind("--tolerance", Number().expected, Number().read),
        "T",
        "write nothing if an answer differs by more, relative to the largest (default: by the weights, 0.0001, 0.01 or "
        "0.25)",
    )
    add_data_options(parser, workers=False)
    add_json(parser)


def run(options: Namespace) -> int:
    """Loads, exports, prints; 1, and no file, if the answers differ too much."""
    require(options, "--out")
    require_backbone(options)
    ending = ENDINGS[options.format]
    if not options.out.endswith(ending):
        raise UsageError(
            f"expected --out as FILE{ending} with --format {options.format}, found {options.out!r}; change one of them"
        )
    if options.format == "torch" and options.weights != "float32":
        raise UsageError(
            f"expected --weights float32 with --format torch, found {options.weights}; leave it out, or take "
            "--format onnx"
        )
    check_outputs(options.out, options.json, inputs=[*options.files, options.backbone], pictures=[options.parity])
    check_spec(options.parity)
    from memtok.cli.sources import open_backbone, read_files, revived
    from memtok.exports.writing import check_packages, export
    from memtok.model import MemoryViT

    check_packages(options.format)
    stored = read_files(options.files)
    backbone = open_backbone(options.backbone, stored, results=[options.out, options.json])
    model = MemoryViT(backbone, revived(stored, backbone))
    result = export(
        model,
        options.out,
        format=options.format,
        weights=options.weights,
        probabilities=options.probabilities,
        base=options.base or not model.names,
        embedding=options.embedding,
        parity=options.parity,
        images=options.images,
        tolerance=options.tolerance,
        data_dir=options.data_dir,
        on_bad_image=options.on_bad_image,
        progress=True,
    )
    write_result(options.json, result.to_json())
    show(result, options.parity)
    return 0


def show(result: ExportResult, parity: str) -> None:
    """Prints what was written and how near it is to PyTorch."""
    classes, found = result.description.classes, result.parity
    rows = [
        [
            name,
            str(len(classes[name])) if name in classes else "",
            f"{output.difference:.2e}",
            f"{output.relative:.2e}",
            "" if output.agreement is None else f"{100 * output.agreement:.1f} %",
        ]
        for name, output in found.outputs.items()
    ]
    columns = ["output", "classes", "difference", "relative", "same top-1"]
    table(columns, rows, right=columns[1:])
    say(
        f"compared with PyTorch on {found.images} images of {parity}; allowed is a relative difference of "
        f"{found.tolerance:g}"
    )
    say(f"wrote {result.path}: {result.description.weights} weights, {shown_bytes(result.bytes)}")
