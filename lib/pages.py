"""HTML of the executed notebooks that needs neither a script nor a network: equations are MathML, figures inside."""

import html
import re
import textwrap
from collections.abc import Container
from pathlib import Path

from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

# nbconvert's page less the scripts that it fetches, with the fonts, letters and columns that MathML leaves to CSS.
TEMPLATE = """{% extends 'lab/index.html.j2' %}
{% block html_head_js_requirejs %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
{% block html_head_js_mathjax %}<style>
math { font: 110% "Latin Modern Math", "STIX Two Math", "Cambria Math", "DejaVu Math TeX Gyre", math }
math[display=block] { margin: 0.8em 0 }
mtd[columnalign=left] { text-align: left } mtd[columnalign=right] { text-align: right }
.jp-RenderedHTML { overflow-x: auto } td:first-child { min-width: 6em } .jp-RenderedHTML th[colspan] { text-align: center }
.jp-RenderedHTML :is(td, th) { padding: 0.3em 0.35em; font-size: 92% } .highlight pre { white-space: pre-wrap }
[mathvariant^=bold] { font-weight: bold } [mathvariant=monospace] { font-family: monospace; text-transform: none }
</style>{% endblock %}
{% block data_png %}{% set picture = output.metadata.get('image/png', {}) %}
<div class="jp-RenderedImage jp-OutputArea-output"><img src="data:image/png;base64,{{ output.data['image/png'] }}"
 alt="{{ picture.get('alt', '') | escape }}" {% if picture.width %}width="{{ picture.width }}"{% endif %}>\
</div>{% endblock %}
{% block data_latex %}{{ output.data['text/latex'] | markdown2html }}{% endblock %}"""

# What the index leads to, folder by folder; where a file of the first kind says what it is: a heading, a caption's first
# sentence, a title.
SHOWN = {"html": (".html",), "tables": (".md", ".csv", ".tex"), "figures": (".svg", ".png", ".pdf", ".csv")}
ABOUT = {".html": r"<h1[^>]*>(.*?)<", ".md": r"\A(.*?)(?:\. |\.?\n)", ".svg": r"<title>(.*?)</title>"}
INDEX = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Foresight pruning: {name}</title>
<style>body {{ font: 16px/1.5 sans-serif; max-width: 50em; margin: 2em auto; padding: 0 1em }}</style></head>
<body><h1>Foresight pruning, profile {name}</h1>
{lists}
</body></html>
"""


def page(notebook: Path, others: Container[str]) -> str:
    """An executed notebook as one HTML file. others: the notebooks of which there is a page beside it; what leads to
    another one is no link in it."""
    exporter = _Exporter(raw_template=TEMPLATE)
    exporter.others = others
    return exporter.from_filename(str(notebook))[0]


def index(name: str, folder: Path) -> str:
    """The page, html/index.html, that leads to a profile's notebooks, tables and figures."""
    lists = ""
    for part, suffixes in SHOWN.items():
        paths = [path for path in (folder / part).glob("*") if path.suffix in suffixes and path.name != "index.html"]
        stems = sorted({path.stem for path in paths}, key=_natural)
        links = {stem: " ".join(f'<a href="../{part}/{html.escape(stem + suffix)}">{suffix[1:]}</a>'
                                for suffix in suffixes if folder / part / (stem + suffix) in paths) for stem in stems}
        items = "\n".join(f"<li>{html.escape(stem)}: {link}{_about(folder / part / (stem + suffixes[0]))}</li>"
                          for stem, link in links.items())
        lists += f"<h2>{'Notebooks' if part == 'html' else part.capitalize()}</h2>\n<ul>\n{items}\n</ul>\n"
    return INDEX.format(name=html.escape(name), lists=lists)


def _about(path: Path) -> str:
    """What a file is, in a line of HTML; nothing where it does not say."""
    found = re.search(ABOUT[path.suffix], path.read_text(encoding="utf-8"), re.DOTALL) if path.is_file() else None
    told = textwrap.shorten(html.unescape(found[1]), 160, placeholder=" …") if found else ""
    return f"<br><small>{html.escape(told)}</small>" if told else ""


def _natural(stem: str) -> list[tuple[int, str]]:
    """Sorts as a reader does: figure-4.2 before figure-4.10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", stem)]


def mathml(latex: str, display: str) -> str:
    """LaTeX as MathML; what cannot be converted stands as LaTeX, in code, rather than wrong."""
    latex = latex.replace("{aligned}", "{align*}").replace(r"\mathbb{1}", "𝟙")
    try:
        converted = convert(latex, display=display)
    except Exception:   # the converter's errors have no base class of their own
        converted = None
    # An unknown command and a loose column mark come out as they went in.
    if converted is None or re.search(r">\s*(\\|&<)", converted):
        return f"<code>{html.escape(latex)}</code>"
    return converted


class _Renderer(IPythonRenderer):
    """Markdown as in Jupyter, with MathML for LaTeX and with links that stay among the pages that there are."""

    others: Container[str] = ()

    def block_math(self, body: str) -> str:
        return mathml(body, "block")

    def inline_math(self, body: str) -> str:
        return mathml(body, "inline")

    def latex_environment(self, name: str, body: str) -> str:
        return mathml(f"\\begin{{{name}}}{body}\\end{{{name}}}", "block")

    def link(self, text: str, url: str, title: str | None = None) -> str:
        notebook = re.match(r"([\w-]+)\.ipynb", url)
        if notebook and notebook[1] not in self.others:
            return text
        url = re.sub(r"^([\w-]+)\.ipynb", r"\1.html", url).replace("../README.md", "index.html")
        return super().link(text, url, title)

    def image(self, text: str, url: str, title: str | None = None) -> str:
        """A picture from elsewhere, such as a badge, becomes its text."""
        return text if re.match("https?:", url) else super().image(text, url, title)


class _Exporter(HTMLExporter):
    def markdown2html(self, source: str) -> str:
        renderer = _Renderer(escape=False)
        renderer.others = self.others
        return MarkdownWithMath(renderer).render(source)
