"""What the site is built with beside Markdown: its figures, and its formulas as MathML, which browsers set unaided."""

from __future__ import annotations

import html
import re
import runpy
import shutil
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import latex2mathml.converter
import matplotlib as mpl
from mkdocs.structure.files import File, Files

DOCS = Path(__file__).parent
FIGURES, ASSETS = DOCS / "figures", DOCS / "assets"
SOURCES, BENCHMARKS = DOCS.parent / "src", DOCS.parent / "benchmarks"
# What the benchmarks write, and the page that it becomes.
TABLES = {
    "RESULTS.md": "speed.md",
    "SMALL.md": "small.md",
    "STARTS.md": "starts.md",
    "MOVING_CLUSTERS.md": "moving-clusters.md",
    "CANDIDATES.md": "candidates.md",
    "OUT_OF_CORE.md": "out-of-core.md",
}
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)

# What latex2mathml takes for a name or an operator and is not: it would be set with the wrong space around it.
CORRECTIONS = {
    "<mi>&#x0007E;</mi>": "<mo>&#x0223C;</mo>",  # \sim
    "<mo>&#x0221E;</mo>": "<mi>&#x0221E;</mi>",  # \infty
    "<mo>max</mo>": "<mi>max</mi>",
}


def on_config(config: Any) -> Any:
    """Say which version this is."""
    version = re.search(r'__version__ = "(.+?)"', (SOURCES / "tmixture" / "__init__.py").read_text())
    assert version is not None
    config.copyright = f"tmixture {version[1]}. {config.copyright}"
    return config


def on_pre_build(config: Any) -> None:
    """Bring in the font of the formulas, and draw the figures that are missing or older than their script or `src`."""
    ASSETS.mkdir(exist_ok=True)
    font = ASSETS / "STIXTwoMath-Regular.ttf"
    if not font.exists():
        shutil.copy(str(files("ziamath.fonts") / font.name), font)
    sys.path.insert(0, str(DOCS))  # for what the figures have in common
    style = FIGURES / "site.mplstyle"
    library = max(path.stat().st_mtime for path in [style, *SOURCES.rglob("*.py")])
    for script in sorted(FIGURES.glob("*.py")):
        picture = ASSETS / f"{script.stem}.svg"
        if picture.exists() and picture.stat().st_mtime > max(library, script.stat().st_mtime):
            continue
        with mpl.rc_context(fname=style):
            figure = runpy.run_path(str(script))["draw"]()
            figure.savefig(picture, metadata={"Date": None})


def on_files(files: Files, config: Any) -> Files:
    """Add the changelog, and what the benchmarks wrote, tables and plots."""
    files.append(File.generated(config, "changelog.md", abs_src_path=str(DOCS.parent / "CHANGELOG.md")))
    plots = {path.name: path.name for path in BENCHMARKS.glob("*.png")}
    for source, page in (TABLES | plots).items():
        files.append(File.generated(config, f"results/{page}", abs_src_path=str(BENCHMARKS / source)))
    return files


def on_page_content(content: str, **_: Any) -> str:
    """Replace the formulas of a page by MathML."""
    return FORMULA.sub(_mathml, content)


def _mathml(formula: re.Match[str]) -> str:
    tag, tex = formula.group(1), html.unescape(formula.group(2))
    mathml = latex2mathml.converter.convert(tex, display="inline" if tag == "span" else "block")
    for wrong, right in CORRECTIONS.items():
        mathml = mathml.replace(wrong, right)
    return mathml if tag == "span" else f'<div class="formula">{mathml}</div>'
