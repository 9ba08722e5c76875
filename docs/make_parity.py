"""Write docs/parity.md: every optimizer beside those of other libraries, step by step, in float64.

``python docs/make_parity.py`` runs whatever is installed of PyTorch, optax, keras, timm,
pytorch_optimizer, thinc and authors' own packages; what is missing is left out, and the page says
so. ``python docs/make_parity.py Adam Lion`` prints a page of these alone.

Both sides get the same first parameters and gradients. What is compared is in ``THEIRS``: by
library, by our name, the call of theirs that comes closest to our defaults, and the reason where
that is not the same.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module, metadata, util
from pathlib import Path
from types import ModuleType
from typing import Any
from warnings import catch_warnings

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Arrays = list[Array]

PAGE = Path(__file__).with_name("parity.md")
STEPS = (1, 10, 25)
SHAPES = ((5,), (3, 4), (4, 3))
EQUAL = 1e-9
MATRICES_ALONE = ("Muon", "NorMuon")
HESSIAN_EVERY = {"AdaHessian": 1, "Sophia": 10}
WITH_LOSS = ("MoMo", "MoMoAdam")

WITHOUT_RATE = ("COCOB", "DAdaptAdam", "DAdaptSGD", "DoG", "DoWG", "MoMo", "Prodigy")
"""Those whose lr is a factor that stays 1; all others have 0.01."""


@dataclass(frozen=True)
class Peer:
    """Another library's optimizer.

    ``call`` makes it, with our defaults where its own are others; ``reason`` says why its numbers
    differ all the same. What shows that this is the reason is measured too: ours with the arguments
    ``ours`` beside ``theirs``, or beside ``call`` if that is empty; ``remains`` says what is left
    then. Without a call nothing is run, and the reason stands in the table.
    """

    call: str
    reason: str = ""
    ours: str = ""
    theirs: str = ""
    remains: str = ""


@dataclass(frozen=True)
class Inputs:
    """First parameters, and by step the gradients, Hessian estimates and losses."""

    params: Arrays
    grads: list[Arrays]
    hessians: list[Arrays]
    losses: list[float]


def make_inputs(name: str) -> Inputs:
    """Draw what an optimizer is run on: numbers of usual size, the same in every run."""
    rng = np.random.default_rng(20)
    params = [rng.normal(size=shape) for shape in SHAPES]
    slopes = [rng.normal(size=shape) for shape in SHAPES]
    grads = [[0.5 * s + 0.5 * rng.normal(size=s.shape) for s in slopes] for _ in range(max(STEPS))]
    hessians = [[0.1 + rng.random(s.shape) for s in slopes] for _ in range(max(STEPS))]
    losses = [0.5 + 2.5 * 0.85**t for t in range(max(STEPS))]
    first = 1 if name in MATRICES_ALONE else 0
    return Inputs(params[first:], [g[first:] for g in grads], [h[first:] for h in hessians], losses)


Run = Callable[[str, Inputs, str], list[Arrays]]
"""Run a call on inputs, for the optimizer of our name; return the parameters after each step."""


def hessians_of(inputs: Inputs, name: str, at: int) -> Arrays | None:
    """Return the estimates that a step is handed, if it is."""
    every = HESSIAN_EVERY.get(name, 0)
    return inputs.hessians[at] if every and at % every == 0 else None


def run_fastopt(arguments: str, inputs: Inputs, name: str) -> list[Arrays]:
    """Run ours."""
    import fastopt

    given: dict[str, Any] = {} if name in WITHOUT_RATE else {"lr": 0.01}
    params = [p.copy() for p in inputs.params]
    opt = fastopt.optimizer(name, params, **given | eval(f"dict({arguments})"))
    path = []
    for at, grads in enumerate(inputs.grads):
        more: dict[str, Any] = {}
        if name in WITH_LOSS:
            more["value"] = inputs.losses[at]
        if hessian := hessians_of(inputs, name, at):
            more["hessian"] = hessian
        opt.step(grads, **more)
        path.append([p.copy() for p in params])
    return path


def run_torch(
    call: str, inputs: Inputs, name: str, load: Callable[[], dict[str, Any]]
) -> list[Arrays]:
    """Run a class with PyTorch's interface, or several of them on parameters of their own."""
    import torch

    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    params = [torch.tensor(p, requires_grad=True) for p in inputs.params]
    given: dict[str, Any] = {
        "torch": torch,
        "params": params,
        "matrices": [p for p in params if p.ndim == 2],
        "rest": [p for p in params if p.ndim != 2],
    }
    with catch_warnings(action="ignore"):  # that a class is deprecated
        made = eval(call, load(), given)
    optimizers = made if isinstance(made, tuple) else (made,)
    path = []
    for opt in optimizers:
        if hasattr(opt, "train"):
            opt.train()
    for at, grads in enumerate(inputs.grads):
        hessian = hessians_of(inputs, name, at)
        for k, param in enumerate(params):
            param.grad = torch.tensor(grads[k])
        for opt in optimizers:
            torch_step(opt, params, hessian)
        path.append([p.detach().numpy().copy() for p in params])
    return path


def torch_step(opt: Any, params: list[Any], hessian: Arrays | None) -> None:
    """Make a step of a class with PyTorch's interface, with estimates if it is handed some."""
    import torch

    estimates = None if hessian is None else [torch.tensor(h) for h in hessian]
    if hasattr(opt, "set_hessian") and type(opt).__module__.startswith("timm."):
        opt.zero_hessian = opt.set_hessian = lambda: None  # it would need a graph
        for param, estimate in zip(params, estimates or [], strict=True):
            param.hess = estimate
        with torch.no_grad():
            opt.step()
    elif estimates is not None:
        opt.step(hessian=estimates)
    else:
        opt.step()


def let_jax_compute_in_float64() -> None:
    """Say so to JAX, which makes float32 of float64 otherwise."""
    import jax

    config: Any = jax.config
    config.update("jax_enable_x64", True)


def run_optax(call: str, inputs: Inputs, name: str) -> list[Arrays]:
    """Run a transformation of optax."""
    import jax
    import optax

    let_jax_compute_in_float64()

    def hand_on(grads: Any, state: Any, params: Any = None, *, hessian: Any) -> Any:
        return hessian, state

    given = vars(optax) | {
        "optax": optax,
        "handed": optax.GradientTransformationExtraArgs(lambda params: (), hand_on),
    }
    rule: Any = optax.with_extra_args_support(eval(call, given))
    params: Any = [jax.numpy.asarray(p) for p in inputs.params]
    state, update, path = rule.init(params), jax.jit(rule.update), []
    for at, grads in enumerate(inputs.grads):
        more: dict[str, Any] = {}
        if name in WITH_LOSS:
            more["value"] = inputs.losses[at]
        if name in HESSIAN_EVERY:
            more["hessian"] = inputs.hessians[at]
        step, state = update([jax.numpy.asarray(g) for g in grads], state, params, **more)
        params = optax.apply_updates(params, step)
        path.append([np.array(p) for p in params])
    return path


def run_keras(call: str, inputs: Inputs, name: str) -> list[Arrays]:
    """Run a class of keras."""
    os.environ.setdefault("KERAS_BACKEND", "jax" if util.find_spec("jax") else "torch")
    import keras

    if keras.backend.backend() == "jax":
        let_jax_compute_in_float64()
    keras.config.set_floatx("float64")
    params = [keras.Variable(p, dtype="float64") for p in inputs.params]
    opt: Any = eval(call, vars(keras.optimizers))
    path = []
    opt.build(params)
    for grads in inputs.grads:
        opt.apply([keras.ops.convert_to_tensor(g) for g in grads], params)
        path.append([np.array(keras.ops.convert_to_numpy(p)) for p in params])
    return path


def run_thinc(call: str, inputs: Inputs, name: str) -> list[Arrays]:
    """Run an optimizer of thinc."""
    from thinc import api

    opt, path = eval(call, vars(api)), []
    params = [p.copy() for p in inputs.params]
    for grads in inputs.grads:
        for k, grad in enumerate(grads):
            params[k] = opt((k, "p"), params[k], grad.copy())[0]
        opt.step_schedules()
        path.append([np.array(p) for p in params])
    return path


def timm_classes() -> dict[str, Any]:
    """Return the classes of timm.optim, without the rest of timm, which needs torchvision."""
    spec = util.find_spec("timm")
    assert spec is not None
    assert spec.origin is not None
    root = Path(spec.origin).parent
    if "timm" not in sys.modules:
        for package, folder in (("timm", root), ("timm.optim", root / "optim")):
            hollow = ModuleType(package)
            hollow.__path__, hollow.__spec__ = [str(folder)], spec
            sys.modules[package] = hollow
    files = (
        "adabelief adafactor adahessian adamp adamw adan adopt lamb laprop lars lion madgrad mars "
        "muon nadam nvnovograd radam rmsprop_tf sgdp sgdw"
    )
    found: dict[str, Any] = {}
    for file in files.split():
        module = import_module(f"timm.optim.{file}")
        found |= {k: v for k, v in vars(module).items() if isinstance(v, type)}
    return found


def names_in(module: str) -> dict[str, Any]:
    """Return the public names of a module."""
    return dict(vars(import_module(module)))


def own_packages() -> dict[str, Any]:
    """Return the packages that authors have published themselves, those that are installed."""
    return {name: import_module(name) for name in AUTHORS if util.find_spec(name)}


AUTHORS = {
    "adam_atan2_pytorch": "adam-atan2-pytorch",
    "came_pytorch": "came-pytorch",
    "dadaptation": "dadaptation",
    "lion_pytorch": "lion-pytorch",
    "madgrad": "madgrad",
    "optimi": "torch-optimi",
    "prodigyopt": "prodigyopt",
    "schedulefree": "schedulefree",
}
"""Packages of single optimizers or few, by the name that is imported: what is installed."""

INSIDE = "eps stands inside the root."
CORRECTED_EPS = (
    "eps is added to the root of v before v is corrected: in the first step it counts 32 times as "
    "much."
)
RATE_AND_EPS = "It adds eps to lr."
BFLOAT16 = "Its Newton-Schulz iteration is in bfloat16, whatever the dtype of the parameters is."
NESTEROV = (
    "Its Nesterov momentum corrects the bias of both terms, as NAdam does, so that the new "
    "gradient weighs more in the first steps."
)
TALL = "optax.contrib.MuonDimensionNumbers(1, 0)"
MATRICES = f"lambda ps: [{TALL} if getattr(p, 'ndim', 0) == 2 else None for p in ps]"

TORCH = {
    "Adadelta": Peer("Adadelta(params, lr=0.01)"),
    "Adafactor": Peer("Adafactor(params, lr=0.01)"),
    "Adagrad": Peer("Adagrad(params, lr=0.01)"),
    "Adam": Peer("Adam(params, lr=0.01)"),
    "Adamax": Peer("Adamax(params, lr=0.01)"),
    "AdamW": Peer("AdamW(params, lr=0.01)"),
    "ASGD": Peer("ASGD(params, lr=0.01)"),
    "Momentum": Peer("SGD(params, lr=0.01 * (1 - 0.9), momentum=0.9)"),
    "Muon": Peer("Muon(params, lr=0.01)", BFLOAT16),
    "MuonWithAdamW": Peer("Muon(matrices, lr=0.01), torch.optim.AdamW(rest, lr=0.001)", BFLOAT16),
    "NAdam": Peer("NAdam(params, lr=0.01)"),
    "RAdam": Peer("RAdam(params, lr=0.01)"),
    "RMSprop": Peer("RMSprop(params, lr=0.01, alpha=0.9)"),
    "Rprop": Peer("Rprop(params, lr=0.01)"),
    "SGD": Peer("SGD(params, lr=0.01)"),
}

OPTAX = {
    "AdaBelief": Peer("adabelief(0.01)"),
    "Adadelta": Peer("adadelta(0.01)"),
    "Adafactor": Peer(
        "adafactor(0.01, min_dim_size_to_factor=2)",
        "It works out the shares of its averages, 1 - t^-0.8, in float32.",
    ),
    "Adagrad": Peer(
        "adagrad(0.01, initial_accumulator_value=0.0, eps=1e-10)", INSIDE, "eps_inside_sqrt=True"
    ),
    "Adam": Peer("adam(0.01)"),
    "Adamax": Peer("adamax(0.01)"),
    "AdamW": Peer("adamw(0.01, weight_decay=0.01)"),
    "Adan": Peer(
        "adan(0.01, eps_root=0.0)",
        "It multiplies the changes of the gradient by 1 - beta2, 0.08. The paper, whose beta2 is "
        "what is new, 0.08, has 0.92 there, as all others.",
    ),
    "AdEMAMix": Peer("contrib.ademamix(0.01)"),
    "ADOPT": Peer("contrib.adopt(0.01)"),
    "COCOB": Peer("contrib.cocob()"),
    "DAdaptAdam": Peer(
        "contrib.dadapt_adamw()",
        "It always corrects the bias of the averages, which the authors leave alone by default.",
        "bias_correction=True",
    ),
    "DoG": Peer("contrib.dog()"),
    "DoWG": Peer("contrib.dowg()"),
    "LAMB": Peer("lamb(0.01)"),
    "LARS": Peer("lars(0.01)"),
    "Lion": Peer("lion(0.01, weight_decay=0.0)"),
    "MADGRAD": Peer(
        "contrib.madgrad(0.01)",
        RATE_AND_EPS,
        "lr=0.01 + 1e-6",
        remains="The root of the step number, which is float32, is left.",
    ),
    "Momentum": Peer("chain(optax.ema(0.9, debias=False), optax.scale(-0.01))"),
    "MoMo": Peer("contrib.momo()"),
    "MoMoAdam": Peer("contrib.momo_adam(0.01)"),
    "Muon": Peer(
        f"contrib.muon(0.01, eps=1e-7, weight_decay=0.1, muon_weight_dimension_numbers={TALL})",
        f"{NESTEROV} (Without muon_weight_dimension_numbers rows and columns change places in the "
        "factor for the shape.)",
        "nesterov=False, eps=1e-15",
        "contrib.muon(0.01, eps=1e-15, weight_decay=0.1, nesterov=False, "
        f"muon_weight_dimension_numbers={TALL})",
    ),
    "MuonWithAdamW": Peer(
        "contrib.muon(0.01, weight_decay=0.1, adam_learning_rate=0.001, adam_weight_decay=0.01, "
        f"muon_weight_dimension_numbers={MATRICES})",
        f"{NESTEROV} AdamW has it too.",
        "nesterov=False, eps=1e-8",
        "contrib.muon(0.01, weight_decay=0.1, adam_learning_rate=0.001, adam_weight_decay=0.01, "
        f"nesterov=False, muon_weight_dimension_numbers={MATRICES})",
        "eps is left, which is added to the norm; here the norm is at least eps.",
    ),
    "NAdam": Peer(
        "nadam(0.01)",
        "Its momentum has no schedule: it is beta1 from the first step on.",
        "momentum_decay=1e6",
    ),
    "NovoGrad": Peer("novograd(0.01, eps=1e-8)"),
    "OptimisticAdam": Peer("optimistic_adam_v2(0.01, nesterov=False)"),
    "Prodigy": Peer(
        "contrib.prodigy()",
        "It always corrects the bias of the averages, which the authors leave alone by default.",
        "bias_correction=True",
    ),
    "RAdam": Peer(
        "radam(0.01)",
        "eps is added after v is corrected, in PyTorch and here before.",
        "eps=0.0",
        "radam(0.01, eps=0.0)",
    ),
    "RMSprop": Peer("rmsprop(0.01, eps_in_sqrt=False)"),
    "Rprop": Peer(
        "rprop(0.01)",
        "It is a step late: it makes the step that the gradient before asked for, and none "
        "where the sign has turned since.",
    ),
    "ScheduleFreeAdamW": Peer("contrib.schedule_free_adamw(0.01)"),
    "ScheduleFreeSGD": Peer("contrib.schedule_free_sgd(0.01)"),
    "SGD": Peer("sgd(0.01)"),
    "Signum": Peer("signum(0.01)"),
    "SM3": Peer("sm3(0.01)"),
    "Sophia": Peer(
        "contrib.sophia(0.01, 0.96, 0.99, eps=1e-12, weight_decay=0.0, hessian_diagonal_fn=handed)",
        "It divides by the average from before a step's estimate has come in, and corrects the "
        "bias of the gradients' average. (`handed` gives it the same estimates.)",
    ),
    "Yogi": Peer("yogi(0.01)"),
}

KERAS = {
    "Adadelta": Peer("Adadelta(0.01, rho=0.9, epsilon=1e-6)"),
    "Adafactor": Peer("Adafactor(0.01)", "With JAX its means are made in float32."),
    "Adagrad": Peer(
        "Adagrad(0.01, initial_accumulator_value=0.0, epsilon=1e-10)",
        INSIDE,
        "eps_inside_sqrt=True",
    ),
    "Adam": Peer("Adam(0.01, epsilon=1e-8)", CORRECTED_EPS, "eps_hat=True"),
    "Adamax": Peer("Adamax(0.01, epsilon=1e-8)"),
    "AdamW": Peer("AdamW(0.01, weight_decay=0.01, epsilon=1e-8)", CORRECTED_EPS, "eps_hat=True"),
    "FTRL": Peer("Ftrl(0.01)"),
    "LAMB": Peer("Lamb(0.01, epsilon=1e-6)"),
    "Lion": Peer("Lion(0.01)"),
    "Momentum": Peer("SGD(0.01 * (1 - 0.9), momentum=0.9)"),
    "Muon": Peer(
        "Muon(0.01, weight_decay=0.1, rms_rate=None)",
        "Its factor for the shape is none, as here, or the second of ours.",
        "adjust_lr='match_rms_adamw'",
        "Muon(0.01, weight_decay=0.1)",
        "The norm is left: 1e-7 is added to it, and with JAX it is float32.",
    ),
    "MuonWithAdamW": Peer(
        "Muon(0.01, weight_decay=0.1, adam_weight_decay=0.001, adam_lr_ratio=0.1, epsilon=1e-8, "
        "rms_rate=None)",
        "Its factor for the shape is none, as here, or the second of ours. (adam_weight_decay is a "
        "tenth, since it is multiplied by lr without the ratio.)",
        "adjust_lr='match_rms_adamw'",
        "Muon(0.01, weight_decay=0.1, adam_weight_decay=0.001, adam_lr_ratio=0.1, epsilon=1e-8)",
        "What is left comes of eps, which AdamW adds before v is corrected, and of the norm.",
    ),
    "NAdam": Peer(
        "Nadam(0.01, epsilon=1e-8)",
        "The schedule of its momentum has 0.96^t, in PyTorch and here it has 0.96^(0.004 t).",
        "momentum_decay=1.0",
    ),
    "RMSprop": Peer("RMSprop(0.01, rho=0.9, epsilon=1e-8)", INSIDE, "eps_inside_sqrt=True"),
    "ScheduleFreeAdamW": Peer("ScheduleFreeAdamW(0.01)"),
    "SGD": Peer("SGD(0.01)"),
}

TIMM = {
    "AdaBelief": Peer("AdaBelief(params, lr=0.01, rectify=False)"),
    "Adafactor": Peer("Adafactor(params, min_dim_size_to_factor=2)"),
    "AdaHessian": Peer("Adahessian(params, lr=0.01)"),
    "AdamP": Peer("AdamP(params, lr=0.01)"),
    "AdamW": Peer("AdamWLegacy(params, lr=0.01)"),
    "Adan": Peer("Adan(params, lr=0.01)"),
    "ADOPT": Peer("Adopt(params, lr=0.01, clip_exp=0.25)"),
    "LAMB": Peer("Lamb(params, lr=0.01, weight_decay=0.0, max_grad_norm=None, always_adapt=True)"),
    "LaProp": Peer("LaProp(params, lr=0.01)"),
    "LARS": Peer("Lars(params, lr=0.01, momentum=0.9, eps=0.0, always_adapt=True)"),
    "Lion": Peer("Lion(params, lr=0.01)"),
    "MADGRAD": Peer("MADGRAD(params, lr=0.01)", RATE_AND_EPS, "lr=0.01 + 1e-6"),
    "Mars": Peer("Mars(params, lr=0.01, optimize_1d=True)"),
    "Momentum": Peer("SGDW(params, lr=0.01 * (1 - 0.9), momentum=0.9)"),
    "Muon": Peer(
        "Muon([{'params': params, 'use_muon': True}], lr=0.01, weight_decay=0.1, nesterov=True, "
        "ns_coefficients='original', adjust_lr_fn='original')",
        f"{BFLOAT16} (Its defaults are other coefficients, the second factor for the shape, and "
        "AdamW for matrices with a side shorter than 4.)",
    ),
    "MuonWithAdamW": Peer(
        "Muon([{'params': matrices, 'use_muon': True}, {'params': rest, 'use_muon': False, "
        "'eps': 1e-8, 'weight_decay': 0.01}], lr=0.01, weight_decay=0.1, nesterov=True, "
        "ns_coefficients='original', adjust_lr_fn='original', fallback_lr_scale=0.1, "
        "betas=(0.9, 0.999))",
        f"{BFLOAT16} With nesterov=True the rest is moved by a NAdamW, which looks ahead in m.",
    ),
    "NAdam": Peer("NAdamLegacy(params, lr=0.01)"),
    "NovoGrad": Peer("NvNovoGrad(params, lr=0.01, betas=(0.9, 0.25))"),
    "RAdam": Peer("RAdamLegacy(params, lr=0.01)", "It computes in float32."),
    "RMSprop": Peer(
        "RMSpropTF(params, lr=0.01, eps=1e-8)",
        "Its v is 1 at first, and eps stands inside the root.",
    ),
    "SGD": Peer("SGDW(params, lr=0.01)"),
    "SGDP": Peer("SGDP(params, lr=0.01, momentum=0.9)"),
}

PO = {
    "AdaBelief": Peer("AdaBelief(params, lr=0.01)"),
    "AdaBound": Peer("AdaBound(params, lr=0.01)"),
    "Adadelta": Peer("AdaDelta(params, lr=0.01)"),
    "Adafactor": Peer("AdaFactor(params, lr=0.01, relative_step=False, betas=(None, 0.999))"),
    "AdaHessian": Peer("AdaHessian(params, lr=0.01, eps=1e-8, update_period=10**9)"),
    "Adamax": Peer("AdaMax(params, lr=0.01)"),
    "AdamP": Peer(
        "AdamP(params, lr=0.01)", CORRECTED_EPS, "eps=0.0", "AdamP(params, lr=0.01, eps=0.0)"
    ),
    "Adan": Peer("Adan(params, lr=0.01)"),
    "AdEMAMix": Peer("AdEMAMix(params, lr=0.01)"),
    "ADOPT": Peer("ADOPT(params, lr=0.01, clip_lambda=lambda t: (t - 1) ** 0.25)"),
    "AggMo": Peer("AggMo(params, lr=0.01)"),
    "ASGD": Peer(
        "ASGD(params, lr=0.01)",
        "Another algorithm of this name: SGD whose lr follows an estimate of the curvature.",
    ),
    "CAME": Peer("CAME(params, lr=0.01)"),
    "DAdaptAdam": Peer("DAdaptAdam(params)"),
    "DAdaptSGD": Peer(
        "DAdaptSGD(params, momentum=0.0)",
        "The norm of the first gradients, by which it divides, is float32.",
    ),
    "FTRL": Peer(
        "FTRL(params, lr=0.01)",
        "Its sum of squares begins at 0.",
        "initial_accumulator_value=0.0",
    ),
    "LAMB": Peer(
        "Lamb(params, lr=0.01, adam_debias=True)",
        "Its averages are not corrected, and eps is added to the norm of the step too. (Without "
        "adam_debias lr is divided by 1 - beta1^t: the first step is ten times as long.)",
        "bias_correction=False, eps=0.0",
        "Lamb(params, lr=0.01, adam_debias=True, eps=0.0)",
    ),
    "LaProp": Peer(
        "LaProp(params, lr=0.01)",
        "Its step sizes are float32 unless foreach is off; and it adds 1e-15 to v under the root.",
        theirs="LaProp(params, lr=0.01, foreach=False)",
    ),
    "LARS": Peer(
        "LARS(params, lr=0.01)",
        "Vectors have no trust ratio, and so make far longer steps; matrices are equal.",
    ),
    "Lion": Peer("Lion(params, lr=0.01)"),
    "MADGRAD": Peer("MADGRAD(params, lr=0.01)", RATE_AND_EPS, "lr=0.01 + 1e-6"),
    "Mars": Peer(
        "MARS(params, lr=0.01, betas=(0.9, 0.99), optimize_1d=True)",
        CORRECTED_EPS.replace("32", "10"),
        "eps=0.0",
        "MARS(params, lr=0.01, betas=(0.9, 0.99), optimize_1d=True, eps=0.0)",
    ),
    "Momentum": Peer("SGDW(params, lr=0.01 * (1 - 0.9), momentum=0.9)"),
    "Muon": Peer(
        "Muon([{'params': params, 'use_muon': True}], lr=0.01, weight_decay=0.1)", BFLOAT16
    ),
    "MuonWithAdamW": Peer(
        "Muon([{'params': matrices, 'use_muon': True}, {'params': rest, 'use_muon': False}], "
        "lr=0.01, weight_decay=0.1, adamw_lr=0.001, adamw_betas=(0.9, 0.999), adamw_wd=0.01, "
        "eps=1e-8)",
        BFLOAT16,
    ),
    "NorMuon": Peer("NorMuon([{'params': params, 'use_muon': True}], lr=0.01)", BFLOAT16),
    "NovoGrad": Peer("NovoGrad(params, lr=0.01, betas=(0.9, 0.25))"),
    "Prodigy": Peer("Prodigy(params)"),
    "QHAdam": Peer(
        "QHAdam(params, lr=0.01, betas=(0.995, 0.999), nus=(0.7, 1.0))",
        "The weights of its averages are float32.",
    ),
    "QHM": Peer("QHM(params, lr=0.01, momentum=0.999, nu=0.7)"),
    "RAdam": Peer("RAdam(params, lr=0.01, degenerated_to_sgd=True)"),
    "ScheduleFreeAdamW": Peer("ScheduleFreeAdamW(params, lr=0.01)"),
    "ScheduleFreeSGD": Peer("ScheduleFreeSGD(params, lr=0.01)"),
    "Scion": Peer("SCION(params, lr=0.01, momentum=0.1)", BFLOAT16),
    "SGD": Peer("SGDW(params, lr=0.01)"),
    "SGDP": Peer("SGDP(params, lr=0.01, momentum=0.9)"),
    "Shampoo": Peer("Shampoo(params, lr=0.01)"),
    "Signum": Peer("SignSGD(params, lr=0.01)"),
    "SM3": Peer("SM3(params, lr=0.01, momentum=0.9, eps=1e-8)"),
    "SOAP": Peer(
        "SOAP(params, lr=0.01)",
        "Its QR decomposition is float32.",
    ),
    "Sophia": Peer(
        "SophiaH(params, lr=0.01 / 0.01, eps=1e-12 / 0.01, p=0.01, update_period=10**9)"
    ),
    "StableAdamW": Peer("StableAdamW(params, lr=0.01, eps=1e-6)"),
    "Yogi": Peer("Yogi(params, lr=0.01)"),
}

OWN = {
    "AdamAtan2": Peer("adam_atan2_pytorch.AdamAtan2(params, lr=0.01, betas=(0.9, 0.999))"),
    "CAME": Peer("came_pytorch.CAME(params, lr=0.01)"),
    "DAdaptAdam": Peer("dadaptation.DAdaptAdam(params)"),
    "DAdaptSGD": Peer("dadaptation.DAdaptSGD(params)"),
    "Lion": Peer("lion_pytorch.Lion(params, lr=0.01)"),
    "MADGRAD": Peer("madgrad.MADGRAD(params, lr=0.01)", RATE_AND_EPS, "lr=0.01 + 1e-6"),
    "Prodigy": Peer("prodigyopt.Prodigy(params)"),
    "ScheduleFreeAdamW": Peer("schedulefree.AdamWScheduleFree(params, lr=0.01)"),
    "ScheduleFreeSGD": Peer("schedulefree.SGDScheduleFree(params, lr=0.01)"),
    "StableAdamW": Peer("optimi.StableAdamW(params, lr=0.01, foreach=False, triton=False)"),
}

THINC = {
    "Adam": Peer("", "float32 alone"),
    "RAdam": Peer(
        "RAdam(0.01, eps=1e-8, L2=0.0, grad_clip=0.0, use_averages=False)",
        "It counts its steps from 2 on, and keeps its averages in float32.",
    ),
    "SGD": Peer("SGD(0.01, L2=0.0, grad_clip=0.0, use_averages=False)"),
}


@dataclass(frozen=True)
class Library:
    """A column of the table."""

    title: str
    packages: tuple[str, ...]  # what must be there to import
    prefix: str  # of its calls, as they are shown
    run: Run
    peers: dict[str, Peer]
    handed_on: tuple[str, ...] = ()  # PyTorch's own classes, under the same names

    def missing(self) -> list[str]:
        """Return which packages are not installed."""
        return [name for name in self.packages if util.find_spec(name) is None]


def by_torch(load: Callable[[], dict[str, Any]]) -> Run:
    """Return what runs the classes of a library that has PyTorch's interface."""
    return partial(run_torch, load=load)


OWN_PACKAGES = Library("own package", ("torch",), "", by_torch(own_packages), OWN)
LIBRARIES = (
    Library("torch", ("torch",), "torch.optim.", by_torch(partial(names_in, "torch.optim")), TORCH),
    Library("optax", ("optax", "jax"), "optax.", run_optax, OPTAX),
    Library("keras", ("keras",), "keras.optimizers.", run_keras, KERAS),
    Library(
        "timm",
        ("timm", "torch"),
        "timm.optim.",
        by_torch(timm_classes),
        TIMM,
        ("Adadelta", "Adagrad", "Adam", "Adamax"),
    ),
    Library(
        "pytorch_optimizer",
        ("pytorch_optimizer", "torch"),
        "pytorch_optimizer.",
        by_torch(partial(names_in, "pytorch_optimizer")),
        PO,
        ("Adam", "AdamW", "NAdam", "RMSprop"),
    ),
    OWN_PACKAGES,
    Library("thinc", ("thinc",), "thinc.api.", run_thinc, THINC),
)


def apart(ours: list[Arrays], theirs: list[Arrays], inputs: Inputs) -> tuple[float, ...]:
    """Return the largest difference after some steps, as a share of the way that ours has moved.

    Each array is measured by itself, and the largest of the shares is taken.
    """
    found = []
    for step in STEPS:
        shares = []
        for start, a, b in zip(inputs.params, ours[step - 1], theirs[step - 1], strict=True):
            moved, off = float(abs(a - start).max()), float(abs(a - b).max())
            shares.append(off / moved if moved else float("inf") if off else 0.0)
        found.append(max(shares))
    return tuple(found)


@dataclass(frozen=True)
class Cell:
    """What was found of one optimizer in one library; ``peer`` is None where it has none."""

    source: Library
    peer: Peer | None = None
    shares: tuple[float, ...] = ()
    proof: tuple[float, ...] = ()
    failure: str = ""

    def is_equal(self) -> bool:
        """Say whether nothing has to be explained."""
        return not self.failure and max(self.shares, default=0.0) < EQUAL

    def shown(self, name: str) -> str:
        """Return what stands in the table."""
        if self.peer is None:
            return "PyTorch's" if name in self.source.handed_on else "no"
        if not self.peer.call:
            return self.peer.reason
        if self.failure:
            return f"[failed](#{name.lower()})"
        return words(self.shares) if self.is_equal() else f"[{words(self.shares)}](#{name.lower()})"

    def explained(self, name: str) -> str:
        """Return the reason for what is not equal, and what was measured to show it."""
        assert self.peer is not None
        if self.failure:
            return f"failed: {self.failure}"
        said = self.peer.reason or "unexplained."
        if self.proof:
            both = [f"`{self.peer.ours}` here"] if self.peer.ours else []
            both += [f"`{self.source.prefix}{self.peer.theirs}`"] if self.peer.theirs else []
            said += f" With {' and '.join(both)}: {words(self.proof)}. {self.peer.remains}"
        return said.rstrip()


def words(shares: tuple[float, ...]) -> str:
    """Return shares of the way as they are shown."""
    largest = max(shares)
    if largest < EQUAL:
        return f"equal ({short(largest)})"
    return ", ".join(map(short, shares))


def short(share: float) -> str:
    """Return one share, with as many digits as are of interest."""
    if share < 0.01:
        return f"{share:.0e}".replace("e-0", "e-") if share else "0"
    return f"{100 * share:.0f} %" if share < 10 else f"{share:.0f} times"


def compare(name: str, library: Library, inputs: Inputs) -> Cell:
    """Run one optimizer of ours and of a library."""
    peer = library.peers.get(name)
    if library is OWN_PACKAGES and peer and not util.find_spec(peer.call.split(".")[0]):
        return Cell(library)
    if peer is None or not peer.call:
        return Cell(library, peer)
    try:
        theirs = library.run(peer.call, inputs, name)
        shares = apart(run_fastopt("", inputs, name), theirs, inputs)
        proof: tuple[float, ...] = ()
        if peer.ours or peer.theirs:
            theirs = library.run(peer.theirs, inputs, name) if peer.theirs else theirs
            proof = apart(run_fastopt(peer.ours, inputs, name), theirs, inputs)
        return Cell(library, peer, shares, proof)
    except Exception as error:  # of a version in which it has another name, or other arguments
        return Cell(library, peer, failure=f"{type(error).__name__}: {str(error).splitlines()[0]}")


def call_of_ours(name: str) -> str:
    """Return the call of ours that is compared."""
    return f"fastopt.{name}(params)" if name in WITHOUT_RATE else f"fastopt.{name}(params, lr=0.01)"


def versions(libraries: list[Library]) -> str:
    """Return what is compared, with the versions that are installed."""
    packages = [library.packages[0] for library in libraries if library is not OWN_PACKAGES]
    packages += [AUTHORS[name] for name in AUTHORS if util.find_spec(name)]
    said = {name: f"{name} {metadata.version(name)}" for name in packages}
    if "keras" in said:
        said["keras"] += f" (with {import_module('keras').backend.backend()})"
    return ", ".join(said.values())


def left_out() -> list[str]:
    """Return what is not installed."""
    others = [library for library in LIBRARIES if library is not OWN_PACKAGES]
    missing = [library.title for library in others if library.missing()]
    return missing + [AUTHORS[name] for name in AUTHORS if not util.find_spec(name)]


def table_of(rows: dict[str, list[Cell]]) -> Iterator[str]:
    """Yield the lines of the table."""
    titles = [cell.source.title for cell in next(iter(rows.values()))]
    yield f"| class | {' | '.join(titles)} |"
    yield "|---" * (len(titles) + 1) + "|"
    for name, cells in rows.items():
        yield f"| `{name}` | {' | '.join(cell.shown(name) for cell in cells)} |"


def page_of(rows: dict[str, list[Cell]]) -> Iterator[str]:
    """Yield the lines of the page."""
    libraries = [cell.source for cell in next(iter(rows.values()))]
    yield INTRODUCTION.format(versions=versions(libraries))
    if missing := left_out():
        yield f"Left out, because not installed: {', '.join(missing)}.\n"
    yield from table_of(rows)
    yield "\n## Why they differ"
    for name, cells in rows.items():
        different = [cell for cell in cells if not cell.is_equal()]
        if different:
            yield f"\n### {name}\n"
        for cell in different:
            yield f"* {cell.source.title}: {cell.explained(name)}"
    yield CALLS
    for name, cells in rows.items():
        theirs = [
            f"`{cell.source.prefix}{cell.peer.call}`"
            for cell in cells
            if cell.peer and cell.peer.call
        ]
        yield f"* `{call_of_ours(name)}`: {'; '.join(theirs) or 'none'}"


INTRODUCTION = f"""\
# Beside other libraries

Each optimizer, and what other libraries have under its name or of its idea: run on the same first
parameters and the same {max(STEPS)} recorded gradients, in float64, with our defaults as far as the
other's options can say them, and lr = 0.01 unless it finds its own.
`python docs/make_parity.py` writes this page anew.

A cell says how far the other is away after {STEPS[0]}, {STEPS[1]} and {STEPS[2]} steps, as a share
of the way that ours has moved: the largest difference in an array over the longest way in it, and
the worst of three arrays.

* *equal*: less than {short(EQUAL)} in all of them; the largest is in brackets.
* Numbers: they lead to the reason.
* *no*: the library has none. *PyTorch's*: it hands on PyTorch's class.

Muon and NorMuon run on matrices alone. A loss and estimates of the Hessian, where an optimizer
takes them, are the same on both sides. PyTorch's default dtype is float64 too, without which some
of its classes, and of those made for it, keep numbers of a step in float32. Not compared are
gradients that are missing, changes of the learning rate, weight decay where our default is 0, and
other options.

The libraries: {{versions}}.
"""


CALLS = """
## The calls

`params` is a list of all arrays, `matrices` and `rest` are those with two axes and the others, and
`handed` hands optax's Sophia its estimates. Where ours takes a loss or an estimate it is handed to
theirs in each step as well: those of pytorch_optimizer in `step(hessian=...)`, timm's as `p.hess`.
"""


def main(only: list[str]) -> None:
    """Write the page, or print the lines of some optimizers."""
    import fastopt

    there = [library for library in LIBRARIES if not library.missing()]
    rows = {}
    for name in only or fastopt.optimizers.names():
        inputs = make_inputs(name)
        rows[name] = [compare(name, library, inputs) for library in there]
    text = "\n".join(page_of(rows)) + "\n"
    if only:
        print(text)
    else:
        PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
