"""A page of HTML that needs nothing but itself: sections, tables, pictures inline, a table of contents."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from matplotlib.figure import Figure

STYLE = """
:root { --ink: #1d2733; --soft: #5d6b7a; --rule: #d9dfe5; --fill: #f5f7f9; --good: #1c6b4a; --bad: #a63d2f; }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body { margin: 0; color: var(--ink); background: #fff; font: 15px/1.5 "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
main, header, footer { max-width: 62rem; margin: 0 auto; padding: 0 1.5rem; }
header { padding-top: 2.2rem; border-bottom: 2px solid var(--ink); }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; }
h2 { font-size: 1.3rem; margin: 3rem 0 .6rem; padding-bottom: .25rem; border-bottom: 1px solid var(--rule); }
h3 { font-size: 1.02rem; margin: 1.7rem 0 .4rem; }
p { margin: .5rem 0; max-width: 48rem; }
.soft, figcaption, footer { color: var(--soft); font-size: .87rem; }
nav { columns: 2; margin: 1.2rem 0; padding: .9rem 1.2rem; background: var(--fill); border-radius: 4px; }
nav ol { margin: 0; padding-left: 1.3rem; }
a { color: #24598f; text-decoration: none; } a:hover { text-decoration: underline; }
.wide { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .88rem; }
th, td { padding: .32rem .7rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--rule); }
th { border-bottom: 2px solid var(--ink); white-space: nowrap; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.met { color: var(--good); font-weight: 600; } .missed { color: var(--bad); font-weight: 600; }
.absent { color: var(--bad); background: #fbf3f1; padding: .4rem .7rem; border-left: 3px solid var(--bad); }
code { font: .86em ui-monospace, Menlo, Consolas, monospace; background: var(--fill); padding: .08em .3em;
  border-radius: 3px; overflow-wrap: anywhere; }
.made { margin: .3rem 0 .9rem; color: var(--soft); font-size: .85rem; }
figure { margin: 1rem 0; } figure img { max-width: 100%; height: auto; }
footer { margin-top: 3rem; padding-bottom: 2rem; border-top: 1px solid var(--rule); padding-top: .8rem; }
@media (max-width: 45rem) { nav { columns: 1; } }
@media print {
  body { font-size: 10.5pt; } main, header, footer { max-width: none; padding: 0; }
  h2 { break-after: avoid; } h3 { break-after: avoid; } figure, tr { break-inside: avoid; }
  nav { border: 1px solid var(--rule); } .wide { overflow: visible; }
}
"""


@dataclass
class Section:
    """A chapter: what stands in it is HTML already."""

    anchor: str
    title: str
    parts: list[str] = field(default_factory=list)

    def html(self) -> str:
        """With its heading."""
        return f'<section id="{self.anchor}">\n<h2>{escape(self.title)}</h2>\n' + "\n".join(self.parts) + "\n</section>"


class Html(str):
    """Text that is HTML and is not escaped again."""


def text(value: object) -> str:
    """Escaped, unless it is HTML."""
    return value if isinstance(value, Html) else escape(str(value))


def paragraph(told: object, kind: str = "") -> str:
    """A paragraph of class `kind`."""
    return f"<p{f' class={kind!r}' if kind else ''}>{text(told)}</p>"


def heading(told: str) -> str:
    """Within a section."""
    return f"<h3>{escape(told)}</h3>"


def made_by(command: str, about: str = "") -> str:
    """The command that made what stands above, and what else is known of it."""
    return f'<p class="made"><code>{escape(command)}</code>{" · " + escape(about) if about else ""}</p>'


def absent(command: str) -> str:
    """What has no figures yet."""
    return f'<p class="absent">not measured yet: run <code>{escape(command)}</code></p>'


def verdict(met: bool | None) -> Html:
    """met, missed, or nothing where there is no bar."""
    return Html("" if met is None else '<span class="met">met</span>' if met else '<span class="missed">missed</span>')


def table(heads: Sequence[str], rows: Sequence[Sequence[object]], numbers: Sequence[int] = ()) -> str:
    """Columns that are listed in `numbers` are set to the right."""

    def cell(tag: str, n: int, value: object) -> str:
        return f"<{tag}{' class=n' if n in numbers else ''}>{text(value)}</{tag}>"

    head = "".join(cell("th", n, name) for n, name in enumerate(heads))
    body = "\n".join("<tr>" + "".join(cell("td", n, value) for n, value in enumerate(row)) + "</tr>" for row in rows)
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def picture(figure: Figure, caption: str, dpi: int = 100) -> str:
    """A figure inline, as PNG."""
    kept = io.BytesIO()
    figure.savefig(kept, format="png", dpi=dpi)
    return inline(kept.getvalue(), caption)


def inline(png: bytes, caption: str) -> str:
    """A PNG within the page."""
    told, source = escape(caption), f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return f'<figure><img alt="{told}" src="{source}"><figcaption>{told}</figcaption></figure>'


def page(title: str, subtitle: str, sections: Sequence[Section], foot: str) -> str:
    """The whole document."""
    contents = "\n".join(f'<li><a href="#{s.anchor}">{escape(s.title)}</a></li>' for s in sections)
    body = "\n".join(section.html() for section in sections)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header><h1>{escape(title)}</h1><p class="soft">{text(subtitle)}</p></header>
<main>
<nav><ol>
{contents}
</ol></nav>
{body}
</main>
<footer>{text(foot)}</footer>
</body>
</html>
"""
