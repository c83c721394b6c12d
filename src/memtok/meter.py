"""How far long work is: a bar that fits its terminal, and where there is none a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text

from memtok.display import duration, percent
from memtok.errors import printable

# Off a terminal: a line whenever so many seconds went by without one, and at 1 %, 10 %, 20 % ... unless that comes
# right after another line. So quick work prints none.
LONGEST_SILENCE = 30.0
LEAST_BETWEEN = 5.0
WIDE = 100  # columns of a terminal from which on the bar takes 20 of them, else 10


class Meter:
    """Shows how much of `total` is done, with figures such as the loss beside it, on `console`.

    what: a word or two for the work. counted: whether amounts are counts; otherwise only their share of the total is
    shown. transient: whether the bar goes away at the end. clock: seconds, for the lines and the time left in them.
    """

    def __init__(
        self,
        console: Console,
        what: str,
        total: float | None = None,
        done: float = 0,
        *,
        counted: bool = True,
        transient: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console, self.what, self.total, self.done, self.counted = console, what, total, done, counted
        self.figures: tuple[str, ...] = ()
        self.clock = clock
        self.first, self.begun = done, clock()
        self.last_line, self.next_mark = self.begun, 0.01
        self.bar: Bar | None = None
        self.row: TaskID | None = None
        if console.is_terminal:
            width = 20 if console.width >= WIDE else 10
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(width),
                Fitting(console, width, counted),
            )
            self.bar = Bar(*columns, console=console, transient=transient)
            self.row = self.bar.add_task(what, total=total, completed=int(done), figures=())
            self.bar.start()

    def move(self, done: float, total: float | None = None, figures: Sequence[str] | None = None) -> None:
        """So much is done. total and figures (the most important first) stay as they were where they are None."""
        if done < self.done:  # other work begins
            self.first, self.begun, self.next_mark = done, self.clock(), 0.01
        self.done = done
        self.total = self.total if total is None else total
        self.figures = self.figures if figures is None else tuple(figures)
        if self.bar is not None and self.row is not None:
            self.bar.update(self.row, completed=done, total=self.total, figures=self.figures)

    def tick(self) -> None:
        """Prints a line where there is no terminal and it is time for one."""
        if self.bar is not None or not self.total or self.done >= self.total:
            return
        silent = self.clock() - self.last_line
        marked = self.done / self.total >= self.next_mark and silent >= LEAST_BETWEEN
        if marked or silent >= LONGEST_SILENCE:
            self.say(self.line())

    def say(self, text: str) -> None:
        """Prints a line, above the bar if there is one."""
        print_line(self.console, text)
        self.last_line = self.clock()
        if self.total:
            self.next_mark = max(0.1, (int(10 * self.done / self.total) + 1) / 10)

    def line(self) -> str:
        """How far it is, in a line."""
        assert self.total
        share = percent(self.done / self.total, 0)
        amount = f"{self.done:,.0f} of {self.total:,.0f} ({share})" if self.counted else share
        return ", ".join([f"{self.what}: {amount}", *(figure for figure in self.figures if figure), *self.time_left()])

    def time_left(self) -> list[str]:
        """About how long the rest takes, at the rate so far; nothing where that is not known."""
        done, spent = self.done - self.first, self.clock() - self.begun
        if not self.total or done <= 0 or spent <= 0 or self.done >= self.total:
            return []
        return [f"about {duration(spent * (self.total - self.done) / done)} left"]

    def close(self) -> None:
        """The work ended, well or not."""
        if self.bar is not None:
            self.bar.stop()


class Fitting(ProgressColumn):
    """Right of the bar: the amount, the time left, then as many of the figures as the terminal has room for."""

    def __init__(self, console: Console, bar_width: int, counted: bool) -> None:
        super().__init__()
        self.console, self.bar_width, self.counted = console, bar_width, counted

    def render(self, task: Task) -> Text:
        """The text; figures that do not fit are left out whole."""
        if self.counted and task.total is not None:
            amount = f"{task.completed:,.0f}/{task.total:,.0f}"
        else:
            amount = "" if task.total is None else f"{task.percentage:.0f} %"
        left = task.time_remaining
        text = amount if left is None else f"{amount}  {duration(left)} left"
        room = self.console.width - len(task.description) - self.bar_width - 2  # and a space on each side of the bar
        for figure in task.fields["figures"]:
            if figure and len(text) + 2 + len(figure) <= room:
                text += f"  {figure}"
        return Text(text, no_wrap=True, overflow="ellipsis")


def print_line(console: Console, text: str) -> None:
    """Prints `text` as one line: a name such as folder:two is no emoji, and one with a line end is escaped."""
    console.print(Text(printable(text)), soft_wrap=True)
