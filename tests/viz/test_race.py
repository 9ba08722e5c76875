"""Races: surfaces and their derivatives, paths in the bits of a loop, files that are what they say.

Closed forms of gradients and curvatures are written down here by hand; formulas are held to complex
steps, which share nothing with the rules of differentiation of ``fastopt.viz.surfaces``.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import subprocess
import sys
import types
import warnings
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

import fastopt
from fastopt import viz
from fastopt.viz.drawing import frame_steps, styles, theme
from fastopt.viz.surfaces import EXAMPLES, FUNCTIONS

# Surfaces ---------------------------------------------------------------------------------------


def beale(x: float, y: float) -> tuple[list[float], list[float]]:
    parts = [1.5 - x + x * y, 2.25 - x + x * y**2, 2.625 - x + x * y**3]
    by_x = [y - 1, y**2 - 1, y**3 - 1]
    by_y = [x, 2 * x * y, 3 * x * y**2]
    by_yy = [0.0, 2 * x, 6 * x * y]
    slope = [2 * sum(p * d for p, d in zip(parts, by, strict=True)) for by in (by_x, by_y)]
    curved = [
        2 * sum(d * d for d in by_x),
        2 * sum(d * d + p * dd for p, d, dd in zip(parts, by_y, by_yy, strict=True)),
    ]
    return slope, curved


CLOSED_FORMS = {
    "bowl": lambda x, y: ([x, 25 * y], [1, 25]),
    "noisy": lambda x, y: ([x, 10 * y], [1, 10]),
    "rosenbrock": lambda x, y: (
        [-2 * (1 - x) - 400 * x * (y - x * x), 200 * (y - x * x)],
        [2 - 400 * (y - x * x) + 800 * x * x, 200],
    ),
    "beale": beale,
    "himmelblau": lambda x, y: (
        [
            4 * x * (x * x + y - 11) + 2 * (x + y * y - 7),
            2 * (x * x + y - 11) + 4 * y * (x + y * y - 7),
        ],
        [12 * x * x + 4 * y - 42, 12 * y * y + 4 * x - 26],
    ),
    "saddle": lambda x, y: ([x, -y + y**3 / 4], [1, -1 + 3 * y * y / 4]),
}


def test_every_surface_has_a_closed_form_here() -> None:
    assert CLOSED_FORMS.keys() == viz.SURFACES.keys()


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_slopes_and_curvatures_are_those_of_the_closed_form(name: str) -> None:
    surface = viz.surface(name)
    rng = np.random.default_rng(0)
    for x, y in [surface.start, *surface.minima, *rng.uniform(-3, 3, (20, 2))]:
        slope, curved = CLOSED_FORMS[name](x, y)
        np.testing.assert_allclose(surface.gradient((x, y)), slope, rtol=1e-12, atol=2e-12)
        np.testing.assert_allclose(surface.curvature((x, y)), curved, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_the_minima_are_the_lowest_of_a_fine_grid(name: str) -> None:
    surface = viz.surface(name)
    grid = np.meshgrid(np.linspace(-6, 6, 401), np.linspace(-6, 6, 401))
    assert surface.lowest is not None
    for point in surface.minima:
        assert surface.cost(*point) == pytest.approx(surface.lowest, abs=1e-12)
        assert surface.lowest <= surface.cost(*grid).min() + 1e-12
        assert np.abs(surface.gradient(point)).max() < 1e-12


def test_a_bowl_is_as_oblong_as_it_was_asked_for() -> None:
    assert viz.surface("bowl", condition=7.5).curvature((1, 2)).tolist() == [1, 7.5]
    assert viz.surface("noisy", condition=3).curvature((1, 2)).tolist() == [1, 3]
    for wrong in (0, -1, math.inf, math.nan):
        with pytest.raises(ValueError, match="above 0"):
            viz.surface("bowl", condition=wrong)
    with pytest.raises(TypeError, match="above 0"):
        viz.surface("bowl", condition="oblong")  # type: ignore[arg-type]  # that is tested
    with pytest.raises(ValueError, match="'bowl' and 'noisy'"):
        viz.surface("beale", condition=2)


FORMULAS = [
    *(f"{name}(x*y/3 + y/2)" for name in FUNCTIONS if name != "abs"),
    "x**3 - 2*x*y^2 + (x - y)/(1 + x*x) + pi*x - e",
    "x**y + 2**x + y**-1 + x**0 + x**1 + (x*y)**0.5",
    "-(-x)*+y - -3 / 7e-1",
    "exp(-x**2 - y**2)*cos(3*x) / sqrt(1 + y^2)",
]


@pytest.mark.parametrize("formula", FORMULAS)
def test_a_formula_is_differentiated_as_complex_steps_have_it(formula: str) -> None:
    surface = viz.surface(formula)
    known = {name: getattr(np, {"atan": "arctan"}.get(name, name)) for name in FUNCTIONS}
    code = formula.replace("^", "**")

    def value(x: Any, y: Any) -> Any:
        return eval(code, {**known, "x": x, "y": y, "pi": math.pi, "e": math.e})

    h = 1e-30
    for x, y in ((0.7, 1.3), (1.25, 0.4)):
        assert surface.cost(x, y) == pytest.approx(value(x, y), rel=1e-14)
        slope = [value(x + h * 1j, y).imag / h, value(x, complex(y, h)).imag / h]
        np.testing.assert_allclose(surface.gradient((x, y)), slope, rtol=1e-11, atol=1e-14)
        step = 1e-6  # the curvature is the slope of the slope
        curved = [
            (surface.gradient((x + step, y))[0] - surface.gradient((x - step, y))[0]) / 2 / step,
            (surface.gradient((x, y + step))[1] - surface.gradient((x, y - step))[1]) / 2 / step,
        ]
        np.testing.assert_allclose(surface.curvature((x, y)), curved, rtol=1e-6, atol=1e-8)


def test_abs_has_the_slope_of_its_sign_and_costs_take_arrays() -> None:
    surface = viz.surface("abs(x) + 2*abs(y)")
    assert surface.gradient((-3, 0)).tolist() == [-1, 0]
    assert surface.cost(np.array([[1.0], [-2.0]]), np.array([1.0, 3.0])).tolist() == [
        [3, 7],
        [4, 8],
    ]
    assert viz.surface("3").cost(np.zeros(4), 1.0).tolist() == [3] * 4


@pytest.mark.parametrize(
    ("formula", "said"),
    [
        ("__import__('os').getcwd()", "cannot have"),
        ("x.real + y", "cannot have 'x.real'"),
        ("z + 1", "there is no 'z'"),
        ("foo(x)", "there is no function 'foo'"),
        ("sin + x", "sin needs an argument"),
        ("sin(x, y)", "sin takes one argument"),
        ("sin(x=y)", "sin takes one argument"),
        ("sin(*x)", "sin takes one argument"),
        ("[x][0]", "cannot have"),
        ("x if y else 1", "cannot have"),
        ("lambda: x", "cannot have"),
        ("(x := 2)", "cannot have"),
        ("x // 2", "cannot have"),
        ("x < y", "cannot have"),
        ("1j*x", "no real number"),
        ("True + x", "no real number"),
        ("'x' + y", "cannot have"),
        ("x +", "cannot read"),
        ("x = 2", "cannot read .* at character"),
        ("", "cannot read"),
        ("(" * 400 + "x" + ")" * 400, "cannot read|nested too deeply"),
        ("+".join("x" * 600), "at most 1000 characters"),
        ("rosenbrok", "did you mean 'rosenbrock'"),
    ],
)
def test_what_is_no_formula_is_refused_and_not_run(formula: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        viz.surface(formula)


def test_mini_batches_are_of_64_examples_that_add_up_to_nothing() -> None:
    off = viz.minibatches(3.0, 8, seed=5, steps=80)
    epochs = off.reshape(10, 8, 2)
    np.testing.assert_allclose(epochs.sum(1), 0, atol=1e-13)
    assert len(np.unique(off[:, 0])) == 80  # shuffled anew
    single = viz.minibatches(1.0, 1, 5, 2 * EXAMPLES).reshape(2, EXAMPLES, 2)
    assert np.array_equal(np.sort(single[0], 0), np.sort(single[1], 0))
    assert 0.4 < single[0].std() < 0.6
    assert np.abs(viz.minibatches(1.0, EXAMPLES, 5, 3)).max() < 1e-15
    assert not np.array_equal(off, viz.minibatches(3.0, 8, 6, 80))


def test_mini_batches_are_those_of_the_page() -> None:
    # What surfaces.js of the explorer gave, run by Node: the generator is exact in both.
    off = viz.minibatches(15.0, 8, seed=0, steps=80)
    assert off[0].tolist() == [-2.663433071302279, -0.9982864907942712]
    assert off[79].tolist() == [1.465805659227044, 0.35895513559808023]
    off = viz.minibatches(0.1, 4, seed=123456, steps=40)
    assert off[39].tolist() == [0.0039942725943546975, -0.0034931738980958473]


# Paths ------------------------------------------------------------------------------------------

BY_HAND: dict[str, Any] = {
    "sgd lr=0.02 momentum=0.9 nesterov=true": lambda p: fastopt.SGD(
        p, lr=0.02, momentum=0.9, nesterov=True
    ),
    "adam lr=0.1 betas=0.8,0.95 eps=1e-6": lambda p: fastopt.Adam(
        p, lr=0.1, betas=(0.8, 0.95), eps=1e-6
    ),
    "rmsprop": lambda p: fastopt.RMSprop(p),
    "adahessian lr=0.2": lambda p: fastopt.AdaHessian(p, lr=0.2),
    "momo": lambda p: fastopt.MoMo(p),
    "muon lr=0.1 adjust_lr=match_rms_adamw ns_steps=4": lambda p: fastopt.Muon(
        p, lr=0.1, adjust_lr="match_rms_adamw", ns_steps=4
    ),
}


@pytest.mark.parametrize("text", BY_HAND)
def test_a_path_has_the_bits_of_a_loop_with_the_class(text: str) -> None:
    race = viz.race([text], "noisy", steps=40, seed=3, batch=4)
    surface = race.surface
    off = viz.minibatches(surface.noise, 4, 3, 40)
    point = np.array([surface.start] if text.startswith("muon") else surface.start)
    opt = BY_HAND[text](point)
    x, y = point.reshape(2, 1)
    for k in range(40):
        assert race.points[0, k].tolist() == [x[0], y[0]]
        assert race.costs[0, k] == surface.cost(x[0], y[0])
        grad = (surface.gradient(point) + off[k]).reshape(point.shape)
        extra: dict[str, Any] = {}
        if text == "momo":
            extra["value"] = surface.cost(x[0], y[0]) + off[k] @ [x[0], y[0]]
        if text.startswith("adahessian"):
            extra["hessian"] = surface.curvature(point)
        opt.step(grad, **extra)
    assert race.points[0, 40].tolist() == [x[0], y[0]]
    assert race.labels[0].startswith(type(opt).__name__)
    assert "lr=" in race.labels[0]


@pytest.mark.parametrize("surface", ["rosenbrock", "noisy"])
def test_every_optimizer_races_by_name(surface: str) -> None:
    names = fastopt.optimizers.names()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        race = viz.race(names, surface, steps=30)
    assert race.points.shape == (len(names), 31, 2)
    assert [one and one["name"] for one in race.settings] == names
    assert (race.points[:, 0] == race.start).all()
    second = race.points[:, 2]  # ADOPT and SOAP only look at the first gradient
    assert (second != race.points[:, 0]).any(1).all()
    assert np.isfinite(second).all()  # whoever diverges does so later
    for label, points, end in zip(race.labels, race.points, race.diverged, strict=True):
        assert np.isfinite(points[:end]).all(), label
        assert end is None or np.isnan(points[end:]).all(), label


def test_functions_make_optimizers_with_schedules_and_wrappers() -> None:
    race = viz.race(
        {
            "cosine": lambda p: fastopt.Adam(p, lr=fastopt.schedules.cosine(0.3, 20)),
            "slow": lambda p: fastopt.Lookahead(fastopt.SGD(p, lr=0.05)),
            "sam": lambda p: fastopt.SAM(fastopt.SGD(p, lr=0.01), rho=0.2),
            "text": "sgd lr=0.01",
        },
        steps=20,
    )
    assert race.labels == ("cosine", "slow", "sam", "text")
    point = np.array(race.start)
    for k in range(20):  # SAM by its formula: the gradient rho uphill
        uphill = race.surface.gradient(point)
        there = point + 0.2 * uphill / np.sqrt((uphill**2).sum())
        point = point - 0.01 * race.surface.gradient(there)
        np.testing.assert_allclose(race.points[2, k + 1], point, rtol=1e-12, atol=1e-14)
    assert race.settings[:3] == (None, None, None)
    for wrong in (lambda p: None, lambda p: fastopt.SGD(np.zeros(2))):
        with pytest.raises(TypeError, match="must return an optimizer of it"):
            viz.race([wrong])


def test_a_path_that_diverges_ends_where_it_left_the_finite_numbers() -> None:
    race = viz.race(["sgd lr=1", "sgd lr=0.0001"], "rosenbrock", steps=50)
    end = race.diverged[0]
    assert end is not None
    assert 2 < end < 50
    assert race.diverged[1] is None
    assert np.isfinite(race.costs[0, :end]).all()
    assert np.isnan(race.costs[0, end:]).all()
    assert len(race.records()[0]["x"]) == end
    race = viz.race(["sgd lr=10"], "sqrt(1 - x**2) + y", start=(0.5, 0), steps=5)
    assert race.diverged == (1,)


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        (["adm lr=0.1"], ValueError, "did you mean 'Adam'"),
        (["adam lr"], ValueError, "'lr' is no name=value"),
        (["adam lr= 0.1"], ValueError, "no blanks around ="),
        (["adam lr=0.1 lr=0.2"], ValueError, "lr is there twice"),
        (["adam lr=high"], TypeError, "Adam lr=high: .*got 'high'"),
        (["adam lr=-1"], ValueError, "Adam lr=-1: .*got -1"),
        (["adam lrr=1"], TypeError, "did you mean 'lr'"),
        (["adam label='a"], ValueError, "no closing quotation"),
        ([""], ValueError, "it is empty"),
        ([], ValueError, "needs an optimizer"),
        ([3], TypeError, "such as 'adam lr=0.1'"),
        (3, TypeError, "must be a list of texts"),
    ],
)
def test_what_is_no_optimizer_is_said(given: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        viz.race(given, steps=2)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"steps": 0}, "steps must be a whole number from 1"),
        ({"start": (1, math.nan)}, "two finite numbers"),
        ({"start": 3}, "two finite numbers"),
        ({"noise": -1}, "noise must be a number"),
        ({"batch": 65}, "batch must be a whole number from 1 to 64"),
        ({"batch": 12}, "batch must be 1, 2, 4"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"surface": "log(x)", "start": (-1, 0)}, "not finite at the start"),
        ({"surface": "sqrt(x)", "start": (0, 0)}, "not finite at the start"),
    ],
)
def test_other_arguments_out_of_range_are_said(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        viz.race(["sgd"], **given)


def test_text_says_numbers_words_and_labels() -> None:
    race = viz.race(["muon nesterov=false label='two words' weight_decay=0", "ADAM-w"], steps=1)
    assert race.labels == ("two words", "AdamW lr=0.001")
    assert race.settings[0] == {"name": "Muon", "options": {"nesterov": False, "weight_decay": 0}}
    one = viz.race("adam lr=1e-1 max_grad_norm=none on_nonfinite=raise", steps=1).settings[0]
    expected = {"lr": 0.1, "max_grad_norm": None, "on_nonfinite": "raise"}
    assert one == {"name": "Adam", "options": expected}


# Files ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def race() -> viz.Race:
    return viz.race(["sgd lr=0.1", "adam lr=0.3", "sgd lr=1e200"], steps=12)


def test_numbers_are_written_whole(race: viz.Race, tmp_path: Path) -> None:
    race.save(tmp_path / "race.json")
    found = json.loads((tmp_path / "race.json").read_text())
    assert found["surface"]["formula"] == race.surface.formula
    assert found["paths"][1]["x"] == race.points[1, :, 0].tolist()
    assert found["paths"][1]["optimizer"] == "Adam lr=0.3"
    assert found["paths"][2]["diverged_at_step"] == race.diverged[2]
    race.save(tmp_path / "race.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "race.csv").read_text())))
    kept = sum(race.steps + 1 if end is None else end for end in race.diverged)
    assert len(rows) == kept
    assert float(rows[5]["y"]) == race.points[0, 5, 1]
    assert (rows[5]["optimizer"], rows[5]["step"]) == ("SGD lr=0.1", "5")


@pytest.mark.parametrize(
    ("surface", "dark"), [(name, number % 2 > 0) for number, name in enumerate(viz.SURFACES)]
)
def test_every_surface_is_a_picture(surface: str, dark: bool, tmp_path: Path) -> None:
    viz.race(surface=surface).save(tmp_path / "race.png", dark=dark)
    with Image.open(tmp_path / "race.png") as picture:
        assert picture.format == "PNG"
        corner = picture.convert("RGB").getpixel((2, 2))
        ground = tuple(bytes.fromhex(theme(dark).ground[1:]))
        assert corner == ground
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24)}
    for colour in theme(dark).lines[:4]:
        assert tuple(bytes.fromhex(colour[1:])) in colours


def test_a_drawing_and_a_page_of_paper(race: viz.Race, tmp_path: Path) -> None:
    texts = []
    for name in ("one.svg", "two.svg"):
        race.save(tmp_path / name)
        texts.append((tmp_path / name).read_text())
    assert ElementTree.fromstring(texts[0]).tag.endswith("svg")
    assert texts[0] == texts[1]  # the same race is the same file
    assert "Adam lr=0.3" in texts[0]  # beside the shapes of the letters
    race.save(tmp_path / "race.pdf")
    assert (tmp_path / "race.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(("frames", "expected"), [(120, 13), (5, 5), (2, 2)])
def test_an_animation_has_a_picture_for_each_step(
    race: viz.Race, frames: int, expected: int, tmp_path: Path
) -> None:
    race.save(tmp_path / "race.gif", frames=frames, fps=20)
    with Image.open(tmp_path / "race.gif") as film:
        assert film.format == "GIF"
        assert film.n_frames == expected  # type: ignore[attr-defined]  # of the plugin for GIF
        assert film.info["duration"] == 50
        assert film.info["loop"] == 0
        first = np.array(film.convert("RGB")).astype(int)
        film.seek(expected - 1)
        last = np.array(film.convert("RGB")).astype(int)
        assert film.info["duration"] >= 1000
    assert 20 < (np.abs(first - last).max(2) > 60).sum() < 0.2 * first[..., 0].size


def test_frames_are_spread_from_the_start_to_the_end() -> None:
    assert frame_steps(4, 120) == [0, 1, 2, 3, 4]
    assert frame_steps(10, 4) == [0, 4, 8, 10]
    for steps, frames in ((7, 2), (200, 120), (1000, 7)):
        shown = frame_steps(steps, frames)
        assert (shown[0], shown[-1]) == (0, steps)
        assert len(shown) <= frames
    with pytest.raises(ValueError, match="frames must be a whole number from 2"):
        frame_steps(10, 1)


def test_axes_of_ones_own_get_the_surface_and_a_legend(race: viz.Race) -> None:
    figure = Figure()
    axes = figure.add_subplot()
    assert race.plot(axes) is figure
    said = [text.get_text() for text in axes.get_legend().get_texts()]
    assert said == [
        "SGD lr=0.1, diverges at step 3",
        "Adam lr=0.3",
        "SGD lr=1e200, diverges at step 1",
        "start",
        "minimum",
    ]
    assert axes.get_aspect() == 1.0
    drawn = axes.lines[1].get_xydata()
    assert np.array_equal(drawn, race.points[1])
    assert np.abs(axes.lines[2].get_xydata()).max() < 1e3  # what is far outside is cut


def test_a_window_with_a_picture_and_an_animation(race: viz.Race) -> None:
    import matplotlib
    from matplotlib import pyplot

    matplotlib.use("Agg")
    figure = race.plot(dark=True)
    assert figure.get_facecolor()[:3] == pytest.approx(matplotlib.colors.to_rgb("#14181d"))
    assert len(figure.axes) == 2
    film = race.animate(frames=4)
    assert len(list(film.new_frame_seq())) == 4
    assert "step" in film.to_jshtml(fps=4)
    pyplot.close("all")


@pytest.mark.parametrize(
    ("formula", "start"),
    [
        ("3", (1, 1)),
        ("x", (1, 1)),
        ("1e5*x**2 + y**2/1e5", (3, 1)),
        ("log(x) + 1/x + y**4", (3, 1)),
    ],
)
def test_surfaces_that_are_flat_steep_or_have_holes_are_drawn(
    formula: str, start: tuple[float, float], tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = viz.race(["sgd lr=0.1", "adam lr=0.1"], formula, start=start, steps=5)
        found.save(tmp_path / "race.png")
    assert (tmp_path / "race.png").stat().st_size > 5000


def test_no_two_lines_look_alike() -> None:
    made = [tuple(map(str, style.values())) for style in styles(theme(False), 56)]
    assert len(set(made)) == 56


def test_a_page_is_asked_for_with_the_race_as_its_state(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {}
    page = types.ModuleType("fastopt.viz.explorer")
    page.write = lambda path, **given: asked.update(given, path=path)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fastopt.viz.explorer", page)
    adam = ["adam lr=0.1 betas=0.9,0.99 backend=numpy"]
    viz.race(adam, viz.surface("bowl", condition=9), seed=4).save(tmp_path / "race.html")
    assert asked["path"] == tmp_path / "race.html"
    state = asked["state"]
    assert json.loads(json.dumps(state))["surface"] == "bowl"
    assert (state["condition"], state["seed"], state["start"]) == (9, 4, [-10, 1.5])
    options = {"lr": 0.1, "betas": (0.9, 0.99)}
    assert state["optimizers"] == [{"name": "Adam", "options": options}]
    assert "theme" not in state
    viz.race(adam, "himmelblau").save(tmp_path / "race.html", dark=True)
    assert asked["state"]["theme"] == "dark"
    assert asked["state"]["surface"] == "formula"
    assert asked["state"]["formula"] == viz.surface("himmelblau").formula
    with pytest.raises(ValueError, match="was made by a function"):
        viz.race({"mine": fastopt.SGD}).save(tmp_path / "race.html")


def test_another_suffix_is_refused(race: viz.Race, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in one of \.png"):
        race.save(tmp_path / "race.bmp")
    for wrong in (0, -1, math.nan, "fast"):
        with pytest.raises(ValueError, match="fps must be a number"):
            race.save(tmp_path / "race.gif", fps=wrong)  # type: ignore[arg-type]  # that is tested


def test_without_matplotlib_numbers_are_written_and_pictures_say_what_to_install(
    race: viz.Race, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    race.save(tmp_path / "race.json")
    for name in ("race.png", "race.gif"):
        with pytest.raises(ImportError, match="pip install matplotlib pillow"):
            race.save(tmp_path / name)


def test_neither_the_package_nor_viz_loads_matplotlib() -> None:
    program = (
        "import sys, fastopt; assert 'fastopt.viz' not in sys.modules; fastopt.viz.race; "
        "print(sorted(sys.modules.keys() & {'matplotlib', 'PIL', 'numba', 'scipy'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"
