"""Imports point inward, and importing costs nothing."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "airflow_etl_provider"

#: What each part may import of ours, besides itself. Parts that are not here do not exist yet.
ALLOWED = {
    "core": set(),
    "config": {"core"},
    # Renders the plan of an audit, which says nothing of SQL, and answers with its results.
    "postgres": {"core", "quality"},
    # Another source is a new folder beside postgres, behind the same ports.
    "dbapi": {"core"},
    "quality": {"core"},
    "lineage": {"core"},
    "testing": {"core"},
    "hooks": {"core", "postgres", "dbapi"},
    "stores": {"core"},
    "links": {"core"},
    "triggers": {"core", "hooks", "stores"},
    "sensors": {"core", "hooks", "stores", "triggers"},
    # Operators put the adapters together behind the ports.
    "operators": {"core", "postgres", "dbapi", "quality", "lineage", "hooks", "stores", "links"},
    "factories": {"core", "config", "quality", "operators", "sensors", "stores"},
    "plugins": {"core", "hooks", "stores"},
    "example_dags": {"config", "factories", "operators", "sensors"},
    "notifications": {"core", "hooks"},
    "cli": {
        "core",
        "config",
        "postgres",
        "quality",
        "lineage",
        "hooks",
        "stores",
        "links",
        "factories",
    },
    "get_provider_info": set(),
    "__init__": set(),
}
ABOVE_THE_LINE = {"core", "config", "postgres", "dbapi", "quality", "lineage", "testing"}
DRIVERS = {"psycopg", "psycopg2", "asyncpg", "sqlalchemy"}


def modules():
    return sorted((ROOT / PACKAGE).rglob("*.py"))


def part(path: Path) -> str:
    first = path.relative_to(ROOT / PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(path: Path):
    """(module, where): ``top`` at import time, ``function`` when called, ``typing`` never."""
    tree = ast.parse(path.read_text("utf-8"))
    found: list[tuple[str, str]] = []

    def visit(node: ast.AST, where: str) -> None:
        for child in ast.iter_child_nodes(node):
            inside = where
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                inside = "function"
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                inside = "typing"
            elif isinstance(child, ast.Import):
                found.extend((alias.name, where) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: relative import"
                found.append((child.module or "", where))
                found.extend((f"{child.module}.{alias.name}", where) for alias in child.names)
            visit(child, inside)

    visit(tree, "top")
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_inward(path):
    """A part imports only the parts that the design lets it import."""
    mine = part(path)
    assert mine in ALLOWED, f"{mine} has no place in the architecture"
    for module, _ in imports(path):
        names = module.split(".")
        if names[0] == PACKAGE and len(names) > 1 and names[1] != mine and names[1] in ALLOWED:
            assert names[1] in ALLOWED[mine], f"{path.name} ({mine}) imports {module}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_foreign_packages_stay_in_their_place(path):
    """Airflow below the line only, drivers at the edge only, heavy packages never at import time."""
    mine = part(path)
    for module, where in imports(path):
        top = module.split(".")[0]
        assert top != "pandas", f"{path} imports pandas"
        if top == "airflow":
            assert mine not in ABOVE_THE_LINE, f"{path} imports {module}"
        if top == "pyarrow":
            # Its example may use it, as a user's callable does.
            assert mine in {"postgres", "example_dags"}, f"{path} imports {module}"
            assert where != "top", f"{path} imports {module} at import time"
        if top == "great_expectations":
            assert mine == "quality", f"{path} imports {module}"
            assert where != "top", f"{path} imports {module} at import time"
        if top in DRIVERS:
            in_gx = path.match("quality/*.py") and where != "top"
            assert mine in {"postgres", "dbapi", "hooks"} or in_gx, f"{path} imports {module}"
        if mine == "core":
            assert top in sys.stdlib_module_names | {PACKAGE, "__future__"}, (
                f"{path} imports {module}"
            )


@pytest.mark.parametrize(
    "path",
    [p for p in modules() if part(p) in {"postgres", "quality", "hooks", "operators"}],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_no_sql_is_made_of_strings(path):
    """``sql.SQL`` takes text of this package or the server's own rendering; never an f-string, % or .format on text."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name.split(".")[-1] not in {"SQL", "execute", "executemany", "copy_expert", "scalar"}:
            continue
        for argument in node.args[:2]:
            inside = ast.unparse(argument)
            assert not isinstance(argument, ast.JoinedStr), (
                f"{path}:{node.lineno}: f-string as SQL: {inside}"
            )
            if isinstance(argument, ast.BinOp) and isinstance(argument.op, ast.Mod):
                raise AssertionError(f"{path}:{node.lineno}: % on SQL: {inside}")
            if (
                isinstance(argument, ast.Call)
                and isinstance(argument.func, ast.Attribute)
                and argument.func.attr == "format"
                and isinstance(argument.func.value, ast.Constant)
            ):
                raise AssertionError(f"{path}:{node.lineno}: .format on text as SQL: {inside}")


def test_statements_in_files_take_values_as_named_parameters():
    """Only ``%(name)s`` and ``%%`` stand in the files, and each name is used once as a title."""
    for path in sorted((ROOT / PACKAGE / "postgres" / "sql").glob("*.sql")):
        text = path.read_text("utf-8")
        if path.stem.startswith("ledger_v"):
            continue
        titles = re.findall(r"^-- name: (\w+)$", text, re.MULTILINE)
        assert len(titles) == len(set(titles)), path
        for found in re.finditer(r"%(.)", text):
            assert found[1] in "(%", f"{path}: {text[found.start() : found.start() + 20]!r}"


def test_importing_the_inner_parts_loads_no_framework():
    """Everything above the line is importable without Airflow, Great Expectations or pandas being loaded."""
    names = [
        ".".join(p.relative_to(ROOT).with_suffix("").parts)
        for p in modules()
        if part(p) in ABOVE_THE_LINE and p.name != "__init__.py"
    ]
    program = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "bad = {'airflow', 'great_expectations', 'pandas', 'pyarrow'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
