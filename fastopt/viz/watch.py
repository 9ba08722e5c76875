"""watch: a light recorder of what an optimizer's steps do, over a run."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

import numpy as np

from fastopt.core import arrays
from fastopt.core.arrays import Array, blocks
from fastopt.core.buckets import Bucket
from fastopt.core.hyperparameters import as_float, whole
from fastopt.core.norms import clip_factor
from fastopt.core.rows import RowGrad
from fastopt.optimizers.base import Hook, Observer, Optimizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OF_RUN = ("step", "time", "made", "lr", "grad_norm", "clip_factor")
"""What is recorded of every step, a number for each; what ``record`` is handed comes behind."""

OF_PARAMETERS = (
    "grad_rms",
    "grad_max",
    "grad_zeros",
    "grad_nonfinite",
    "weight_rms",
    "update_rms",
    "update_ratio",
)
"""What is recorded of every parameter; ``<slot>_rms`` of its state comes behind."""


class Watched(Protocol):
    """An optimizer, or what has its steps made by one, now and then another: these hooks go along.

    Whether something is so is told by its ``_parameter_names``.
    """

    @property
    def before_step(self) -> list[Hook]:
        """What the steps call first, with the optimizer that makes them."""

    @property
    def after_step(self) -> list[Hook]:
        """What they call last."""

    @property
    def _parameter_names(self) -> list[str]:
        """What the parameters are called where they are shown."""


class Row(NamedTuple):
    """What was recorded of one step: of the run, and of each parameter by its name."""

    run: dict[str, float]
    parameters: dict[str, dict[str, float]]


class Pending(NamedTuple):
    """What is kept from before a step until after it."""

    grads: Any
    grad_scale: Any
    lr: float
    began: float
    copies: dict[int, Array]
    skipped: Any


def watch(opt: Any, every: int = 1, *, parameters: Iterable[str] | None = None) -> Watch:
    """Record what the steps of an optimizer do, until ``stop`` is called.

    ::

        with fastopt.watch(opt, every=10) as seen:
            for x, y in batches:
                loss, grads = loss_and_gradients(params, x, y)
                seen.record(loss=loss)
                opt.step(grads)
        seen.history["update_ratio"]  # (records, parameters), named seen.names
        seen.to_csv("run.csv")
        seen.plot()

    A step that is not recorded takes about a microsecond longer. One that is recorded takes a copy
    of the parameters, and some passes over parameters, gradients and state; where they are CuPy
    arrays these are made on the device, and the host waits for the numbers alone.

    Args:
        opt: an optimizer, also one of ``fastopt.torch``, or what stands around one
            (``Accumulator``, ``Lookahead``, ``SAM``): then its own steps are recorded, with the
            gradients that it is given. A ``LossScaler`` or an ``EMA`` stands beside: watch the
            optimizer.
        every: of how many steps one is recorded, >= 1, from the next one on. Steps that are skipped
            count, calls that only add up gradients do not.
        parameters: the names of those to record, as in ``state_dict``, of PyTorch's tensors as
            ``explain`` calls them; None for all.

    Raises:
        TypeError: if ``opt`` is no optimizer, and for names that are no strings.
        ValueError: for names of parameters that are not there, and for ``every`` out of range.
    """
    return Watch(opt, every, parameters=parameters)


class Watch(Observer):
    """A recorder of steps: see ``watch``, which makes it.

    It is a hook in ``before_step`` and ``after_step`` of the optimizer, in its place among others:
    what hooks between it and the step write into parameters counts as part of the update.
    ``opt.updates`` takes the parameters back before it looks: then updates are 0. A step that is
    captured in a CUDA graph is not recorded, nor are its replays. Several can watch one optimizer.
    A copy of the optimizer (``copy.deepcopy``, ``pickle``) has a copy of it among its hooks, with
    what was recorded so far, which goes on with the copy; and a copy of it has a copy of the
    optimizer. (Those of ``fastopt.torch`` have no hooks in their copies, as all of PyTorch's.)

    Attributes:
        every: of how many steps one is recorded; can be set.
    """

    def __init__(
        self, opt: Any, every: int = 1, *, parameters: Iterable[str] | None = None
    ) -> None:
        inner = getattr(opt, "innermost", opt)
        if not hasattr(type(inner), "_parameter_names"):
            raise TypeError(
                f"watch takes an optimizer, or what makes its steps; got {_said_of(opt)}"
            )
        if getattr(getattr(inner, "_engine", None), "other_parts", None) is not None:
            raise TypeError(
                "watch: a rank of Sharded has parts of the gradients and of the parameters; watch "
                "the optimizer in DataParallel, for some steps"
            )
        self.every = every
        self._opt: Watched = inner
        self._only = None if parameters is None else _checked_names(inner, parameters)
        self._rows: list[Row] = []
        self._given: dict[str, Any] = {}
        self._calls = 0
        self._pending: Pending | None = None
        self._began = perf_counter()
        inner.before_step.append(self)
        inner.after_step.insert(0, self)

    @property
    def every(self) -> int:
        """Of how many steps one is recorded."""
        return self._every

    @every.setter
    def every(self, value: int) -> None:
        self._every = whole("watch: every", value, 1)

    @property
    def active(self) -> bool:
        """Whether it still records."""
        return any(hook is self for hook in self._opt.before_step)

    def stop(self) -> Self:
        """Record no more; what there is stays. Returns the watch."""
        for hooks in (self._opt.before_step, self._opt.after_step):
            hooks[:] = [hook for hook in hooks if hook is not self]
        self._pending = None
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def record(self, **values: Any) -> None:
        """Hand in numbers that belong to the coming step, such as ``loss=loss``: call it before.

        They are kept until that step, and recorded with it if it is. 0-d arrays of a device are
        fetched then, and only then. Raises ValueError for a name that is recorded anyway.
        """
        taken = {*OF_RUN, *OF_PARAMETERS}
        if both := sorted(name for name in values if name in taken or name.endswith("_rms")):
            raise ValueError(
                f"watch records {both[0]} by itself; call what is handed in by another name"
            )
        self._given |= values

    # Around a step -----------------------------------------------------------------------------

    def before(self, opt: Optimizer, grads: Any, grad_scale: Any) -> None:
        """Keep what a step begins with, if it is one to record."""
        call, self._calls = self._calls, self._calls + 1
        self._pending = None
        if call % self._every:
            return
        leaves = opt._state.tree.leaves
        first = leaves[0].array
        if arrays.kind(first) == "cupy" and arrays.capturing(first):
            return
        copies = {position: arrays.copy_of(leaves[position].array) for position in self._of(opt)}
        self._pending = Pending(
            grads, grad_scale, _rate(opt.lr), perf_counter(), copies, opt.skipped_steps
        )

    def __call__(self, opt: Optimizer) -> None:
        """Record what the step has made, if it is one to record."""
        pending, self._pending = self._pending, None
        if pending is None:
            self._given = {}
            return
        given, self._given = self._given, {}
        self._rows.append(self._row(opt, pending, given))

    def _of(self, opt: Optimizer) -> list[int]:
        """Return the positions of the parameters that are recorded."""
        state = opt._state
        every = sorted(position for bucket in state.buckets for position in bucket.positions)
        if self._only is None:
            return every
        leaves = state.tree.leaves
        return [position for position in every if opt._shown(leaves[position]) in self._only]

    def _row(self, opt: Optimizer, pending: Pending, given: Mapping[str, Any]) -> Row:
        state = opt._state
        grads = state.tree.match(pending.grads)
        scale = abs(_number(pending.grad_scale))
        frozen = {p for group in state.groups if not group["trainable"] for p in group.positions}
        where = {
            position: (bucket, index)
            for bucket in state.buckets
            for index, position in enumerate(bucket.positions)
        }
        asked = [*pending.copies]
        others = [p for p in sorted(where) if p not in pending.copies]
        there = {p: None if p in frozen else grads[p] for p in (*asked, *others)}
        shapes = {p: bucket.parameters[index].layout.shape for p, (bucket, index) in where.items()}
        sums = {p: _gradient(grad, shapes[p]) for p, grad in there.items()}
        about = {p: _moved(*where[p], pending.copies[p]) for p in asked if p in where}
        fetched = _fetched([*sums.values(), *about.values()])
        of_grads = dict(zip(sums, fetched, strict=False))
        of_params = dict(zip(about, fetched[len(sums) :], strict=True))
        found = {}
        total = 0.0
        for position, numbers in of_grads.items():
            total = math.hypot(total, numbers.get("norm", 0.0) * scale)
            if position in of_params:
                name = opt._shown(state.tree.leaves[position])
                found[name] = _finished(numbers, of_params[position], scale)
        limit = opt.max_grad_norm
        factor = 1.0 if limit is None or not math.isfinite(total) else clip_factor(limit, total)
        skipped = np.subtract(opt.skipped_steps, pending.skipped)
        run = {
            "step": float(np.max(opt.step_count)),
            "time": pending.began - self._began,
            "made": float(np.mean(skipped == 0)),
            "lr": pending.lr,
            "grad_norm": total,
            "clip_factor": factor,
        }
        return Row({**run, **{name: _number(value) for name, value in given.items()}}, found)

    # What was recorded ---------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the parameters, the columns of what is recorded of each."""
        return (*dict.fromkeys(name for row in self._rows for name in row.parameters),)

    @property
    def history(self) -> dict[str, Array]:
        """What was recorded, as new arrays of float64, with NaN where nothing was.

        Of shape (records,): ``step`` (how many steps there were after it), ``time`` (seconds since
        the watch began), ``made`` (1 if the step was made, 0 if it was skipped, with members the
        share of those that made it), ``lr`` (of the first group; with members the mean),
        ``grad_norm`` (2-norm of all gradients times ``grad_scale``, before clipping),
        ``clip_factor`` (what max_grad_norm multiplied them by), and what ``record`` was handed.

        Of shape (records, parameters), in the order of ``names``: ``grad_rms``, ``grad_max`` (times
        ``grad_scale``), ``grad_zeros`` (share of elements that are exactly 0), ``grad_nonfinite``
        (how many are NaN or infinite; the other numbers are NaN then), ``weight_rms`` and
        ``update_rms`` of the parameter before the step and of what the step added to it,
        ``update_ratio`` of both, and ``<slot>_rms`` of each array of the state after the step, such
        as ``m_rms``: codes (``state_dtype="int8"``) as the numbers that they stand for. RMS is the
        root of the mean square. Of a ``RowGrad`` gradients are those of its rows.
        """
        found: dict[str, Array] = {}
        for name in self._run_names:
            found[name] = np.array([row.run.get(name, math.nan) for row in self._rows], float)
        names = self.names
        for quantity in self._quantities:
            table = [
                [row.parameters.get(name, {}).get(quantity, math.nan) for name in names]
                for row in self._rows
            ]
            found[quantity] = np.array(table, float).reshape(len(self._rows), len(names))
        return found

    @property
    def _run_names(self) -> list[str]:
        return [*dict.fromkeys((*OF_RUN, *(name for row in self._rows for name in row.run)))]

    @property
    def _quantities(self) -> list[str]:
        own = (q for row in self._rows for one in row.parameters.values() for q in one)
        return [*dict.fromkeys((*OF_PARAMETERS, *own))]

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write what was recorded: a line for each record, and columns as in ``history``.

        Those of a parameter are called ``<quantity>:<name>``, such as ``grad_rms:layers.0.W``; what
        was not recorded is empty. Numbers have all their digits. Raises OSError for a path that
        cannot be written.
        """
        history, names = self.history, self.names
        columns = {k: v for k, v in history.items() if v.ndim == 1}
        for quantity in self._quantities:
            for k, name in enumerate(names):
                columns[f"{quantity}:{name}"] = history[quantity][:, k]
        with Path(path).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            for row in zip(*(column.tolist() for column in columns.values()), strict=True):
                writer.writerow("" if math.isnan(value) else _written(value) for value in row)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Draw the run: loss, gradients, how far steps go, state; return matplotlib's figure.

        ``path`` is a file to write it to, in a format that its name says (".png", ".svg", ".pdf").
        The panel of |update| / |weights| has a band from 1e-4 to 1e-2, where runs that learn most
        often are. The first eight of ``names`` have colours and stand in the legend; all others are
        grey.

        Raises ModuleNotFoundError without matplotlib, and ValueError if nothing was recorded.
        """
        if not self._rows:
            raise ValueError("nothing was recorded yet: make steps first, then plot()")
        return _drawn(self, path)

    def __getstate__(self) -> tuple[dict[str, Any], float]:
        """Return what a copy is made of: nothing of a step that is under way."""
        lasted = perf_counter() - self._began
        return {**vars(self), "_rows": [*self._rows], "_pending": None, "_given": {}}, lasted

    def __setstate__(self, copied: tuple[dict[str, Any], float]) -> None:
        """Be a copy, which may be in another process, whose clock is another one."""
        state, lasted = copied
        vars(self).update(state)
        self._began = perf_counter() - lasted

    def __repr__(self) -> str:
        state = "" if self.active else ", stopped"
        return (
            f"<Watch of {type(self._opt).__name__}: {len(self._rows)} records, "
            f"every={self._every}{state}>"
        )


def _said_of(opt: Any) -> str:
    """Return what cannot be watched, and what can be in its place."""
    if isinstance(opt, type):
        return f"the class {opt.__name__}: make one of it, {opt.__name__}(params), and watch that"
    name, module = type(opt).__name__, type(opt).__module__
    if name in ("LossScaler", "EMA"):
        return f"{name}, which stands beside one: watch the optimizer itself"
    if module.startswith("torch."):
        return f"{module}.{name}. Of PyTorch's tensors the optimizers of fastopt.torch are watched"
    return name


def _checked_names(opt: Watched, names: Iterable[str]) -> frozenset[str]:
    if isinstance(names, str):
        raise TypeError(f"watch: parameters must be a list of names; got {names!r}")
    asked, known = [*names], opt._parameter_names
    for name in asked:
        if not isinstance(name, str):
            raise TypeError(f"watch: parameters must be names; got {name!r:.200}")
        if name not in known:
            raise ValueError(
                f"watch: no parameter is called {name!r}; there are {', '.join(known[:20])}"
            )
    return frozenset(asked)


def _rate(lr: Any) -> float:
    return float(np.mean(lr))


def _number(value: Any) -> float:
    """Return a number, which may stand on a device or be of another library."""
    if arrays.kind(value) == "cupy":
        return float(arrays.on_host(value))
    found = as_float(value)
    if found is None:
        raise TypeError(f"watch records numbers; got {value!r:.200}")
    return found


def _written(value: float) -> str:
    return repr(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)


# Numbers of arrays, where these are ---------------------------------------------------------------

Numbers = dict[str, Any]
"""Numbers by name: floats, or arrays of shape () on a device."""


def _moduli(values: Array) -> Array:
    wide = np.complex128 if values.dtype.kind == "c" else np.float64
    return abs(values.astype(wide))


def _gradient(grad: Any, shape: tuple[int, ...]) -> Numbers:
    """Return what is recorded of a gradient, before it is scaled; nothing if there is none."""
    if type(grad) is RowGrad:
        grad = grad.merged(shape, "grads")[1]
    if isinstance(grad, np.inexact):
        grad = np.asarray(grad)
    if arrays.kind(grad) is None or not grad.size:
        return {}
    squares, largest, acting, finite = 0.0, 0.0, 0, 0
    xp = arrays.namespace_of(grad)
    with arrays.on_device_of(grad), np.errstate(all="ignore"):
        for (piece,) in blocks(grad):
            moduli = _moduli(piece)
            squares = squares + (moduli * moduli).sum()
            largest = xp.maximum(largest, moduli.max())
            acting = acting + xp.count_nonzero(moduli)
            finite = finite + xp.isfinite(moduli).sum()
    return {
        "squares": squares,
        "grad_max": largest,
        "acting": acting,
        "finite": finite,
        "size": float(grad.size),
    }


def _moved(bucket: Bucket, index: int, before: Array) -> Numbers:
    """Return what is recorded of a parameter and its state."""
    parameter = bucket.parameters[index]
    now = parameter.leaf.array
    found: Numbers = {"count": float(max(now.size, 1))}
    if now.shape != before.shape or not now.size:
        return found
    moved, weights = 0.0, 0.0
    with arrays.on_device_of(now), np.errstate(all="ignore"):
        for own, new in blocks(before, now):
            wide = np.complex128 if own.dtype.kind == "c" else np.float64
            way: Array = abs(new.astype(wide) - own.astype(wide))
            weight = _moduli(own)
            moved = moved + (way * way).sum()
            weights = weights + (weight * weight).sum()
        found |= {"moved": moved, "weights": weights}
        for slot in bucket.rule.state:
            own_squares, count = 0.0, 0
            for piece in bucket.arena.pieces(slot, parameter, slot in bucket.rule.signed):
                numbers = piece.astype(np.float64)
                own_squares = own_squares + (numbers * numbers).sum()
                count += piece.size
            if count:  # of complex numbers two reals each
                pair = now.dtype.kind == "c" and slot not in parameter.places
                found[f"{slot}_rms"] = own_squares / (count // 2 if pair else count)
    return found


def _fetched(given: Sequence[Numbers]) -> list[dict[str, float]]:
    """Return all numbers as floats: those of a device in one copy to the host."""
    places = [(k, name) for k, one in enumerate(given) for name in one]
    found: list[dict[str, float]] = [{} for _ in given]
    there = [(k, name) for k, name in places if arrays.kind(given[k][name]) == "cupy"]
    for k, name in places:
        if arrays.kind(given[k][name]) != "cupy":
            found[k][name] = float(given[k][name])
    if there:
        first = given[there[0][0]][there[0][1]]
        with arrays.on_device_of(first):
            xp = arrays.namespace_of(first)
            joined = xp.stack([given[k][name].astype(np.float64) for k, name in there])
        for (k, name), value in zip(there, arrays.on_host(joined).tolist(), strict=True):
            found[k][name] = value
    for one in found:
        if "squares" in one:
            one["norm"] = math.sqrt(one["squares"])
    return found


def _finished(
    grad: Mapping[str, float], own: Mapping[str, float], scale: float
) -> dict[str, float]:
    """Return what is recorded of one parameter, out of sums."""
    found = {}
    if grad:
        size = grad["size"]
        found = {
            "grad_rms": math.sqrt(grad["squares"] / size) * scale,
            "grad_max": grad["grad_max"] * scale,
            "grad_zeros": 1.0 - grad["acting"] / size,
            "grad_nonfinite": size - grad["finite"],
        }
    if "moved" in own:
        weights, moved = (math.sqrt(own[name] / own["count"]) for name in ("weights", "moved"))
        found |= {
            "weight_rms": weights,
            "update_rms": moved,
            "update_ratio": moved / weights if weights else math.nan,
        }
    return found | {name: math.sqrt(value) for name, value in own.items() if name.endswith("_rms")}


# The picture --------------------------------------------------------------------------------------

COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#000000",
    "#999933",
)
"""Okabe and Ito's, with olive for their yellow: colour-blind people tell them apart."""

STYLES = {"-": "solid", "--": "dashed", ":": "dotted", "-.": "dash-dotted"}
"""Of lines, for the arrays of state."""


def _drawn(seen: Watch, path: str | os.PathLike[str] | None) -> Figure:
    try:
        import matplotlib.pyplot as plt
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Watch.plot draws with matplotlib, which is not installed: pip install matplotlib; "
            "seen.history and seen.to_csv(path) need nothing",
            name=error.name,
        ) from error
    history, names = seen.history, seen.names
    steps = history["step"]
    figure: Figure = plt.figure(figsize=(10, 7), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True)
    _draw_run(panels[0, 0], seen, history, steps)
    slots = [q for q in seen._quantities if q not in OF_PARAMETERS]
    chosen = [*names][: len(COLOURS)]
    for panel, title, quantities in (
        (panels[0, 1], "gradients, RMS", ("grad_rms",)),
        (panels[1, 0], "update / weights, RMS", ("update_ratio",)),
        (panels[1, 1], f"state, RMS: {_said_of_lines(slots)}", slots),
    ):
        panel.set_title(title, loc="left")
        for style, quantity in zip(STYLES, quantities, strict=False):
            for k, name in enumerate(names):
                values = np.where(history[quantity][:, k] > 0.0, history[quantity][:, k], np.nan)
                if np.isnan(values).all():
                    continue
                label = None
                if style == "-":
                    label = name if name in chosen else None
                colour = COLOURS[chosen.index(name)] if name in chosen else "0.7"
                panel.plot(steps, values, style, color=colour, label=label, **_marked(steps))
        if panel.lines:
            panel.set_yscale("log")
    panels[1, 0].axhspan(1e-4, 1e-2, color="0.5", alpha=0.15, lw=0)
    panels[1, 0].annotate(
        "usual", (0.99, 1e-2), xycoords=("axes fraction", "data"), ha="right", va="top", fontsize=8
    )
    for panel in panels[1]:
        panel.set_xlabel("step")
    for panel in panels.flat:
        panel.grid(alpha=0.25)
    figure.legend(*panels[0, 1].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.suptitle(f"{type(seen._opt).__name__}: {len(seen)} records")
    if path is not None:
        figure.savefig(path)
    return figure


def _said_of_lines(slots: Sequence[str]) -> str:
    """Return which state has which kind of line; there are no kinds for more."""
    pairs = zip(slots, STYLES.values(), strict=False)
    return ", ".join(f"{slot[:-4]} {line}" for slot, line in pairs)


def _marked(steps: Array) -> dict[str, Any]:
    """Return how few points are drawn, so that one alone can be seen."""
    return {"marker": "."} if len(steps) < 20 else {}


def _draw_run(panel: Any, seen: Watch, history: Mapping[str, Array], steps: Array) -> None:
    """Draw what was handed in, or the norm of the gradients, and the learning rate beside it."""
    own = [name for name in seen._run_names if name not in OF_RUN] or ["grad_norm"]
    for name, colour in zip(own, COLOURS, strict=False):
        panel.plot(steps, history[name], color=colour, label=name, **_marked(steps))
    rates = panel.twinx()
    rates.plot(steps, history["lr"], color="0.5", linestyle="--", label="lr")
    rates.set_ylabel("lr (dashed)", color="0.4")
    rates.tick_params(axis="y", labelcolor="0.4")
    rates.set_ylim(bottom=0.0)
    panel.set_title(", ".join(own), loc="left")
    if len(own) > 1:
        panel.legend(fontsize=8)
    skipped = steps[history["made"] < 1.0]
    if len(skipped):
        panel.plot(skipped, np.zeros_like(skipped), "x", color="#d55e00", clip_on=False)
        panel.annotate(f"x {len(skipped)} skipped", (0.02, 0.03), xycoords="axes fraction")
