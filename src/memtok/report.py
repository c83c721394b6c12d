"""A report: one HTML file that holds all it shows, readable in light and in dark, printable, without scripts.

The functions return pieces of HTML; every text that is passed to them is escaped. Charts come from `memtok.plots`.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from memtok.files import write_text

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fdfdfb; --ink: #1d2125; --muted: #5c666f; --line: #d5d9dc; --tint: #f1f3f3;
  --good: #1b7a3d; --bad: #b3261e;
  --series-1: #2f6fb2; --series-2: #b8560f; --series-3: #1f8a70; --series-4: #9a4f9c; --series-5: #8a6d00;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171a; --ink: #e4e7e9; --muted: #9aa5ae; --line: #3a4148; --tint: #1e2327;
    --good: #6bcf8e; --bad: #ff8a80;
    --series-1: #7fb2ea; --series-2: #f0a063; --series-3: #63c9af; --series-4: #d49ad6; --series-5: #d8bd55;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 3rem 1.25rem 5rem; max-width: 50rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
}
h1 { font-size: 2rem; line-height: 1.2; letter-spacing: -0.01em; margin: 0 0 0.75rem; }
h2 {
  font-size: 1.3rem; line-height: 1.3; margin: 3.25rem 0 0.5rem; padding-top: 1.1rem;
  border-top: 1px solid var(--line);
}
p { margin: 0.6rem 0; max-width: 42rem; }
.lead { font-size: 1.15rem; line-height: 1.5; }
.note, figcaption { color: var(--muted); font-size: 0.9rem; line-height: 1.5; }
.scroll { overflow-x: auto; margin: 1.1rem 0; }
table { border-collapse: collapse; width: 100%; font-size: 0.93rem; font-variant-numeric: tabular-nums; }
th, td {
  text-align: left; padding: 0.42rem 1.1rem 0.42rem 0; border-bottom: 1px solid var(--line);
  vertical-align: baseline;
}
th { color: var(--muted); font-weight: 500; white-space: nowrap; }
td.right, th.right { text-align: right; white-space: nowrap; }
th:last-child, td:last-child { padding-right: 0; }
figure { margin: 1.4rem 0; }
.chart { min-width: 34rem; }
.chart svg { display: block; width: 100%; height: auto; overflow: visible; }
figcaption { margin-top: 0.5rem; max-width: 42rem; }
pre {
  background: var(--tint); border-radius: 6px; padding: 0.8rem 1rem; overflow-x: auto;
  font-size: 0.86rem; line-height: 1.55;
}
code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.good { color: var(--good); font-weight: 600; }
.bad { color: var(--bad); font-weight: 600; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.4rem, 1fr)); gap: 0.8rem; margin: 1.2rem 0; }
.card { border: 1px solid var(--line); border-radius: 8px; padding: 0.6rem; break-inside: avoid; }
.card img { display: block; width: 100%; border-radius: 4px; image-rendering: pixelated; margin-bottom: 0.6rem; }
.answer { margin-top: 0.5rem; font-size: 0.88rem; line-height: 1.35; }
.answer .who { color: var(--muted); font-size: 0.78rem; }
.answer .what { display: flex; justify-content: space-between; gap: 0.5rem; font-variant-numeric: tabular-nums; }
.answer .bar { height: 3px; border-radius: 2px; background: var(--line); margin-top: 0.2rem; overflow: hidden; }
.answer .bar i { display: block; height: 100%; background: var(--series-1); }
.answer.wrong .what { color: var(--bad); }
.answer.wrong .bar i { background: var(--bad); }
.answer.aside .what { color: var(--muted); }
.answer.aside .bar i { background: var(--muted); }
.grid { display: grid; gap: 0.35rem; align-items: center; margin: 1.2rem 0; }
.grid img { display: block; width: 100%; border-radius: 3px; image-rendering: pixelated; }
.grid span { color: var(--muted); font-size: 0.82rem; text-align: center; }
@media print { body { padding: 0; } h2 { break-after: avoid; } figure, .scroll { break-inside: avoid; } }
""".strip()


def page(title: str, lead: str, sections: Sequence[str]) -> str:
    """A whole document: its title, what matters most in a sentence, and sections made by `section`."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE}\n</style>\n</head>\n<body>\n"
        f'<h1>{escape(title)}</h1>\n<p class="lead">{escape(lead)}</p>\n' + "\n".join(sections) + "\n</body>\n</html>\n"
    )


def write_page(path: str | Path, title: str, lead: str, sections: Sequence[str]) -> None:
    """Writes `page` to a file, atomically."""
    write_text(path, page(title, lead, sections))


def section(title: str, *pieces: str) -> str:
    """A heading and what stands below it."""
    return f"<section>\n<h2>{escape(title)}</h2>\n" + "\n".join(pieces) + "\n</section>"


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph; kind "note" for what is said in passing."""
    return f"<p{attribute(kind)}>{escape(text)}</p>"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> str:
    """Rows under headings; the columns named in `right` hold numbers. "ok" and "FAILED" in front show."""
    kinds = ["right" if column in right else "" for column in columns]
    head = "".join(f"<th{attribute(kind)}>{escape(name)}</th>" for name, kind in zip(columns, kinds, strict=True))
    lines = ("".join(cell(text, kind) for text, kind in zip(row, kinds, strict=True)) for row in rows)
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def cell(text: str, kind: str) -> str:
    """One cell of a table."""
    verdict = {"ok": "good", "FAILED": "bad"}.get(text.split(" ")[0].rstrip(":"), "")
    return f"<td{attribute(' '.join(filter(None, (kind, verdict))))}>{escape(text)}</td>"


def figure(svg: str, caption: str, alternative: str) -> str:
    """A chart with its caption; `alternative` says in words what it shows, for who cannot see it."""
    chart = f'<div class="chart" role="img" aria-label="{escape(alternative)}">\n{svg}\n</div>'
    return f'<figure>\n<div class="scroll">{chart}</div>\n{figcaption(caption)}\n</figure>'


def commands(lines: Sequence[str]) -> str:
    """What can be typed, line by line."""
    return f"<pre><code>{escape(chr(10).join(lines))}</code></pre>"


def card(source: str, alternative: str, answers: Sequence[str]) -> str:
    """A picture (a `data:` address) over `answers`."""
    return f'<div class="card">{image(source, alternative)}{"".join(answers)}</div>'


def answer(who: str, what: str, share: float, kind: str = "") -> str:
    """Who says what, how sure of it (a share in [0, 1]); kind "aside" for an answer that does not count, or "wrong"."""
    return (
        f'<div{attribute(f"answer {kind}".strip())}><div class="who">{escape(who)}</div>'
        f'<div class="what"><span>{escape(what)}</span><span>{percent(share)}</span></div>'
        f'<div class="bar"><i style="width: {100 * share:.1f}%"></i></div></div>'
    )


def cards(pieces: Sequence[str]) -> str:
    """Cards side by side, as many as there is room for."""
    return f'<div class="cards">{"".join(pieces)}</div>'


def picture_grid(heads: Sequence[str], rows: Sequence[Sequence[tuple[str, str]]], caption: str) -> str:
    """Small pictures in rows under headings; a picture is a `data:` address with its text."""
    cells = "".join(f"<span>{escape(head)}</span>" for head in heads)
    cells += "".join(image(source, text) for row in rows for source, text in row)
    columns = f"grid-template-columns: repeat({len(heads)}, minmax(2.5rem, 1fr))"
    return f'<figure><div class="grid" style="{columns}">{cells}</div>\n{figcaption(caption)}\n</figure>'


def image(source: str, alternative: str) -> str:
    """A picture that lies in the page itself."""
    return f'<img src="{source}" alt="{escape(alternative)}">'


def figcaption(text: str) -> str:
    """What stands below a picture."""
    return f"<figcaption>{escape(text)}</figcaption>"


def percent(share: float) -> str:
    """0.8765 as 87.7 %, with a space that does not break."""
    return f"{100 * share:.1f}\u00a0%"


def size(count: int) -> str:
    """Bytes for people: 812 B, 12.3 kB, 2.43 MB."""
    if count < 1000:
        return f"{count}\u00a0B"
    return f"{count / 1e3:.3g}\u00a0kB" if count < 999_500 else f"{count / 1e6:.3g}\u00a0MB"


def attribute(kind: str) -> str:
    """A class, where there is one."""
    return f' class="{escape(kind)}"' if kind else ""


def escape(text: str) -> str:
    """Text as it may stand in HTML, in an attribute too."""
    return html.escape(text, quote=True)
