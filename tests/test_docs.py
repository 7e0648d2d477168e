"""What the README and the documentation show works as it stands: their Python runs, their commands exist."""

import ast
import importlib.util
import re
import shlex
import textwrap
from pathlib import Path

import pytest

from tmixture import cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
IMPORT = re.compile(r"^(?:import|from) (\w+)", re.MULTILINE)


def blocks(page, *languages):
    """The fenced blocks of a page, with the number of the line that each begins on."""
    text = page.read_text()
    fences = re.finditer(rf"^( *)```(?:{'|'.join(languages)})\b[^\n]*\n(.*?)^\1```", text, re.DOTALL | re.MULTILINE)
    return [(text.count("\n", 0, fence.start(2)), textwrap.dedent(fence.group(2))) for fence in fences]


def name(page):
    return str(page.relative_to(ROOT))


def commands(page):
    """The shell commands of a page as lists of words, without comments."""
    script = "\n".join(block for _, block in blocks(page, "sh", "bash")).replace("\\\n", " ")
    lines = [part for line in script.splitlines() for part in line.split("&&")]
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name)
def test_python_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    code = blocks(page, "python")
    modules = {module for _, block in code for module in IMPORT.findall(block)}
    missing = sorted(module for module in modules if importlib.util.find_spec(module) is None)
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for line, block in code:
        exec(compile("\n" * line + block, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=name)
def test_commands_of_a_page_exist(page):
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for words in commands(page):
        scripts = [word for word in words if word.endswith(".py")]
        if words[0] == "tmixture":
            cli.parser().parse_args(words[1:])
        elif words[0] == "make":
            assert words[1] in targets, words
        elif scripts:
            script = (ROOT / scripts[0]).read_text().replace("_", "-")
            options = [word for word in words[words.index(scripts[0]) :] if word.startswith("--")]
            assert not [option for option in options if option.removeprefix("--") not in script], words


def test_front_pages_have_snippets():
    assert all(len(blocks(ROOT / page, "python")) >= 2 for page in ("README.md", "docs/index.md"))


def test_errors_that_are_explained_are_those_of_the_code():
    literals = [
        "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
        if isinstance(node, ast.JoinedStr)
        else node.value
        for path in (ROOT / "src").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))
    ]
    quoted = re.findall(r"^(`+)(.+)\1$", (ROOT / "docs/errors.md").read_text(), re.MULTILINE)
    messages = [message for _, message in quoted]
    assert len(messages) > 20
    known = {literal.replace("……", "…") for literal in literals}
    assert not [message for message in messages if message not in known]
