"""The examples do what they say: right gradients, 97 % of the digits, the same on every backend."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import norm

import fastopt
from helpers.cuda.device import emulated
from helpers.ranks.starting import launcher
from helpers.variants import CPU_BACKENDS

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def digits() -> ModuleType:
    return load("train_digits")


def test_the_digits_gradients_are_those_of_finite_differences(digits: ModuleType) -> None:
    rng = np.random.default_rng(0)
    params = {k: v.astype(np.float64) for k, v in digits.initial_params(np, rng).items()}
    training, _ = digits.load_images(np)
    x, y = training.x[:8].astype(np.float64), training.y[:8].astype(np.float64)
    _, grads = digits.loss_and_gradients(np, params, x, y)
    for name, array in params.items():
        for index in rng.integers(0, array.size, 5):
            at = np.unravel_index(index, array.shape)
            kept, losses = array[at], []
            for change in (1e-6, -1e-6):
                array[at] = kept + change
                losses.append(float(digits.loss_and_gradients(np, params, x, y)[0]))
            array[at] = kept
            assert grads[name][at] == pytest.approx((losses[0] - losses[1]) / 2e-6, abs=1e-8)


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "rmsprop"])
def test_97_percent_of_the_digits_are_read_and_the_backends_print_the_same(
    digits: ModuleType, optimizer: str, tmp_path: Path, capsys: Any
) -> None:
    told = []
    for backend in CPU_BACKENDS:
        picture = tmp_path / f"{backend}.png"
        with fastopt.use_backend(backend):
            digits.main(["--optimizer", optimizer, "--picture", str(picture)])
        line = capsys.readouterr().out
        assert f"on {backend}: " in line
        assert picture.read_bytes().startswith(b"\x89PNG")
        told.append(line.split(": ")[1].split(" s of training")[0].rpartition(",")[0])
        assert float(told[-1].split("%")[0]) >= 97.0
    assert len(set(told)) == 1


@pytest.mark.parametrize("name", ["train_digits", "cuda_graph"])
def test_a_backend_that_cannot_run_is_one_clear_line(name: str) -> None:
    cuda = emulated()
    with nullcontext() if cuda is None else cuda.devices(0):
        if fastopt.available_backends()["cupy"] is None:
            pytest.skip("a GPU is here")
        with fastopt.use_backend("cupy"), pytest.raises(SystemExit, match="'cupy' cannot run"):
            load(name).main([])


def test_the_graphs_network_is_that_of_the_digits(digits: ModuleType) -> None:
    graph = load("cuda_graph")
    network = graph.Network(np, np.random.default_rng(0))
    training, _ = digits.load_images(np)
    network.x[...], network.y[...] = (a[: graph.BATCH_SIZE] for a in (training.x, training.y))
    network.forward()
    network.backward()
    loss, grads = digits.loss_and_gradients(np, network.params, network.x, network.y)
    assert float(network.loss) == pytest.approx(-float(loss) * graph.BATCH_SIZE, rel=1e-6)
    for name, grad in grads.items():
        np.testing.assert_allclose(network.grads[name], grad, rtol=1e-4, atol=1e-7)


def test_the_graphs_training_ends_in_the_same_losses_on_every_backend(capsys: Any) -> None:
    graph, told = load("cuda_graph"), []
    for backend in CPU_BACKENDS:
        with fastopt.use_backend(backend):
            graph.main(["--epochs", "8"])
        first, second = capsys.readouterr().out.splitlines()
        assert second.startswith(f"448 steps on {backend}, made one after another: ")
        told.append(first)
    assert len(set(told)) == 1
    assert float(told[0].split()[-4]) < 0.15
    with pytest.raises(SystemExit):
        graph.main(["--epochs", "0"])


def test_the_schedules_are_drawn_under_the_words_that_make_them(tmp_path: Path) -> None:
    example = load("schedules")
    example.main(["--out", str(tmp_path)])
    assert (tmp_path / "schedules.png").read_bytes().startswith(b"\x89PNG")
    drawn = set()
    for words, schedule in example.SCHEDULES.items():
        said = eval(words, vars(example))
        drawn.add(type(said).__name__)
        assert example.values(said, 1000) == example.values(schedule, 1000)
        assert repr(said) == repr(schedule) or words.startswith("lambda")
    assert drawn - {"function"} == set(fastopt.schedules.__all__) - {"Schedule"}
    with pytest.raises(SystemExit):
        example.main(["--steps", "0"])


def test_the_paths_are_drawn(tmp_path: Path) -> None:
    load("paths").main(["--out", str(tmp_path)])
    assert {"paths_momentum.png", "paths_rmsprop.png"} <= {p.name for p in tmp_path.iterdir()}


# Many fits ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many_fits() -> ModuleType:
    return load("many_fits")


def test_the_gradients_of_steps_are_those_of_finite_differences(many_fits: ModuleType) -> None:
    rng = np.random.default_rng(0)
    steps = many_fits.Steps(np, rng.standard_normal((3, 31)))
    params = {name: rng.uniform(0.2, 0.9, 3) for name in many_fits.BOUNDS}
    _, grads = steps(params)
    for name, array in params.items():
        kept, values = array.copy(), []
        for change in (1e-6, -1e-6):
            array[:] = kept + change
            values.append(steps(params)[0])
        array[:] = kept
        assert grads[name] == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_steps_that_were_made_are_found(many_fits: ModuleType, backend: str) -> None:
    rng = np.random.default_rng(0)
    x = np.linspace(-1.0, 1.0, many_fits.POINTS)
    made = {"level": 0.1, "slope": -0.3, "height": 1.5, "place": 0.35, "width": 0.2}
    z = many_fits.Steps(np, x[None]).model({n: np.full(40, v) for n, v in made.items()})[0]
    z = z + 1e-3 * rng.standard_normal(z.shape)
    with fastopt.use_backend(backend):
        params, values, result = many_fits.fit(np, z, maxiter=2000, progress=False)
    assert len(result.members.fun) == 3 * 40
    assert (values < 1e-3).mean() > 0.9
    for name, value in made.items():
        assert np.median(params[name]) == pytest.approx(value, abs=0.02)


def test_many_fits_prints_and_draws(
    many_fits: ModuleType, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = []
    for backend in CPU_BACKENDS:
        monkeypatch.setenv("FASTOPT_BACKEND", backend)
        picture = tmp_path / f"{backend}.png"
        many_fits.main(["--rows", "10", "--maxiter", "40", "--picture", str(picture)])
        assert picture.stat().st_size > 10_000
        ends.append(capsys.readouterr().out.splitlines()[-1])
        assert ends[-1].startswith("the median fit explains ")
    assert len(set(ends)) == 1


# autograd ----------------------------------------------------------------------------------------


def test_a_network_of_autograd_ends_as_by_its_own_adam(capsys: Any) -> None:
    net = load("autograd_net")
    net.main(["--compare", "--steps", "300"])
    ours, theirs = capsys.readouterr().out.splitlines()
    assert float(ours.split()[1]) > 95.0
    assert float(theirs.split()[3]) > 95.0
    assert float(theirs.split()[-3]) < 1e-12


def test_a_network_of_autograd_takes_any_optimizer(capsys: Any) -> None:
    net = load("autograd_net")
    for name in ("lion", "adan"):
        net.main(["--optimizer", name, "--steps", "200"])
        assert float(capsys.readouterr().out.split()[1]) > 85.0


# scikit-learn, thinc and JAX ---------------------------------------------------------------------


def numbers(line: str) -> list[float]:
    """Return the numbers of a line, in order."""
    return [float(number) for number in re.findall(r"-?\b\d+(?:\.\d+)?(?:e[+-]\d+)?\b", line)]


@pytest.mark.filterwarnings("error::sklearn.exceptions.ConvergenceWarning")
def test_scikit_learns_network_is_the_same_here_is_searched_and_goes_on(capsys: Any) -> None:
    load("sklearn_digits").main([])
    theirs, ours, losses, *searched, half, whole, bits = capsys.readouterr().out.splitlines()
    assert theirs.startswith("scikit-learn: ")
    assert ours.startswith("fastopt: ")
    assert numbers(theirs)[:2] == numbers(ours)[:2]  # right, and epochs
    assert numbers(ours)[0] > 95.0
    assert numbers(losses)[0] < 1e-9
    *tried, chosen = searched
    scores = {line.split(":")[0]: numbers(line)[1] for line in tried}
    assert [*scores] == ["adam at 0.003", "adam at 0.01", "yogi at 0.01", "yogi at 0.03"]
    assert min(scores.values()) > 95.0
    assert scores[chosen.removeprefix("chosen: ").split(",")[0]] == max(scores.values())
    assert numbers(chosen)[1] > 95.0
    assert numbers(half)[1:] == [10, 70]
    assert numbers(whole)[1:] == [20, 140]
    assert 90.0 < numbers(half)[0] < numbers(whole)[0]
    assert bits == "the weights are those of 20 epochs in one go"


def test_a_model_of_thinc_ends_as_by_its_own_adam_and_takes_others(capsys: Any) -> None:
    pytest.importorskip("thinc")
    example = load("thinc_digits")
    example.main([])
    moved, *compared = capsys.readouterr().out.splitlines()
    assert numbers(moved)[0] == 275
    assert numbers(moved)[1] > 0.1
    for name in example.SAME:
        line = compared.pop(0)
        assert line.startswith(f"same: {name}: ")
        assert max(numbers(line)[-2:]) < 1e-4
    for name in example.OTHERWISE:
        line = compared.pop(0)
        assert line.startswith(f"otherwise: {name}: ")
        assert min(numbers(line)[-2:]) > 2e-5
    theirs, ours, *others = compared
    assert theirs.startswith("thinc's Adam: ")
    assert ours.startswith("fastopt's Adam: ")
    for one, other in zip(numbers(theirs)[:2], numbers(ours)[:2], strict=True):
        assert other == pytest.approx(one, abs=1.0)
    assert [line.split(":")[0] for line in others] == [*example.OTHERS]
    for line in compared:
        assert min(numbers(line)[:2]) > 90.0


@pytest.fixture
def jax_fit() -> ModuleType:
    pytest.importorskip("jax")
    return load("jax_fit")


def test_a_fit_by_jax_comes_to_scipys_minimum(jax_fit: ModuleType, capsys: Any) -> None:
    known, held = (
        (np.c_[of.x, np.ones(len(of.x))].astype(np.float64), of.y) for of in jax_fit.data()
    )

    def value(flat: Any, x: Any, y: Any) -> Any:
        mean = x @ flat[:11]
        return -norm.logpdf(y, mean, np.exp((flat[11] + flat[12] * mean) / 2)).mean()

    least = minimize(value, np.zeros(13), known, method="BFGS", options={"gtol": 1e-4})
    for optimizer in ("adam", "lion"):
        jax_fit.main(["--optimizer", optimizer])
        squares, ours, spread, *_ = capsys.readouterr().out.splitlines()
        assert ours.startswith(f"{optimizer}: ")
        assert numbers(ours)[0] == pytest.approx(least.fun, abs=1e-3)
        assert numbers(ours)[1] == pytest.approx(value(least.x, *held), abs=5e-3)
        assert all(a < b for a, b in zip(numbers(ours), numbers(squares), strict=True))
        low, _, high, _, one = numbers(spread)
        assert low < one < high
        assert (low, high) == pytest.approx(
            np.exp((least.x[11] + least.x[12] * np.array([-1, 1])) / 2), abs=0.02
        )


def test_a_fit_by_jax_is_that_of_optax(jax_fit: ModuleType, capsys: Any) -> None:
    pytest.importorskip("optax")
    jax_fit.main(["--steps", "300"])
    theirs = capsys.readouterr().out.splitlines()[-1]
    assert theirs.startswith("optax's own Adam: ")
    assert numbers(theirs)[-1] < 1e-4


def test_a_fit_by_jax_needs_no_optax(
    jax_fit: ModuleType, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax_fit, "optax", None)
    jax_fit.main(["--steps", "10"])
    told = capsys.readouterr().out.splitlines()
    assert told[-1] == "optax is not installed: nothing to compare with"
    with pytest.raises(SystemExit):
        jax_fit.main(["--steps", "1"])


# Several processes -------------------------------------------------------------------------------


def test_the_digits_end_in_the_same_weights_on_any_number_of_ranks() -> None:
    pytest.importorskip("mpi4py")
    mpiexec = launcher()
    if mpiexec is None:
        pytest.skip("needs mpiexec")
    told = []
    for ranks, backend, flags in (
        (1, "numpy", []),
        (2, CPU_BACKENDS[-1], ["--sharded"]),
        (3, "numpy", []),
    ):
        program = [sys.executable, str(EXAMPLES / "train_digits_mpi.py"), "--epochs", "4", *flags]
        done = subprocess.run(
            [mpiexec, "-n", str(ranks), *program],
            capture_output=True,
            text=True,
            env=os.environ
            | {
                "FASTOPT_BACKEND": backend,
                "PYTHONPATH": os.pathsep.join(map(str, [ROOT, ROOT / "kernels", *sys.path])),
            },
        )
        assert done.returncode == 0, done.stderr
        start = f"{'Sharded' if flags else 'DataParallel'} on {ranks} x {backend}: "
        assert done.stdout.startswith(start)
        assert len(done.stdout.splitlines()) == 1
        told.append(done.stdout.removeprefix(start))
    found = re.fullmatch(
        r"(.*)% of 450 held-out digits read correctly, training loss (.*), weights [0-9a-f]{16}\n",
        told[0],
    )
    assert found is not None
    assert float(found[1]) > 90.0
    assert len(set(told)) == 1
