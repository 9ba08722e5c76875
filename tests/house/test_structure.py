"""The house rules that a reader relies on: imports run one way, a rule has three equal forms."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastopt.core.options import OPTIONS
from fastopt_kernels import ArrayRule, Rule
from helpers.variants import HAS_NUMBA, OF_MATRICES, VARIANTS, one_parameter

ROOT = Path(__file__).parents[2]
SOURCES = {"fastopt": ROOT / "fastopt", "fastopt_kernels": ROOT / "kernels" / "fastopt_kernels"}


def module_name(path: Path) -> str:
    package = "fastopt" if path.is_relative_to(SOURCES["fastopt"]) else "fastopt_kernels"
    parts = path.relative_to(SOURCES[package].parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


FILES = {module_name(path): path for folder in SOURCES.values() for path in folder.rglob("*.py")}


def parsed(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text(encoding="utf-8"))


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imports_of(name: str, everywhere: bool = True) -> Iterator[str]:
    """Yield what a module imports: everywhere in it, or only where importing it runs."""
    waiting: list[ast.AST] = [parsed(name)]
    while waiting:
        node = waiting.pop()
        if is_type_checking(node) and not everywhere:
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not everywhere:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            assert node.module
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [module for module in inner if module in FILES]
            yield from modules
            if len(modules) < len(inner) or node.module not in FILES:
                yield node.module
        waiting += ast.iter_child_nodes(node)


def top(module: str) -> str:
    return module.partition(".")[0]


each_module = pytest.mark.parametrize("name", sorted(FILES))
KERNELS = [name for name in sorted(FILES) if top(name) == "fastopt_kernels"]
PACKAGE = [name for name in sorted(FILES) if top(name) == "fastopt"]


def test_the_files_are_found() -> None:
    assert {"fastopt", "fastopt.optimizers.base", "fastopt.optimizers.adam"} <= set(PACKAGE)
    assert {"fastopt_kernels", "fastopt_kernels.rule", "fastopt_kernels.adam"} <= set(KERNELS)


# Imports -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_import_almost_nothing(name: str) -> None:
    allowed = {
        "numpy",
        "math",
        "typing",
        "inspect",
        "re",
        "dataclasses",
        "collections",
        "functools",
    }
    allowed |= {"__future__", "fastopt_kernels"}
    assert {top(module) for module in imports_of(name)} <= allowed


@pytest.mark.parametrize("library", ["numba", "cupy"])
def test_an_array_library_is_imported_in_its_backends_files_alone(library: str) -> None:
    importers = {name for name in FILES if library in map(top, imports_of(name))}
    assert all(name.startswith(f"fastopt.backends.{library}.") for name in importers)


def test_no_import_of_the_package_runs_in_a_circle() -> None:
    edges = {
        name: {module for module in imports_of(name, everywhere=False) if module in FILES}
        for name in FILES
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path, name])
        if name in done:
            return
        for other in sorted(edges[name]):
            visit(other, (*path, name))
        done.add(name)

    for name in sorted(FILES):
        visit(name, ())


ROOMS = [
    ["__main__"],
    ["cli", "sklearn", "thinc", "torch"],
    ["distributed"],
    ["interop", "wrappers"],
    ["fits", "viz"],
    ["optimizers"],
    ["checkpoint"],
    ["engine"],
    ["backends"],
    ["schedules"],
    ["core"],
    ["errors", "version"],
]
"""Each may import those on the lines below it, and itself."""


def room(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def storey(name: str) -> int:
    return next(number for number, rooms in enumerate(ROOMS) if room(name) in rooms)


IN_ROOMS = [name for name in PACKAGE if name != "fastopt"]


def upwards(name: str) -> set[tuple[str, str]]:
    """Return the imports of a module, with it, that run neither downwards nor within its room."""
    return {
        (name, module)
        for module in imports_of(name, everywhere=False)
        if module in IN_ROOMS
        if room(module) != room(name) and storey(module) <= storey(name)
    }


def test_every_module_is_in_a_room_and_every_room_is_there() -> None:
    assert {room(name) for name in IN_ROOMS} == {name for rooms in ROOMS for name in rooms}


@pytest.mark.parametrize("name", IN_ROOMS)
def test_imports_run_downwards(name: str) -> None:
    assert upwards(name) == set()


FAMILIES = [n for n in PACKAGE if re.fullmatch(r"fastopt\.optimizers\.(?!base|explain)\w+", n)]


@pytest.mark.parametrize("name", FAMILIES)
def test_an_optimizer_knows_no_backend(name: str) -> None:
    used = set(imports_of(name))
    assert not {module for module in used if module.startswith("fastopt.backends")}
    assert not {"numpy", "numba", "cupy"} & {top(module) for module in used}


# Files -------------------------------------------------------------------------------------------


@each_module
def test_a_file_says_first_what_it_is(name: str) -> None:
    said = ast.get_docstring(parsed(name))
    assert said, f"{name} has no docstring"
    first = FILES[name].read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith('"""'), "the docstring is not the first line"
    assert len(first) > 20


# Rules -------------------------------------------------------------------------------------------


def rules() -> list[Rule]:
    modules = [importlib.import_module(name) for name in KERNELS]
    found = (getattr(module, "RULE", None) for module in modules)
    return [rule for rule in found if isinstance(rule, Rule)]  # not those on whole arrays


RULES = rules()
each_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)


def test_every_file_of_a_rule_is_named_after_it() -> None:
    files = {name.rpartition(".")[2] for name in KERNELS}
    fragments = {option.fragment.name for option in OPTIONS.values() if option.fragment}
    no_rules = {"fastopt_kernels", "rule", "around", "fragment", *fragments}
    on_arrays = {variant.rule.name for variant in OF_MATRICES}
    assert {rule.name for rule in RULES} | on_arrays == files - no_rules
    assert len(RULES) >= 11


def numpy_form(param: Any, grad: Any, m: Any, lr: float) -> None:
    m += grad
    param -= lr * m


def numba_form(param: Any, grad: Any, m: Any, lr: float) -> tuple[Any, Any]:
    m = m + grad
    return param - lr * m, m


GOOD: dict[str, Any] = {
    "name": "good",
    "state": ("m",),
    "scalars": ("lr",),
    "numpy": numpy_form,
    "numba": numba_form,
    "cupy": "m = m + grad; param = param - lr * m;",
    "signed": ("m",),
}


def test_a_rule_with_three_forms_is_made_and_cannot_be_changed() -> None:
    rule = Rule(**GOOD)
    assert rule.arguments == ("param", "grad", "m", "lr")
    with pytest.raises(dataclasses.FrozenInstanceError):
        rule.name = "other"  # type: ignore[misc]  # it is frozen


BAD_RULES: dict[str, tuple[dict[str, Any], str]] = {
    "no_numpy": ({"numpy": None}, "numpy form is missing"),
    "no_numba": ({"numba": None}, "numba form is missing"),
    "no_cupy": ({"cupy": None}, "cupy form is missing"),
    "empty_cupy": ({"cupy": "  \n "}, "cupy form is missing"),
    "numba_is_text": ({"numba": "param - lr * grad"}, "numba form is missing"),
    "other_order": ({"numpy": lambda grad, param, m, lr: None}, "numpy form takes"),
    "an_argument_less": ({"numba": lambda param, grad, m: None}, "numba form takes"),
    "an_argument_more": ({"numpy": lambda param, grad, m, lr, eps: None}, "numpy form takes"),
    "other_name": ({"numba": lambda param, grad, v, lr: None}, "numba form takes"),
    "a_scalar_nobody_takes": ({"scalars": ("lr", "eps")}, "form takes"),
    "cupy_without_scalar": ({"cupy": "m = m + grad; param = param - m;"}, "never uses.*lr"),
    "cupy_without_state": ({"cupy": "param = param - lr * grad;"}, "never uses.*m"),
    "cupy_keeps_param": ({"cupy": "m = m + lr * grad - param;"}, "never assigns param"),
    "cupy_compares_only": ({"cupy": "m = lr + grad; m = param == m;"}, "never assigns param"),
    "cupy_keeps_state": ({"cupy": "param = param - lr * grad - m;"}, "never assigns m"),
    "signed_nothing": ({"signed": ("v",)}, "signed names no state"),
    "places_nothing": ({"places": ("v",)}, "places names no signed state"),
    "name_with_blank": ({"name": "two words"}, "rule name"),
    "name_in_capitals": ({"name": "SGD"}, "rule name"),
}


@pytest.mark.parametrize("name", BAD_RULES)
def test_a_rule_whose_forms_disagree_cannot_be_made(name: str) -> None:
    change, message = BAD_RULES[name]
    with pytest.raises(TypeError, match=message):
        Rule(**{**GOOD, **change})


@pytest.mark.parametrize(
    "literal", ["1.0", "2.", "0.5", ".5", "1e-3", "1E5", "1.5e+3", "(1.0-lr)", "3.0*2", "0.1e1"]
)
def test_a_double_in_the_cupy_form_is_refused(literal: str) -> None:
    text = f"m = m + grad * {literal}; param = param - lr * m;"
    with pytest.raises(TypeError, match="double"):
        Rule(**{**GOOD, "cupy": text})


@pytest.mark.parametrize("literal", ["1.0f", "0", "2", "real(2)", ".5f", "1e-3f", "x1", "beta2"])
def test_what_is_no_double_in_the_cupy_form_is_allowed(literal: str) -> None:
    Rule(**{**GOOD, "cupy": f"m = m + grad * {literal}; param = param - lr * m;"})


@each_rule
def test_no_form_of_a_rule_takes_a_flag_or_holds_a_branch_on_a_scalar(rule: Rule) -> None:
    tree = parsed(f"fastopt_kernels.{rule.name}")
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    for function in (one for one in functions if one.name != "_host"):
        for node in ast.walk(function):
            assert not isinstance(node, ast.If | ast.While | ast.For)
            if isinstance(node, ast.IfExp):
                used = {n.id for n in ast.walk(node.test) if isinstance(n, ast.Name)}
                assert used - set(rule.scalars), "what is compared is the same for all elements"


@each_rule
def test_the_numpy_form_changes_param_and_state_in_place_and_nothing_else(rule: Rule) -> None:
    given = rule.arguments[: len(rule.arguments) - len(rule.scalars)]
    values = {name: np.full(5, 0.75, np.float32) for name in given}
    before = {name: value.copy() for name, value in values.items()}
    # Different ones, so that nothing cancels.
    scalars = {name: 0.25 / k for k, name in enumerate(rule.scalars, 1)}
    assert rule.numpy(*values.values(), *scalars.values()) is None  # type: ignore[func-returns-value]  # that is tested
    np.testing.assert_array_equal(values["grad"], before["grad"])
    for name in ("param", *rule.state):
        assert values[name].dtype == np.float32
    assert (values["param"] != before["param"]).all()


@each_rule
def test_the_numba_form_returns_param_and_state(rule: Rule) -> None:
    got = rule.numba(*[np.float32(0.75)] * len(rule.arguments))
    assert isinstance(got, tuple)
    assert len(got) == 1 + len(rule.state)


def precisions(function: Any, arguments: int, real: str) -> set[str]:
    """Return the precisions that a function computes in, as Numba compiles it for one of them."""
    numba: Any = importlib.import_module("numba")
    signature = (getattr(numba, real),) * arguments
    compiled = numba.njit(signature, error_model="numpy")(function)
    kinds = map(str, compiled.overloads[signature].type_annotation.typemap.values())
    found = {name for kind in kinds for name in re.findall(r"float\d+|int\d+", kind)}
    text = compiled.inspect_llvm(signature)
    for operand in re.findall(r"\b(?:fadd|fsub|fmul|fdiv|frem|fcmp)\b[^,]* (float|double) ", text):
        found.add({"float": "float32", "double": "float64"}[operand])
    return found


needs_numba = pytest.mark.skipif(not HAS_NUMBA, reason="numba is not installed")


@needs_numba
@each_rule
@pytest.mark.parametrize("real", ["float32", "float64"])
def test_a_rule_computes_in_its_own_precision_alone(rule: Rule, real: str) -> None:
    assert precisions(rule.numba, len(rule.arguments), real) == {real}


@needs_numba
def test_a_rule_that_computes_in_double_is_seen() -> None:
    found = precisions(lambda param, grad: (param - 0.1 * grad,), 2, "float32")
    assert found == {"float32", "float64"}


def test_every_variant_uses_the_rule_that_its_file_holds() -> None:
    found = {
        variant.optimizer._rule(variant(one_parameter(variant.optimizer)).param_groups[0])
        for variant in (*VARIANTS, *OF_MATRICES)
    }
    elementwise = [rule for rule in found if isinstance(rule, Rule)]
    for rule in elementwise:
        module: Any = importlib.import_module(f"fastopt_kernels.{rule.name}")
        # One with as many numbers as it was asked for is made by a function, once.
        made = module.rule(len(rule.state)) if hasattr(module, "rule") else module.RULE
        assert made is rule
    on_arrays = [rule for rule in found if isinstance(rule, ArrayRule)]
    assert len(on_arrays) >= 5
    for rule in on_arrays:
        assert importlib.import_module(f"fastopt_kernels.{rule.name}").compute is rule.compute
