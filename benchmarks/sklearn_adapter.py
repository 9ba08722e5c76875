"""fastopt.sklearn against scikit-learn's own networks: seconds of a fit, in turns.

python -m benchmarks.sklearn_adapter [--rounds 9] [--threads 1] [--out FILE]

Both make the same epochs from the same first weights over the same batches, with Adam, and come to
the same loss (which is looked at). ``--threads`` are those of BLAS, whose matrix products are most
of a fit of wide layers, and the same in both.
"""

from __future__ import annotations

import argparse
import json
import platform
import warnings
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import sklearn
import sklearn.neural_network as theirs
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

import fastopt
import fastopt.sklearn as ours

DATA: dict[str, tuple[Any, str]] = {
    "digits": (load_digits, "MLPClassifier"),
    "breast cancer": (load_breast_cancer, "MLPClassifier"),
    "diabetes": (load_diabetes, "MLPRegressor"),
}
NETWORKS: dict[str, dict[str, Any]] = {
    "(100,)": {},
    "(100,), batches of 32": {"batch_size": 32},
    "(16,)": {"hidden_layer_sizes": (16,)},
    "(64, 64), tanh": {"hidden_layer_sizes": (64, 64), "activation": "tanh"},
    "(256, 256)": {"hidden_layer_sizes": (256, 256)},
    "(100,), early stopping": {"early_stopping": True},
}
EPOCHS = 25


def seconds(make: Any, options: dict[str, Any], X: Any, y: Any) -> tuple[float, Any]:
    began = perf_counter()
    model = make(**options).fit(X, y)
    return perf_counter() - began, model


def rows(rounds: int) -> Iterator[dict[str, Any]]:
    for data, (load, name) in DATA.items():
        X, y = load(return_X_y=True)
        X = StandardScaler().fit_transform(X)
        for network, given in NETWORKS.items():
            options = {"max_iter": EPOCHS, "tol": 0.0, "random_state": 0, **given}
            pairs = []
            for _ in range(rounds + 1):
                a, one = seconds(getattr(theirs, name), options, X, y)
                b, other = seconds(getattr(ours, name), options, X, y)
                pairs.append((a, b))
            np.testing.assert_allclose(other.loss_curve_, one.loss_curve_, rtol=1e-6)
            spent = np.array(pairs[1:])
            ratios = spent[:, 0] / spent[:, 1]
            yield {
                "data": data,
                "network": network,
                "scikit_learn_s": float(np.median(spent[:, 0])),
                "fastopt_s": float(np.median(spent[:, 1])),
                "ratio": float(np.median(ratios)),
                "ratio_quartiles": [float(q) for q in np.quantile(ratios, (0.25, 0.75))],
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    found = []
    with warnings.catch_warnings(), threadpool_limits(given.threads):
        warnings.simplefilter("ignore", ConvergenceWarning)
        for row in rows(given.rounds):
            found.append(row)
            a, b = 1e3 * row["scikit_learn_s"], 1e3 * row["fastopt_s"]
            print(
                f"{row['data']:14} {row['network']:23} scikit-learn {a:7.1f} ms  fastopt {b:7.1f} "
                f"ms  {row['ratio']:5.2f} times",
                flush=True,
            )
    mean = float(np.exp(np.mean(np.log([row["ratio"] for row in found]))))
    print(f"geometric mean {mean:.2f}, least {min(row['ratio'] for row in found):.2f}")
    if given.out is not None:
        machine = {
            "processor": platform.processor() or platform.machine(),
            "blas_threads": given.threads,
            "numpy": np.__version__,
            "scikit_learn": sklearn.__version__,
            "fastopt": fastopt.__version__,
        }
        said = {"machine": machine, "epochs": EPOCHS, "rounds": given.rounds, "mean": mean}
        given.out.write_text(json.dumps({**said, "fits": found}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
