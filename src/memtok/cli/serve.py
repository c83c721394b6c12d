"""`memtok serve`: tasks over HTTP, for many tenants, with a page to look at."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from memtok.cli.errors import UsageError, arguments
from memtok.cli.options import (
    Parser,
    add,
    add_backbone,
    add_device,
    add_files,
    add_list,
    add_switch,
    kind_of,
    positive,
    require_backbone,
    whole,
)
from memtok.cli.output import say
from memtok.errors import MemtokError
from memtok.serving.settings import Limits
from memtok.values import Number

if TYPE_CHECKING:
    from memtok.serving.catalogue import Catalogue
    from memtok.serving.keys import KeyRing

USAGE = "FILE... [--backbone SRC]"
EXAMPLES = """
  memtok serve pets.safetensors digits.safetensors --backbone small
  memtok serve all.safetensors --task-dir uploads --keys keys.json --host 0.0.0.0
  memtok serve --onnx model.onnx
  memtok serve --keys keys.json --new-key acme --key-changes 'acme-*'
"""
NEEDED = {"fastapi": "fastapi", "fastapi_offline": "fastapi-offline", "uvicorn": "uvicorn"}
NEEDED |= {"prometheus_client": "prometheus_client", "python_multipart": "python-multipart"}
DEFAULT = Limits()
LARGEST_PORT = 65535


def configure(parser: Parser) -> None:
    """Adds the options."""
    add_files(parser, "task files, those among them that others extend; none, to begin with what --task-dir holds")
    add_backbone(parser, "as the task files say")
    add(parser, "--onnx", None, "FILE", "serve a file of `memtok export` instead, without torch; its tasks are fixed")
    add_device(parser)
    add(parser, "--host", None, "ADDRESS", "where to listen; other machines reach it with 0.0.0.0", "127.0.0.1")
    add(parser, "--port", whole("--port", 0), "N", "the port; 0 takes a free one", 8000)
    add(parser, "--task-dir", None, "DIR", "where uploaded tasks are stored, to be there again after a restart")
    add(parser, "--max-batch", whole("--max-batch", 1), "N", "images in one pass of the model", DEFAULT.max_batch)
    wait = "how long an image waits for others while the model is idle"
    add(parser, "--max-wait-ms", kind_of("--max-wait-ms", Number()), "MS", wait, DEFAULT.max_wait_ms)
    queue = "images that may wait; beyond it the answer is 429"
    add(parser, "--max-queue", whole("--max-queue", 1), "N", queue, DEFAULT.max_queue)
    add(parser, "--timeout", positive("--timeout"), "S", "seconds that a request may take", DEFAULT.timeout)
    add(parser, "--max-body", whole("--max-body", 1), "BYTES", "the largest request", DEFAULT.max_body)
    pixels = "the largest image, width times height"
    add(parser, "--max-pixels", whole("--max-pixels", 1), "N", pixels, DEFAULT.max_pixels)
    add(parser, "--max-images", whole("--max-images", 1), "N", "images in one request", DEFAULT.max_images)
    add(parser, "--max-tasks", whole("--max-tasks", 1), "N", "tasks that are served at once", DEFAULT.max_tasks)
    rate = "requests per second of one key, or without keys of one address (default: any)"
    add(parser, "--rate", positive("--rate"), "N", rate)
    add(parser, "--keys", None, "FILE", "the API keys; needed beyond loopback")
    add_switch(parser, "--no-keys", "answer everybody, also beyond loopback: who reaches it may change every task")
    add(parser, "--new-key", None, "NAME", "add a key to --keys, print it once, and end")
    patterns = "tasks that the new key may {}, by name or pattern such as 'acme-*'"
    add_list(parser, "--key-sees", "NAME", patterns.format("see"))
    add_list(parser, "--key-changes", "NAME", patterns.format("see, add, replace and remove"))
    add_switch(parser, "--key-admin", "the new key may see and change all tasks, and see the metrics")
    add(parser, "--key-rate", positive("--key-rate"), "N", "requests per second of the new key (default: --rate)")
    most = "tasks that the new key may change and that are there at once (default: any number)"
    add(parser, "--key-tasks", whole("--key-tasks", 1), "N", most)
    add(parser, "--remove-key", None, "NAME", "take a key out of --keys, and end; a running server notices")
    add_switch(parser, "--log-requests", "print a line for each request")


def run(options: Namespace) -> int:
    """Makes or removes a key; or loads, listens, and answers until it is stopped."""
    check(options)
    if options.new_key is not None or options.remove_key is not None:
        change_keys(options)
        return 0
    with arguments():
        limits = Limits(**{name: options[name] for name in vars(DEFAULT)})
    missing = [package for module, package in NEEDED.items() if find_spec(module) is None]
    if missing:
        raise MemtokError(f"expected {missing[0]} to be installed, found none; pip install 'memtok[serve]'")
    from memtok.serving.keys import KeyRing
    from memtok.serving.running import LOCAL_HOSTS, address_of, is_loopback, listen
    from memtok.serving.running import run as run_server

    if not is_loopback(options.host) and options["keys"] is None and not options.no_keys:
        raise UsageError(
            f"expected --keys to listen on {options.host}, which other machines reach, found none; make one with "
            "--new-key, or answer everybody with --no-keys"
        )
    keys = None if options["keys"] is None else KeyRing(options["keys"])
    with listen(options.host, options.port) as listening:
        from memtok.serving.application import create_app

        catalogue = exported(options, limits) if options.onnx is not None else loaded(options, limits)
        app = create_app(catalogue, keys, hosts=LOCAL_HOSTS if keys is None and is_loopback(options.host) else None)
        run_server(
            app, listening, lambda: announce(catalogue, keys, address_of(listening)), log_requests=options.log_requests
        )
    say("stopped")
    return 0


def check(options: Namespace) -> None:
    """UsageError for options that do not go together."""
    if options.port > LARGEST_PORT:
        raise UsageError(f"expected --port of at most {LARGEST_PORT}, found {options.port}; choose another")
    making = options.new_key is not None or options.remove_key is not None
    if options.new_key is not None and options.remove_key is not None:
        raise UsageError("expected --new-key or --remove-key, found both; do one after the other")
    if making and options["keys"] is None:
        raise UsageError("expected --keys, the file of the keys, found none; name it")
    for flag in ("key_sees", "key_changes", "key_admin", "key_rate", "key_tasks"):
        if options[flag] and options.new_key is None:
            raise UsageError(f"expected --new-key with --{flag.replace('_', '-')}, found none; leave it out")
    if making:
        return
    if options["keys"] is not None and options.no_keys:
        raise UsageError("expected --keys or --no-keys, found both; drop one")
    if options.onnx is None:
        require_backbone(options)
        return
    for flag, given in (("FILE", options.files), ("--backbone", options.backbone), ("--task-dir", options.task_dir)):
        if given:
            raise UsageError(f"expected no {flag} with --onnx, whose tasks are fixed, found {given}; drop one")


def change_keys(options: Namespace) -> None:
    """Adds a key and prints it, alone on standard output; or removes one."""
    from memtok.serving.keys import new_key, remove_key

    if options.remove_key is not None:
        remove_key(options["keys"], options.remove_key)
        say(f"removed the key {options.remove_key!r} from {options['keys']}")
        return
    text = new_key(
        options["keys"],
        options.new_key,
        see=options.key_sees or (),
        change=options.key_changes or (),
        admin=options.key_admin,
        rate=options.key_rate,
        max_tasks=options.key_tasks,
    )
    say(text)
    print(f"memtok serve: keep it: {options['keys']} has only its hash", file=sys.stderr)


def exported(options: Namespace, limits: Limits) -> Catalogue:
    """The tasks of an ONNX file."""
    from memtok.exports.opened import load_onnx
    from memtok.serving.catalogue import Catalogue
    from memtok.serving.onnx_model import ExportedModel

    return Catalogue(ExportedModel(load_onnx(options.onnx)), limits)


def loaded(options: Namespace, limits: Limits) -> Catalogue:
    """The tasks of the files, and those of the folder of uploads."""
    from memtok.cli.sources import choose_device, open_backbone, read_files, revived
    from memtok.model import MemoryViT
    from memtok.serving.catalogue import Catalogue
    from memtok.serving.task_folder import TaskFolder, joined
    from memtok.serving.torch_model import TorchModel

    folder = None if options.task_dir is None else TaskFolder(options.task_dir)
    given = read_files(options.files)
    uploads = [] if folder is None else folder.read()
    backbone = open_backbone(
        options.backbone,
        given or uploads[:1],
        device=choose_device(options.device),
        precision=options.precision,
    )
    tasks = joined(revived(given, backbone), uploads, backbone)
    return Catalogue(TorchModel(MemoryViT(backbone, tasks)), limits, folder)


def announce(catalogue: Catalogue, keys: KeyRing | None, address: str) -> None:
    """Says where it answers."""
    count = len(catalogue.model.tasks)
    who = "everybody who reaches it" if keys is None else f"{len(keys.keys)} keys of {Path(keys.path).name}"
    say(f"{count} {'task' if count == 1 else 'tasks'} for {who} on {address} (a page; its protocol at {address}/docs)")
    say(f"stop with Ctrl-C, or SIGTERM to process {os.getpid()}; requests that were taken are answered")
    sys.stdout.flush()
