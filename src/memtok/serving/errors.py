"""What a client gets wrong: a status of HTTP and one line."""

from __future__ import annotations

import math

from memtok.errors import one_line, printable

LONGEST = 500  # characters of a line


class RequestError(Exception):
    """A request that is answered with `status` and {"error": line}. retry_after: seconds, of a server that is busy."""

    def __init__(self, status: int, line: object, *, retry_after: float | None = None) -> None:
        super().__init__(printable(one_line(line, LONGEST)))
        self.status = status
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """The headers that belong to the answer."""
        found = {} if self.retry_after is None else {"Retry-After": str(max(1, math.ceil(self.retry_after)))}
        return found | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


def no_task(name: str) -> RequestError:
    """The answer for a task that is not there, and, word for word, for one that the key may not see."""
    return RequestError(404, f"expected a task that this key can see, found {name!r}; GET /v1/tasks lists them")
