"""The optimizers as PyTorch's: what ``torch.optim`` computes, and what programs do with them.

PyTorch is no requirement of the tests: without it these are skipped. One stage of the gate installs
it and sets FASTOPT_TEST_TORCH, with which they fail where it is not there.
"""

from __future__ import annotations

import copy
import importlib
import io
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import fastopt
from helpers.variants import CPU_BACKENDS, HAS_NUMBA

if not os.environ.get("FASTOPT_TEST_TORCH"):
    pytest.importorskip("torch")
    pytest.importorskip("expecttest", reason="PyTorch's own inputs of tests need it")
torch: Any = importlib.import_module("torch")
if HAS_NUMBA:  # PyTorch's inputs ask it for a GPU, which the emulated CUDA of other tests is not
    importlib.import_module("numba").config.DISABLE_CUDA = True
ours: Any = importlib.import_module("fastopt.torch")
theirs: Any = torch.optim
schedulers: Any = torch.optim.lr_scheduler
common: Any = importlib.import_module("torch.testing._internal.common_optimizers")

CLASSES = [name for name in fastopt.optimizers.names() if hasattr(theirs, name)]
INFO = {i.optim_cls.__name__: i for i in common.optim_db if i.optim_cls.__name__ in CLASSES}
SHARED = ("Adadelta", "Adagrad", "Adam", "AdamW", "RMSprop", "SGD")
"""Classes whose states go from one side to the other."""
INEXACT = {"Muon": 2e-2}
"""Where PyTorch computes in bfloat16 what is in the parameter's precision here."""
STEPS = 30

each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)
each_class = pytest.mark.parametrize("name", sorted(INFO))


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Let PyTorch count steps and keep its other numbers of a parameter in float64, as here."""
    torch.manual_seed(1)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def model(dtype: Any = torch.float64) -> Any:
    torch.manual_seed(2)
    layers = torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)
    return torch.nn.Sequential(*layers).to(dtype)


INPUT = np.random.default_rng(3).standard_normal((16, 6))


def backward(net: Any, opt: Any) -> Any:
    opt.zero_grad()
    dtype = next(net.parameters()).dtype
    loss = net(torch.as_tensor(INPUT).to(dtype)).square().mean()
    loss.backward()
    return loss


def train(net: Any, opt: Any, steps: int = 5, after: Callable[[], Any] = lambda: None) -> None:
    for _ in range(steps):
        backward(net, opt)
        opt.step()
        after()


def assert_alike(one: Any, other: Any, tolerance: float = 1e-12) -> None:
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def assert_same(one: Any, other: Any) -> None:
    assert all(map(torch.equal, one.parameters(), other.parameters()))


# What is computed, and PyTorch's own inputs ------------------------------------------------------


def inputs_of(name: str) -> list[dict[str, Any]]:
    """Return the options that PyTorch tests its class with, but for those that are refused."""
    listed = INFO[name].optim_inputs_func(device="cpu")
    found = [one.kwargs for one in listed]
    return [k for k in found if not k.get("capturable") and not k.get("differentiable")]


def start(name: str) -> list[Any]:
    shapes: list[tuple[int, ...]] = [(4, 3), (2, 5)] if name == "Muon" else [(4, 3), (5,), ()]
    return [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]


def deviation(name: str, options: dict[str, Any], steps: int, backend: str | None = None) -> float:
    """Return how far both sides are apart after some steps, relative to 1 and more."""
    a = start(name)
    b = [one.detach().clone().requires_grad_() for one in a]
    one = getattr(theirs, name)(a, **options)
    other = getattr(ours, name)(b, **options, backend=backend)
    for _ in range(steps):
        for p, q in zip(a, b, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        one.step()
        other.step()
    pairs = zip(a, b, strict=True)
    return max(((p - q).abs() / p.abs().clamp(min=1.0)).max().item() for p, q in pairs)


@each_class
def test_the_numbers_are_those_of_pytorch_for_its_own_inputs(name: str) -> None:
    inputs = inputs_of(name)
    assert inputs
    for options in inputs:
        assert deviation(name, options, STEPS) <= INEXACT.get(name, 1e-12), options


@each_backend
@each_class
def test_the_numbers_are_those_of_pytorch_on_every_backend(name: str, backend: str) -> None:
    assert deviation(name, {}, STEPS, backend) <= INEXACT.get(name, 1e-12)


@each_class
def test_the_signature_is_that_of_pytorch(name: str) -> None:
    one = [torch.randn(3, 3, requires_grad=True)]
    its, mine = getattr(theirs, name)(one), getattr(ours, name)(one)
    assert its.defaults.items() - {("decoupled_weight_decay", True)} <= mine.defaults.items()
    group = mine.param_groups[0]
    assert {k: v for k, v in its.param_groups[0].items() if k != "params"}.keys() - {
        "decoupled_weight_decay"
    } <= group.keys()


def test_options_can_be_given_by_position() -> None:
    opt = ours.SGD([torch.randn(3, requires_grad=True)], 0.1, 0.9, 0, 1e-4, True)
    group = opt.param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.1, 0.9, 1e-4)
    assert group["nesterov"] is True


PERMITTED = ("lr as Tensor doesn't", "betas", "Tensor lr must", "as a Tensor", "duplicate param")
"""Errors of PyTorch about how it computes, not what; tensors of one number are accepted here."""


@each_class
@pytest.mark.filterwarnings("ignore:.*duplicate parameters")
def test_what_pytorch_refuses_is_refused(name: str) -> None:
    refused_inputs = [
        one
        for one in INFO[name].optim_error_inputs_func(device="cpu", dtype=torch.float32)
        if not any(word in one.optimizer_error_input.desc for word in PERMITTED)
    ]
    assert refused_inputs
    for one in refused_inputs:
        given = one.optimizer_error_input
        params = [torch.randn(2, 2, requires_grad=True)] if given.params is None else given.params
        with pytest.raises((ValueError, TypeError)):
            getattr(ours, name)(params, **given.kwargs)


# Muon takes matrices alone; with PyTorch's ASGD a learning rate acts a step late.
@pytest.mark.parametrize("name", sorted(INFO.keys() - {"Muon", "ASGD"}))
def test_pytorchs_schedulers_act_as_with_pytorch(name: str) -> None:
    for made in INFO[name].scheduler_inputs:
        a, b = model(), model()
        options = {"lr": 0.01} | ({"momentum": 0.9} if name == "SGD" else {})
        one = getattr(theirs, name)(a.parameters(), **options)
        other = getattr(ours, name)(b.parameters(), **options)
        for net, opt in ((a, one), (b, other)):
            steppers = [make(opt) for make in made]
            for _ in range(15):
                loss = backward(net, opt)
                opt.step()
                for each in steppers:
                    plateau = isinstance(each, schedulers.ReduceLROnPlateau)
                    each.step(loss.item()) if plateau else each.step()
        assert_alike(a, b, 1e-10)


def test_a_scheduler_that_cycles_momentum_acts_at_the_next_step() -> None:
    for name, options in (("SGD", {"momentum": 0.9}), ("Adam", {})):
        nets = model(), model()
        for lib, net in zip((theirs, ours), nets, strict=True):
            opt = getattr(lib, name)(net.parameters(), lr=0.01, **options)
            train(net, opt, 10, schedulers.OneCycleLR(opt, max_lr=0.1, total_steps=12).step)
        assert_alike(*nets, 1e-10)


def test_a_learning_rate_that_is_a_tensor_is_read_in_every_step() -> None:
    net, rate = model(), torch.tensor(0.1)
    opt = ours.Adam(net.parameters(), lr=rate)
    train(net, opt)
    before = copy.deepcopy(net)
    rate.fill_(0.0)
    train(net, opt)
    assert_same(before, net)
    opt.param_groups[0]["lr"] = 0.1
    train(net, opt)
    opt.param_groups[0]["lr"] = rate.fill_(0.2)  # one that was a number before
    train(net, opt)
    before = copy.deepcopy(net)
    rate.fill_(0.0)
    train(net, opt)
    assert_same(before, net)


# State ------------------------------------------------------------------------------------------

PLAIN = [n for n in fastopt.optimizers.names() if n not in ("Muon", "NorMuon", "MoMo", "MoMoAdam")]
PLAIN = [n for n in PLAIN if n not in ("Sophia", "AdaHessian")]  # they take more than gradients


@pytest.mark.parametrize("name", PLAIN)
def test_a_run_is_resumed_in_the_same_bits(name: str) -> None:
    net = model(torch.float32)
    opt = getattr(ours, name)(net.parameters())
    train(net, opt, 3)
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    loaded = copy.deepcopy(net)
    resumed = getattr(ours, name)(loaded.parameters())
    resumed.load_state_dict(torch.load(file, weights_only=True))
    copies = [copy.deepcopy((net, opt)), pickle.loads(pickle.dumps((net, opt)))]
    for one, its in ((net, opt), (loaded, resumed), *copies):
        train(one, its, 3)
        assert_same(net, one)
    counts = {int(entry["step"]) for key, entry in opt.state.items() if key != "fastopt"}
    assert counts == {6}


@pytest.mark.parametrize("name", SHARED)
def test_state_goes_to_pytorch_and_back(name: str) -> None:
    options = {"momentum": 0.9} if name == "SGD" else {}
    a = model()
    one = getattr(theirs, name)(a.parameters(), **options)
    train(a, one)
    b = copy.deepcopy(a)
    other = getattr(ours, name)(b.parameters(), **options)
    other.load_state_dict(one.state_dict())
    train(a, one)
    train(b, other)
    assert_alike(a, b)
    back = getattr(theirs, name)(b.parameters(), **options)
    back.load_state_dict(other.state_dict())
    train(a, one)
    train(b, back)
    assert_alike(a, b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.complex64])
def test_other_dtypes_train_and_keep_their_state(dtype: Any) -> None:
    param = torch.randn(40).to(dtype).requires_grad_()
    opt = ours.AdamW([param], lr=0.01)

    def go(param: Any, opt: Any) -> Any:
        opt.zero_grad()
        loss = (param.abs() ** 2).sum()
        loss.backward()
        opt.step()
        return loss.item()

    first = go(param, opt)
    for _ in range(30):
        last = go(param, opt)
    assert last < 0.9 * first
    if dtype is not torch.complex64:
        assert opt.state[param]["exp_avg"].dtype is torch.float32
    clone = param.detach().clone().requires_grad_()
    resumed = ours.AdamW([clone], lr=0.01)
    resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
    for _ in range(3):
        assert go(param, opt) == go(clone, resumed)


@each_class
def test_states_of_all_inputs_are_loaded_as_pytorch_loads_them(name: str) -> None:
    """With names and without, of versions that lacked some options, with steps as numbers."""
    for options in inputs_of(name):
        params = [torch.randn(3, 2, requires_grad=True) for _ in range(2)]
        copies = [p.detach().clone().requires_grad_() for p in params]
        one = getattr(ours, name)([("a", params[0]), ("b", params[1])], **options)
        other = getattr(ours, name)(copies, **options)

        def go(params: list[Any], opt: Any) -> None:
            opt.zero_grad()
            sum((p**2).sum() for p in params).backward()
            opt.step()

        for _ in range(3):
            go(params, one)
        with torch.no_grad():
            for p, q in zip(params, copies, strict=True):
                q.copy_(p)
        saved = copy.deepcopy(one.state_dict())
        for flag in {*INFO[name].not_og_supported_flags} & saved["param_groups"][0].keys():
            if saved["param_groups"][0][flag] == other.defaults[flag]:
                del saved["param_groups"][0][flag]
        for entry in saved["state"].values():
            entry["step"] = entry["step"].item()
        kept = copy.deepcopy(saved)
        other.load_state_dict(saved)
        assert saved["param_groups"] == kept["param_groups"]
        torch.testing.assert_close(saved["state"], kept["state"], rtol=0, atol=0)
        for _ in range(3):
            go(params, one)
            go(copies, other)
        assert all(map(torch.equal, params, copies))
        mine, its = one.state_dict(), other.state_dict()
        assert its["param_groups"][0]["param_names"] == ["a", "b"]
        torch.testing.assert_close(mine["state"], its["state"], rtol=0, atol=0)
        public = {attribute for attribute in vars(one) if not attribute.startswith("_")}
        assert public == {a for a in vars(copy.deepcopy(one)) if not a.startswith("_")}


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    net = model()
    opt = ours.Adam(net.parameters())
    train(net, opt)
    saved = copy.deepcopy(opt.state_dict())
    bad = copy.deepcopy(saved)
    bad["state"][1]["exp_avg"] = torch.zeros(3)
    bad["param_groups"][0]["lr"] = 7.0
    with pytest.raises(fastopt.CheckpointError, match=r"0\.1\.m"):
        opt.load_state_dict(bad)
    with pytest.raises(ValueError, match="different number of parameter groups"):
        opt.load_state_dict({**saved, "param_groups": []})
    assert opt.param_groups[0]["lr"] == 1e-3
    for mine, before in zip(opt.state.values(), saved["state"].values(), strict=True):
        assert all(torch.equal(mine[k], before[k]) for k in before)


@pytest.mark.parametrize("name", ["NAdam", "Rprop"])
def test_states_of_pytorch_that_are_other_ones_are_refused_by_name(name: str) -> None:
    net = model()
    opt = getattr(theirs, name)(net.parameters())
    train(net, opt)
    with pytest.raises(ValueError, match=rf"as that of torch\.optim\.{name} has"):
        getattr(ours, name)(net.parameters()).load_state_dict(opt.state_dict())


def test_hooks_of_states_are_called() -> None:
    net = model()
    opt, seen = ours.Adam(net.parameters()), []
    opt.register_state_dict_pre_hook(lambda _: seen.append("before"))
    opt.register_state_dict_post_hook(lambda _, state: {**state, "more": 1})
    opt.register_load_state_dict_pre_hook(lambda _, state: seen.append("loading"))
    opt.register_load_state_dict_post_hook(lambda _: seen.append("loaded"))
    train(net, opt)
    saved = opt.state_dict()
    assert saved["more"] == 1
    opt.load_state_dict(saved)
    assert seen == ["before", "loading", "loaded"]


# Parameters and gradients ------------------------------------------------------------------------


@each_backend
def test_memory_that_moves_is_followed(backend: str) -> None:
    net, still = model(), model()
    opt = ours.Adam(net.parameters(), backend=backend)
    kept = ours.Adam(still.parameters(), backend=backend)
    for _ in range(3):
        train(net, opt)
        train(still, kept)
        for param in net.parameters():
            param.data = param.data.clone()
    train(net, opt)
    train(still, kept)
    assert_same(net, still)
    net.float()
    train(net, opt)
    assert opt.fastopt.step_count == 25
    entry = opt.state[next(net.parameters())]
    assert entry["step"] == 25
    assert entry["exp_avg"].dtype is torch.float32


RELAID: dict[str, Callable[[Any], Any]] = {
    "transposed": lambda data: data.t(),
    "reshaped": lambda data: data.view(2, 8),
    "narrowed": lambda data: data[:2],
}


@each_backend
@pytest.mark.parametrize("how", RELAID)
def test_parameters_that_lie_otherwise_at_the_same_address_are_followed(
    how: str, backend: str
) -> None:
    name, options = ("Adam", {}) if how == "transposed" else ("SGD", {"lr": 0.1})
    start = torch.randn(4, 4)
    params = []
    for lib, more in ((theirs, {}), (ours, {"backend": backend})):
        param = start.clone().requires_grad_()
        opt = getattr(lib, name)([param], **options, **more)
        for k in range(6):
            if k == 3:
                param.grad, param.data = None, RELAID[how](param.data)
            numbers = torch.linspace(-1, 1, param.numel()) * (k + 1)
            param.grad = numbers.reshape(param.shape).clone()
            opt.step()
        params.append(param)
    torch.testing.assert_close(*params)


def test_groups_are_added_and_parameters_enter_with_their_first_gradient() -> None:
    nets = model(), model()
    for lib, net in zip((theirs, ours), nets, strict=True):
        opt = lib.Adam(net[0].parameters())
        train(net, opt, 3)
        opt.add_param_group({"params": net[2].parameters(), "lr": 0.1, "name": "head"})
        train(net, opt, 3)
        net[0].weight.requires_grad_(False)
        train(net, opt, 3)
        net[0].weight.requires_grad_(True)
        train(net, opt, 3)
        assert [int(entry["step"]) for entry in opt.state.values()] == [9, 12, 9, 9]
    assert_alike(*nets)


def test_without_gradients_nothing_happens() -> None:
    net = model()
    opt = ours.Adam(net.parameters())
    before = copy.deepcopy(net)
    opt.step()
    train(net, opt, 1)
    opt.zero_grad()
    after = copy.deepcopy(net)
    opt.step()
    assert_same(net, after)
    assert opt.fastopt.step_count == 1
    assert not torch.equal(next(before.parameters()), next(net.parameters()))


LAYOUTS: dict[str, Callable[[], Any]] = {
    "gaps": lambda: torch.randn(4, 6)[:, ::2],
    "transposed": lambda: torch.randn(4, 6).t(),
    "channels_last": lambda: torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "scalar": lambda: torch.randn(()),
    "empty": lambda: torch.zeros(0, 3),
}


@each_backend
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_is_updated_in_place(layout: str, backend: str) -> None:
    a = LAYOUTS[layout]().requires_grad_()
    b = a.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
    opt = ours.Adam([a, b], backend=backend)
    for kind in (torch.Tensor.clone, torch.Tensor.t if a.ndim == 2 else torch.Tensor.clone):
        for _ in range(2):
            grad = torch.randn(a.shape)
            a.grad = kind(kind(grad).contiguous())
            b.grad = grad.clone()
            opt.step()
    assert torch.equal(a, b)


GRADIENTS: dict[str, Callable[[Any], Any]] = {
    "as they come": lambda g: g,
    "other strides": lambda g: g.t().contiguous().t(),
    "gaps": lambda g: torch.stack([g, g], -1)[..., 0],
    "expanded": lambda g: g[:1, :1].expand(g.shape),
    "a subclass": lambda g: torch.nn.Parameter(g, requires_grad=False),
    "part of a graph": lambda g: g.clone().requires_grad_() * 1.0,
    "negated later": lambda g: torch.complex(g, g).conj().imag,
}


@pytest.mark.parametrize("kind", GRADIENTS)
def test_gradients_of_any_kind_are_read_as_they_are(kind: str) -> None:
    """Between steps with usual ones, which are found without an array of each."""
    params = [torch.randn(4, 3, requires_grad=True) for _ in range(3)]
    copies = [p.detach().clone().requires_grad_() for p in params]
    one, other = ours.Adam(params, backend=CPU_BACKENDS[-1]), ours.Adam(copies, backend="numpy")
    for step in range(6):
        for k, (p, q) in enumerate(zip(params, copies, strict=True)):
            grad = torch.randn(4, 3)
            p.grad = GRADIENTS[kind](grad) if step % 2 and k == 1 else grad
            q.grad = p.grad.detach().resolve_neg().contiguous().clone()
        one.step()
        other.step()
    assert all(map(torch.equal, params, copies))
    assert (one._windows is not None) == HAS_NUMBA


def test_signs_that_autograd_notes_in_gradients_of_single_elements_are_read() -> None:
    """The imaginary part of a conjugate: with one element it lies in memory as any other."""
    found = []
    for lib, options in ((theirs, {}), (ours, {"backend": CPU_BACKENDS[-1]})):
        params = [torch.ones(shape, requires_grad=True) for shape in ((), (1,), (1, 1), (3,))] * 2
        params = [param.detach().clone().requires_grad_() for param in params]
        opt = lib.Adam(params, **options)
        noted = 0
        for _ in range(4):
            opt.zero_grad()
            for real, imag in zip(params[:4], params[4:], strict=True):
                (torch.complex(real, imag).conj() * (1 + 2j)).real.sum().backward()
            noted += sum(param.grad.is_neg() for param in params)
            opt.step()
        assert noted
        found.append(params)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float32])
def test_parameters_with_noted_signs_are_refused_and_the_advice_works(dtype: Any) -> None:
    noted = torch.tensor([1.0, 2.0], dtype=torch.complex64).conj()
    data = noted if dtype.is_complex else noted.imag
    with pytest.raises(
        ValueError, match=r"notes another sign .* p\.data = p\.data\.resolve_"
    ) as said:
        ours.SGD([torch.nn.Parameter(data)], lr=1.0)
    param = torch.nn.Parameter(data.resolve_conj().resolve_neg().clone())
    opt = ours.SGD([param], lr=1.0)
    param.grad = torch.ones_like(param)
    opt.step()
    param.data = data
    with pytest.raises(ValueError, match="notes another sign"):
        opt.step()
    exec(str(said.value).rpartition("or set ")[2], {"p": param})
    opt.step()
    torch.testing.assert_close(param.detach(), data - 1)


@each_backend
def test_gradients_without_memory_are_refused_and_zeros_need_none(backend: str) -> None:
    params = [torch.zeros(3, requires_grad=True) for _ in range(2)]
    opt = ours.SGD(params, lr=1.0, backend=backend)
    for param in params:
        param.grad = torch.ones(3)
    opt.step()
    params[1].grad = torch.ones(3)
    params[1].grad.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match=r"shape \(3,\) has no memory: its storage"):
        opt.step()
    params[1].grad = torch._efficientzerotensor((3,))
    opt.step()
    assert params[0].tolist() == [-2.0] * 3
    assert params[1].tolist() == [-1.0] * 3


def test_gradients_that_are_not_aligned_are_read_as_arrays() -> None:
    params = [torch.zeros(4, requires_grad=True) for _ in range(2)]
    one, other = (ours.SGD([p], lr=1.0, backend=CPU_BACKENDS[-1]) for p in params)
    for step, offset in enumerate((0, 1, 8, 17, 16, 4, 32, 33, 40, 56)):
        memory = bytearray(256)
        whole = torch.frombuffer(memory, dtype=torch.uint8)
        first = -whole.data_ptr() % 64 + offset
        grad = torch.frombuffer(memory, dtype=torch.float64, offset=first, count=4)
        grad.copy_(torch.arange(4.0) + step)
        params[0].grad, params[1].grad = grad, grad.clone()
        if one._windows is not None:
            assert one._windows.look([params[0]], [grad]) == (offset % 8 == 0)
        one.step()
        other.step()
    assert torch.equal(*params)


def test_gradients_that_stay_where_they_are_are_read_anew() -> None:
    param = torch.zeros(3, requires_grad=True)
    opt = ours.SGD([param], lr=1.0, backend=CPU_BACKENDS[-1])
    param.grad = torch.ones(3)
    for _ in range(4):
        opt.step()
        param.grad.add_(1.0)
    assert param.tolist() == [-10.0] * 3
    opt.zero_grad(set_to_none=False)
    opt.step()
    assert param.tolist() == [-10.0] * 3


@pytest.mark.filterwarnings("ignore:Sparse invariant")
@pytest.mark.parametrize(
    ("name", "its"), [("Adam", "SparseAdam"), ("SGD", "SGD"), ("Adagrad", "Adagrad")]
)
def test_sparse_gradients_move_their_rows(name: str, its: str) -> None:
    a = torch.nn.Embedding(10, 4, sparse=True, dtype=torch.float64)
    b = copy.deepcopy(a)
    options = {"eps_hat": True} if its == "SparseAdam" else {}  # it adds eps to the raw root
    one = getattr(theirs, its)(a.parameters())
    other = getattr(ours, name)(b.parameters(), **options)
    for _ in range(5):
        rows = torch.randint(0, 10, (7,))
        for net, opt in ((a, one), (b, other)):
            opt.zero_grad()
            net(rows).pow(2).sum().backward()
            opt.step()
    assert_alike(a, b)


@pytest.mark.filterwarnings("ignore:Sparse invariant")
def test_other_sparse_gradients_are_refused_and_the_advice_works() -> None:
    param = torch.randn(3, 3, requires_grad=True)
    param.grad = torch.eye(3).to_sparse()
    opt = ours.SGD([param])
    before = param.detach().clone()
    with pytest.raises(TypeError, match=r"p\.grad = p\.grad\.to_dense\(\)"):
        opt.step()
    param.grad = param.grad.to_dense()
    opt.step()
    torch.testing.assert_close(param.detach(), before - 1e-3 * torch.eye(3))


def test_autograd_is_told_that_parameters_have_changed() -> None:
    param = torch.randn(3, requires_grad=True)
    opt = ours.SGD([param])
    loss = (param * param).sum()
    loss.backward(retain_graph=True)
    opt.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# What programs do around steps -------------------------------------------------------------------


def test_a_gradient_scaler_skips_and_unscales_as_with_pytorch() -> None:
    nets, scales = (model(torch.float32), model(torch.float32)), []
    for lib, net in zip((theirs, ours), nets, strict=True):
        opt, scaler = lib.Adam(net.parameters()), torch.amp.GradScaler("cpu", init_scale=1024.0)
        for k in range(8):
            opt.zero_grad()
            loss = net(torch.as_tensor(INPUT).float()).square().mean()
            scaler.scale(loss).backward()
            if k == 3:
                next(net.parameters()).grad[0, 0] = float("inf")
            if k % 2:
                scaler.unscale_(opt)
                torch.nn.utils.clip_grad_norm_(net.parameters(), 0.1)
            scaler.step(opt)
            scaler.update()
        scales.append(scaler.get_scale())
    assert scales == [512.0, 512.0]
    assert opt.fastopt.step_count == 7
    assert_alike(*nets, 1e-6)


def test_hooks_are_called_around_steps() -> None:
    net = model()
    opt, seen = ours.Adam(net.parameters()), []
    before = opt.register_step_pre_hook(lambda *_: seen.append("before"))
    opt.register_step_post_hook(lambda *_: seen.append("after"))
    everywhere = importlib.import_module("torch.optim.optimizer")
    first = everywhere.register_optimizer_step_pre_hook(lambda *_: seen.append("of all"))
    train(net, opt, 1)
    before.remove()
    first.remove()
    train(net, opt, 1)
    assert seen == ["of all", "before", "after", "after"]


def test_a_closure_is_called_with_gradients_on_and_its_loss_returned() -> None:
    net = model()
    opt = ours.MoMo(net.parameters())  # which steps by the loss
    with torch.no_grad():
        losses = [opt.step(lambda: backward_with_grad(net, opt)).item() for _ in range(5)]
    assert losses[-1] < losses[0]


def backward_with_grad(net: Any, opt: Any) -> Any:
    assert torch.is_grad_enabled()
    return backward(net, opt)


def test_estimates_of_the_hessian_are_handed_in() -> None:
    net = torch.nn.Linear(3, 2)
    opt = ours.Sophia(net.parameters())
    for param in net.parameters():
        param.grad = torch.randn_like(param)
    opt.step(hessian=[torch.rand_like(param) for param in net.parameters()])
    assert opt.state[net.weight]["h"].any()
    with pytest.raises(ValueError, match="each of 2 parameters"):
        opt.step(hessian=[None])


def test_averaged_parameters_are_put_in_and_taken_out() -> None:
    net = model()
    opt = ours.ScheduleFreeAdamW(net.parameters())
    opt.train()
    train(net, opt)
    before = copy.deepcopy(net)
    opt.eval()
    assert not torch.equal(net[0].weight, before[0].weight)
    for work in (lambda: copy.deepcopy(opt), lambda: opt.load_state_dict(opt.state_dict())):
        with pytest.raises(RuntimeError, match=r"call opt\.train\(\)"):
            work()
    opt.train()
    assert_same(net, before)


@each_backend
def test_averages_go_where_the_parameters_are(backend: str) -> None:
    net, still = model(), model()
    opt = ours.ScheduleFreeAdamW(net.parameters(), backend=backend)
    kept = ours.ScheduleFreeAdamW(still.parameters(), backend=backend)
    with opt.eval() as same:  # before the first gradient
        assert same is opt
    train(net, opt)
    train(still, kept)
    for param in net.parameters():
        param.data = param.data.clone()
    kept.eval()
    with opt.eval():
        assert_same(net, still)
        for param in net.parameters():
            param.data = param.data.clone()
    kept.train()
    assert_same(net, still)
    train(net, opt)
    train(still, kept)
    assert_same(net, still)


def test_autograd_is_told_of_averages() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    opt = ours.ScheduleFreeAdamW(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    opt.step()
    for change in (opt.eval, opt.train):
        loss = net(torch.ones(1, 2)).sum()
        change()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_options_of_fastopt_act() -> None:
    net = model()
    opt = ours.Adam(net.parameters(), max_grad_norm=1e-3, clip_value=1e-4, on_nonfinite="skip")
    backward(net, opt)
    opt.step()
    norm = torch.linalg.vector_norm(torch.cat([p.grad.ravel() for p in net.parameters()]))
    assert opt.fastopt.grad_norm == pytest.approx(norm.item())
    net[0].weight.grad.fill_(float("nan"))
    before = copy.deepcopy(net)
    opt.step()
    assert_same(net, before)
    assert opt.fastopt.skipped_steps == 1


def test_compiled_programs_make_ordinary_steps() -> None:
    nets = model(), model()
    plain, other = (ours.Adam(net.parameters()) for net in nets)
    step = torch.compile(lambda: other.step(), backend="eager")
    for _ in range(3):
        backward(nets[0], plain)
        plain.step()
        backward(nets[1], other)
        step()
    assert_same(*nets)


def test_threads_take_turns() -> None:
    param = torch.zeros(1000, dtype=torch.float64, requires_grad=True)
    param.grad = torch.ones_like(param)
    opt = ours.SGD([param], lr=1.0)
    threads = [threading.Thread(target=lambda: [opt.step() for _ in range(200)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (param == -800).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": (0.9, 0.99)}, "no option 'beta'; did you mean 'betas'"),
        ({"differentiable": True}, "differentiable=True.*torch.optim has such"),
        ({"capturable": True}, "capturable=True.*CuPy arrays"),
        ({"lr": -1.0}, "lr must be"),
        ({"backend": "fortran"}, "fortran"),
    ],
)
def test_what_is_not_to_be_had_is_said(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        ours.Adam([torch.randn(3, requires_grad=True)], **options)


def test_names_are_those_of_the_optimizers() -> None:
    assert set(dir(ours)) == {*fastopt.optimizers.names()}
    with pytest.raises(AttributeError, match="no optimizer 'Adm'"):
        ours.Adm  # noqa: B018  # that is tested
    with pytest.raises(TypeError, match="floating or complex"):
        ours.SGD([torch.zeros(3, dtype=torch.int64)])


def test_torch_is_imported_when_it_is_used() -> None:
    code = (
        "import sys, fastopt; assert 'torch' not in sys.modules; fastopt.torch.Adam; "
        "assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
