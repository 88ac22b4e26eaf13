"""One HTML page that needs nothing but itself: no network, no script, light, dark and in print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Section:
    """A part of the page: its title, its body as HTML, and a note in small print."""

    title: str
    body: str = ""
    note: str = ""


@dataclass(frozen=True)
class Top:
    """What stands above all sections: title, line beneath it, result in words and its details."""

    title: str
    subtitle: str
    headline: str
    details: Sequence[str] = ()


def render_page(top: Top, sections: Sequence[Section]) -> str:
    """Return the whole page; texts are escaped, section bodies are HTML already."""
    details = "".join(f"<li>{escape(text)}</li>" for text in top.details)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(top.title)}</title>
<style>{_CSS}</style>
</head>
<body>
<header>
<h1>{escape(top.title)}</h1>
<p class="subtitle">{escape(top.subtitle)}</p>
</header>
<main>
<section class="headline">
<p>{escape(top.headline)}</p>
<ul>{details}</ul>
</section>
{"".join(_render(section) for section in sections)}
</main>
</body>
</html>
"""


def paragraph(text: str) -> str:
    """Return a paragraph of escaped text."""
    return f"<p>{escape(text)}</p>"


def bullets(texts: Sequence[str]) -> str:
    """Return a list of escaped texts."""
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Return names and values as a definition list of escaped texts."""
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs)
    return f'<dl class="facts">{rows}</dl>'


def legend(colors: Sequence[tuple[str, str]]) -> str:
    """Return names behind a swatch of their color."""
    items = "".join(
        f'<li><span class="swatch" style="background:{escape(color)}"></span>{escape(name)}</li>'
        for name, color in colors
    )
    return f'<ul class="legend">{items}</ul>'


def chart(svg: str) -> str:
    """Return a chart in a frame that scrolls where the screen is narrow."""
    return f'<figure class="chart">{svg}</figure>'


def pictures(items: Sequence[tuple[str, str, str]]) -> str:
    """Return pictures side by side, each a data URI with a heading and a caption."""
    figures = "".join(
        f'<figure><img src="{escape(uri)}" alt="{escape(f"{head}: {caption}")}">'
        f"<figcaption><strong>{escape(head)}</strong> {escape(caption)}</figcaption></figure>"
        for head, caption, uri in items
    )
    return f'<div class="pictures">{figures}</div>'


def _render(section: Section) -> str:
    note = f'<p class="note">{escape(section.note)}</p>' if section.note else ""
    return f"<section><h2>{escape(section.title)}</h2>{section.body}{note}</section>\n"


_CSS = """
:root { --ink: #1c2430; --soft: #5a6675; --line: #dfe3e8; --paper: #ffffff; --panel: #f4f6f9;
  --accent: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #9aa5b3; --line: #333b46;
  --paper: #14181d; --panel: #1c222a; --accent: #56b4e9; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 3rem 1.5rem 5rem; color: var(--ink);
  background: var(--paper); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, sans-serif; }
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; letter-spacing: -0.01em; }
h2 { margin: 0 0 0.8rem; font-size: 1.2rem; }
h3 { margin: 1.6rem 0 0.4rem; font-size: 1rem; }
p { margin: 0 0 0.8rem; max-width: 46rem; }
.subtitle { max-width: none; margin-top: 0.4rem; color: var(--soft); }
section { margin-top: 3rem; }
.headline { margin-top: 2rem; padding: 1.4rem 1.6rem; background: var(--panel);
  border-left: 5px solid var(--accent); border-radius: 4px; }
.headline p { margin: 0; max-width: none; font-size: 1.35rem; line-height: 1.35; font-weight: 600; }
.headline ul { margin: 0.7rem 0 0; padding: 0; list-style: none; color: var(--soft); }
.headline li + li { margin-top: 0.25rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.9rem;
  font-variant-numeric: tabular-nums lining-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: 0.4rem; }
th, td { padding: 0.4rem 0 0.4rem 1rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
thead th { color: var(--soft); font-weight: 500; vertical-align: bottom; white-space: normal; }
tbody th, thead th:first-child { text-align: left; font-weight: 500; padding-left: 0;
  white-space: normal; }
.best { font-weight: 700; }
.faint { color: var(--soft); }
th.text, td.text { padding-left: 2.5rem; text-align: left; white-space: normal; }
.note { max-width: 52rem; margin-top: 0.8rem; font-size: 0.85rem; color: var(--soft); }
figure { margin: 0; }
.chart svg { display: block; width: 100%; height: auto; color: var(--ink); }
.chart svg text { font-family: inherit !important; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr)); gap: 1rem; }
.pictures img { display: block; width: 100%; border-radius: 4px; background: #000; }
figcaption { margin-top: 0.4rem; font-size: 0.85rem; color: var(--soft); }
figcaption strong { color: var(--ink); }
.legend { display: flex; flex-wrap: wrap; gap: 0.25rem 1.1rem; margin: 0 0 0.8rem; padding: 0;
  list-style: none; font-size: 0.85rem; }
.swatch { display: inline-block; width: 0.85em; height: 0.85em; margin-right: 0.4em;
  border-radius: 2px; vertical-align: -0.05em; border: 1px solid #8888; }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: 0.3rem 1.5rem; margin: 0;
  font-size: 0.9rem; font-variant-numeric: tabular-nums; }
.facts dt { color: var(--soft); }
.facts dd { margin: 0; }
main > section > ul { margin: 0; padding-left: 1.2rem; }
main > section.headline > ul { padding-left: 0; }
@media print { body { max-width: none; padding: 0; font-size: 11pt; }
  section { margin-top: 1.6rem; } h2 { break-after: avoid; }
  figure, tr, .headline { break-inside: avoid; }
  .headline, .swatch { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""
