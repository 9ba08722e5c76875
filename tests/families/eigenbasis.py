"""SOAP."""

from __future__ import annotations

from typing import Any

import numpy as np

import fastopt
from helpers.mutants import arguments, common_clock, computing, given, scalars
from helpers.variant import Variant

OF_MATRICES = [
    # Axes of at most 4 places: the tests' gradients have no null space along them, in which
    # eigenvectors would depend on the last bits.
    Variant(
        "soap",
        fastopt.SOAP,
        {"max_precondition_dim": 4, "precondition_frequency": 2, "weight_decay": 0.1},
        waits=True,
    ),
    Variant(
        "soap_normalized",
        fastopt.SOAP,
        {
            "lr": 0.01,
            "max_precondition_dim": 4,
            "precondition_frequency": 1,
            "normalize_grads": True,
            "correct_bias": False,
        },
        waits=True,
    ),
]
BAD: dict[str, list[tuple[Any, type[Exception]]]] = {
    "shampoo_beta": [(1.0, ValueError), (-1.0, ValueError), ("a", TypeError), (True, TypeError)],
    "precondition_frequency": [(0, ValueError), (2.5, TypeError), (None, TypeError)],
    "max_precondition_dim": [(0, ValueError), ("a", TypeError), (None, TypeError)],
    "normalize_grads": [(1, TypeError), (None, TypeError), ("a", TypeError)],
    "correct_bias": [(1, TypeError), (None, TypeError), ("a", TypeError)],
}

soap = fastopt.SOAP


def compute(
    xp: Any,
    p: Any,
    g: Any,
    state: Any,
    s: Any,
    normalized: bool,
    moves_first: bool = False,
    m_in_basis: bool = False,
    sorted_v: bool = True,
    sorted_columns: bool = True,
    iterates: bool = True,
    back: bool = True,
    squares_in_basis: bool = True,
    m_out: bool = True,
    decays_first: bool = False,
    fills_first: bool = False,
    one_side: bool = False,
    sums: bool = False,
) -> Any:
    """Compute as the rule does by default, or with one of the mistakes that are made."""
    axes = [k for k in range(p.ndim - 1) if f"gram{k}" in state]
    letters = "abcdefgh"[: p.ndim - 1]

    def turned(x: Any, bases: Any, back: bool = False) -> Any:
        for k in [0] * (0 in axes) if one_side else axes:
            one = letters[k] + "y" if not back else "y" + letters[k]
            out = letters.replace(letters[k], "y")
            x = np.einsum(f"z{letters},z{one}->z{out}", x, bases[k])
        return x

    made, grams = dict(state), {}
    for k in axes:
        other = letters.replace(letters[k], "y")
        product = np.einsum(f"z{letters},z{other}->z{letters[k]}y", g, g)
        share = s["one_minus_shampoo_beta"]
        before = state[f"gram{k}"]
        grams[k] = before + product if sums else before + share * (product - before)
        made[f"gram{k}"] = grams[k]
    bases = {k: state[f"basis{k}"] for k in axes}
    if s["begins"]:
        bases = {k: np.linalg.eigh(grams[k])[1][..., ::-1] for k in axes}
        made |= {f"basis{k}": basis for k, basis in bases.items()}
        if fills_first:
            made["m"] = s["one_minus_beta1"] * g
            made["v"] = s["one_minus_beta2"] * turned(g, bases) ** 2
        if not moves_first:
            return p, made
    seen = turned(g, bases) if squares_in_basis else g
    m = state["m"] + s["one_minus_beta1"] * ((turned(g, bases) if m_in_basis else g) - state["m"])
    v = state["v"] + s["one_minus_beta2"] * (seen**2 - state["v"])
    u = (m if m_in_basis or not m_out else turned(m, bases)) / (np.sqrt(v) + s["eps"])
    u = turned(u, bases, back=back)
    if normalized:
        axes_of_one = tuple(range(1, p.ndim))
        u = u / (np.sqrt((u * u).mean(axis=axes_of_one, keepdims=True)) + s["eps"])
    for k in axes if s["refresh"] else ():
        old = bases[k]
        columns = grams[k] @ old
        order = np.argsort(-(old * columns).sum(axis=-2), axis=-1)
        if sorted_v:
            there = order.reshape(len(order), *[-1 if j == k else 1 for j in range(p.ndim - 1)])
            v = np.take_along_axis(v, there, axis=k + 1)
        if sorted_columns:
            columns = np.take_along_axis(columns, order[:, None], axis=-1)
        basis = np.linalg.qr(columns)[0]
        made[f"basis{k}"] = basis if iterates else np.linalg.eigh(grams[k])[1][..., ::-1]
    if decays_first:
        return p - s["decay"] * p - s["step_size"] * u, made | {"m": m, "v": v}
    p = p - s["step_size"] * u
    return p - s["decay"] * p, made | {"m": m, "v": v}


def wrong(**mistake: Any) -> Any:
    """Return the right optimizer and one with a mistake; its rule still normalizes if asked to."""
    of_both = [
        computing(soap, lambda *values, kind=kind: compute(*values, normalized=kind, **mistake))
        for kind in (False, True)
    ]

    def choose(options: Any) -> Any:
        return of_both[options["normalize_grads"]]._rule(options)

    return (soap, type("Mutant", (soap,), {"_rule": staticmethod(choose)}))


def option(name: str, value: Any) -> Any:
    return (soap, arguments(soap, lambda o: {**o, name: value}))


MUTANTS = {
    "SOAP_moves_in_the_first_step": wrong(moves_first=True),
    "SOAP_averages_the_first_gradient": wrong(fills_first=True),
    "SOAP_momentum_stays_in_an_old_basis": wrong(m_in_basis=True),
    "SOAP_squares_not_sorted": wrong(sorted_v=False),
    "SOAP_columns_not_sorted": wrong(sorted_columns=False),
    "SOAP_eigenvectors_at_every_interval": wrong(iterates=False),
    "SOAP_turned_back_the_wrong_way": wrong(back=False),
    "SOAP_squares_of_the_gradient_itself": wrong(squares_in_basis=False),
    "SOAP_momentum_not_turned": wrong(m_out=False),
    "SOAP_decay_before_the_step": wrong(decays_first=True),
    "SOAP_one_side": wrong(one_side=True),
    "SOAP_sums_of_products": wrong(sums=True),
    "SOAP_frequency_ignored": option("precondition_frequency", 10),
    "SOAP_shampoo_beta_ignored": option("shampoo_beta", None),
    "SOAP_longest_axis_ignored": option("max_precondition_dim", 10000),
    "SOAP_never_normalized": option("normalize_grads", False),
    "SOAP_always_corrected": option("correct_bias", True),
    "SOAP_corrected_for_the_first_step_too": (
        soap,
        given(soap, lambda o, lr, t: (o, lr, t + 1 if t > 1 else t)),
    ),
    "SOAP_betas_swapped": (
        soap,
        given(soap, lambda o, lr, t: ({**o, "betas": o["betas"][::-1]}, lr, t)),
    ),
    "SOAP_shampoo_beta_is_beta1": (
        soap,
        scalars(soap, lambda made, o, t: {"one_minus_shampoo_beta": 1.0 - o["betas"][0]}),
    ),
    "SOAP_one_clock_for_all_parameters": (soap, common_clock(soap)),
}
RIGHT = [wrong()]
