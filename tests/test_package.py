"""What the package says that it needs is what its parts import."""

import ast
import re
import sys
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib")  # from Python 3.11 on

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
# Where the package has another name than its module.
PACKAGES = {"sklearn": "scikit-learn", "open_clip": "open_clip_torch", "PIL": "pillow", "faiss": "faiss-cpu"}
OURS = {"tmixture", "losses", "cxr", "examples"}


def needed(*extras):
    """Names of the packages that come with some extras, and without any."""
    found = set()
    waiting = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][extra] for extra in extras)]
    while waiting:
        for requirement in waiting.pop():
            name, more = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?", requirement).groups()
            if name == "tmixture":
                waiting += [PROJECT["optional-dependencies"][extra] for extra in more.split(",")]
            found.add(name.lower().replace("_", "-"))
    return found


def imported(tree):
    """Modules that a file imports, by their first names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_names_the_extra_that_it_needs(path):
    tree = ast.parse(path.read_text())
    extras = re.findall(r"the\s+extra `([\w-]+)`", ast.get_docstring(tree))
    modules = set(imported(tree)) - OURS - set(sys.stdlib_module_names)
    packages = {PACKAGES.get(module, module).lower().replace("_", "-") for module in modules}
    assert packages <= needed(*extras), (
        f"its first lines should say: Needs the extra `…`, of {list(PROJECT['optional-dependencies'])}"
    )


def test_the_package_needs_no_extra():
    trees = [ast.parse(path.read_text()) for path in (ROOT / "src").rglob("*.py")]
    assert {"torch", "faiss-cpu"} <= needed()
    for tree in trees:
        top = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        modules = set(imported(ast.Module(top, []))) - OURS - set(sys.stdlib_module_names)
        packages = {PACKAGES.get(module, module).lower().replace("_", "-") for module in modules}
        assert packages - needed("sklearn", "plot") == set()


def test_the_versions_of_python_are_those_that_it_is_for():
    named = {c.rsplit(" ", 1)[1] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)}
    assert "3.10" in named
    assert PROJECT["requires-python"] == ">=3.10"


def test_the_version_is_one():
    assert f'__version__ = "{PROJECT["version"]}"' in (ROOT / "src" / "tmixture" / "__init__.py").read_text()
    assert re.search(rf"^version: {re.escape(PROJECT['version'])}$", (ROOT / "CITATION.cff").read_text(), re.M)
