"""Every optimizer against Adam and PyTorch, in turns; and Muon against PyTorch's iteration.

    python benchmarks/rules.py [--json PATH] [--parts NAME ...] [--only NAME ...]

``bytes``: one array of 20 M, against the time that its own bytes take at Adam's bandwidth (a rule
with sums reads what it sums in a pass of its own first). ``small``: ten arrays of 1 000, against
Adam. ``matrices``: optimizers on whole arrays, on 24 of 512 x 512 and ten of 25 x 40, against Adam
on the same. ``torch``: against the fastest of PyTorch's forms of the same class, at four sizes.
``muon``: 24 matrices of 512 x 512 against PyTorch's iteration in float32, and against its class,
which iterates in bfloat16. Parts and optimizers that are not asked for stay as they are in the
file, which is ``results/rules.json`` unless PATH is given.
"""

from __future__ import annotations

import dis
import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import command_line
import numpy as np

import fastopt
from fastopt.cli.main import machine
from fastopt.cli.table import aligned
from fastopt.cli.timing import Effort, Turn, take_turns
from fastopt_kernels import Rule

VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("SGD", {"momentum": 0.9}),
    ("RMSprop", {"momentum": 0.9}),
    ("RMSprop", {"centered": True}),
    ("RMSprop", {"centered": True, "momentum": 0.9}),
    ("Adam", {"amsgrad": True}),
)
"""What brings other state than the defaults do."""


LARGE = 20_000_000
SMALL = (10, 1_000)
MATRICES = ((24, 512, 512), (10, 25, 40))
"""What optimizers on whole arrays are measured on: so many arrays, and their shape."""
TORCH_SIZES = ((10, 10), (10, 1_000), (1, 100_000), (1, LARGE))
TORCH: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("Adagrad", "Adadelta", "Adam", "AdamW", "Adamax", "NAdam", "RAdam")},
    **{name: {} for name in ("RMSprop", "Rprop", "ASGD", "Adafactor")},
    "SGD": {"momentum": 0.9},
}
"""What PyTorch has a class of the same name for, and the options of both."""
FORMS: tuple[dict[str, bool], ...] = ({"fused": True}, {"foreach": True}, {"foreach": False})
RESULTS = Path(__file__).parent / "results" / "rules.json"

Tell = Callable[[str], None]
Candidate = tuple[str, dict[str, Any]]


def measure(parameters: int, effort: Effort, backend: str, tell: Tell) -> list[dict[str, Any]]:
    """Return of every optimizer its bytes per parameter, its time on one array, and the ratio.

    Each takes turns with Adam, so that both see the same bandwidth. ``ratio`` is the time over what
    its bytes take at Adam's bandwidth.
    """
    return against_adam(elementwise(), (1, parameters), effort, backend, tell)


def against_adam(
    candidates: Sequence[Candidate],
    size: tuple[int, ...],
    effort: Effort,
    backend: str,
    tell: Tell,
) -> list[dict[str, Any]]:
    """Return of each optimizer the time of a step at a size, and of Adam's in the same turns.

    The size is the number of arrays, and their shape. Of an optimizer that does part of its work at
    an interval, the time is the mean of the steps from one such to the next. What a rule's bytes
    would take is left out of those on whole arrays, which go over them many times.
    """
    arrays, *shape = size
    rng = np.random.default_rng(0)
    grads = [rng.standard_normal(shape, np.float32) for _ in range(arrays)]
    adam = _turn("Adam", {}, grads, backend)
    rows = []
    for name, options in candidates:
        label, steps = _label(name, options), _interval(name)
        tell(f"{label} against Adam, {' x '.join(map(str, size))}")
        times = take_turns({"Adam": adam, label: _turn(name, options, grads, backend)}, effort)
        rule, adams = times[label], times["Adam"]
        times_adam = rule.median / steps / adams.median
        row = {
            "name": label,
            "arrays": arrays,
            "parameters": arrays * math.prod(shape),
            "state_bytes_per_parameter": state_bytes(name, options),
            "seconds": rule.median / steps,
            "adam_seconds": adams.median,
            "times_adam": times_adam,
            "spread": max(rule.high / rule.low, adams.high / adams.low),
        }
        if _takes_elements(name):
            traffic = bytes_per_parameter(name, options)
            row["sums"] = _sums(name, options)
            row["bytes_per_parameter"] = traffic
            row["ratio"] = times_adam * bytes_per_parameter("Adam", {}) / traffic
        rows.append(row)
    return rows


def against_torch(
    names: Sequence[str], size: tuple[int, int], effort: Effort, backend: str, tell: Tell
) -> list[dict[str, Any]]:
    """Return the times of optimizers and of all that PyTorch's class of the same name can be."""
    import torch

    torch.set_num_threads(2)
    arrays, elements = size
    rows = []
    for name in names:
        options, shape = TORCH[name], (elements,)
        tell(f"{name} against PyTorch's, {arrays} x {elements}")
        rng = np.random.default_rng(0)
        grads = [rng.standard_normal(shape, np.float32) for _ in range(arrays)]
        turns = {"fastopt": _turn(name, options, grads, backend)}
        kind = getattr(torch.optim, name)
        for form in FORMS:
            params = [torch.ones(shape).requires_grad_() for _ in grads]
            for param, grad in zip(params, grads, strict=True):
                param.grad = torch.from_numpy(grad)
            try:
                turns[_label("torch", form)] = Turn(kind(params, **options, **form).step)
            except (RuntimeError, TypeError):  # a form that this class does not have
                continue
        if len(turns) == 1:  # a class with one form
            params = [torch.ones(shape).requires_grad_() for _ in grads]
            for param, grad in zip(params, grads, strict=True):
                param.grad = torch.from_numpy(grad)
            turns["torch"] = Turn(kind(params, **options).step)
        times = take_turns(turns, effort)
        ours = times.pop("fastopt")
        fastest = min(times, key=lambda form: times[form].median)
        theirs = times[fastest]
        rows.append(
            {
                "name": name,
                "arrays": arrays,
                "elements": elements,
                "seconds": ours.median,
                "torch_form": fastest,
                "torch_seconds": theirs.median,
                "ratio": theirs.median / ours.median,
                "spread": max(ours.high / ours.low, theirs.high / theirs.low),
            }
        )
    return rows


def against_muon(size: tuple[int, int], effort: Effort, tell: Tell) -> list[dict[str, Any]]:
    """Return the times of Muon on so many square matrices, and of three ways PyTorch has of it."""
    import torch

    torch.set_num_threads(2)
    matrices, side = size
    tell(f"Muon on {matrices} x {side} x {side}")
    rng = np.random.default_rng(0)
    grads = [rng.standard_normal((side, side), np.float32) for _ in range(matrices)]
    given = [torch.from_numpy(grad) for grad in grads]
    params = [torch.ones(side, side).requires_grad_() for _ in grads]
    for param, grad in zip(params, given, strict=True):
        param.grad = grad
    moments, moved = ([torch.zeros(side, side) for _ in grads] for _ in range(2))

    def orthogonalized(u: Any, products: Callable[..., Any]) -> Any:
        a, b, c = 3.4445, -4.775, 2.0315
        x = u / u.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
        for _ in range(5):
            gram = x @ x.mT
            inner = products(gram, gram, gram, beta=b, alpha=c)
            x = products(x, inner, x, beta=a)
        return x

    def updated(batched: bool) -> None:
        torch._foreach_lerp_(moments, given, 0.05)
        ahead = torch._foreach_lerp(given, moments, 0.95)
        if batched:
            found = list(orthogonalized(torch.stack(ahead), torch.baddbmm))
        else:
            found = [orthogonalized(u, torch.addmm) for u in ahead]
        torch._foreach_mul_(moved, 1 - 1e-4)
        torch._foreach_add_(moved, found, alpha=-1e-3)

    turns = {
        "fastopt": _turn("Muon", {}, grads, "numpy"),
        "torch float32, batched": Turn(lambda: updated(True)),
        "torch float32, one by one": Turn(lambda: updated(False)),
        "torch.optim.Muon, bfloat16": Turn(torch.optim.Muon(params).step),
    }
    times = take_turns(turns, effort)
    ours = times["fastopt"]
    return [
        {
            "name": name,
            "arrays": matrices,
            "elements": side * side,
            "seconds": found.median,
            "ratio": found.median / ours.median,
            "spread": max(found.high / found.low, ours.high / ours.low),
        }
        for name, found in times.items()
    ]


def _label(name: str, options: Mapping[str, Any]) -> str:
    return ", ".join([name, *(f"{k}={v}" for k, v in options.items())])


def _candidates() -> list[Candidate]:
    """Return every optimizer but Adam, and the variants."""
    return [(name, {}) for name in fastopt.optimizers.names() if name != "Adam"] + [*VARIANTS]


def elementwise() -> list[Candidate]:
    """Return those whose rules go by elements, with sums or without."""
    return [one for one in _candidates() if _takes_elements(one[0])]


def on_whole_arrays() -> list[Candidate]:
    """Return those whose rules look at whole arrays: their rows, columns, singular values."""
    return [one for one in _candidates() if not _takes_elements(one[0])]


def _rule(name: str, options: Mapping[str, Any]) -> Any:
    optimizer = getattr(fastopt, name)
    return optimizer._rule(optimizer([np.ones((1, 1))], **options).param_groups[0])


def _takes_elements(name: str) -> bool:
    return isinstance(_rule(name, {}), Rule)


def _takes_value(name: str) -> bool:
    memory = _rule(name, {}).memory if _takes_elements(name) else None
    return memory is not None and memory.takes_value


def _interval(name: str) -> int:
    """Return the number of steps in which an optimizer has done all that it does."""
    parameters = inspect.signature(getattr(fastopt, name)).parameters
    return parameters["precondition_frequency"].default if name in ("Shampoo", "SOAP") else 1


def _sums(name: str, options: Mapping[str, Any]) -> bool:
    """Return whether a step sums something first, and so passes over its arrays twice."""
    return _rule(name, options).sums is not None


def _turn(name: str, options: Mapping[str, Any], grads: Sequence[Any], backend: str) -> Turn:
    """Return the steps that are timed: one, or as many as the interval has.

    Those that ask for a loss are handed one, and those that ask for the Hessian's diagonal one in
    each step; what it takes to find them is not timed.
    """
    params = [np.ones_like(grad) for grad in grads]
    opt = getattr(fastopt, name)(params, backend=backend, **options)
    more: dict[str, Any] = {"value": 1.0} if _takes_value(name) else {}
    if opt._estimate is not None:
        more["hessian"] = [np.ones_like(grad) for grad in grads]
    steps = _interval(name)
    if steps == 1 and not more:
        return Turn(lambda: opt.step(grads))

    def several() -> None:
        for _ in range(steps):
            opt.step(grads, **more)

    return Turn(several)


def state_bytes(name: str, options: Mapping[str, Any]) -> float:
    """Return the bytes of state for each parameter of an array, without single numbers.

    The array is a matrix of 25 x 40, and for optimizers on whole arrays, whose state goes by rows
    and columns, one of 512 x 512.
    """
    shape = (25, 40) if _takes_elements(name) else MATRICES[0][1:]
    opt = getattr(fastopt, name)([np.ones(shape, np.float32)], **options)
    entries = opt.state_dict()["state"].values()
    slots = [slot for entry in entries for slot in entry.values() if isinstance(slot, np.ndarray)]
    held = sum(slot.nbytes for slot in slots if slot.size >= min(shape))
    return float(round(held / math.prod(shape), 2))


def bytes_per_parameter(name: str, options: Mapping[str, Any]) -> float:
    """Return what a step moves: gradient read, parameter and state read and written.

    An estimate of the Hessian is read too, and the average of these read and written, in a pass of
    their own. A pass that sums reads the gradient, and of parameter and state what its terms are
    made of.
    """
    rule = _rule(name, options)
    traffic = 3 * 4 + 2 * 4 * len(rule.state)
    if getattr(fastopt, name)._estimate is not None:
        traffic += 3 * 4
    if rule.sums is None:
        return float(traffic)
    return float(traffic + 4 * len(read_by_sums(rule)))


def read_by_sums(rule: Rule) -> set[str]:
    """Return the arrays that the terms of a rule's sums depend on, by their form of one element."""
    assert rule.sums is not None
    names = {"param", "grad", "square", *rule.state}
    loaded: set[str] = set()
    for instruction in dis.get_instructions(rule.sums.numba):
        if instruction.opname.startswith("LOAD_FAST"):
            value = instruction.argval
            loaded.update(value if isinstance(value, tuple) else (value,))
    return {"grad" if name == "square" else name for name in loaded & names}


EFFORTS = {
    "bytes": Effort(0.4, rounds=3),
    "small": Effort(0.1, rounds=5),
    "matrices": Effort(0.6, 2, least=3),
    "torch": Effort(0.2, 4),
    "muon": Effort(1.0, 2),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what is asked for, print all that is known, and write it."""
    parser = command_line.parser(__doc__, picture=False)
    parser.set_defaults(json=RESULTS)
    parser.add_argument("--parts", nargs="+", choices=[*EFFORTS], default=[*EFFORTS])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these optimizers and no others")
    command_line.add_threads(parser)
    given = command_line.parse(parser, argv)
    command_line.use_threads(given.threads)
    backend = "numba" if "numba" in fastopt.available_backends() else "numpy"
    known = json.loads(given.json.read_text()) if given.json.exists() else {}
    results = {**known, "machine": machine(), "threads": given.threads, "backend": backend}

    def wanted(candidates: Sequence[Candidate]) -> list[Candidate]:
        return [one for one in candidates if not given.only or one[0] in given.only]

    for part in given.parts:
        effort, rows = EFFORTS[part], list[dict[str, Any]]()
        if part == "muon":
            rows = against_muon((24, 512), effort, command_line.tell)
        elif part == "torch":
            names = [name for name in sorted(TORCH) if not given.only or name in given.only]
            for size in TORCH_SIZES:
                rows += against_torch(names, size, effort, backend, command_line.tell)
        elif part == "matrices":
            for shapes in MATRICES:
                some = wanted(on_whole_arrays())
                rows += against_adam(some, shapes, effort, backend, command_line.tell)
        else:
            length = (1, LARGE) if part == "bytes" else SMALL
            some = wanted(elementwise())
            rows += against_adam(some, length, effort, backend, command_line.tell)
        results[part] = _merged(results.get(part, []), rows)
        command_line.write_json(given.json, results)
    show(results)


def _merged(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of now, and of before those of other optimizers and sizes."""

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["name"], row["arrays"], row.get("elements", row.get("parameters"))

    merged = {key(row): row for row in [*before, *now]}
    return [merged[one] for one in sorted(merged, key=lambda one: (one[1] * one[2], one[0]))]


def show(results: Mapping[str, Any]) -> None:
    """Print the tables of all parts that were measured."""
    columns = {
        "bytes": ("bytes_per_parameter", "state_bytes_per_parameter", "times_adam", "ratio"),
        "small": ("times_adam",),
        "matrices": ("arrays", "parameters", "state_bytes_per_parameter", "times_adam"),
        "torch": ("arrays", "elements", "torch_form", "ratio"),
        "muon": ("seconds", "ratio"),
    }
    for part, names in columns.items():
        if rows := results.get(part):
            shown = [
                [row["name"], *(_cell(row[name]) for name in (*names, "spread"))] for row in rows
            ]
            print(f"\n{part}", *aligned([part, *names, "spread"], shown), sep="\n")


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
