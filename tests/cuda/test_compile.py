"""CuPy's source for every rule compiles for every GPU, into the instructions that are meant.

NVRTC needs no GPU: pip install cupy-cuda12x nvidia-cuda-nvrtc-cu12 nvidia-cuda-runtime-cu12.
"""

from __future__ import annotations

import importlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastopt_kernels
from fastopt.backends.cupy import control_source, pass_source
from fastopt.backends.cupy import source as cupy_source
from fastopt.backends.cupy.source import Addresses
from fastopt.core.dtypes import UpdateSpec
from fastopt.core.options import FRAGMENTS
from fastopt.core.passes import derived_of
from fastopt_kernels import Rule
from helpers.cuda import code_limits, nvrtc, sass
from helpers.variants import VARIANTS

if reason := nvrtc.reason_to_skip():
    pytest.skip(reason, allow_module_level=True)

LIMITED = code_limits.table()
RULES = [
    stem
    for stem in sorted(p.stem for p in Path(fastopt_kernels.__file__).parent.glob("[a-z]*.py"))
    if isinstance(getattr(importlib.import_module(f"fastopt_kernels.{stem}"), "RULE", None), Rule)
]
_FLOAT, _DOUBLE, _HALF = (np.dtype(t) for t in (np.float32, np.float64, np.float16))
_BFLOAT, _COMPLEX = np.dtype(ml_dtypes.bfloat16), np.dtype(np.complex64)
FORMATS = [
    UpdateSpec.of(_FLOAT, True),
    UpdateSpec.of(_DOUBLE, True),
    UpdateSpec.of(_BFLOAT, True),
    UpdateSpec.of(_HALF, False).with_gradients(_FLOAT),
    UpdateSpec.of(_HALF, False, stochastic=True),
    UpdateSpec.of(_FLOAT, True, state="bfloat16"),
    UpdateSpec.of(_FLOAT, True, state="int8"),
    UpdateSpec.of(_FLOAT, True, state_dtype="float64"),
    UpdateSpec.of(_BFLOAT, True, state_dtype="float64"),
]
FEW = [  # those of which a few rules tell enough
    UpdateSpec.of(_HALF, True, "arrays", True, state="int8"),
    UpdateSpec.of(_BFLOAT, False, state="int8", stochastic=True),
    UpdateSpec.of(_COMPLEX, True, modulus=True),
    UpdateSpec.of(_COMPLEX, True, state="int8", modulus=True),
    UpdateSpec.of(_COMPLEX, True, modulus=True, state_dtype="float64"),
    UpdateSpec.of(_HALF, True, "arrays", True, state_dtype="float64").with_gradients(_FLOAT),
    UpdateSpec.of(_FLOAT, True, state_dtype="float64").with_gradients(_DOUBLE),
    UpdateSpec.of(_HALF, False, stochastic=True, state_dtype="float64"),
    UpdateSpec.of(_FLOAT, True, members=True),
    UpdateSpec.of(_COMPLEX, True, modulus=True, members=True),
]
BY_VALUE, IN_ARRAY = Addresses(), Addresses(by_value=False)
NEVER = (".local", ".approx", "call", "fma.")
PACK = {
    4: {1: r"(?:v4\.[bu]8|[bu]32)", 2: r"v4\.[bu]16", 4: r"v4\.f32"},
    2: {2: r"(?:v2\.[bu]16|[bu]32)", 4: r"v2\.f32", 8: r"v2\.f64"},
}
"""What one thread moves at once: 16 bytes of state, as many elements of the rest."""


def rule_of(name: str) -> Rule:
    rule: Rule = importlib.import_module(f"fastopt_kernels.{name}").RULE
    return rule


IN_ALL = {variant.rule.name for variant in VARIANTS if not variant.close}
"""Rules that meet all of FORMATS; the others meet the two that tell most, and one more in turn."""


def meet(rule: int, number: int, spec: UpdateSpec) -> bool:
    """Return whether a rule meets a spec."""
    name = RULES[rule]
    if not rule_of(name).state and spec.state != "real":
        return False
    if spec in FEW:
        return name in ("adam", "rmsprop_centered_momentum")
    return name in IN_ALL or number in (0, 6, rule % len(FORMATS))


PAIRS = [
    (rule, name, number, spec)
    for rule, name in enumerate(RULES)
    for number, spec in enumerate((*FORMATS, *FEW))
    if meet(rule, number, spec)
]


def each_pair(architectures: Sequence[int], several: int) -> pytest.MarkDecorator:
    """Return the pairs of a rule and a spec, each with several architectures, taken in turns.

    So every rule of ``IN_ALL``, and every spec of ``FORMATS``, meets all of them.
    """
    found = []
    for rule, name, number, spec in PAIRS:
        chosen = [
            architectures[(rule + number * several + k) % len(architectures)]
            for k in range(several)
        ]
        label = "-".join([name, spec.name, *map(str, chosen)])
        found.append(pytest.param(name, spec, chosen, id=label))
    return pytest.mark.parametrize(("name", "spec", "architectures"), found)


def kernel_of(
    rule: Rule,
    spec: UpdateSpec,
    addresses: Addresses = BY_VALUE,
    from_table: bool = False,
    **changes: Any,
) -> Any:
    text = cupy_source.kernel(rule, spec, addresses, from_table) | changes
    return importlib.import_module("cupy").ElementwiseKernel(**text)


def faults(rule: Rule, spec: UpdateSpec, ptx: str) -> list[str]:
    """Return what should not be in the instructions of a kernel, or is missing there."""
    _, _, body = ptx.partition(".entry")
    found = [word for word in NEVER if word in body]
    if spec.real == _FLOAT and ".f64" in _without_derived(rule, body):
        found.append("arithmetic in double")
    state = np.dtype({"real": spec.real, "bfloat16": "u2", "int8": "u1"}[spec.state])
    exact = [spec.real] * spec.master
    written = Counter(d.itemsize for d in [spec.stored, *[state] * len(rule.state), *exact])
    read = [spec.gradient.itemsize, *[spec.real.itemsize] * len(spec.limits)]
    pack = PACK[cupy_source.pack(spec)]
    for kind, packs in (("ld", written + Counter(read)), ("st", written)):
        for size, count in packs.items():
            seen = len(re.findall(rf"{kind}(\.global)?\.{pack[size]}", body))
            word = "32)" in pack[size]  # which may be other things too
            if seen < count or (not word and seen % count):
                found.append(f"{seen} {kind} of packs of {size} bytes each for {count} arrays")
    return found


def _without_derived(rule: Rule, body: str) -> str:
    """Return instructions but for those that read derived scalars, which are float64."""
    if rule.memory is None:
        return body
    return re.sub(r"(?m)^.*(\.reg \.|ld\.global\.|cvt\.rn(\.ftz)?\.f32\.)f64.*$", "", body)


@each_pair([75, 90, 120], 1)
def test_the_instructions_are_those_that_are_meant(
    name: str, spec: UpdateSpec, architectures: list[int]
) -> None:
    rule = rule_of(name)
    for addresses, from_table in ((BY_VALUE, False), (IN_ARRAY, False), (BY_VALUE, True)):
        kernel = kernel_of(rule, spec, addresses, from_table)
        for architecture in architectures:
            assert faults(rule, spec, nvrtc.ptx(kernel, architecture)) == []


@each_pair(nvrtc.ARCHITECTURES, 2)
def test_no_gpu_needs_the_stack(name: str, spec: UpdateSpec, architectures: list[int]) -> None:
    assert_in_registers(kernel_of(rule_of(name), spec), architectures)
    assert_in_registers(kernel_of(rule_of(name), spec, from_table=True), architectures)


def test_every_rule_and_spec_meets_every_architecture() -> None:
    for architectures, several in (([75, 90, 120], 1), (nvrtc.ARCHITECTURES, 2)):
        met: dict[Any, set[int]] = {}
        for name, spec, chosen in (p.values for p in each_pair(architectures, several).args[1]):
            met.setdefault(name, set()).update(chosen)
            met.setdefault(spec, set()).update(chosen)
        for key in (*IN_ALL, *FORMATS):
            assert met[key] == {*architectures}, key


AROUND = tuple(FRAGMENTS.values())


WITH_PASSES = {
    "lamb": [FORMATS[0], FORMATS[7]],
    "prodigy": [FORMATS[1], FORMATS[5]],
    "adam": [FORMATS[0], FORMATS[3], FORMATS[6], FEW[2]],
}


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        pytest.param(name, spec, id=f"{name}-{spec.name}")
        for name, specs in WITH_PASSES.items()
        for spec in specs
    ],
)
def test_passes_and_fragments_stay_in_registers(name: str, spec: UpdateSpec) -> None:
    cupy, rule, spec = importlib.import_module("cupy"), rule_of(name), with_fragments(spec)
    assert_in_registers(kernel_of(rule, spec, from_table=True))
    for number, one in enumerate(derived_of(rule, spec).passes):
        texts = [pass_source.follow(rule, spec, number, BY_VALUE)]
        if one.sums:
            texts.append(pass_source.sums(rule, spec, BY_VALUE, True, number))
        for text in texts:
            kernel = cupy.ElementwiseKernel(**text)
            _, _, body = nvrtc.ptx(kernel, 90).partition(".entry")
            assert not [word for word in (*NEVER[:2], "fma.") if word in body]
            assert_in_registers(kernel)


def with_fragments(spec: UpdateSpec) -> UpdateSpec:
    """Return a spec with all the fragments that its storage allows."""
    return replace(spec, fragments=tuple(f for f in AROUND if spec.state not in f.refuses))


@pytest.mark.parametrize("dtype", [_FLOAT, _DOUBLE, _HALF, _BFLOAT], ids=str)
def test_the_sum_of_squares_is_plain_arithmetic_in_double(dtype: np.dtype[Any]) -> None:
    cupy = importlib.import_module("cupy")
    for text in (
        control_source.squares(dtype, BY_VALUE),
        *(control_source.squares_to_decide(dtype, BY_VALUE, wide) for wide in (False, True)),
        control_source.decide(),
    ):
        kernel = cupy.ElementwiseKernel(**text)
        _, _, body = nvrtc.ptx(kernel, 90).partition(".entry")
        assert not [word for word in NEVER if word in body]
        assert re.findall(r"\badd\S*\.f\d+", body)[0] == "add.rn.f64"
        assert_in_registers(kernel)


def test_the_scale_of_a_loss_is_plain_arithmetic_in_double() -> None:
    kernel = importlib.import_module("cupy").ElementwiseKernel(**control_source.rescale())
    for architecture in (75, 90, 120):
        _, _, body = nvrtc.ptx(kernel, architecture).partition(".entry")
        assert not [word for word in NEVER if word in body]
        # The compiler may write a product once for each way that leads to it.
        assert set(re.findall(r"\bmul\S*\.f\d+", body)) == {"mul.rn.f64"}
        assert "rcp.rn.f64" in body
        assert not re.findall(r"\b(add|sub|mul|div|rcp)\S*\.f32", body)
    assert_in_registers(kernel)


def assert_in_registers(kernel: Any, architectures: Sequence[int] = nvrtc.ARCHITECTURES) -> None:
    for architecture in architectures:
        said = nvrtc.said_of_machine_code(kernel, architecture)
        assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in said
        registers = re.search(r"Used (\d+) registers", said)
        assert registers
        assert int(registers[1]) <= 128  # two blocks of 256 threads at least


@pytest.mark.parametrize(
    ("right", "wrong", "fault"),
    [
        ("= grad_scale * grad;", "= grad_scale * grad + 0.1;", "arithmetic in double"),
        ("sqrt(v)", "__fsqrt_rn(__fdividef(v, v))", ".approx"),
        ("alignas(N * sizeof(T))", "", "0 ld of packs of 4 bytes each for 4 arrays"),
    ],
)
def test_a_fault_in_the_text_is_noticed(right: str, wrong: str, fault: str) -> None:
    rule, spec = rule_of("adam"), FORMATS[0]
    preamble = cupy_source.kernel(rule, spec, BY_VALUE)["preamble"]
    assert right in preamble
    kernel = kernel_of(rule, spec, preamble=preamble.replace(right, wrong))
    assert fault in faults(rule, spec, nvrtc.ptx(kernel, 90))


def test_contraction_is_noticed() -> None:
    rule, spec = rule_of("adam"), FORMATS[0]
    kernel = kernel_of(rule, spec, options=("--fmad=true",))
    assert "fma." in faults(rule, spec, nvrtc.ptx(kernel, 90))


def test_a_scale_in_double_is_noticed() -> None:
    rule, spec = rule_of("adam"), FORMATS[0]
    text = cupy_source.kernel(rule, spec, BY_VALUE, True)
    for part, right, wrong in (
        ("in_params", "raw float32 scale", "raw float64 scale"),
        ("operation", "row[0] * scale[0]", "float(row[0] * scale[0])"),
    ):
        assert right in text[part]
        text[part] = text[part].replace(right, wrong)
    kernel = importlib.import_module("cupy").ElementwiseKernel(**text)
    assert faults(rule, spec, nvrtc.ptx(kernel, 90)) == ["arithmetic in double"]


# The machine code -------------------------------------------------------------------------------


@pytest.mark.skipif(sass.disassembler() is None, reason="needs nvdisasm")
@pytest.mark.parametrize("architecture", code_limits.ARCHITECTURES)
@pytest.mark.parametrize("name", LIMITED)
def test_machine_code_keeps_the_limits_of_the_table(name: str, architecture: int) -> None:
    limited = LIMITED[name]
    kernel = importlib.import_module("cupy").ElementwiseKernel(**limited.text)
    code = sass.code_of(kernel, architecture)
    assert code.spilled == 0
    assert code.blocks(limited.threads) >= limited.blocks, code.registers
    if limited.wide:
        assert any(one.moves_16_bytes for one in code.instructions if one.name[:2] == "LD")
    if limited.instructions is not None:
        assert len(code.way()) <= limited.instructions * limited.elements
