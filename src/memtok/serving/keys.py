"""API keys: a file of their hashes, what each may see and change, and how fast it may ask.

A key is `memtok_ID_SECRET`. The file has its scrypt hash (RFC 7914) only; whoever reads the file learns no key. A check
costs some 50 ms by design, so a key that was right once is remembered by a fast digest in memory.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any

from memtok.errors import MemtokError
from memtok.files import atomic_write
from memtok.regular import check_regular
from memtok.serving.errors import RequestError

PREFIX = "memtok"
COST = {"n": 2**14, "r": 8, "p": 1}  # scrypt: 16 MB and some 50 ms
BYTES = 32  # of a hash
LONGEST = 200  # characters of a key that is looked at
LOOK = 1.0  # seconds after which the file is looked at again
CHECKS = 20.0  # slow checks per second, of all clients together
REMEMBERED = 10_000  # buckets

logger = logging.getLogger("memtok")


@dataclass(frozen=True)
class Key:
    """What a key may do.

    name: of whom it is. see: patterns of the tasks that it may use (`acme-*`, as the shell has them). change: of those
    that it may add, replace and remove, and see too. admin: all of them, and the metrics. rate: requests per second,
    None for the server's own. max_tasks: how many tasks that it may change there may be when it adds one, None for any.
    """

    name: str
    id: str
    see: tuple[str, ...] = ()
    change: tuple[str, ...] = ()
    admin: bool = False
    rate: float | None = None
    max_tasks: int | None = None

    def sees(self, name: str) -> bool:
        """Whether the task may be used, described and extended."""
        return self.changes(name) or any(fnmatchcase(name, pattern) for pattern in self.see)

    def changes(self, name: str) -> bool:
        """Whether a task of this name may be added, replaced and removed."""
        return self.admin or any(fnmatchcase(name, pattern) for pattern in self.change)


EVERYBODY = Key("everybody", "", admin=True)
"""Who asks a server without keys."""


@dataclass(frozen=True)
class Stored:
    """A key as the file has it."""

    key: Key
    salt: bytes
    hash: bytes
    cost: Mapping[str, int] = field(default_factory=lambda: COST)

    def fits(self, secret: str) -> bool:
        """Whether this is its secret. Slow."""
        return hmac.compare_digest(hashed(secret, self.salt, self.cost), self.hash)


def hashed(secret: str, salt: bytes, cost: Mapping[str, int]) -> bytes:
    """scrypt of a secret."""
    return hashlib.scrypt(secret.encode(), salt=salt, maxmem=2**28, dklen=BYTES, **cost)


NOBODY = Stored(Key("nobody", ""), b"\0" * 16, b"\0" * BYTES)
"""What an unknown key is compared with, so that it takes as long as a known one."""


def read_keys(path: str | Path) -> dict[str, Stored]:
    """The keys of a file by their id; MemtokError for one that is missing or damaged."""
    place = Path(path)
    check_regular(place, "a key file")
    try:
        content = json.loads(place.read_text(encoding="utf-8"))
        if content["version"] != 1:
            raise ValueError(f"version {content['version']!r}")
        stored = [stored_key(entry) for entry in content["keys"]]
    except FileNotFoundError as error:
        raise MemtokError(
            f"expected a key file at {place}, found none; make a key with `memtok serve --new-key NAME --keys {place}`"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise MemtokError(
            f"expected a key file that memtok wrote, found {place}, which is not ({type(error).__name__}: {error}); "
            "mend it, or make it anew with `memtok serve --new-key`"
        ) from error
    return {one.key.id: one for one in stored}


def stored_key(entry: Mapping[str, Any]) -> Stored:
    """An entry of the file."""
    rate = entry["rate"]
    lists = isinstance(entry["see"], list) and isinstance(entry["change"], list)
    texts = [entry["name"], entry["id"], *entry["see"], *entry["change"]]
    if not lists or not all(isinstance(text, str) for text in texts) or not isinstance(entry["admin"], bool):
        raise ValueError("a field of another type")
    if rate is not None and (isinstance(rate, bool) or not isinstance(rate, int | float) or rate <= 0):
        raise ValueError(f"rate {rate!r}")
    most = entry.get("max_tasks")  # older files have none
    if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
        raise ValueError(f"max_tasks {most!r}")
    key = Key(entry["name"], entry["id"], tuple(entry["see"]), tuple(entry["change"]), entry["admin"], rate, most)
    cost = {letter: int(entry["scrypt"][letter]) for letter in "nrp"}
    check_cost(**cost)
    salt, digest = (base64.b64decode(entry[name], validate=True) for name in ("salt", "hash"))
    if len(digest) != BYTES:
        raise ValueError(f"a hash of {len(digest)} bytes")
    return Stored(key, salt, digest, cost)


@lru_cache
def check_cost(n: int, r: int, p: int) -> None:
    """ValueError for a cost that cannot be. Slow, but once: all keys have the same."""
    hashlib.scrypt(b"", salt=b"", maxmem=2**28, dklen=BYTES, n=n, r=r, p=p)


def write_keys(path: str | Path, keys: Mapping[str, Stored]) -> None:
    """Writes the file, atomically; a new one is readable by its owner only."""
    entries = [
        {
            **asdict(one.key),
            "scrypt": dict(one.cost),
            "salt": base64.b64encode(one.salt).decode(),
            "hash": base64.b64encode(one.hash).decode(),
        }
        for one in keys.values()
    ]
    with atomic_write(path, mode=0o600) as part:
        part.write_text(json.dumps({"version": 1, "keys": entries}, indent=2) + "\n", encoding="utf-8")


def new_key(
    path: str | Path,
    name: str,
    *,
    see: Sequence[str] = (),
    change: Sequence[str] = (),
    admin: bool = False,
    rate: float | None = None,
    max_tasks: int | None = None,
) -> str:
    """Adds a key to a file, which is made if it is not there; the key itself, which nothing keeps.

    Raises MemtokError for a name that is taken, and for a key that could do nothing.
    """
    keys = read_keys(path) if Path(path).exists() else {}
    if any(one.key.name == name for one in keys.values()):
        raise MemtokError(f"expected a name that no key of {path} has, found {name!r}; choose another, or remove that")
    if not admin and not see and not change:
        raise MemtokError(
            f"expected tasks that the key {name!r} may see or change, found none; give patterns, or make it an admin "
            "key"
        )
    identity, secret, salt = secrets.token_hex(6), secrets.token_urlsafe(32), secrets.token_bytes(16)
    key = Key(name, identity, tuple(see), tuple(change), admin, rate, max_tasks)
    write_keys(path, {**keys, identity: Stored(key, salt, hashed(secret, salt, COST))})
    return f"{PREFIX}_{identity}_{secret}"


def remove_key(path: str | Path, name: str) -> None:
    """Takes a key out of a file; MemtokError if there is none of this name."""
    keys = read_keys(path)
    left = {identity: one for identity, one in keys.items() if one.key.name != name}
    if len(left) == len(keys):
        raise MemtokError(f"expected the name of a key in {path}, found {name!r}; look into the file")
    write_keys(path, left)


class Bucket:
    """A token bucket: `rate` per second, and as many at once."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.size = max(1.0, rate)
        self.level = self.size
        self.at = time.monotonic()

    def take(self) -> float:
        """Takes one; 0, or the seconds until there is one."""
        now = time.monotonic()
        self.level = min(self.size, self.level + (now - self.at) * self.rate)
        self.at = now
        if self.level < 1:
            return (1 - self.level) / self.rate
        self.level -= 1
        return 0.0


class Rates:
    """The buckets of keys and addresses."""

    def __init__(self) -> None:
        self._buckets: dict[tuple[str, float], Bucket] = {}

    def take(self, who: str, rate: float | None) -> None:
        """Counts a request of `who`; RequestError 429 beyond `rate`."""
        if rate is None:
            return
        bucket = self._buckets.pop((who, rate), None) or Bucket(rate)
        self._buckets[who, rate] = bucket  # the last used ones are last
        if len(self._buckets) > REMEMBERED:
            del self._buckets[next(iter(self._buckets))]
        if wait := bucket.take():
            raise RequestError(429, f"expected at most {rate:g} requests per second, found more", retry_after=wait)


class KeyRing:
    """The keys of a file, read again when it changes."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.keys = read_keys(path)
        self._stamp = self._look()
        self._looked = time.monotonic()
        self._known: dict[bytes, str] = {}  # digest of a right key -> its id
        self._checks = Bucket(CHECKS)
        self._lock = threading.Lock()

    def _look(self) -> tuple[int, int, int]:
        status = self.path.stat()
        return status.st_mtime_ns, status.st_size, status.st_ino

    def refresh(self) -> None:
        """Reads the file again if it changed; a damaged one leaves the keys as they are."""
        now = time.monotonic()
        if now - self._looked < LOOK:
            return
        self._looked = now
        try:
            stamp = self._look()
            if stamp != self._stamp:
                before, self.keys, self._stamp = self.keys, read_keys(self.path), stamp
                same = {identity for identity, stored in self.keys.items() if stored == before.get(identity)}
                self._known = {digest: identity for digest, identity in list(self._known.items()) if identity in same}
                logger.info("read %d keys from %s", len(self.keys), self.path)
        except (MemtokError, OSError) as error:
            logger.warning("the keys stay as they were: %s", error)

    def remembered(self, text: str) -> Key | None:
        """The key of this text, if it was right before. Fast."""
        self.refresh()
        stored = self.keys.get(self._known.get(hashlib.sha256(text.encode()).digest(), ""))
        return None if stored is None else stored.key

    def check(self, text: str) -> Key | None:
        """The key of this text, None for a wrong one; both take as long. Slow, for a thread. RequestError 429."""
        with self._lock:
            if wait := self._checks.take():
                raise RequestError(429, "expected fewer new keys at once, found too many; try again", retry_after=wait)
        # scrypt takes a text with zero bytes behind it for the same one.
        parts = text.split("_", 2) if len(text) <= LONGEST and text.isprintable() else []
        known = self.keys.get(parts[1]) if len(parts) == 3 and parts[0] == PREFIX else None
        right = (known or NOBODY).fits(parts[2] if len(parts) == 3 else "")
        if known is None or not right:
            return None
        self._known[hashlib.sha256(text.encode()).digest()] = known.key.id
        return known.key
