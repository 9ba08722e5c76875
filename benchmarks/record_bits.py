"""The bits that forty steps end in, of every optimizer under every option, to compare two trees.

    python benchmarks/record_bits.py --out before.json --tree OLD
    python benchmarks/record_bits.py --out after.json
    python benchmarks/record_bits.py --compare before.json after.json

Only what users may rely on is called. CuPy runs on the CUDA that this checkout's tests emulate.
A case's key says what is special about it; cases are chosen so that every two features meet in one.
``--detail`` with ``--only`` records every array apart.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import itertools
import json
import math
import random
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

HERE = Path(__file__).resolve().parent.parent
STEPS, RESUMED_AT = 40, 20
BACKENDS = ("numpy", "numba", "cupy")

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {"lr": 0.1}),
    "sgd_momentum": ("SGD", {"lr": 0.05, "momentum": 0.9, "dampening": 0.25}),
    "sgd_nesterov": ("SGD", {"lr": 0.05, "momentum": 0.8, "nesterov": True}),
    "sgd_lr_inside": ("SGD", {"lr": 0.05, "momentum": 0.9, "lr_inside": True}),
    "sgd_lr_inside_nesterov": (
        "SGD",
        {"lr": 0.05, "momentum": 0.8, "lr_inside": True, "nesterov": True},
    ),
    "momentum": ("Momentum", {"lr": 0.1}),
    "momentum_corrected": ("Momentum", {"lr": 0.1, "bias_correction": True}),
    "adagrad": ("Adagrad", {"lr": 0.05, "lr_decay": 0.1, "initial_accumulator_value": 0.1}),
    "adagrad_eps_inside": (
        "Adagrad",
        {"lr": 0.05, "eps_inside_sqrt": True, "eps": 1e-7, "initial_accumulator_value": 0.1},
    ),
    "rmsprop": ("RMSprop", {"lr": 0.02}),
    "rmsprop_eps_inside": ("RMSprop", {"lr": 0.02, "eps_inside_sqrt": True}),
    "rmsprop_eps_zero": ("RMSprop", {"lr": 0.02, "eps": 0.0}),
    "rmsprop_centered": ("RMSprop", {"lr": 0.02, "centered": True, "eps": 1e-3}),
    "rmsprop_momentum": ("RMSprop", {"lr": 0.02, "momentum": 0.9, "bias_correction": True}),
    "rmsprop_centered_momentum": (
        "RMSprop",
        {"lr": 0.02, "centered": True, "momentum": 0.5, "eps": 1e-3},
    ),
    "rmsprop_lr_inside": ("RMSprop", {"lr": 0.02, "momentum": 0.9, "lr_inside": True}),
    "rmsprop_centered_lr_inside": (
        "RMSprop",
        {"lr": 0.02, "centered": True, "momentum": 0.5, "lr_inside": True, "eps": 1e-3},
    ),
    "adadelta": ("Adadelta", {"lr": 1.0}),
    "adam": ("Adam", {"lr": 0.02}),
    "adam_uncorrected": ("Adam", {"lr": 0.02, "bias_correction": False}),
    "adam_eps_inside": ("Adam", {"lr": 0.02, "eps_inside_sqrt": True, "betas": (0.8, 0.95)}),
    "adam_eps_hat": ("Adam", {"lr": 0.02, "eps_hat": True}),
    "adam_amsgrad": ("Adam", {"lr": 0.02, "amsgrad": True}),
    "adamw": ("AdamW", {"lr": 0.02, "weight_decay": 0.1}),
    "adamw_amsgrad": ("AdamW", {"lr": 0.02, "amsgrad": True}),
}
DTYPES: dict[str, tuple[str, ...]] = {
    **{
        name: (name,)
        for name in ("float32", "float64", "float16", "bfloat16", "complex64", "complex128")
    },
    "several": ("float32", "bfloat16", "complex64", "float16"),
    "several64": ("float32", "float64", "complex128"),
}
STORAGE: dict[str, dict[str, Any]] = {
    "plain": {},
    "bfloat16": {"state_dtype": "bfloat16"},
    "int8": {"state_dtype": "int8", "seed": 7},
    "masterless": {"master_weights": False},
    "stochastic": {"master_weights": False, "stochastic_rounding": True},
    "stochastic_int8": {
        "master_weights": False,
        "stochastic_rounding": True,
        "state_dtype": "int8",
    },
    "masterless_bfloat16": {"master_weights": False, "state_dtype": "bfloat16", "seed": 2**63},
}
FACTORS: dict[str, tuple[str, ...]] = {
    "variant": tuple(VARIANTS),
    "dtype": tuple(DTYPES),
    "storage": tuple(STORAGE),
    "grads": ("same", "contiguous", "backwards", "other_dtype"),
    "clip": ("none", "acts", "idle", "measures"),
    "nonfinite": ("propagate", "skip", "raise"),
    "missing": ("no", "yes"),
    "bounds": ("none", "numbers", "numbers_reset", "arrays", "arrays_reset"),
    "decay": ("default", "some"),
    "maximize": ("no", "yes"),
    "scale": ("one", "quarter", "minus_two", "varying", "on_device"),
    "schedule": ("none", "cosine", "several", "plateau", "set"),
    "groups": ("one", "list", "pattern", "list_frozen", "pattern_thawed"),
    "moment": ("parts", "modulus"),
    "resume": ("none", "dict", "file"),
    "capturable": ("no", "yes"),
}
Case = dict[str, str]
"""A level of every factor; the first level is what is usual, and is not part of the key."""


# Which cases ----------------------------------------------------------------------------------


def valid(case: Case, backend: str) -> bool:
    """Return whether a case means something, and is no error."""
    dtypes, storage = DTYPES[case["dtype"]], case["storage"]
    real = all(np.dtype(_dtype(name)).kind != "c" for name in dtypes)
    wide = any(name in ("float64", "complex128") for name in dtypes)
    if wide and storage != "plain":
        return False
    halves = any(name in ("float16", "bfloat16") for name in dtypes)
    if not halves and storage not in ("plain", "bfloat16", "int8"):
        return False
    if not real and case["bounds"] != "none":
        return False
    name, options = VARIANTS[case["variant"]]
    squares = name in ("Adagrad", "RMSprop", "Adam", "AdamW") and not options.get("centered")
    if case["moment"] == "modulus" and (real or not squares):
        return False
    if case["nonfinite"] == "raise" and case["capturable"] == "yes":
        return False
    # Two mistakes of the tree before: the bounds of another leaf, or an IndexError; and a save that
    # does not find the parameters of frozen groups.
    if case["groups"].startswith("pattern") and case["bounds"].startswith("arrays"):
        return False
    if case["groups"] == "pattern_thawed" and case["resume"] == "file":
        return False
    if case["capturable"] == "yes" and backend != "cupy":
        return False
    return case["scale"] != "on_device" or (backend == "cupy" and case["nonfinite"] != "raise")


def key_of(case: Case) -> str:
    """Return a case's name without the backend."""
    usual = {factor: levels[0] for factor, levels in FACTORS.items()}
    special = [
        f"{factor}={level}"
        for factor, level in case.items()
        if factor not in ("variant", "dtype") and level != usual[factor]
    ]
    return " ".join([case["variant"], case["dtype"], *special])


def cases(backend: str) -> list[Case]:
    """Return the cases of a backend: each variant in each dtype, and every pair of levels."""
    each = {"cupy": 1}.get(backend, 3)
    chosen: dict[str, Case] = {}
    met: set[tuple[str, str, str, str]] = set()

    def choose(fixed: Case, tries: int) -> None:
        draw = random.Random(zlib.crc32(f"{fixed} {len(chosen)}".encode()))
        drawn = (_draw(draw, fixed) for _ in range(tries))
        found = [case for case in drawn if valid(case, backend)]
        if found:
            best = max(found, key=lambda case: len(_pairs(case) - met))
            chosen[key_of(best)] = best
            met.update(_pairs(best))

    for variant, dtype in itertools.product(VARIANTS, DTYPES):
        for _ in range(each):
            choose({"variant": variant, "dtype": dtype}, 60)
    for one, two in itertools.combinations(FACTORS, 2):
        for first, second in itertools.product(FACTORS[one], FACTORS[two]):
            if (one, first, two, second) not in met:
                choose({one: first, two: second}, 200)
    return list(chosen.values())


def _draw(draw: random.Random, fixed: Case) -> Case:
    """Draw a case; what is usual comes up in a third of the draws or more."""
    return {
        factor: fixed[factor]
        if factor in fixed
        else (levels[0] if draw.random() < 0.3 else draw.choice(levels))
        for factor, levels in FACTORS.items()
    }


def _pairs(case: Case) -> set[tuple[str, str, str, str]]:
    return {(a, case[a], b, case[b]) for a, b in itertools.combinations(case, 2)}


# What they are made of ------------------------------------------------------------------------


def _dtype(name: str) -> Any:
    return ml_dtypes.bfloat16 if name == "bfloat16" else np.dtype(name)


OTHER = {
    "float32": "float64",
    "float64": "float32",
    "float16": "float32",
    "bfloat16": "float32",
    "complex64": "complex128",
    "complex128": "complex64",
}
Cut = Callable[[Any], Any]
LEAVES: dict[str, tuple[int, Cut]] = {
    "W": (40, lambda buffer: buffer[2:37].reshape(7, 5)),
    "b": (3, lambda buffer: buffer[1:2].reshape(())),
    "empty": (2, lambda buffer: buffer[:0].reshape(3, 0)),
    "fortran": (24, lambda buffer: buffer.reshape(4, 6).T),
    "strided": (70, lambda buffer: buffer[::2]),
    "reversed": (33, lambda buffer: buffer[::-1]),
    "turned": (12, lambda buffer: buffer.reshape(3, 1, 4).transpose(2, 1, 0)),
    "columns": (66, lambda buffer: buffer.reshape(6, 11)[:, 4:]),
    "long": (4_500, lambda buffer: buffer),
    "long_fortran": (4_620, lambda buffer: buffer.reshape(66, 70).T),
}
"""By name the size of a buffer, and what array is cut out of it."""
TREE: dict[str, tuple[str, ...]] = {
    "net": ("W", "b", "empty"),
    "layers": ("fortran", "strided", "reversed"),
    "conv": ("turned", "columns"),
    "table": ("long", "long_fortran"),
}


def tree_of(leaves: Mapping[str, Any], branches: Sequence[str] = tuple(TREE)) -> dict[str, Any]:
    """Return leaves by name in a tree of dicts, lists and tuples."""
    made: dict[str, Any] = {}
    for branch in branches:
        inner = {name: leaves[name] for name in TREE[branch]}
        kinds: dict[str, Any] = {"layers": list(inner.values()), "conv": tuple(inner.values())}
        made[branch] = kinds.get(branch, inner)
    return made


FIRST, SECOND = ("net", "conv"), ("layers", "table")


def values(rng: np.random.Generator, size: int, dtype: str, small: float, large: float) -> Any:
    """Return numbers of both signs with sizes between powers of ten, some of them zero."""
    some = rng.standard_normal(size) * 10.0 ** rng.uniform(small, large, size)
    some[rng.random(size) < 0.04] = 0.0
    some[rng.random(size) < 0.04] = -0.0
    if np.dtype(_dtype(dtype)).kind == "c":
        some = some + 1j * np.roll(some, 5)
    return some.astype(_dtype(dtype))


class Run:
    """A case on a backend: its arrays, its optimizer, its steps."""

    def __init__(self, case: Case, xp: Any, backend: str) -> None:
        self.case, self.xp, self.backend = case, xp, backend
        self.fastopt: Any = importlib.import_module("fastopt")
        self.rng = np.random.default_rng(zlib.crc32(key_of(case).encode()))
        dtypes = DTYPES[case["dtype"]]
        self.dtype = {name: dtypes[k % len(dtypes)] for k, name in enumerate(LEAVES)}
        self.seen: list[Any] = []
        self.losses = np.random.default_rng(1).uniform(0.9, 1.1, STEPS)
        self.bounds = {
            name: np.abs(values(self.rng, cut(np.empty(size)).size, "float32", -2, 0)).reshape(
                cut(np.empty(size)).shape
            )
            for name, (size, cut) in LEAVES.items()
        }
        self.memory = self._buffers(lambda name, size: values(self.rng, size, name, -2, 0))
        self.opt, self.plateau = self._optimizer()

    def _buffers(self, make: Callable[[str, int], Any]) -> dict[str, Any]:
        return {
            name: self.xp.asarray(make(self.dtype[name], size))
            for name, (size, _) in LEAVES.items()
        }

    def _optimizer(self) -> tuple[Any, Any]:
        case = self.case
        leaves = {name: cut(self.memory[name]) for name, (_, cut) in LEAVES.items()}
        name, defaults = VARIANTS[case["variant"]]
        options = {**defaults, **STORAGE[case["storage"]], "backend": self.backend}
        plateau = None
        if case["clip"] != "none":
            options["max_grad_norm"] = {"acts": 0.5, "idle": 1e9, "measures": math.inf}[
                case["clip"]
            ]
        options["on_nonfinite"] = case["nonfinite"]
        if case["decay"] == "some":
            options["weight_decay"] = 0.05
        if case["maximize"] == "yes":
            options["maximize"] = True
        if case["moment"] == "modulus":
            options["complex_moment"] = "modulus"
        if case["capturable"] == "yes":
            options["capturable"] = True
        if case["bounds"].endswith("reset"):
            options["reset_at_bounds"] = True
        lr, schedules = options["lr"], self.fastopt.schedules
        if case["schedule"] in ("cosine", "several"):
            cosine = schedules.cosine(lr, total_steps=50, lr_min=lr / 100)
            options["lr"] = schedules.warmup(cosine, warmup_steps=5, start_factor=0.1)
        if case["schedule"] == "several":
            options["weight_decay"] = schedules.linear(0.1, 1.0, 0.1, total_steps=30)
            for option in ("momentum", "beta"):
                if option in options and not options.get("bias_correction"):
                    options[option] = schedules.one_cycle(options[option], total_steps=45)
        if case["schedule"] == "plateau":
            plateau = schedules.ReduceLROnPlateau(lr, factor=0.5, patience=3)
            options["lr"] = plateau
        return getattr(self.fastopt, name)(self._grouped(leaves, options), **options), plateau

    def _grouped(self, leaves: Mapping[str, Any], options: dict[str, Any]) -> Any:
        """Return the parameters in the case's groups, with bounds where there are such."""
        kind = self.case["bounds"].partition("_")[0]
        bounded = kind != "none"

        def bounds(*branches: str) -> Any:
            if kind == "numbers":
                return (-0.9, 0.75)
            upper = tree_of(self.bounds, branches or tuple(TREE))
            return (-0.9, upper)

        other = {"lr": 0.03, "weight_decay": 0.02, "maximize": self.case["maximize"] == "no"}
        if self.case["groups"] == "one" or self.case["groups"].startswith("pattern"):
            tree = tree_of(leaves)
            if bounded:
                options["bounds"] = bounds()
            if self.case["groups"] == "one":
                return tree
            patterns: dict[str, dict[str, Any]] = {"**/b": {"weight_decay": 0}, "layers.*": other}
            if self.case["groups"] == "pattern_thawed":
                patterns["table.*"] = {"trainable": False}
            return self.fastopt.groups(tree, patterns)
        first = {"params": tree_of(leaves, FIRST)}
        second = {"params": tree_of(leaves, SECOND), **other}
        groups: list[dict[str, Any]] = [first, second]
        if bounded:
            first["bounds"], second["bounds"] = bounds(*FIRST), bounds(*SECOND)
        if self.case["groups"] == "list_frozen":
            first["trainable"] = False
        return groups

    def _gradients(self, step: int) -> Any:
        case, made = self.case, {}
        bad = case["nonfinite"] != "propagate" and step in (5, 6, 19, 30)
        for k, (name, (size, cut)) in enumerate(LEAVES.items()):
            dtype = self.dtype[name]
            other = case["grads"] == "other_dtype"
            drawn = values(self.rng, size, OTHER[dtype] if other else dtype, -3, 1)
            if bad and name in ("long" if step % 2 else "strided", "W"):
                drawn[2 * (size // 4)] = (np.nan, np.inf, -np.inf)[step % 3]
            gradient = cut(self.xp.asarray(drawn))
            if case["grads"] == "contiguous":
                plain = np.ascontiguousarray(cut(drawn)).reshape(cut(drawn).shape)
                gradient = self.xp.asarray(plain)
                if self.xp is np:
                    gradient.flags.writeable = False
            elif case["grads"] == "backwards" and gradient.ndim:
                gradient = self.xp.asarray(np.ascontiguousarray(cut(drawn)[::-1]))[::-1]
            absent = case["missing"] == "yes" and (step % 4 == k % 7 or step == 11)
            made[name] = None if absent else gradient
        if case["groups"].startswith("list"):
            return [tree_of(made, FIRST), tree_of(made, SECOND)]
        return tree_of(made)

    def _scale(self, step: int) -> Any:
        varying = (1.0, 0.3, 2.0, 0.125)[step % 4]
        scale = {"one": 1.0, "quarter": 0.25, "minus_two": -2.0}.get(self.case["scale"], varying)
        return self.xp.asarray(np.float32(scale)) if self.case["scale"] == "on_device" else scale

    def _before(self, step: int) -> None:
        opt = self.opt
        if self.case["schedule"] == "set" and step in (7, 23):
            opt.param_groups[0]["lr"] = 0.005 * step
            opt.param_groups[-1]["weight_decay"] = 0.01
        if self.case["groups"] == "pattern_thawed" and step == 25:
            opt.param_groups[-1]["trainable"] = True
        if step == RESUMED_AT and self.case["resume"] != "none":
            self._resume()

    def _resume(self) -> None:
        """Go on with another optimizer on other arrays."""
        self._note()
        before = self.opt
        if self.case["resume"] == "dict":
            self.memory = {
                name: self.xp.asarray(_on_host(buffer)) for name, buffer in self.memory.items()
            }
            self.opt, self.plateau = self._optimizer()
            self.opt.load_state_dict(before.state_dict())
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "run.safetensors"
            before.save(path)
            self.memory = self._buffers(lambda dtype, size: np.zeros(size, _dtype(dtype)))
            self.opt, self.plateau = self._optimizer()
            self.opt.load(path)

    def _note(self) -> None:
        self.seen.append((int(self.opt.skipped_steps), _number(self.opt.grad_norm)))

    def go(self) -> dict[str, str]:
        """Make the steps; return hashes of all that they end in, by name."""
        for step in range(STEPS):
            self._before(step)
            grads, scale = self._gradients(step), self._scale(step)
            try:
                self.opt.step(grads, grad_scale=scale)
            except FloatingPointError:
                if self.case["nonfinite"] != "raise":
                    raise
                self.seen.append(step)
            if self.plateau is not None:
                self.plateau.report(float(self.losses[step]))
        self._note()
        saved = self.opt.state_dict()
        end = {f"param:{name}": _hash(_on_host(x)) for name, x in self.memory.items()}
        for name, entry in saved["state"].items():
            for slot, value in entry.items():
                end[f"state:{name}.{slot}"] = _hash(np.asarray(value))
        counts = (int(self.opt.step_count), int(saved["step_count"]), self.seen)
        return end | {"counts": _short(repr(counts).encode())}


def _number(norm: Any) -> str:
    return "none" if norm is None else float(norm).hex()


def _on_host(array: Any) -> Any:
    return np.array(array.get() if hasattr(array, "get") else array)


def _hash(array: Any) -> str:
    """Return a hash of an array's bits, with one pattern for all NaN."""
    plain = np.array(array, order="C")
    about = f"{plain.dtype.name} {plain.shape} "
    if plain.dtype.kind == "c":
        plain = plain.reshape(-1).view(f"f{plain.dtype.itemsize // 2}")
    if plain.dtype.kind == "f" or plain.dtype.name == "bfloat16":
        plain[np.isnan(plain)] = np.nan
    if plain.dtype.kind not in "fuib" and plain.dtype.name != "bfloat16":
        return _short((about + repr(plain.tolist())).encode())
    return _short(about.encode() + plain.tobytes())


def _short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


# All of them ----------------------------------------------------------------------------------


def use_tree(tree: Path) -> None:
    """Import fastopt and its kernels from a tree, and the emulated CUDA from this one."""
    sys.path[:0] = [str(tree), str(tree / "kernels"), str(HERE / "tests")]
    found = Path(str(importlib.import_module("fastopt").__file__)).resolve()
    if tree.resolve() not in found.parents:
        raise SystemExit(f"fastopt was imported from {found}, not from {tree}")


def namespace(backend: str) -> Any:
    """Return the arrays' module."""
    if backend != "cupy":
        return np
    importlib.import_module("helpers.cuda.emulation.cuda").installed()
    return importlib.import_module("cupy")


def record(backends: Sequence[str], only: str, detail: bool) -> Iterator[tuple[str, str]]:
    """Yield keys and hashes."""
    for backend in backends:
        start, count, failed = time.perf_counter(), 0, 0
        xp = namespace(backend)
        with np.errstate(all="ignore"):
            for case in cases(backend):
                key = f"{backend} {key_of(case)}"
                if not all(word in key.split() for word in only.split()):
                    continue
                count += 1
                try:
                    end = Run(case, xp, backend).go()
                except Exception as error:
                    failed += 1
                    print(f"{key}\n    {type(error).__name__}: {error}"[:600], file=sys.stderr)
                    yield key, f"error: {type(error).__name__}"
                    continue
                if detail:
                    yield from ((f"{key} | {name}", end[name]) for name in sorted(end))
                else:
                    yield key, _short(repr(sorted(end.items())).encode())
        seconds = time.perf_counter() - start
        print(f"{backend}: {count} cases, {failed} errors, {seconds:.0f} s", file=sys.stderr)


def compare(before: Path, after: Path) -> int:
    """Print what differs; return 1 if a key that both have does."""
    one, two = (json.loads(path.read_text()) for path in (before, after))
    shared = [key for key in one if key in two]
    differing = [key for key in shared if one[key] != two[key]]
    for key in differing:
        errors = [f"{x[key]}" for x in (one, two) if x[key].startswith("error")]
        print(f"differs: {key}", *([f"({one[key]} -> {two[key]})"] if errors else []))
    for path, mine, other in ((before, one, two), (after, two, one)):
        for key in mine:
            if key not in other:
                print(f"only in {path}: {key}")
    print(f"{len(shared)} shared keys, {len(differing)} differ")
    return int(bool(differing))


def main(argv: Sequence[str] | None = None) -> int:
    """Record, or compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="where the hashes go, as JSON by key")
    parser.add_argument(
        "--tree",
        type=Path,
        default=HERE,
        help="the checkout whose fastopt is run (this one)",
    )
    parser.add_argument("--backends", default=",".join(BACKENDS), help="which, with commas")
    parser.add_argument("--only", default="", help="words that a key must have")
    parser.add_argument("--detail", action="store_true", help="a key for every array of a case")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("BEFORE", "AFTER"))
    given = parser.parse_args(argv)
    if given.compare:
        return compare(*given.compare)
    if given.out is None:
        parser.error("--out says where the hashes go; --compare takes two such files")
    use_tree(given.tree)
    found = dict(record(given.backends.split(","), given.only, given.detail))
    given.out.write_text(json.dumps(found, indent=0) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
