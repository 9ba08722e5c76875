"""The optimizers in JavaScript do what those in Python do, step by step, in a real browser."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import itertools
import json
import math
import pkgutil
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import fastopt
import fastopt_kernels
from fastopt.viz import from_cuda, from_python
from fastopt.viz.javascript import OFFERED, rule_text, source
from fastopt_kernels import Rule, adam, dog, lamb, rprop, schedule_free
from helpers.browser import written_by
from helpers.variants import VARIANTS

Options = dict[str, Any]
Case = tuple[str, Options]

STEPS = 200
LOOKED_AT = (1, 2, 7, 8, 9, 50, 200)
RELATIVE = 1e-12

# -------------------------------------------------------------------------------------------------
# What is compared: every optimizer, each of its variants, each option at odd values.


def gradients() -> NDArray[np.float64]:
    """Return the gradients of the steps: an element for each way in which they can be odd."""
    random = np.random.default_rng(18)
    normal = random.standard_normal((STEPS, 12))
    t = np.arange(STEPS)
    made = normal.copy()
    made[:, 1] *= 1e-8
    made[:, 2] = 0.0
    made[:, 3] *= 1e-200  # squares underflow
    made[:, 4] *= 1e100
    made[:, 5] = np.where(t % 2, -1.0, 1.0)
    made[:, 6] = 0.5
    made[:, 7] = np.where(t % 17 == 3, normal[:, 7], 0.0)
    made[:, 8] = np.where(t == 0, 1e-134, 0.0)  # squares decay until they are flushed
    made[:, 9] = np.where(t == 0, 1e-268, 0.0)  # so do averages
    made[:, 10] = np.exp(-t / 5.0)
    made[:, 11] = np.where(t < 5, 0.0, normal[:, 11])
    return made


GRADIENTS = gradients()
START = np.linspace(-1.3, 1.7, GRADIENTS.shape[1])


def defaults(name: str) -> Options:
    """Return the options that JavaScript has, with the defaults of the class."""
    parameters = inspect.signature(getattr(fastopt, name)).parameters.values()
    return {one.name: one.default for one in parameters if one.default is not one.empty}


def allowed(name: str, options: Options) -> bool:
    """Return whether the class takes these options."""
    try:
        getattr(fastopt, name)(START.copy(), **options, backend="numpy")
    except (ValueError, TypeError):
        return False
    return True


def switched(name: str) -> Iterator[Options]:
    """Yield every combination of an optimizer's flags, with momentum and without."""
    known = defaults(name)
    flags = [key for key, value in known.items() if isinstance(value, bool)]
    momentum: list[Options] = [{}, {"momentum": 0.9}] if known.get("momentum") == 0.0 else [{}]
    for values in itertools.product((False, True), repeat=len(flags)):
        for more in momentum:
            yield {**dict(zip(flags, values, strict=True)), **more}


def odd(name: str) -> Iterator[list[Options]]:
    """Yield for each option, or each number of it, values that it does not have by default."""
    for key, value in defaults(name).items():
        if isinstance(value, tuple):
            for k in range(len(value)):
                yield [{key: (*value[:k], one, *value[k + 1 :])} for one in (0.0, 0.95, 1.5)]
        elif key == "eps":
            yield [{key: number} for number in (0.0, 1e-302, 1e-300, 1e-3)]
        elif isinstance(value, float):
            yield [{key: number} for number in (-0.5, 0.0, 0.1, 1.5)]
        elif not isinstance(value, bool):  # base_lr, warmup_steps
            yield [{key: number} for number in (10, 250)]


def fits(known: Options, options: Options) -> bool:
    """Return whether JavaScript has these options: AggMo has three betas there."""
    lengths = {key: np.shape(known[key]) for key in options.keys() & known.keys()}
    return lengths == {key: np.shape(value) for key, value in options.items()}


@dataclass
class Cases:
    """What is compared by default, what is left of it, and what the classes refuse."""

    usual: list[Case] = field(default_factory=list)
    left: list[Case] = field(default_factory=list)
    refused: list[Case] = field(default_factory=list)


@cache
def cases() -> Cases:
    """Return all: of values that an option may have, the first is compared by default."""
    found = Cases()
    for name in OFFERED:
        known = defaults(name)
        variants = [v.options for v in VARIANTS if v.optimizer is getattr(fastopt, name)]
        decays: list[Options] = [{"weight_decay": 0.1}, {"weight_decay": 0.1, "lr": 0.2}]
        if "decoupled_weight_decay" in known:
            decays.append({"weight_decay": 0.1, "decoupled_weight_decay": True})
        usual = [one for one in (*variants, *decays) if fits(known, one)]
        for options in (*usual, *switched(name)):
            (found.usual if allowed(name, options) else found.refused).append((name, options))
        for values in odd(name):
            taken = [(name, options) for options in values if allowed(name, options)]
            found.usual += taken[:1]
            found.left += taken[1:]
            found.refused += [(name, one) for one in values if (name, one) not in taken]
    return found


def exact(name: str, options: Options) -> bool:
    """Return whether its scalars are made by + - * / and roots alone: then bits are equal.

    The others use expm1, log or powers, which differ in the last bit from one library to another.
    """
    plain = {"SGD", "Adagrad", "Adadelta", "MADGRAD", "Lion", "Signum", "AggMo", "QHM", "Rprop"}
    with_correction = {"Momentum", "RMSprop", "Adam", "AdamW"}
    corrected = {**defaults(name), **options}.get("bias_correction", False)
    return name in {*plain, "FTRL", "COCOB"} or (name in with_correction and not corrected)


# -------------------------------------------------------------------------------------------------
# Both sides.

Record = dict[int, dict[str, NDArray[np.float64]]]


def in_python(name: str, options: Options) -> Record:
    """Return parameter and state after the steps that are looked at."""
    x = START.copy()
    opt = getattr(fastopt, name)(x, **options, backend="numpy")
    found: Record = {}
    largest: dict[str, Any] = {}
    for t, grad in enumerate(GRADIENTS, 1):
        opt.step(grad)
        if t in LOOKED_AT:
            state = opt.state_dict()["state"]["params"]
            found[t] = {"param": x.copy(), **{k: np.array(v) for k, v in state.items()}}
            found[t].pop("step")
            for slot, values in found[t].items():
                size = np.where(np.isfinite(values), np.abs(values), 0.0)
                largest[slot] = np.maximum(size, largest.get(slot, 0.0))
            found[t] |= {f"largest {slot}": values for slot, values in largest.items()}
    return found


RUN = """
const [gradients, start, lookedAt] = [GRADIENTS, START, LOOKED_AT];

function record(FASTOPT, [name, options]) {
  const opt = FASTOPT.create(name, options);
  const x = Float64Array.from(start);
  const found = {};
  gradients.forEach((g, k) => {
    const made = opt.step(x, Float64Array.from(g));
    if (!lookedAt.includes(k + 1)) return;
    const state = Object.entries(made.state).map(([slot, values]) => [slot, Array.from(values)]);
    found[k + 1] = { param: Array.from(x), ...Object.fromEntries(state), ...opt.memory };
  });
  return found;
}

function refusal(FASTOPT, [name, options]) {
  try {
    FASTOPT.create(name, options);
  } catch (error) {
    return error.message;
  }
  return null;
}

// The parts of what a step returns, and a copy that goes on by itself.
function oneStep(FASTOPT) {
  const opt = FASTOPT.create("Adam", { lr: 0.5 });
  const x = Float64Array.of(1, -2);
  opt.step(x, Float64Array.of(3, 4));
  const copy = opt.copy();
  const there = x.slice();
  const made = opt.step(x, Float64Array.of(5, -6));
  const again = copy.step(there, Float64Array.of(5, -6));
  const fields = ["before", "gradient", "update"];
  const lists = (one) => fields.map((name) => Array.from(one[name]));
  copy.step(there, Float64Array.of(7, 8));
  return {
    t: [made.t, opt.t, copy.t], scalars: made.scalars, x: Array.from(x), lists: lists(made),
    again: lists(again), state: Array.from(opt.state.m), told: Array.from(made.state.m),
    names: [opt.average, opt.square, opt.rule],
  };
}

const all = new Function(SOURCE + "; return globalThis.FASTOPT;")();
const numbers = (key, value) =>
  typeof value === "number" && !Number.isFinite(value) ? String(value) : value;
write(JSON.stringify({
  records: CASES.map((one) => record(all, one)),
  refusals: REFUSED.map((one) => refusal(all, one)),
  oneStep: oneStep(all),
  optimizers: all.optimizers,
  mutants: MUTANTS.map(([text, one]) =>
    record(new Function(text + "; return globalThis.FASTOPT;")(), one)),
}, numbers));
"""

WRONG: list[Case] = [
    ("Adamm", {}),
    ("Adam", {"learning_rate": 0.1}),
    ("Adam", {"lr": "fast"}),
    ("Adam", {"amsgrad": 1}),
    ("Adam", {"betas": 0.9}),
    ("Adam", {"betas": (0.9, 0.99, 0.999)}),
    ("Rprop", {"step_sizes": (2.0, 1.0)}),
    ("FTRL", {"learning_rate_power": -0.25}),
    ("ScheduleFreeSGD", {"warmup_steps": 1.5}),
    ("AdaBound", {"lr": 0.0}),
]

MUTANTS: list[tuple[str, str, Case]] = [
    ("m + one_minus_beta1 * (grad - m)", "m + one_minus_beta1 * (grad + m)", ("Adam", {})),
    ("Math.sqrt(v) + eps", "Math.sqrt(v + eps)", ("Adam", {})),
    ("const square = grad * grad", "const square = Math.abs(grad)", ("Adam", {})),
    ("(lr * root) / c1", "(lr * root) * c1", ("Adam", {})),
    ("-Math.expm1((t * Math.log(beta)))", "1 - Math.pow(beta, t + 1)", ("Adam", {})),
    ("!== 0 ? $g[$i] + $l2", "!== 0 ? $g[$i] - $l2", ("Adam", {"weight_decay": 0.1})),
    ("param - $decay * param", "param", ("AdamW", {})),
    ("vmax >= v || vmax", "vmax <= v || vmax", ("Adam", {"amsgrad": True})),
    (
        "momentum * buf + grad",
        "momentum * buf - grad",
        ("SGD", {"momentum": 0.9, "nesterov": True}),
    ),
    ("? length * shrink : same", "? length * grow : same", ("Rprop", {})),
    ("FLUSH_EVERY = 8", "FLUSH_EVERY = 7", ("Adam", {})),
    ("t = this.t + 1", "t = this.t", ("Adam", {})),
]
"""Planted in the JavaScript: what stands there, what is put in its place, what must go wrong."""


def page(folder: Path, compared: list[Case], mutants: list[tuple[str, Case]]) -> dict[str, Any]:
    """Return what a page makes of it."""
    values = {
        "GRADIENTS": GRADIENTS.tolist(),
        "START": START.tolist(),
        "LOOKED_AT": LOOKED_AT,
        "SOURCE": source(),
        "CASES": compared,
        "REFUSED": [*cases().refused, *WRONG],
        "MUTANTS": mutants,
    }
    script = [f"const {name} = {json.dumps(value)};" for name, value in values.items()]
    result: dict[str, Any] = json.loads(written_by("\n".join([*script, RUN]), folder))
    return result


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run all that is looked at by default in one page."""
    mutants = []
    for right, wrong, case in MUTANTS:
        text = source([case[0]])
        assert right in text, f"{right!r} is not in the JavaScript"
        mutants.append((text.replace(right, wrong), case))
    return page(tmp_path_factory.mktemp("page"), cases().usual, mutants)


def difference(name: str, options: Options, told: dict[str, dict[str, Any]]) -> str | None:
    """Return where JavaScript goes another way than Python; None if nowhere."""
    for t, expected in in_python(name, options).items():
        got = told[str(t)]
        slots = {slot for slot in expected if not slot.startswith("largest ")}
        if got.keys() != slots:
            return f"step {t}: the state is {sorted(got)}, not {sorted(slots)}"
        for slot in slots:
            ours, theirs = expected[slot], np.array(got[slot], dtype=float)
            bits = np.array_equal(ours, theirs, equal_nan=True)
            limit = RELATIVE * expected[f"largest {slot}"]
            with np.errstate(invalid="ignore"):
                close = (np.abs(ours - theirs) <= limit) | (ours == theirs)
            close |= np.isnan(ours) & np.isnan(theirs)
            if not (bits if exact(name, options) else close.all()):
                return f"step {t}: {slot} is {theirs.tolist()}, not {ours.tolist()}"
    return None


in_a_browser = pytest.mark.xdist_group("browser")
"""All of them in one process, so that there is one page."""

# -------------------------------------------------------------------------------------------------
# In the browser.


def differences(compared: list[Case], told: dict[str, Any]) -> list[tuple[Case, str]]:
    pairs = zip(compared, told["records"], strict=True)
    return [(case, said) for case, one in pairs if (said := difference(*case, one))]


@in_a_browser
def test_every_optimizer_and_option_takes_the_same_steps(found: dict[str, Any]) -> None:
    compared = cases().usual
    assert {name for name, _ in compared} == set(OFFERED)
    assert sum(exact(*case) for case in compared) > 100  # are held to the bit
    assert not differences(compared, found)


@in_a_browser
@pytest.mark.exhaustive
def test_every_option_at_more_values_takes_the_same_steps(tmp_path: Path) -> None:
    assert len(cases().left) > 100
    assert not differences(cases().left, page(tmp_path, cases().left, []))


@in_a_browser
def test_a_planted_mistake_is_found(found: dict[str, Any]) -> None:
    pairs = zip(MUTANTS, found["mutants"], strict=True)
    missed = [wrong for (_, wrong, case), told in pairs if difference(*case, told) is None]
    assert not missed


@in_a_browser
def test_what_a_class_refuses_is_refused(found: dict[str, Any]) -> None:
    refused = [*cases().refused, *WRONG]
    assert len(refused) > 100
    for (name, options), said in zip(refused, found["refusals"], strict=True):
        assert said is not None, f"{name} took {options}"
        assert name in said
        assert "got" in said or "has no option" in said or "there is no" in said
        assert any(option in said for option in options) or not options


@in_a_browser
def test_a_step_says_what_it_did_and_a_copy_goes_its_own_way(found: dict[str, Any]) -> None:
    told = found["oneStep"]
    assert told["t"] == [2, 2, 3]
    x = np.array([1.0, -2.0])
    opt = fastopt.Adam(x, lr=0.5, backend="numpy")
    opt.step(np.array([3.0, 4.0]))
    before = x.copy()
    opt.step(np.array([5.0, -6.0]))
    np.testing.assert_allclose(told["x"], x, rtol=RELATIVE)
    np.testing.assert_allclose(told["lists"][0], before, rtol=RELATIVE)
    assert told["lists"][1] == [5.0, -6.0]
    np.testing.assert_allclose(told["lists"][2], x - before, rtol=1e-11)
    assert told["again"] == told["lists"]
    assert told["state"] == told["told"]  # what the copy did later is not in it
    made = fastopt.Adam._scalars(defaults("Adam"), 0.5, 2, 0.0)
    assert told["scalars"] == pytest.approx({k: made[k] for k in adam.RULE.scalars}, rel=RELATIVE)
    assert told["names"] == ["m", "v", "adam"]


@in_a_browser
def test_a_page_is_told_what_the_classes_say(found: dict[str, Any]) -> None:
    assert [one["name"] for one in found["optimizers"]] == list(OFFERED)
    for one in found["optimizers"]:
        name = one["name"]
        doc = inspect.getdoc(getattr(fastopt, name)) or ""
        assert one["summary"] == doc.splitlines()[0]
        assert one["formula"], name
        assert all(line in doc for line in one["formula"])
        assert any("<-" in line for line in one["formula"])
        known = defaults(name)
        told = {option["name"]: option["value"] for option in one["options"]}
        assert told == {k: list(v) if isinstance(v, tuple) else v for k, v in known.items()}
        assert {one["average"], one["square"]} - {None} <= set(one["state"])
        for option in one["options"]:
            assert 10 < len(option["help"]) < 400, (name, option)
            assert "function of the step" not in option["help"]
            assert re.fullmatch(r"[a-z-].*[\w)\]]\.", option["help"])
            if option["kind"] in ("number", "betas", "numbers"):
                lows, defaults_, highs = (
                    np.array(option[key], dtype=float) for key in ("low", "value", "high")
                )
                assert np.all(lows < highs)
                inside = (lows <= defaults_) & (defaults_ <= highs) | np.isnan(defaults_)
                assert np.all(inside | ((defaults_ == 0) & option["log"])), (name, option)
                if option["log"]:
                    assert np.all(lows > 0)


# -------------------------------------------------------------------------------------------------
# The translators by themselves.


def test_cuda_text_is_translated_token_by_token() -> None:
    text = """
        const real down = grad - m;
        m = m + share * down;
        const bool turned = (grad > 0 && m <= 0) || grad != grad;
        real u = turned ? sqrt(v + eps) : -fabs(down);
        if (u > 1) { u = u / 2; } if (u == v) u = 0.5;
        param = param - (m < 0 ? -u : u) * .25e-1;
    """
    given, assigned = ("grad", "share", "eps"), ("param", "m", "v")
    assert from_cuda.translated("rule x", text, given, assigned).splitlines() == [
        "const down = grad - m;",
        "m = m + share * down;",
        "const turned = (grad > 0 && m <= 0) || grad !== grad;",
        "let u = turned ? Math.sqrt(v + eps) : -Math.abs(down);",
        "if (u > 1) {",
        "  u = u / 2;",
        "}",
        "if (u === v) {",
        "  u = 0.5;",
        "}",
        "param = param - (m < 0 ? -u : u) * 0.025;",
    ]


@pytest.mark.parametrize(
    ("text", "token"),
    [
        ("m = fma(m, m, grad);", "fma"),
        ("m = fmax(m, grad);", "fmax"),
        ("m = __fsqrt_rn(m);", "__fsqrt_rn"),
        ("m = static_cast<real>(grad);", "static_cast"),
        ("m = (float)grad;", "float"),
        ("m = other;", "other"),
        ("m += grad;", "+="),
        ("m = --grad;", "--"),
        ("m = - -grad;", "-"),
        ("m = +grad;", "+"),
        ("m = grad % m;", "%"),
        ("m = grad >> 1;", ">>"),
        ("m = grad & m;", "&"),
        ("m = !m;", "!"),
        ("m = 1 / 2 * grad;", "*"),  # 0 in C++
        ("m = grad * (1 / 2);", ")"),
        ("m = (m > 0 ? 1 : 2) / 2 * grad;", "*"),
        ("m = sqrt(2);", ")"),
        ("m = sqrt(m, m);", ","),
        ("m = 0.5f * m;", "0.5f"),
        ("m = 010 * m;", "010"),
        ("m = 0x10 * m;", "0x10"),
        ("m = 1u * m;", "1u"),
        ("m = m > 0;", ";"),
        ("m = m ? m : grad;", "?"),
        ("m = m > 0 ? m : m > 0;", ";"),
        ("m = grad < m < 1 ? m : m;", "<"),
        ("m = m > 0 + (m > 0);", ";"),
        ("const bool b = m;", ";"),
        ("const int k = 1;", "int"),
        ("auto k = m;", "auto"),
        ("real k;", ";"),
        ("real a[2] = m;", "["),
        ("m[0] = grad;", "["),
        ("const real k = m; k = m;", "k"),
        ("grad = m;", "grad"),
        ("for (;;) m = m;", "for"),
        ("if (m > 0) m = m; else m = m;", "else"),
        ("if (m) m = m;", ")"),
        ("if (m > 0) { real k = m; } m = k;", "k"),
        ("m = grad // half", "//"),
        ("m = grad /* half */;", "/*"),
        ("m = grad", "its end"),
        ("m = (grad;", ";"),
        ("m = grad, m;", ","),
        ("#define m grad", "#"),
    ],
)
def test_what_cuda_text_is_not_known_is_refused(text: str, token: str) -> None:
    with pytest.raises(ValueError, match="rule x: its C") as raised:
        from_cuda.translated("rule x", text, ("grad",), ("m",))
    assert f"has {token!r} " in str(raised.value)


@pytest.mark.parametrize("name", ["let", "function", "arguments", "m", "Math", "sqrt"])
def test_a_name_that_is_another_thing_in_javascript_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"calls a variable '{name}'"):
        from_cuda.translated("rule x", f"real {name} = grad;", ("grad",), ("m",))


def elementwise() -> dict[str, Rule]:
    """Return the rules of the package that a gradient alone is enough for."""
    modules = [importlib.import_module(f"fastopt_kernels.{one.name}") for one in KERNELS]
    rules = [one for module in modules for one in vars(module).values() if isinstance(one, Rule)]
    return {rule.name: rule for rule in rules if rule.sums is None}


KERNELS = list(pkgutil.iter_modules(fastopt_kernels.__path__))


@pytest.mark.parametrize("rule", elementwise().values(), ids=lambda rule: rule.name)
def test_every_elementwise_rule_is_translated(rule: Rule) -> None:
    if rule.name == "adahessian_estimate":
        with pytest.raises(ValueError, match=r"adahessian_estimate.*'static_cast'"):
            rule_text(rule)
        return
    text = rule_text(rule)
    assert all(f"let {slot} = $state.{slot}[$i];" in text for slot in rule.state)


def test_every_optimizer_that_updates_each_element_by_itself_is_offered() -> None:
    """Whoever adds one adds it to ``OFFERS``. Those that are handed a Hessian are left out."""
    rules = {v.optimizer: v.rule for v in VARIANTS if v.optimizer._estimate is None}
    elementwise = {
        make.__name__
        for make, rule in rules.items()
        if isinstance(rule, Rule) and rule.sums is None
    }
    assert elementwise == set(OFFERED)


def test_what_a_rule_sums_is_refused_by_name() -> None:
    for rule in (lamb.RULE, dog.RULE):
        with pytest.raises(ValueError, match=f"rule {rule.name} needs sums"):
            rule_text(rule)


def test_a_rule_that_is_changed_is_refused_by_name() -> None:
    changed = dataclasses.replace(rprop.RULE, cupy=f"real half = 1 / 2 + lr; {rprop.RULE.cupy}")
    with pytest.raises(ValueError, match=r"rule rprop: its C\+\+ has '\+' after two whole"):
        rule_text(changed)
    memory = schedule_free.RULE.memory
    assert memory is not None
    wrong = dataclasses.replace(
        memory, cupy=memory.cupy.replace("factor * peak", "fmax(factor, peak)")
    )
    with pytest.raises(ValueError, match=r"rule schedule_free, memory: its C.*'fmax'"):
        rule_text(dataclasses.replace(schedule_free.RULE, memory=wrong))


def test_names_that_are_not_offered_are_refused() -> None:
    with pytest.raises(ValueError, match=r"names must be some of SGD, .*got 'Muon'"):
        source(["Adam", "Muon"])


def test_a_script_has_what_it_is_asked_for_once() -> None:
    text = source(["AdamW", "Adam", "AdamW"])
    assert text.count('"name": "AdamW"') == text.count('"name": "Adam"') == 1
    assert "const Adam_scalars" in text
    assert text.count("const Adam_scalars") == 1  # both have it
    assert '"sgd"' not in text


# Formulas in Python ------------------------------------------------------------------------------


def _known(options: Any, lr: float, t: int, guard: float) -> dict[str, Any]:
    """Not translated."""
    first, (beta, *_) = t == 1, options["betas"]
    return {"first": first, "beta": beta}


def _power(options: Any, lr: float, t: int, guard: float) -> dict[str, Any]:
    return {"eta": lr ** options["alpha"]}


def _exponential(options: Any, lr: float, t: int, guard: float) -> dict[str, Any]:
    return {"eta": lr * math.exp(-t)}


def _loop(options: Any, lr: float, t: int, guard: float) -> dict[str, Any]:
    while lr > 1.0:
        lr = lr / 2.0
    return {"lr": lr}


def _whole(options: Any, lr: float, t: int, guard: float) -> dict[str, Any]:
    return {"lr": lr * (t // 2)}


def _chained(options: Any, lr: float, t: int, guard: float) -> dict[str, Any]:
    return {"lr": lr if 1 < t < 5 else 0.0}


def _keyword(options: Any, lr: float, t: int, guard: float) -> dict[str, Any]:
    return {"lr": max(lr, 1.0, key=abs)}


def _method(options: Any, lr: float, t: int, guard: float) -> dict[str, Any]:
    return {"lr": options.get("lr")}


def _reserved(options: Any, lr: float, t: int, guard: float) -> dict[str, Any]:
    new = lr
    return {"lr": new}


def _compared(options: Any, lr: float, t: int, guard: float) -> dict[str, Any]:
    return {"lr": lr if (lr, t) != (1.0, 1) else 0.0}


def _three(options: Any, lr: float, t: int, guard: float) -> dict[str, Any]:
    return {"lr": max(lr, 1.0, guard)}


def _default(options: Any, lr: float, t: int, guard: float = 1.0) -> dict[str, Any]:
    return {"lr": lr + guard}


def _table(options: Any, lr: float, t: int, guard: float) -> dict[str, Any]:
    return {"lr": _TABLE[options["fast"]]}


def _shadowing(options: Any, lr: float, t: int, guard: float) -> dict[str, Any]:
    larger = 2.0
    return {"lr": max(lr, larger)}


@cache
def _decorated(options: Any, lr: float, t: int, guard: float) -> dict[str, Any]:
    return {"lr": lr}


_TABLE = {True: 1.0, False: 2.0}


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (_three, "max(lr, 1.0, guard)"),
        (_default, "guard: float=1.0"),
        (_table, "_TABLE"),
        (_shadowing, "the name 'larger'"),
        (_decorated, "cache"),
        (_known, "(beta, *_)"),
        (_power, "lr ** options['alpha']"),
        (_exponential, "math.exp"),
        (_loop, "while lr > 1.0"),
        (_whole, "t // 2"),
        (_chained, "1 < t < 5"),
        (_keyword, "max(lr, 1.0, key=abs)"),
        (_method, "options.get"),
        (_reserved, "the name 'new'"),
        (_compared, "(lr, t)"),
    ],
)
def test_what_python_is_not_known_is_refused(function: Callable[..., Any], said: str) -> None:
    with pytest.raises(ValueError, match=r"Mine\._scalars: its Python has ") as raised:
        from_python.Functions().name_of(function, "mine", "Mine._scalars")
    assert said in str(raised.value)


def test_a_formula_is_translated_with_what_it_calls() -> None:
    functions = from_python.Functions()
    of_class: Any = fastopt.Momentum._scalars
    assert functions.name_of(of_class, "scalars", "Momentum._scalars") == "scalars"
    assert functions.name_of(of_class, "again", "Momentum._scalars") == "scalars"
    assert list(functions.texts) == ["one_minus_power", "scalars"]
    assert functions.texts["one_minus_power"].splitlines() == [
        "(beta, t) => {",
        "  return ((beta > 0.0) ? (-Math.expm1((t * Math.log(beta)))) : 1.0);",
        "}",
    ]
