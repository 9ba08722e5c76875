"""Holds fastopt.interop against the libraries themselves, and records the way back to PyTorch.

From the root of the repository, with kernels on PYTHONPATH:
python -m tests.golden.interop.check_live torch (or optax, or keras)

This imports fastopt, so nothing that it records is an expected value: ``to_torch.npz`` says what
``torch.optim`` took (the outline of the dict) and where ten steps of it led, and a test holds that
against the runs of PyTorch alone.
"""

import sys
from typing import Any

import numpy as np

import fastopt
from fastopt import interop

from .move_cases import HALF, STEPS, TORCH, inputs
from .move_format import outline, write


def refused(part: str, call: Any, *arguments: Any, **named: Any) -> None:
    """Check that a call raises CheckpointError and says this."""
    try:
        call(*arguments, **named)
    except fastopt.CheckpointError as error:
        said = str(error)
    else:
        raise AssertionError(f"{part} was not refused")
    assert part in said, said
    print(f"  refused: {said}")


def check_torch() -> None:
    """Run ten steps here, ten there; and read tensors that are not plain."""
    import torch

    from .. import oracle_torch
    from . import make_torch

    def back(case: Any, dtype: torch.dtype) -> dict[str, Any]:
        """Make ten steps here and ten there."""
        given = inputs(case.inputs, case.name == "complex")
        kind = make_torch.DTYPES[dtype] if case.name == "complex" else dtype
        host = str(kind).rpartition(".")[2]
        params = [np.array(p, host) for p in given["p"]]
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in case.kwargs.items()}
        groups = [{**g, "params": [params[k] for k in g["params"]]} for g in case.groups]
        opt = getattr(fastopt, case.optimizer)(groups or params, **options)
        for step in range(HALF):
            now = [
                None if case.is_missing(k, step) else np.asarray(given["g"][k][step], host)
                for k in range(3)
            ]
            opt.step([[now[k] for k in g["params"]] for g in case.groups] if groups else now)
        tensors = [torch.from_numpy(p.copy()).requires_grad_() for p in params]
        other = oracle_torch.build(case, tensors)
        for group in other.param_groups:
            group.update(lr=7.0, weight_decay=7.0)  # what is loaded counts
        other.load_state_dict(interop.to_torch(opt, torch.from_numpy))
        for group in other.param_groups:
            group["foreach"] = False
        for step in range(HALF, STEPS):
            for k, tensor in enumerate(tensors):
                grad = torch.tensor(given["g"][k][step], dtype=kind)
                tensor.grad = None if case.is_missing(k, step) else grad
            other.step()
        return {
            "name": f"{case.optimizer}.{case.name}",
            "dtype": str(dtype).rpartition(".")[2],
            "taken": outline(interop.to_torch(opt)),
            "p20": [tensor.detach().numpy().copy() for tensor in tensors],
        }

    cases = [back(c, d) for c in (*TORCH, *make_torch.COMPLEX) for d in make_torch.DTYPES]
    write("to_torch", cases, {"torch": torch.__version__, "numpy": np.__version__})

    for fused in (None, True):
        param = torch.zeros(3, requires_grad=True)
        adam = torch.optim.Adam([param], torch.tensor(0.125), fused=fused, foreach=False)
        param.grad = torch.ones(3)
        adam.step()
        opt = fastopt.Adam([np.zeros(3, np.float32)])
        interop.load_torch(opt, adam.state_dict())
        assert (opt.lr, opt.step_count) == (0.125, 1)
        mine = opt.state_dict()["state"]["0"]["m"]
        np.testing.assert_array_equal(mine, adam.state[param]["exp_avg"].numpy())
        adam.load_state_dict(interop.to_torch(opt, torch.from_numpy))
        adam.step()
    half = torch.optim.Adam([torch.zeros(3, dtype=torch.bfloat16, requires_grad=True)])
    half.param_groups[0]["params"][0].grad = torch.ones(3, dtype=torch.bfloat16)
    half.step()
    refused("bfloat16", interop.load_torch, fastopt.Adam([np.zeros(3)]), half.state_dict())
    meta = torch.optim.Adam([torch.zeros(3, device="meta", requires_grad=True)])
    meta.param_groups[0]["params"][0].grad = torch.ones(3, device="meta")
    meta.step()
    refused(".cpu()", interop.load_torch, fastopt.Adam([np.zeros(3)]), meta.state_dict())
    for other in ("NAdam", "RAdam", "Adamax", "Rprop", "ASGD", "SGD", "RMSprop", "Adadelta"):
        made = getattr(torch.optim, other)([torch.zeros(3, requires_grad=True)])
        for mine in (fastopt.Adam, fastopt.AdamW, fastopt.Adagrad):
            refused("no group of", interop.load_torch, mine([np.zeros(3)]), made.state_dict())


def check_optax() -> None:
    """Read JAX's own arrays, bfloat16 ones too."""
    import jax
    import optax

    params = {"b": jax.numpy.zeros(2), "layers": [jax.numpy.ones((3, 1))]}
    mine = {"b": np.zeros(2, np.float32), "layers": [np.ones((3, 1), np.float32)]}
    state: Any
    for kind in ("float32", "bfloat16"):
        adam = optax.inject_hyperparams(optax.adam, static_args=("mu_dtype",))(0.25, mu_dtype=kind)
        _, state = adam.update(jax.tree.map(jax.numpy.ones_like, params), adam.init(params))
        opt = fastopt.Adam(mine)
        if kind == "bfloat16":
            refused("got bfloat16", interop.load_optax, opt, state)
            continue
        interop.load_optax(opt, state)
        got = opt.state_dict()["state"]["layers.0"]["m"]
        np.testing.assert_array_equal(got, np.asarray(state.inner_state[0].mu["layers"][0]))
        assert (opt.lr, opt.step_count) == (0.25, 1)


def check_keras() -> None:
    """Read keras' own variables, and its files."""
    import tempfile

    import h5py
    import keras

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="a")])
    model.compile(keras.optimizers.Adam(0.25), "mse")
    model.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0, epochs=2)
    shapes = {"kernel": np.zeros((3, 2), np.float32), "bias": np.zeros(2, np.float32)}
    names = {"kernel": "sequential_a_kernel", "bias": "sequential_a_bias"}
    variables = model.optimizer.variables
    wanted = np.asarray(variables[3])
    path = tempfile.mkdtemp() + "/model.weights.h5"
    model.save_weights(path)
    with h5py.File(path) as file:
        group = file["optimizer/vars"]
        for given, said in ((variables, names), (variables, None), (group, None)):
            opt = fastopt.Adam(shapes, eps=1e-7, eps_hat=True)
            interop.load_keras(opt, given, names=said)
            got = opt.state_dict()["state"]["kernel"]["v"]
            np.testing.assert_array_equal(got, wanted)
            assert (opt.lr, opt.step_count) == (0.25, 2)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        {"torch": check_torch, "optax": check_optax, "keras": check_keras}[name]()
        print(f"{name}: fine")
