"""The rooms: imports go down only and never in a circle, and functions stay small enough to hold in the head."""

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from helpers import REPOSITORY

PACKAGE = REPOSITORY / "hf_vit_scratch"
# From the top floor down. The files outside of the folders are the ground floor, in this order.
FLOORS = (
    *("cli", "demo", "explanation", "exploration", "training", "conversion", "evaluation", "hub", "settings", "data"),
    *("model", "image_files", "device", "output_folder", "console"),
)
FILES = sorted(PACKAGE.rglob("*.py"))
LONGEST, MOST_ARGUMENTS = 60, 5
# Functions whose arguments are not ours to choose.
INTERFACES = {
    "data.sources.load": "public, and its arguments are keywords",
    "evaluation.prediction.predict_logits": "all but the first two have defaults",
    "model.modeling_vit_scratch.eager_attention_forward": "called by the name of its arguments, as transformers' own",
    "training.short_attention.short_attention_forward": "called by the name of its arguments, as transformers' own",
}


def module_of(file: Path) -> tuple[str, ...]:
    """`hf_vit_scratch/data/pixels.py` is `("data", "pixels")`, `hf_vit_scratch/data/__init__.py` `("data",)`."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


MODULES = {module_of(file): file for file in FILES}


def imports_of(file: Path) -> Iterator[tuple[str, ...]]:
    """The modules of the package that a file imports, at its top, in a function or for annotations."""
    folder = file.relative_to(PACKAGE).parent.parts
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            origins = [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            name = tuple(node.module.split(".")) if node.module else ()
            base = ("hf_vit_scratch", *folder[: len(folder) - node.level + 1]) if node.level else ()
            origins = [(*base, *name, alias.name) for alias in node.names]
        else:
            continue
        for origin in origins:
            if origin[0] == PACKAGE.name:
                target = origin[1:]
                yield target if target in MODULES else target[:-1]


def all_imports() -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    for module, file in MODULES.items():
        for target in imports_of(file):
            assert target in MODULES, f"{file}: {target}"
            if target != module:
                yield module, target


def floor(module: tuple[str, ...]) -> int:
    """Height over the ground; the package itself is on top."""
    return len(FLOORS) if module in ((), ("__main__",)) else len(FLOORS) - 1 - FLOORS.index(module[0])


def test_every_folder_has_a_floor_and_imports_go_down_only():
    arrows = set(all_imports())
    assert len(arrows) > 100  # or else they were not read
    assert {("training", "job"), ("model",)} <= {module for module, _ in arrows} | {target for _, target in arrows}
    assert (("training", "job"), ("hub", "repository")) in arrows  # at the top of a file
    assert (("cli", "predict"), ("evaluation", "classifier")) in arrows  # in a function
    up = [(module, target) for module, target in arrows if floor(module) < floor(target)]
    assert not up, up


def test_nothing_imports_in_a_circle():
    graph: dict[tuple, set] = {module: set() for module in MODULES}
    for module, target in all_imports():
        graph[module].add(target)
        if len(target) == 2 and module[:1] != target[:1]:
            graph[module].add(target[:1])  # Python runs the folder's __init__ before any of its files
    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES)  # raises a CycleError


def test_the_files_that_travel_import_each_other_torch_numpy_pil_and_transformers_alone():
    allowed = {"torch", "numpy", "PIL", "transformers", *sys.stdlib_module_names}
    files = sorted((PACKAGE / "model").glob("*_vit_scratch.py"))
    assert len(files) == 4
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and f"{node.module}.py" in {one.name for one in files}, file
            elif isinstance(node, ast.ImportFrom):
                assert node.module.split(".")[0] in allowed, (file, node.module)
            elif isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= allowed, file
    lengths = {file.name: len(file.read_text(encoding="utf-8").splitlines()) for file in files}
    assert lengths.pop("digits_vit_scratch.py") < 330 and sum(lengths.values()) < 600


@pytest.mark.parametrize("folder", sorted(file.parent.name for file in PACKAGE.glob("*/__init__.py")))
def test_a_folder_hands_on_its_public_names_and_does_nothing_else(folder):
    statements = ast.parse((PACKAGE / folder / "__init__.py").read_text(encoding="utf-8")).body
    assert ast.get_docstring(ast.Module(statements, [])), folder
    for statement in statements[1:]:
        names = [target.id for target in getattr(statement, "targets", []) if isinstance(target, ast.Name)]
        registers = folder == "model" and isinstance(statement, ast.Expr) and "register(" in ast.unparse(statement)
        handed_on = isinstance(statement, ast.ImportFrom) or names == ["__all__"]
        assert handed_on or registers or folder == "cli", ast.unparse(statement)  # cli is main and parser


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    for module, file in MODULES.items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield ".".join((*module, node.name)), node


def test_no_function_is_long_or_takes_many_arguments():
    lengths, arguments = {}, {}
    for name, node in functions():
        lengths[name] = max(lengths.get(name, 0), node.end_lineno - node.lineno + 1)
        given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
        count = sum(argument is not None and argument.arg not in ("self", "cls") for argument in given)
        arguments[name] = max(arguments.get(name, 0), count)
    assert len(lengths) > 200
    assert not {name: length for name, length in lengths.items() if length > LONGEST}
    assert {name for name, count in arguments.items() if count > MOST_ARGUMENTS} == INTERFACES.keys()
