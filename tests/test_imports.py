"""A reader can begin with any module and go down: no two need each other, not even for their types."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def modules(root):
    """Names of the modules below a folder, and their files."""
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imported(path):
    """What a file imports anywhere in it, `if TYPE_CHECKING` and functions included: modules, or names in them."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


@pytest.mark.parametrize("folder", ["src", "examples"])
def test_no_module_imports_what_imports_it(folder):
    files = dict(modules(ROOT / folder))
    assert len(files) > 20
    graph = {}
    for name, path in files.items():
        targets = {target if target in files else target.rpartition(".")[0] for target in imported(path)}
        graph[name] = {target for target in targets if target in files} - {name}
    assert sum(map(len, graph.values())) > len(files)
    tuple(TopologicalSorter(graph).static_order())  # a CycleError shows the circle
