"""The floor plan: imports go down only, and what is heavy is imported where it is used."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vljax

PACKAGE = Path(vljax.__file__).parent
FLOORS = {
    "cli": 6,
    "obtain": 5,
    "bench": 4,
    "convert": 4,
    "evaluate": 4,
    "serve": 4,
    "generate": 3,
    "train": 3,
    "models": 2,
    "config": 1,
    "data": 1,
    "hub": 1,
    "nn": 1,
    "progress": 1,
    "sharding": 1,
    "store": 1,
}
SHARED = {"progress", "store"}  # whoever stands on their floor may use them, too
TENSORFLOW = {"data/pipeline.py", "data/tfds_builders.py"}
FILES = sorted(p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*.py"))


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of all modules that are imported, wherever; "from vljax import x" is vljax.x."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide which floor is meant"
            if node.module == "vljax":
                yield from (f"vljax.{alias.name}" for alias in node.names)
            else:
                yield node.module


def eager(tree: ast.Module | ast.ClassDef) -> Iterator[str]:
    """What importing the module imports: everything outside of functions."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield from eager(node)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from imports(node)


def wrong_arrows(file: str, names: Iterator[str]) -> list[str]:
    """The imports of ``file`` that run up or sideways."""
    own = file.split("/")[0].removesuffix(".py")
    others = {n.split(".")[1] for n in names if n.startswith("vljax.")} - {own, "__version__"}
    return [
        f"{file} -> {other}"
        for other in sorted(others)
        if FLOORS[other] >= FLOORS[own] and not (FLOORS[own] == 1 and other in SHARED)
    ]


def parse(file: str) -> ast.Module:
    return ast.parse((PACKAGE / file).read_text())


def test_every_package_has_a_floor():
    own = {f.split("/")[0].removesuffix(".py") for f in FILES} - {"__init__"}
    assert own <= set(FLOORS)


@pytest.mark.parametrize("file", [f for f in FILES if f != "__init__.py"])
def test_imports_go_down_only(file):
    assert wrong_arrows(file, imports(parse(file))) == []


@pytest.mark.parametrize(
    ("file", "source", "wrong"),
    [
        ("models/a.py", "from vljax.train import step", ["models/a.py -> train"]),
        ("train/a.py", "from vljax.generate import decode", ["train/a.py -> generate"]),
        ("data/a.py", "def f():\n    import vljax.nn.layers", ["data/a.py -> nn"]),
        ("data/a.py", "from vljax import config, store", ["data/a.py -> config"]),
        ("store.py", "from vljax.sharding import mesh", ["store.py -> sharding"]),
        ("cli/a.py", "from vljax.train import loop\nfrom vljax.cli import main", []),
    ],
)
def test_a_wrong_arrow_is_found(file, source, wrong):
    assert wrong_arrows(file, imports(ast.parse(source))) == wrong


@pytest.mark.parametrize("file", FILES)
def test_heavy_libraries_stay_where_they_are_needed(file):
    tree = parse(file)
    roots = {n.split(".")[0] for n in imports(tree)}
    at_once = {n.split(".")[0] for n in eager(tree)}
    assert not at_once & {"tensorflow", "tensorflow_datasets", "torch", "transformers"}
    assert file in TENSORFLOW or not roots & {"tensorflow", "tensorflow_datasets"}
    if file.startswith("data/"):
        assert not roots & {"jax", "jaxlib", "flax", "optax", "orbax"}


def test_configs_know_only_config():
    for path in (PACKAGE.parent / "configs").glob("*.py"):
        names = {n for n in imports(ast.parse(path.read_text())) if n.startswith("vljax")}
        assert names <= {"vljax.config"}, path.name


def modules_after(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after ``statement``."""
    code = f"{statement}\nimport sys\nprint(*{{m.split('.')[0] for m in sys.modules}})"
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return set(run.stdout.split())


def test_importing_the_package_costs_nothing():
    heavy = {"jax", "numpy", "flax", "tensorflow", "torch", "matplotlib", "av"}
    assert not modules_after("import vljax, vljax.cli.main, vljax.cli.chat") & heavy


def test_chatting_needs_no_training_library():
    loaded = modules_after("import vljax\nvljax.load\nimport vljax.cli.chat")
    assert "jax" in loaded
    assert not loaded & {"tensorflow", "torch", "transformers", "matplotlib", "ml_collections"}
