"""The explorer in a real browser: its numbers are fastopt's, and it answers to a reader's hand."""

from __future__ import annotations

import html
import json
import math
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import fastopt
from fastopt.viz import explorer
from helpers.browser import Node, Reader, browser

Options = dict[str, Any]
Array = NDArray[np.float64]
Gradient = Callable[[Array, int], Sequence[float]]

CLOSE = 1e-9

# -------------------------------------------------------------------------------------------------
# The page in a browser.

WATCH = """
globalThis.SEEN = [];
addEventListener("error", (event) => SEEN.push("error: " + event.message));
addEventListener("unhandledrejection", (event) => SEEN.push("rejected: " + event.reason));
addEventListener("securitypolicyviolation", (event) => SEEN.push("asks for " + event.blockedURI));
for (const kind of ["error", "warn"]) console[kind] = (...all) => SEEN.push(kind + ": " + all);
"""

RUN = """
(async () => {
  const wait = (ms) => new Promise((done) => setTimeout(done, ms));
  const $ = (id) => document.getElementById(id);
  let made;
  try { made = await (async () => { %s })(); } catch (error) { SEEN.push("test: " + error.stack); }
  SEEN.push(...performance.getEntriesByType("resource").map((one) => "loads " + one.name));
  const out = document.createElement("pre");
  out.id = "written";
  out.textContent = JSON.stringify({ made, seen: SEEN }, (key, value) =>
    typeof value === "number" && !Number.isFinite(value) ? String(value) : value);
  document.body.append(out);
})();
"""


def opened(folder: Path, body: str, link: str = "", **state: Any) -> Any:
    """Return what the body of a function returns in the page; whatever goes wrong there fails."""
    page = explorer.page(state)
    page = page.replace("<head>", f"<head><script>{WATCH}</script>", 1)
    page = page.replace("</body>", f"<script>{RUN % body}</script></body>", 1)
    file = folder / "page.html"
    file.write_text(page, encoding="utf-8")
    command = [browser(), "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=30000"]
    command += ["--window-size=1280,900", f"{file.as_uri()}{link}"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    found = re.search(r'<pre id="written">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, f"the browser wrote nothing (exit {done.returncode}): {done.stderr[-2000:]}"
    written = json.loads(html.unescape(found[1]))
    assert written["seen"] == []
    return written["made"]


# -------------------------------------------------------------------------------------------------
# The file.


def test_the_file_asks_for_nothing_and_names_no_address(tmp_path: Path) -> None:
    explorer.write(tmp_path / "a.html")
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert text == explorer.page()
    assert not re.search(r"\b(https?|wss?|ftp):", text)
    assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|importScripts|eval|Function)\(", text)
    assert not re.search(r"\bsrc=|@import|\burl\(|<link\b|\bimport\b *[(\"{*]", text)
    assert "default-src 'none'" in text
    assert "{{" not in text
    assert 'id="manual"' not in text
    explorer.write(tmp_path / "a.html", manual='../learn.html?"<b>')
    linked = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert '<a id="manual" href="../learn.html?&quot;&lt;b&gt;">' in linked


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"surfaces": "bowl"}, "surfaces"),
        ({"surface": "hill"}, "must be one of bowl"),
        ({"start": [1.0]}, "two numbers"),
        ({"start": [1.0, math.nan]}, "finite"),
        ({"steps": "many"}, "must be a number"),
        ({"theme": 1}, "must be a string"),
        ({"steps": 5000}, "from 1 to 2000"),
        ({"optimizers": []}, "one to 4"),
        ({"optimizers": ["adam"]}, "must be a dict such as"),
        ({"optimizers": [{"name": "Adan2"}]}, "got 'Adan2'"),
    ],
)
def test_a_state_that_the_page_does_not_have_is_refused(
    state: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        explorer.write(tmp_path / "a.html", state)
    assert not (tmp_path / "a.html").exists()


# -------------------------------------------------------------------------------------------------
# Paths.


def generator(seed: int) -> Iterator[float]:
    """Yield the numbers that the page draws, by their definition."""
    state = (seed * 2862933555777941757 + 3037000493) % 2**48
    while True:
        state = (state * 25214903917 + 11) % 2**48
        yield (state >> 16) / 2**32


def batch_noise(amount: float, batch: int, seed: int, steps: int) -> Array:
    """Return what each step's gradient is off by, of 64 examples in shuffled batches."""
    random = generator(seed)
    examples = np.array([sum(next(random) for _ in range(3)) - 1.5 for _ in range(128)])
    examples = examples.reshape(64, 2)
    examples -= examples.mean(axis=0)
    order = list(range(64))
    noise: list[Array] = []
    while len(noise) < steps:
        for i in range(63, 0, -1):
            j = int(next(random) * (i + 1))
            order[i], order[j] = order[j], order[i]
        noise += [examples[order[k : k + batch]].mean(axis=0) for k in range(0, 64, batch)]
    return amount * np.array(noise[:steps])


def bowl(condition: float) -> Gradient:
    return lambda p, t: (p[0], condition * p[1])


def rosenbrock(p: Array, t: int) -> Sequence[float]:
    x, y = p
    return (-2 * (1 - x) - 400 * x * (y - x**2), 200 * (y - x**2))


def beale(p: Array, t: int) -> Sequence[float]:
    x, y = p
    a, b, c = (k - x + x * y**n for k, n in ((1.5, 1), (2.25, 2), (2.625, 3)))
    along = 2 * (a * (y - 1) + b * (y**2 - 1) + c * (y**3 - 1))
    return (along, 2 * (a * x + b * 2 * x * y + c * 3 * x * y**2))


def saddle(p: Array, t: int) -> Sequence[float]:
    return (p[0], p[1] ** 3 / 4 - p[1])


def noisy(p: Array, t: int) -> Sequence[float]:
    noise = batch_noise(4.0, 8, 7, 60)[t - 1]
    return (p[0] + noise[0], 20.0 * p[1] + noise[1])


def formula(p: Array, t: int) -> Sequence[float]:
    x, y = p
    return (2 * math.cos(2 * x) * math.exp(-y * y / 9) + x / 2,
            2 * y - math.sin(2 * x) * 2 * y / 9 * math.exp(-y * y / 9))  # fmt: skip


GRADIENTS: dict[str, tuple[Gradient, Options]] = {
    "bowl": (bowl(20.0), {"start": [-4.0, 1.5]}),
    "rosenbrock": (rosenbrock, {"start": [-1.2, 1.0]}),
    "beale": (beale, {"start": [1.0, 1.6]}),
    "saddle": (saddle, {"start": [-4.0, 0.01]}),
    "noisy": (noisy, {"start": [-4.0, 1.5], "noise": 4.0, "batch": 8, "seed": 7}),
    "formula": (
        formula,
        {"start": [-3.0, 2.0], "formula": "sin(2*x)*exp(-y^2/9) + x^2/4 + y^2"},
    ),
}

RUNNERS: list[tuple[str, Options]] = [
    ("SGD", {"lr": 0.002, "momentum": 0.9, "nesterov": True}),
    ("Momentum", {"lr": 0.002, "beta": 0.95, "bias_correction": True}),
    ("RMSprop", {"lr": 0.02, "eps_inside_sqrt": True}),
    ("Adam", {"lr": 0.1, "betas": [0.8, 0.99], "amsgrad": True}),
    ("AdamW", {"lr": 0.1, "weight_decay": 0.1}),
    ("NAdam", {"lr": 0.05}),
]


def optimizer(name: str, params: Array, options: Mapping[str, Any]) -> Any:
    given = {key: tuple(v) if isinstance(v, list) else v for key, v in options.items()}
    return getattr(fastopt, name)(params, **given, backend="numpy")


def path(
    name: str, options: Mapping[str, Any], gradient: Gradient, start: Any, steps: int
) -> list[Array]:
    """Return the points of a run of fastopt, which ends where it has left all bounds."""
    p = np.array(start, np.float64)
    opt = optimizer(name, p, options)
    points = [p.copy()]
    for t in range(1, steps + 1):
        opt.step(np.array(gradient(p, t), np.float64))
        points.append(p.copy())
        if not (np.abs(p) < 1e9).all():
            break
    return points


PATHS = """
const setups = %s, runners = %s;
return Object.entries(setups).map(([surface, given]) => runners.map(([name, options]) => {
  const setup = State.completed({ ...given, surface, steps: 60 });
  return Runs.run(setup, { name, options }).points;
}));
"""


def test_paths_are_those_of_fastopt(tmp_path: Path) -> None:
    setups = {name: given for name, (_, given) in GRADIENTS.items()}
    got = opened(tmp_path, PATHS % (json.dumps(setups), json.dumps(RUNNERS)))
    for (surface, (gradient, given)), of_surface in zip(GRADIENTS.items(), got, strict=True):
        for (name, options), points in zip(RUNNERS, of_surface, strict=True):
            expected = path(name, options, gradient, given["start"], 60)
            np.testing.assert_allclose(
                points, expected, CLOSE, CLOSE, err_msg=f"{surface}, {name} {options}"
            )


# -------------------------------------------------------------------------------------------------
# Questions: each answer by fastopt, on its own.

BOWL_START = (-4.0, 1.5)
RATES = [10 ** (-3 + k / 20) for k in range(61)]


def fed(name: str, options: Options, gradients: Sequence[Sequence[float]]) -> tuple[Array, Options]:
    """Return the steps that an optimizer makes for given gradients, and its state after them."""
    p = np.zeros(len(gradients[0]))
    opt = optimizer(name, p, options)
    steps = []
    for gradient in gradients:
        before = p.copy()
        opt.step(np.array(gradient, np.float64))
        steps.append(p - before)
    return np.array(steps), next(iter(opt.state_dict()["state"].values()))


def carrying(beta: float, count: int) -> int:
    impulse = [[1.0], *[[0.0]] * (count - 1)]
    weights = -fed("Momentum", {"lr": 1.0, "beta": beta}, impulse)[0][:, 0]
    return int(np.argmax(np.cumsum(weights) >= 0.9 * weights.sum())) + 1


def turning(beta: float) -> int:
    gradients = [[1.0]] * 200 + [[-1.0]] * 200
    steps = fed("Momentum", {"lr": 1.0, "beta": beta}, gradients)[0][200:, 0]
    return int((steps < 0).sum())


def reached(
    name: str, options: Options, condition: float, most: int, start: Sequence[float] = BOWL_START
) -> float:
    points = path(name, options, bowl(condition), start, most + 50)
    far = [math.hypot(*p) for p in points]
    for t in range(len(far) - 50):
        if max(far[t : t + 51]) <= 0.01 * far[0]:
            return t
    return math.inf


def best(name: str, options: Options, condition: float, most: int) -> tuple[float, float]:
    found = [(reached(name, {**options, "lr": lr}, condition, most), lr) for lr in RATES]
    return min(found)


def usable(name: str, away: float) -> tuple[float, float]:
    start = [away * one for one in BOWL_START]
    good = [lr for lr in RATES if reached(name, {"lr": lr}, 20.0, 150, start) < math.inf]
    return good[0], good[-1]


def settles(name: str, lr: float) -> float:
    points = path(name, {"lr": lr}, bowl(20.0), BOWL_START, 2000)
    return max(math.hypot(*p) for p in points[-100:])


def first(name: str, options: Options, gradient: Sequence[float] = (1.0,)) -> Array:
    return np.abs(fed(name, options, [gradient])[0][0])


def expected_answers() -> dict[str, dict[str, float]]:
    answers: dict[str, dict[str, float]] = {}
    zigzag = [[-4.0, -30.0 if t % 2 else 30.0] for t in range(20)]
    v = fed("Momentum", {"lr": 1.0, "beta": 0.9}, zigzag)[1]["v"]
    answers["direction"] = {"answer": abs(v[1] / v[0]), "along": v[0], "across": v[1]}
    plain, heavy = best("SGD", {}, 100.0, 700), best("SGD", {"momentum": 0.9}, 100.0, 700)
    answers["momentum"] = {
        "answer": plain[0] / heavy[0], "plain": plain[0], "plainLr": plain[1],
        "momentum": heavy[0], "momentumLr": heavy[1],
        "widePlain": best("SGD", {}, 20.0, 700)[0],
        "wideMomentum": best("SGD", {"momentum": 0.9}, 20.0, 700)[0],
    }  # fmt: skip
    answers["memory"] = {
        "answer": carrying(0.9, 1000), "slow": carrying(0.99, 10000),
        "slowest": carrying(0.999, 40000),
    }  # fmt: skip
    answers["beta"] = {"answer": turning(0.99), "short": turning(0.9)}
    signs = [[-1.0 if t % 2 else 1.0] for t in range(50)]
    answers["square"] = {
        "answer": math.sqrt(fed("RMSprop", {"lr": 1.0, "beta": 0.9}, signs)[1]["v"][0]),
        "average": abs(fed("Momentum", {"lr": 1.0, "beta": 0.9}, signs)[1]["v"][0]),
    }
    n = {
        "round": best("RMSprop", {}, 1.0, 400)[0], "roundPlain": best("SGD", {}, 1.0, 400)[0],
        "long": best("RMSprop", {}, 100.0, 700)[0], "longPlain": plain[0],
    }  # fmt: skip
    answers["faster"] = {"answer": n["round"] / n["roundPlain"], **n}
    start = np.array([-4.0, 30.0])
    names = {"answer": ("Adam", 0.1), "rmsprop": ("RMSprop", 0.1), "plain": ("SGD", 0.01)}
    steps = {key: first(name, {"lr": lr}, start) for key, (name, lr) in names.items()}
    answers["ratio"] = {key: step[1] / step[0] for key, step in steps.items()}
    spike = [[100.0 if t == 200 else 1.0] for t in range(202)]
    lengths = np.abs(fed("RMSprop", {"lr": 1.0}, spike)[0][:, 0])
    tiny, huge = (fed("RMSprop", {"lr": 1.0}, [[g]] * 200)[0][-1, 0] for g in (0.01, 100.0))
    answers["spike"] = {
        "answer": lengths[201] / lengths[199], "during": lengths[200] / lengths[199],
        "small": -tiny, "large": -huge,
    }  # fmt: skip
    outside, inside = (
        first("Adam", {"lr": 1.0, "eps": 1e-8, "eps_inside_sqrt": one}, [1e-6])[0]
        for one in (False, True)
    )
    answers["eps"] = {"answer": outside / inside, "outside": outside, "inside": inside}
    ones = [[1.0]] * 100
    without, corrected = (
        np.abs(fed("RMSprop", {"lr": 1.0, "bias_correction": one}, ones)[0][:, 0])
        for one in (False, True)
    )
    plain_adam: Options = {"lr": 1.0, "bias_correction": False}
    adam = np.abs(fed("Adam", plain_adam, [[1.0]] * 6000)[0][:, 0])
    answers["bias"] = {
        "answer": without[0], "corrected": corrected[0],
        "until": int(np.flatnonzero(without > 1.05)[-1]) + 1,
        "adam": adam[0],
        "adamMost": adam.max(),
        "adamUntil": int(np.flatnonzero(adam > 1.05)[-1]) + 1,
    }  # fmt: skip
    small, large = settles("RMSprop", 0.01), settles("RMSprop", 0.1)
    answers["settle"] = {
        "answer": large / small, "small": small, "large": large, "plain": settles("SGD", 0.09)
    }  # fmt: skip
    (low, high), (far_low, far_high) = usable("RMSprop", 1.0), usable("RMSprop", 10.0)
    (p_low, p_high), (pf_low, pf_high) = usable("SGD", 1.0), usable("SGD", 10.0)
    answers["window"] = {
        "answer": high / low, "low": low, "high": high, "farLow": far_low, "farHigh": far_high,
        "plainLow": p_low, "plainHigh": p_high, "plainFarLow": pf_low, "plainFarHigh": pf_high,
        "nearer": large / small,
    }  # fmt: skip
    impulse = [[1.0], *[[0.0]] * 15]
    weights = fed("Momentum", {"lr": 1.0, "beta": 0.9}, impulse)[0][:, 0]
    answers["epoch"] = {"answer": weights[8:].sum() / weights.sum(), "steps": 8}
    return answers


ASKED = """
return Questions.ALL.map((one) => {
  const numbers = one.compute();
  const right = Questions.right(one, numbers);
  return { id: one.id, numbers, right, value: one.choices[right][1], choices: one.choices.length,
           text: one.tell(numbers), look: one.look, shown: State.completed(one.show).surface };
});
"""


def test_each_question_is_answered_as_fastopt_answers_it(tmp_path: Path) -> None:
    expected = expected_answers()
    got = opened(tmp_path, ASKED)
    assert [one["id"] for one in got] == list(expected)
    assert len(got) >= 8
    for one in got:
        assert one["numbers"] == pytest.approx(expected[one["id"]], CLOSE), one["id"]
        # The choice that is called right is near: no answer is given for want of a better one.
        assert max(one["value"] / one["numbers"]["answer"], 1e-3) < 2.5, one["id"]
        assert one["numbers"]["answer"] / one["value"] < 2.5, one["id"]
        assert one["choices"] >= 3
        assert one["look"].endswith("."), one["id"]
        assert not re.search("NaN|undefined|Infinity|∞|not a number", one["text"]), one["text"]


# -------------------------------------------------------------------------------------------------
# Formulas of the reader's own.

FORMULAS = {
    "x^2 + 10*y^2": lambda x, y: x**2 + 10 * y**2,
    "-x^2 + 2^-y": lambda x, y: -(x**2) + 2.0**-y,
    "2^3^x - (x - y)/(1 + y**2)": lambda x, y: 2.0 ** (3.0**x) - (x - y) / (1 + y**2),
    "sin(x)*cos(y) + exp(-x*y)": lambda x, y: math.sin(x) * math.cos(y) + math.exp(-x * y),
    "log(x + 3) * sqrt(y + 2.5) - abs(x - y)": (
        lambda x, y: math.log(x + 3) * math.sqrt(y + 2.5) - abs(x - y)
    ),
    "(x + 3)^(y/2) + pi*x/e": lambda x, y: (x + 3) ** (y / 2) + math.pi * x / math.e,
    "1e-2*x*-y + .5": lambda x, y: 1e-2 * x * -y + 0.5,
    "tan(x/3) + sinh(x) * cosh(y) - tanh(x*y) + atan(y)": (
        lambda x, y: math.tan(x / 3) + math.sinh(x) * math.cosh(y) - math.tanh(x * y) + math.atan(y)
    ),
    "abs(x)^1.5": lambda x, y: abs(x) ** 1.5,
    "x·x \N{MINUS SIGN} 2\N{MULTIPLICATION SIGN}y ÷ 4": lambda x, y: x * x - y / 2,
}

POINTS = [(0.3, 1.1), (-1.7, 0.4), (2.0, -1.9)]

MISTAKES = {
    "": "empty",
    "2x": r"Before “x” at place 2 a sign is missing.*2\*x",
    "x +": "ends where a number",
    "sin x": r"After “sin” a bracket has to follow: sin\(x\)",
    "cot(x)": "“cot” is not known here.*sin.*exp, log, sqrt, abs",
    "(x + y": "ends where a closing bracket",
    "x)": "bracket that closes at place 2 was never opened",
    "f = x": "“f” is not known|right of the =",
    "x = y": "right of the =",
    "1,5*x": "decimals take a point",
    "x $ y": r"cannot read “\$” at place 3",
    "x² + y": r"cannot read “²” at place 2.*x\^2",
    "x + 😀": "cannot read “😀” at place 5",
    "x*/y": "At place 3 stands “/”",
    "alert(1)": "“alert” is not known",
    "constructor": "“constructor” is not known",
    "max(x, y)": "“max” is not known",
    "log(x)": "is not a number at the start",  # at x = -3
    "1/(x + 3)": "is ∞ at the start",
}


def test_gradients_of_formulas_are_their_slopes(tmp_path: Path) -> None:
    body = """
    const texts = %s, points = %s;
    return texts.map(Formula.surface).map((one) =>
      points.map((p) => [one.value(...p), one.gradient(...p)]));
    """
    got = opened(tmp_path, body % (json.dumps(list(FORMULAS)), json.dumps(POINTS)))
    h = 1e-5
    for (text, function), of_text in zip(FORMULAS.items(), got, strict=True):
        for (x, y), (value, gradient) in zip(POINTS, of_text, strict=True):
            assert value == pytest.approx(function(x, y), CLOSE), text

            # by differences of fourth order
            def slope(at: Callable[[float], float]) -> float:
                return (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)

            numerical = [
                slope(lambda d: function(x + d, y)),  # noqa: B023  # called at once
                slope(lambda d: function(x, y + d)),  # noqa: B023
            ]
            assert gradient == pytest.approx(numerical, 1e-8, 1e-8), (text, x, y)


def test_mistakes_in_formulas_are_told_and_change_nothing(tmp_path: Path) -> None:
    body = """
    Explorer.set({ surface: "formula", formula: "x^2 + y^2" });
    const before = JSON.stringify([Explorer.state(), Explorer.runs()]);
    const field = Array.from($("cards").querySelectorAll("input"))
      .find((one) => one.value === "x^2 + y^2");
    return %s.map((text) => {
      field.value = text;
      field.dispatchEvent(new Event("input"));
      const told = $(field.getAttribute("aria-describedby")).textContent;
      const wrong = field.getAttribute("aria-invalid");
      return [told, wrong, before === JSON.stringify([Explorer.state(), Explorer.runs()])];
    });
    """
    for (text, pattern), (told, wrong, same) in zip(
        MISTAKES.items(), opened(tmp_path, body % json.dumps(list(MISTAKES))), strict=True
    ):
        assert re.search(pattern, told), (text, told)
        assert wrong == "true", text
        assert same, text


ENDS = [
    (
        "log(x + 4)",
        [-3.9, 1],
        1,
        "cannot go on after step 1: the cost is not a number at (\N{MINUS SIGN}13.9, 1)",
    ),
    (
        "-exp(x)",
        [700, 1],
        1e-302,
        "cannot go on after step 1: the cost is \N{MINUS SIGN}∞ at (801, 1)",
    ),
    ("x^0.5", [0, 1], 1, "cannot go on after step 0: the cost has no finite slope at (0, 1)"),
    ("x^2", [1e5, 1], 1.68, "left all bounds in step 11: its learning rate is too large here"),
]


def test_a_run_that_cannot_go_on_says_why(tmp_path: Path) -> None:
    body = """
    return %s.map(([formula, start, lr]) => {
      const optimizers = [{ name: "SGD", options: { lr } }];
      Explorer.set({ surface: "formula", formula, start, optimizers });
      Explorer.setStep(60);
      return [$("status").textContent, $("lines").textContent];
    });
    """
    for (formula, *_, expected), texts in zip(
        ENDS, opened(tmp_path, body % json.dumps(ENDS)), strict=True
    ):
        for text in texts:
            assert expected in text, (formula, text)


# -------------------------------------------------------------------------------------------------
# What a reader does.

LINK = (
    "#surface=noisy&condition=5&start=1.5,-2&steps=90&t=33&noise=2&batch=16&seed=9&focus=0&zoom=4&theme=dark"
    "&ask=square&o=Adam;lr:0.3;betas:0.8,0.95;amsgrad:true&o=SGD;lr:0.05;momentum:0.5;nesterov:true"
)


def test_a_link_restores_the_state_and_is_written_back_the_same(tmp_path: Path) -> None:
    body = """
    await wait(500);
    const whole = { state: Explorer.state(), hash: location.hash, t: $("t").value,
      theme: document.documentElement.dataset.theme, open: $("question-square").open,
      legend: $("legend").textContent, boxes: document.querySelectorAll(".card").length };
    location.hash = "#surface=saddle&t=4&o=Lion;lr:0.1";
    await wait(50);
    whole.next = Explorer.state();
    Explorer.setStep(7);
    await wait(500);
    whole.written = location.hash;
    location.hash = "#surface=saddle&o=Adam;lr:-1";
    await wait(50);
    whole.notice = $("notice").hidden ? "" : $("notice").textContent;
    whole.surface = Explorer.state().surface;
    location.hash = "#o=Adam;lr:0.2";
    await wait(50);
    whole.cleared = $("notice").hidden;
    return whole;
    """
    got = opened(tmp_path, body, LINK)
    assert got["hash"] == LINK
    assert got["state"] == {
        "surface": "noisy", "condition": 5, "formula": got["state"]["formula"], "start": [1.5, -2],
        "steps": 90, "t": 33, "noise": 2, "batch": 16, "seed": 9, "focus": 0, "zoom": 4,
        "theme": "dark", "ask": "square", "optimizers": [
            {"name": "Adam", "options": {"lr": 0.3, "betas": [0.8, 0.95], "amsgrad": True}},
            {"name": "SGD", "options": {"lr": 0.05, "momentum": 0.5, "nesterov": True}},
        ],
    }  # fmt: skip
    assert (got["t"], got["theme"], got["open"], got["boxes"]) == ("33", "dark", True, 3)
    assert "Adam" in got["legend"]
    assert "SGD" in got["legend"]
    assert (got["next"]["surface"], got["next"]["start"], got["next"]["t"]) == (
        "saddle", [-4, 0.01], 4
    )  # fmt: skip
    assert got["written"] == "#surface=saddle&start=-4,0.01&t=7&focus=0&o=Lion;lr:0.1"
    assert got["next"]["optimizers"] == [{"name": "Lion", "options": {"lr": 0.1}}]
    assert re.search(r"lr must be .*\[0, inf\); got -1", got["notice"])
    assert got["surface"] == "bowl"
    assert got["cleared"]


LINKS = {
    "#%": "The link has “%”, which is not known here.",
    "#optimizers=Adam": "The link has “optimizers”, which is not known here.",
    "#formula=%E0%A4%A": "The link has “%E0%A4%A”, in which a % is not followed by two hex digits.",
    "#start=a,b": (
        "The start\N{RIGHT SINGLE QUOTATION MARK}s x has to be a number from -100000000 to "
        "100000000, and not “a”."
    ),
    "#zoom=": "The zoom has to be one of 0.125, 0.25, 0.5, 1, 2, 4, 8, 16, 32, and not “”.",
    "#o=": 'there is no optimizer "" here. Take one of SGD, Momentum, ',
    "#o=constructor": 'there is no optimizer "constructor" here. Take one of SGD, Momentum, ',
    "#o=Adam;lr": 'Adam: lr must be a number in [0, inf); got "". Give such a number.',
    "#o=Adam;betas:0.9": "Adam: betas must be an array of 2 numbers; got 0.9. Give so many.",
    "#o=Adam;__proto__:1": 'Adam has no option "__proto__" here. Give one of lr, betas, ',
    "#o=Lion&o=Lion&o=Lion&o=Lion&o=Lion": "There can be one to 4 optimizers, and not 5.",
}


def test_a_link_that_is_wrong_is_told_and_shows_the_beginning(tmp_path: Path) -> None:
    body = """
    const seen = [];
    for (const link of %s) {
      location.hash = link;
      await wait(50);
      const shown = State.same(Explorer.state(), State.completed({}));
      seen.push([$("notice").hidden ? "" : $("notice").textContent, shown]);
    }
    return seen;
    """
    for (link, expected), (notice, shown) in zip(
        LINKS.items(), opened(tmp_path, body % json.dumps(list(LINKS))), strict=True
    ):
        assert notice.startswith(f"This cannot be shown: {expected}"), (link, notice)
        assert notice.endswith(". Here is the usual beginning instead."), (link, notice)
        assert shown, link


def test_the_state_that_the_file_was_written_with_is_shown(tmp_path: Path) -> None:
    state: dict[str, Any] = {
        "surface": "formula", "formula": "x^2 + y^2", "steps": 25, "condition": None,
        "start": (2, -1), "optimizers": [{"name": "RMSprop", "options": {"lr": 0.2}}],
    }  # fmt: skip
    body = """
    const sizes = [Object.keys(Surfaces.ALL), State.MOST_STEPS, State.MOST_OPTIMIZERS];
    return [Explorer.state(), Explorer.runs()[0].points, sizes];
    """
    linked = opened(tmp_path, body, "#o=Adam;lr:0.2", **state)[0]  # which goes before it
    assert (linked["surface"], linked["optimizers"][0]["name"]) == ("bowl", "Adam")
    got = opened(tmp_path, body, **state)
    assert got[2] == [list(explorer.SURFACES), explorer.MOST_STEPS, explorer.MOST_OPTIMIZERS]
    assert {key: got[0][key] for key in ("surface", "formula", "steps", "optimizers")} == {
        key: state[key] for key in ("surface", "formula", "steps", "optimizers")
    }
    expected = path("RMSprop", {"lr": 0.2}, lambda p, t: (2 * p[0], 2 * p[1]), (2.0, -1.0), 25)
    np.testing.assert_allclose(got[1], expected, CLOSE, CLOSE)


def test_steps_forward_and_back_and_keys_show_the_same_numbers(tmp_path: Path) -> None:
    body = """
    const seen = () => [$("stepname").textContent, $("status").textContent, $("lines").textContent,
      $("grid").textContent, $("surface").toDataURL()].join("|");
    const press = (key, target = document.body) =>
      target.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
    const steps = [];
    Explorer.setStep(0);
    for (let t = 0; t < 20; t += 1) {
      steps.push(seen());
      t % 2 ? press("ArrowRight") : $("forward").click();
    }
    let same = 0;
    for (let t = 19; t >= 0; t -= 1) {
      t % 3 ? press("ArrowLeft") : $("back").click();
      same += seen() === steps[t];
    }
    const result = { same, different: new Set(steps).size };
    press("End");
    result.end = Explorer.state().t;
    Explorer.setStep(1);
    $("back").focus();
    $("back").click();
    await wait(50);
    result.kept = [document.activeElement.id, $("back").getAttribute("aria-disabled")];
    $("back").click();
    press("End");
    press("Home");
    result.home = Explorer.state().t;
    press(" ");
    result.playing = Explorer.isPlaying();
    while (Explorer.state().t < 3) await wait(20);
    press(" ");
    result.played = Explorer.state().t;
    result.paused = !Explorer.isPlaying();
    await wait(700);
    result.still = Explorer.state().t;
    press("ArrowRight", $("cards").querySelector("input[type=text]")); // a field keeps its keys
    result.field = Explorer.state().t;
    press("End");
    press(" ");
    result.again = Explorer.state().t;
    while (Explorer.isPlaying()) await wait(20);
    result.stops = [Explorer.state().t, Explorer.isPlaying()];
    return result;
    """
    got = opened(tmp_path, body)
    assert (got["same"], got["different"]) == (20, 20)
    assert (got["end"], got["home"], got["playing"], got["paused"]) == (60, 0, True, True)
    assert got["kept"] == ["back", "true"]  # a disabled button would lose the focus
    assert 3 <= got["played"] < 60
    assert got["still"] == got["field"] == got["played"]
    assert got["again"] == 0
    assert got["stops"] == [60, False]


def test_a_question_is_predicted_then_answered_then_shown(tmp_path: Path) -> None:
    body = """
    const box = $("question-memory");
    box.querySelector("summary").click();
    await wait(50);
    const [see, show] = box.querySelectorAll(".buttons button");
    const before = [see.disabled, show.hidden, box.querySelector("[aria-live]").textContent];
    box.querySelectorAll("input")[0].click();
    see.click();
    const wrong = box.querySelector(".verdict").textContent;
    box.querySelectorAll("input")[2].click();
    see.click();
    const good = [".verdict", "[aria-live]"].map((one) => box.querySelector(one).textContent);
    show.click();
    return { before, wrong, good, state: Explorer.state(), focused: document.activeElement.id,
             note: $("bandnote").textContent };
    """
    got = opened(tmp_path, body)
    assert got["before"] == [True, True, ""]
    assert "the newest 22" in got["wrong"]
    assert got["good"][0] == "As you said."
    assert "230" in got["good"][1]
    assert got["state"]["optimizers"][1] == {
        "name": "Momentum",
        "options": {"lr": 0.1, "beta": 0.99},
    }
    assert (got["state"]["t"], got["state"]["ask"], got["focused"]) == (45, "memory", "look")
    assert "the newest 22 of 45 gradients" in got["note"]


NAMED = [
    ([("Adam", {"eps_inside_sqrt": False}), ("Adam", {"eps_inside_sqrt": True})],
     [["Adam, ε outside the root", "lr = 0.001"], ["Adam, ε inside the root", "lr = 0.001"]]),
    ([("Momentum", {"lr": 0.1, "beta": 0.9}), ("Momentum", {"lr": 0.2, "beta": 0.99})],
     [["Momentum, β = 0.9", "lr = 0.1"], ["Momentum, β = 0.99", "lr = 0.2"]]),
    ([("RMSprop", {"lr": 0.1, "beta": 0.8}), ("RMSprop", {"lr": 0.2, "beta": 0.8}), ("SGD", {})],
     [["RMSprop, lr = 0.1", "β = 0.8"], ["RMSprop, lr = 0.2", "β = 0.8"], ["SGD", "lr = 0.001"]]),
    ([("RMSprop", {"bias_correction": one}) for one in (False, True)],
     [["RMSprop, without correction", "lr = 0.01"], ["RMSprop, with correction", "lr = 0.01"]]),
    ([("Lion", {"lr": 0.1}), ("Lion", {"lr": 0.1})],
     [["Lion, A", "lr = 0.1"], ["Lion, B", "lr = 0.1"]]),
    ([("SGD", {"lr": 1, "momentum": 0.9, "nesterov": True}), ("SGD", {"lr": 1, "momentum": 0.9})],
     [["SGD, nesterov", "lr = 1, momentum = 0.9"], ["SGD, no nesterov", "lr = 1, momentum = 0.9"]]),
]  # fmt: skip


def test_names_say_what_differs_and_pictures_what_to_look_at(tmp_path: Path) -> None:
    body = """
    const given = %s.map((all) => all.map(([name, options]) => ({ name, options })));
    const named = given.map((all) => Runs.names(all).map((one) => [one.label, one.more]));
    const look = () => $("look").hidden ? "" : $("look").firstElementChild.textContent;
    const first = [look(), $("toquestion").hidden];
    const shown = Questions.ALL.map((one) => {
      Explorer.set({ ...one.show, ask: one.id });
      location.hash = "#" + State.toLink(Explorer.state()); // which leaves out what is usual
      Explorer.setStep(3);
      return [look() === one.look && look() !== "", $("toquestion").hidden];
    });
    $("toquestion").click();
    await wait(50);
    const back = [$("question-epoch").open, document.activeElement.textContent];
    Explorer.set({ steps: 33 });
    const other = look();
    Explorer.set({ optimizers: given[1] });
    const field = Array.from(document.querySelectorAll('[data-card="1"] .row'))
      .find((row) => row.querySelector("label").textContent === "beta")
      .querySelector("input[type=text]");
    field.value = "0.5";
    field.dispatchEvent(new Event("input"));
    const renamed = ["#legend", '[data-card="1"] legend'].map((one) =>
      document.querySelector(one).textContent);
    return { named, first, shown, back, other, renamed };
    """
    got = opened(tmp_path, body % json.dumps([given for given, _ in NAMED]))
    assert got["named"] == [expected for _, expected in NAMED]
    assert "Gradient descent" in got["first"][0]
    assert got["first"][1]
    assert got["shown"] == [[True, False]] * len(got["shown"])
    assert got["back"] == [True, "Epoch by epoch: does the average start anew?"]
    assert got["other"] == ""
    assert "Momentum, β = 0.5lr = 0.2" in got["renamed"][0]
    assert got["renamed"][1] == "Momentum, β = 0.5"


def test_settings_the_start_and_the_table_follow_the_hand(tmp_path: Path) -> None:
    body = """
    const handle = $("start"), surface = $("surface").getBoundingClientRect();
    const move = { bubbles: true, buttons: 1, clientX: surface.left + 0.75 * surface.width,
                   clientY: surface.top + 0.25 * surface.height };
    handle.dispatchEvent(new PointerEvent("pointermove", move));
    const dragged = Explorer.state().start;
    handle.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowUp", bubbles: true }));
    const moved = Explorer.state().start;
    const strip = $("strip-gradient-x").getBoundingClientRect();
    const right = { buttons: 1, clientX: strip.right };
    $("strip-gradient-x").dispatchEvent(new PointerEvent("pointermove", right));
    const t = Explorer.state().t;
    const all = (...query) => Array.from(document.querySelectorAll(query.join(" ")));
    const field = (card, label) => all(`[data-card="${card}"]`, ".row")
      .find((row) => row.querySelector("label").textContent === label)
      .querySelector("input[type=text]");
    const enter = (one, text) => { one.value = text; one.dispatchEvent(new Event("input")); };
    enter(field(1, "lr"), "0.05");
    enter(field(2, "beta"), "0.95");
    const good = Explorer.state().optimizers;
    enter(field(1, "lr"), "-1");
    const told = field(1, "lr").closest(".row").querySelector(".tell").textContent;
    const kept = Explorer.state().optimizers[1].options.lr;
    const nesterov = all('[data-card="0"]', "label")
      .find((one) => one.textContent === "nesterov");
    nesterov.querySelector("input").click();
    const flag = [nesterov.querySelector("input").checked, nesterov.parentNode.textContent];
    $("tablebox").open = true;
    await wait(50);
    const rows = $("table").querySelectorAll("tbody tr").length;
    const meant = all('[data-card="0"]', ".meanings")[0].textContent;
    const name = (one) =>
      one.labels?.length || one.getAttribute("aria-label") || one.textContent.trim();
    const unnamed = all("input, select, button, summary").filter((one) => !name(one))
      .map((one) => one.outerHTML);
    const list = document.querySelector('[data-card="0"] select');
    list.value = "FTRL";
    list.dispatchEvent(new Event("change"));
    const other = [Explorer.state().optimizers[0], $("lines").textContent.includes("z")];
    const wrong = FASTOPT.optimizers
      .map((one) => Explorer.set({ optimizers: [{ name: one.name, options: {} }], t: 3 }))
      .filter(Boolean);
    return { dragged, moved, t, good, told, kept, flag, rows, meant, unnamed, other, wrong };
    """
    got = opened(tmp_path, body)
    assert got["dragged"] == pytest.approx([2.5, 1.5], abs=0.05)
    assert got["moved"] == pytest.approx([got["dragged"][0], got["dragged"][1] + 0.1], abs=0.001)
    assert got["t"] == 60
    assert got["good"][1]["options"]["lr"] == 0.05
    assert got["good"][2]["options"]["beta"] == 0.95
    assert re.search(r"lr must be .*\[0, inf\); got -1", got["told"])
    assert got["kept"] == 0.05
    assert got["flag"][0] is False
    assert "needs momentum > 0" in got["flag"][1]
    assert got["rows"] == 61
    assert got["unnamed"] == []
    assert "nesterovlook ahead along the buffer" in got["meant"]
    assert got["other"][0]["name"] == "FTRL"
    assert got["wrong"] == []


# -------------------------------------------------------------------------------------------------
# What a screen reader has of it.

CONTROLS = {"button", "checkbox", "combobox", "link", "radio", "slider", "textbox"}
CLOSED = {"DisclosureTriangle", "DisclosureTriangleGrouped"}  # the summary of details
STATES = {
    **dict.fromkeys(("checkbox", "radio"), "checked"),
    **dict.fromkeys(("combobox", *CLOSED), "expanded"),
    "slider": "valuemax",
}


def heard(nodes: Sequence[Node]) -> None:
    """Check what holds in every state of the page."""
    for one in nodes:
        if one.role in CONTROLS | CLOSED:
            assert one.name.strip(), one
            assert STATES.get(one.role, "focusable") in one.properties, one
        if one.role in ("slider", "combobox"):
            assert one.value != "", one
        if one.role in ("image", "table"):
            assert one.name, one
    regions = [one.name for one in nodes if one.role == "region"]
    assert [name for name in regions if name != "The rule, as the documentation has it"] == [
        "Path on the surface",
        "What made the steps, over time",
        "This step of Momentum, in numbers",
        "Predict first, then see",
        "Settings",
    ]
    headings = [(one.properties["level"], one.name) for one in nodes if one.role == "heading"]
    assert [level for level, _ in headings] == [1, 2, 2, 2, 2]


def live(nodes: Sequence[Node]) -> list[str]:
    """Return the texts of what is read out when it changes."""
    return [one.text for one in nodes if one.properties.get("live") == "polite"]


def test_a_screen_reader_has_names_states_and_the_numbers_of_the_step(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    explorer.write(file, {"t": 0})
    with Reader(file, tmp_path) as reader:
        at_start = reader.nodes()
        reader.run("for (let k = 0; k < 5; ++k) document.getElementById('forward').click()")
        later = reader.nodes()
        reader.run("""(() => {
          const box = document.getElementById("question-direction");
          box.open = true;
          box.querySelectorAll("input")[2].click();
          box.querySelector("button").click();
        })()""")
        answered = reader.nodes()
        reader.run("document.querySelectorAll('#question-direction button')[1].click()")
        shown = reader.nodes()
    for nodes in (at_start, later, answered, shown):
        heard(nodes)

    # Where it stands: the slider, what is read out, and the buttons that do nothing at the start.
    for nodes, step, said in (
        (at_start, 0, "At the start: SGD is at"),
        (later, 5, "After step 5:"),
    ):
        (slider,) = [one for one in nodes if (one.role, one.name) == ("slider", "Step")]
        assert slider.value == step
        assert any(text.startswith(said) and "cost" in text for text in live(nodes))
        (back,) = [one for one in nodes if one.name == "One step back"]
        assert back.properties.get("disabled", False) is (step == 0)
    # The numbers of the step stand in the names of the strips, once.
    strips = [one.name for one in later if one.role == "image" and " over " in one.name]
    assert len(strips) >= 8
    assert all("; in this step " in name or " has none" in name for name in strips)
    assert not any(one.role == "status" for one in later)
    # Where the start is, which the arrow keys move.
    assert any(one.name.startswith("Start of the runs, at (\N{MINUS SIGN}4, 1.5)") for one in later)
    # The answer is read out, and the choice that is right says so.
    # In one paragraph: Orca reads out those that come at once in any order.
    assert any(re.match(r"As you said\.\s.*cancel", text) for text in live(answered))
    (right,) = [one for one in answered if one.role == "radio" and "so it is" in one.name]
    assert right.properties["checked"] in (True, "true")
    assert any(one.name == "Show me" for one in answered)
    (look,) = [one for one in shown if one.properties.get("focused") and one.role != "RootWebArea"]
    assert (look.role, look.name) == ("note", "What to look at")
