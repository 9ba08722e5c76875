"""``explain``, ``summary`` and ``watch`` of PyTorch's optimizers: of the steps that these make.

PyTorch is no requirement of the tests: without it these are skipped, unless FASTOPT_TEST_TORCH is
set.
"""

from __future__ import annotations

import copy
import importlib
import math
import os
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt.optimizers.explain import Explanation
from helpers.variants import CPU_BACKENDS

if not os.environ.get("FASTOPT_TEST_TORCH"):
    pytest.importorskip("torch")
torch: Any = importlib.import_module("torch")
ours: Any = importlib.import_module("fastopt.torch")

each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)
LOSS = 16.0


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(1)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(before)


class Net(torch.nn.Module):  # type: ignore[misc]  # torch is not looked into
    """Two layers that are used, one that is frozen, one that nothing passes through."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(6, 8)
        self.frozen = torch.nn.Linear(8, 8, bias=False).requires_grad_(False)
        self.last = torch.nn.Linear(8, 3, bias=False)
        self.unused = torch.nn.Linear(3, 5, bias=False)

    def forward(self, x: Any) -> Any:
        return self.last(torch.tanh(self.frozen(self.first(x))))


NAMES = ("first.weight", "first.bias", "frozen.weight", "last.weight", "unused.weight")
USED = ("first.weight", "first.bias", "last.weight")
INPUT = np.random.default_rng(3).standard_normal((16, 6))


def backward(net: Any, opt: Any, scale: float = 1.0) -> Any:
    opt.zero_grad()
    dtype = next(net.parameters()).dtype
    loss = net(torch.as_tensor(INPUT).to(dtype)).square().mean()
    (loss * scale).backward()
    return loss


def train(net: Any, opt: Any, steps: int = 2, **given: Any) -> None:
    for _ in range(steps):
        backward(net, opt)
        opt.step(**given)


def wide(values: Any) -> Any:
    """Return a tensor's numbers in float64, or an array's."""
    if not isinstance(values, torch.Tensor):
        return np.asarray(values, complex if np.iscomplexobj(values) else float)
    values = values.detach().clone()
    return values.to(torch.complex128 if values.is_complex() else torch.float64).numpy()


def rms(values: Any) -> float:
    return float(np.sqrt(np.mean(np.square(np.abs(wide(values))))))


def close(one: Any, two: Any) -> None:
    np.testing.assert_allclose(one, two, rtol=1e-12, atol=1e-300)


def saved(opt: Any) -> Any:
    """Return all that a step, or what looks at it, could change."""
    tensors = [tensor for group in opt.param_groups for tensor in group["params"]]
    grads = [None if t.grad is None else (id(t.grad), t.grad._version) for t in tensors]
    values = [(t.data_ptr(), t._version, wide(t).tobytes(), t.requires_grad) for t in tensors]
    dense = [t.grad for t in tensors if t.grad is not None]
    bits = [wide(g.to_dense() if g.is_sparse else g).tobytes() for g in dense]
    inner, groups = opt.fastopt, [dict(group) for group in opt.param_groups]
    counts = None if inner is None else (id(inner), inner.step_count, str(inner.grad_norm))
    own = None if inner is None else inner.state_dict()
    private = (*map(id, opt._tensors), *map(id, opt._waiting)), [*opt._places], repr(opt._seen)
    return values, grads, bits, counts, own, private, plain(opt.state_dict()), repr(groups)


def plain(value: Any) -> Any:
    """Return nested values with what is in tensors in their place."""
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [*map(plain, value)]
    return (str(value.dtype), wide(value)) if isinstance(value, torch.Tensor) else value


def explained(opt: Any, **given: Any) -> Explanation:
    """Explain the next step; nothing has changed by that."""
    before, random = saved(opt), torch.get_rng_state()
    why: Explanation = opt.explain(**given)
    np.testing.assert_equal(saved(opt), before)
    assert torch.equal(torch.get_rng_state(), random)
    return why


def hold_to_the_step(opt: Any, step: Callable[[], Any] | None = None, **given: Any) -> Explanation:
    """Explain the next step and make it: that was it, to the bit as far as the past goes."""
    why = explained(opt, **given)
    names = opt._called()
    held = {tensor: wide(tensor) for tensor in names}
    opt.step(**given) if step is None else step()
    for tensor, name in names.items():
        one, moved = why[name], wide(tensor) - held[tensor]
        if one.status != "updated":
            assert not moved.any()
            continue
        rows = slice(None)
        if tensor.grad.is_sparse:
            rows = np.unique(tensor.grad._indices()[0].numpy())  # type: ignore[assignment]
            assert not np.delete(moved, rows, axis=0).any()
        close(one.weight_rms, rms(held[tensor][rows]))
        assert tensor.dtype in (torch.float16, torch.bfloat16) or (
            math.isclose(one.update_rms or 0.0, rms(moved[rows]), rel_tol=1e-12)
            and one.update_max == np.abs(moved[rows]).max(initial=0.0)
        )
        assert one.step == int(opt.state[tensor]["step"])
    # What the step was explained by is what the next one begins with: the very same numbers.
    after = opt.explain(**given)
    for name in names.values():
        if why[name].status == "updated":
            assert after[name].state_before == why[name].state
    return why


def handed(opt: Any) -> dict[str, Any]:
    """Return what else a step needs."""
    formula = opt._formula
    if formula._estimate is not None:
        tensors = [tensor for group in opt.param_groups for tensor in group["params"]]
        return {"hessian": [torch.rand_like(tensor) for tensor in tensors]}
    return {"value": LOSS} if formula._takes_value else {}


# Every optimizer ---------------------------------------------------------------------------------

MATRICES = ("Muon", "NorMuon")


EVERY = [(name, "numpy") for name in fastopt.optimizers.names()]
SOME = [(name, CPU_BACKENDS[-1]) for name in ("Adam", "SGD", "LAMB", "Prodigy", "Muon", "MoMo")]


@pytest.mark.parametrize(("name", "backend"), EVERY + SOME)
def test_what_it_says_is_what_the_step_does_and_nothing_changes(name: str, backend: str) -> None:
    net = Net()
    if name in MATRICES:
        net.first.bias = None
    opt = getattr(ours, name)(net.named_parameters(), backend=backend)
    shown = [one for one in NAMES if name not in MATRICES or "bias" not in one]
    given = handed(opt)
    for step in range(3):
        backward(net, opt)
        why = hold_to_the_step(opt, **given)
        assert [one.name for one in why.parameters] == shown
        assert why.step_count == step
        assert {one.name for one in why.parameters if one.status == "updated"} == {*USED} & {*shown}
        assert (why["unused.weight"].status, why["frozen.weight"].status) == (
            "no gradient",
            "frozen",
        )
        assert why["unused.weight"].step == 1
        assert all(one.about != "no_gradient" for one in why.advice)


@each_backend
def test_adams_numbers_are_those_of_pytorch(backend: str) -> None:
    param = torch.tensor([1.0, -2.0, 0.5, 4.0], dtype=torch.float64, requires_grad=True)
    other = param.detach().clone().requires_grad_()
    theirs = torch.optim.Adam([other], lr=0.01, betas=(0.8, 0.9), eps=1e-3)
    opt = ours.Adam([param], lr=0.01, betas=(0.8, 0.9), eps=1e-3, backend=backend)
    for grad in ([0.1, 0.0, -0.3, 0.2], [0.3, 0.1, 0.0, -0.1]):
        param.grad, other.grad = torch.tensor(grad).double(), torch.tensor(grad).double()
        why = hold_to_the_step(opt)
        before = other.detach().clone()
        theirs.step()
        np.testing.assert_allclose(
            why["0.0"].update_rms or 0.0, rms(other.detach() - before), rtol=1e-12
        )
    close(why["0.0"].state["m"], rms(theirs.state[other]["exp_avg"]))
    close(why["0.0"].filled["beta1"], 1 - 0.8**2)


# What stands around the optimizer within ---------------------------------------------------------


@each_backend
def test_settings_of_groups_are_those_of_now(backend: str) -> None:
    net, rate = Net(), torch.tensor(0.1)
    groups = [
        {"params": net.first.parameters(), "lr": rate, "maximize": True, "foreach": True},
        {"params": net.last.parameters(), "weight_decay": 0.5, "betas": (0.5, 0.7)},
    ]
    opt = ours.Adam(groups, lr=0.2, foreach=False, backend=backend)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(opt, 0.5)
    for step in range(4):
        backward(net, opt)
        if step == 2:
            opt.param_groups[1]["betas"] = (0.8, 0.9)
            opt.param_groups[0]["maximize"] = False
        why = hold_to_the_step(opt)
        close([one.lr for one in why.parameters], [float(rate)] * 2 + [0.2 * 0.5**step])
        assert [one.group for one in why.parameters] == [0, 0, 1]
        assert why["1.0"].filled.keys() == {"beta1", "beta2"}
        if step == 2:
            close(why["1.0"].filled["beta1"], 1 - 0.8**3)
        scheduler.step()
        rate.fill_(0.3 / (step + 1))  # in place: nobody is told
    assert opt.fastopt.step_count == 4


def test_a_rate_that_changes_in_its_tensor_is_that_of_now() -> None:
    net, rate = Net(), torch.tensor(0.5)
    opt = ours.SGD(net.named_parameters(), lr=rate)
    for _ in range(3):
        backward(net, opt)
        close(hold_to_the_step(opt)["last.weight"].lr, float(rate))
        rate.mul_(0.5)


@each_backend
def test_parameters_that_come_later_move_and_change(backend: str) -> None:
    net = Net()
    opt = ours.AdamW(net.first.named_parameters(), backend=backend)
    train(net, opt)
    opt.add_param_group({"params": net.last.named_parameters(), "lr": 0.1})
    backward(net, opt)
    why = hold_to_the_step(opt)
    assert [(one.name, one.group, one.step) for one in why.parameters] == [
        ("0.weight", 0, 3),  # both groups have a weight now
        ("0.bias", 0, 3),
        ("1.weight", 1, 1),
    ]
    for param in net.parameters():
        param.data = param.data.clone()
    backward(net, opt)
    hold_to_the_step(opt)
    net.double()
    backward(net, opt)
    why = hold_to_the_step(opt)
    assert {one.dtype for one in why.parameters} == {"float64"}
    net.first.weight.requires_grad_(False)
    backward(net, opt)
    assert hold_to_the_step(opt)["0.weight"].status == "frozen"
    net.first.weight.grad = torch.ones_like(net.first.weight)  # as PyTorch: it is updated
    assert hold_to_the_step(opt)["0.weight"].status == "updated"


def test_groups_that_have_had_no_gradient_keep_their_numbers_and_schedules() -> None:
    net = Net()
    groups = [{"params": net.unused.parameters()}, {"params": net.last.parameters()}]
    opt = ours.SGD(groups, lr=fastopt.schedules.linear(1.0, 0.0, 0.25, 4))
    rates = []
    for _ in range(3):
        backward(net, opt)
        why = hold_to_the_step(opt)
        rates.append([one.lr for one in why.parameters])
        assert [(one.name, one.group) for one in why.parameters] == [("0.0", 0), ("1.0", 1)]
    assert all(one == other for one, other in rates)
    assert rates[0] != rates[2]


STORED: list[tuple[Any, dict[str, Any]]] = [
    (torch.float64, {}),
    (torch.float16, {}),
    (torch.bfloat16, {"master_weights": False, "stochastic_rounding": True, "seed": 3}),
    (torch.complex64, {}),
    (torch.float32, {"state_dtype": "int8"}),
    (torch.float32, {"state_dtype": "bfloat16", "seed": 5}),
]


@each_backend
@pytest.mark.parametrize(("dtype", "options"), STORED, ids=str)
def test_every_dtype_and_storage(dtype: Any, options: dict[str, Any], backend: str) -> None:
    """Random bits go by what the optimizer within calls parameters, and that changes here."""
    params = [torch.randn(40, 30).to(dtype).requires_grad_() for _ in range(3)]
    opt = ours.Adam(params, lr=0.1, backend=backend, **options)
    for step in range(4):
        for k, param in enumerate(params):
            param.grad = torch.randn(40, 30).to(dtype) if k != 1 or step > 1 else None
        why = explained(opt)
        before = [wide(param) for param in params]
        opt.step()
        moved = [wide(param) - one for param, one in zip(params, before, strict=True)]
        if dtype != torch.float16:  # of which the master moves
            close([one.update_rms or 0.0 for one in why.parameters], [*map(rms, moved)])
        assert [one.status for one in why.parameters].count("updated") == (2 if step < 2 else 3)
        again = opt.explain()
        for one, other in zip(why.parameters, again.parameters, strict=True):
            if one.status == "updated":
                assert one.state == other.state_before


@pytest.mark.filterwarnings("ignore:Sparse invariant")
@each_backend
def test_gradients_of_any_kind(backend: str) -> None:
    table = torch.nn.Embedding(10, 4, sparse=True)
    noted = torch.randn(3, 2, requires_grad=True)
    opt = ours.Adagrad([*table.parameters(), noted], backend=backend)
    for _ in range(3):
        opt.zero_grad()
        table(torch.tensor([1, 7, 1, 9])).pow(2).sum().backward()
        noted.grad = torch.complex(torch.randn(3, 2), torch.randn(3, 2)).conj().imag
        assert noted.grad.is_neg()
        why = hold_to_the_step(opt)
        assert why["0.0"].rows == 3
        close(why["0.1"].grad_rms, rms(noted.grad.resolve_neg()))


@pytest.mark.parametrize("name", ["Adam", "SGD"])
def test_what_was_loaded_acts_in_what_is_explained(name: str) -> None:
    net = Net()
    options = {"momentum": 0.9} if name == "SGD" else {}
    one = getattr(torch.optim, name)(net.parameters(), **options)
    for _ in range(3):
        backward(net, one)
        one.step()
    opt = getattr(ours, name)(net.parameters(), **options)
    opt.load_state_dict(one.state_dict())
    backward(net, opt)
    why = hold_to_the_step(opt)
    assert why["0.0"].step == (4 if name == "Adam" else why["0.0"].step)
    assert all(value > 0.0 for value in why["0.0"].state_before.values())


def test_copies_are_explained_as_what_they_are_copies_of() -> None:
    net = Net()
    opt = ours.Adam(net.named_parameters())
    train(net, opt, 2)
    for grads in (True, False):
        other, copied = copy.deepcopy((net, opt))  # whose optimizer within is not made yet
        for one, its in ((net, opt), (other, copied)):
            backward(one, its) if grads else its.zero_grad()
        why = explained(copied)
        assert copied.fastopt is None
        assert why.to_dict() == opt.explain().to_dict()
        assert copied.summary().to_dict() == {
            **opt.summary().to_dict(),
            "why": copied.summary().why,
        }
        assert copied.fastopt is None
    backward(other, copied)
    hold_to_the_step(copied)


def test_the_loss_and_estimates_of_the_hessian_are_handed_in() -> None:
    net = Net()
    opt = ours.MoMo(net.parameters())
    loss = backward(net, opt)
    why = explained(opt, value=loss)
    held = net.last.weight.detach().clone()
    opt.step(lambda: loss)
    close(why["0.3"].update_rms, rms(wide(net.last.weight) - wide(held)))
    with pytest.raises(TypeError, match=r"steps by the loss: hand it in, opt\.explain\(value="):
        opt.explain()
    opt = ours.Sophia(net.parameters())
    hessian = [torch.rand_like(param) for param in net.parameters()]
    for _ in range(2):
        backward(net, opt)
        hold_to_the_step(opt, hessian=hessian)


def test_a_scaled_loss_is_explained_by_its_scale() -> None:
    net = Net()
    opt, scaler = ours.Adam(net.parameters()), torch.amp.GradScaler("cpu", init_scale=1024.0)
    for _ in range(2):
        opt.zero_grad()
        scaler.scale(net(torch.as_tensor(INPUT).float()).square().mean()).backward()
        why = explained(opt, grad_scale=1.0 / scaler.get_scale())
        held = net.last.weight.detach().clone()
        scaler.unscale_(opt)
        again = explained(opt)
        assert [one.update_rms for one in why.parameters] == [
            one.update_rms for one in again.parameters
        ]
        scaler.step(opt)
        scaler.update()
        close(why["0.3"].update_rms, rms(wide(net.last.weight) - wide(held)))


def test_averages_are_not_explained_and_training_is() -> None:
    net = Net()
    opt = ours.ScheduleFreeAdamW(net.parameters())
    train(net, opt)
    with opt.eval(), pytest.raises(RuntimeError, match="explain"):
        opt.explain()
    hold_to_the_step(opt)


def test_no_hook_is_called() -> None:
    net, called = Net(), []
    opt = ours.Adam(net.parameters())
    opt.register_step_pre_hook(lambda *_: called.append("pre"))
    opt.register_step_post_hook(lambda *_: called.append("post"))
    opt.register_state_dict_pre_hook(lambda *_: called.append("state"))
    opt.before_step.append(lambda _: called.append("before"))
    opt.after_step.append(lambda _: called.append("after"))
    for hook in ("pre", "before", "after", "post"):
        backward(net, opt)
        opt.explain()
        opt.summary()
        assert hook not in called
    opt.step()
    assert called == ["pre", "before", "after", "post"]


# Where there is nothing to explain ---------------------------------------------------------------


@each_backend
def test_without_gradients_no_step_would_be_made(backend: str) -> None:
    net = Net()
    opt = ours.Adam(net.named_parameters(), backend=backend)
    for steps in range(2):
        opt.zero_grad()
        why = explained(opt)
        assert (why.made, why.reason, why.step_count) == (
            False,
            "no parameter has a gradient",
            steps,
        )
        assert {one.status for one in why.parameters} == {"no gradient", "frozen"}
        (advice,) = why.advice
        assert "loss.backward()" in advice.text
        opt.step()
        assert opt.fastopt is None or opt.fastopt.step_count == steps
        train(net, opt, 1)
    opt = ours.SGD(Net().requires_grad_(False).parameters())
    (advice,) = explained(opt).advice
    assert "requires_grad_(True)" in advice.text


def test_gradients_that_are_not_finite() -> None:
    net = Net()
    opt = ours.Adam(net.named_parameters(), on_nonfinite="skip")
    backward(net, opt)
    net.last.weight.grad[0, 0] = math.nan
    why = hold_to_the_step(opt)
    assert why.reason == "skipped: 1 elements of the gradient of last.weight are not finite"
    assert why["last.weight"].status == "skipped"
    assert why.advice[0].parameters == ("last.weight",)


def test_what_a_step_refuses_is_refused() -> None:
    opt = ours.SGD([{"params": []}])
    with pytest.raises(ValueError, match="no parameters yet: add some"):
        opt.explain()
    with pytest.raises(ValueError, match="no parameters yet"):
        opt.summary()
    param = torch.randn(3, 3, requires_grad=True)
    opt.add_param_group({"params": [param]})
    param.grad = torch.eye(3).to_sparse()
    with pytest.raises(TypeError, match=r"p\.grad = p\.grad\.to_dense\(\)"):
        opt.explain()
    param.grad = param.grad.to_dense()
    hold_to_the_step(opt)
    with pytest.raises(ValueError, match="grad_scale"):
        opt.explain(grad_scale=math.inf)
    with pytest.raises(TypeError, match="takes no value"):
        opt.explain(value=1.0)
    opt.param_groups[1]["lr"] = -1.0
    for work in (opt.explain, opt.step):
        with pytest.raises(ValueError, match="lr must be"):
            work()


# What parameters are called ----------------------------------------------------------------------


def test_names_are_those_given_or_places() -> None:
    net, other = Net(), Net()

    def names(opt: Any) -> list[str]:
        found = [one.name for one in opt.explain().parameters]
        assert found == [one.name for one in opt.summary().arrays]
        assert found == opt._parameter_names
        return found

    assert names(ours.SGD(net.parameters())) == [f"0.{k}" for k in range(5)]
    assert names(ours.SGD(net.named_parameters())) == [*NAMES]
    two = [{"params": [*one.last.named_parameters()]} for one in (net, other)]
    assert names(ours.SGD(two)) == ["0.weight", "1.weight"]
    twice = [("w", net.last.weight), ("w", net.first.weight)]
    assert names(ours.SGD(twice)) == ["0.0", "0.1"]
    opt = ours.SGD(net.named_parameters())
    backward(net, opt)
    opt.explain()["unused.weight"]
    with pytest.raises(KeyError, match=r"'0\.0'; there are first\.weight"):
        opt.explain()["0.0"]
    opt.step()
    assert opt.fastopt.explain([[None] * 3])["last.weight"].name == "last.weight"
    assert copy.deepcopy(opt.fastopt).summary().arrays == opt.fastopt.summary().arrays
    resumed = ours.SGD(other.parameters())
    resumed.load_state_dict(opt.state_dict())  # which brings the names along
    assert names(resumed) == [*NAMES]


# What an optimizer is ----------------------------------------------------------------------------


@each_backend
def test_a_summary_says_what_there_is(backend: str) -> None:
    net = Net()
    groups = [
        {"params": [], "lr": 0.5},
        {"params": net.unused.parameters(), "lr": 0.25},
        {"params": [net.first.weight, net.frozen.weight, net.last.weight]},
    ]
    opt = ours.Adam(groups, max_grad_norm=1.0, backend=backend)
    said = opt.summary()
    assert (said.optimizer, said.step_count, said.backend) == ("Adam", 0, backend)
    assert [group.number for group in said.groups] == [1, 2]
    assert [(group.arrays, group.size) for group in said.groups] == [(1, 15), (3, 48 + 64 + 24)]
    assert said.groups[0].settings["lr"] == "0.25"
    assert (said.state_bytes, said.parameter_bytes, said.size) == (0, 4 * 151, 151)
    assert said.policy["max_grad_norm"] == 1.0
    train(net, opt, 3)
    opt.param_groups[2]["lr"] = 0.125  # which no step has seen
    said = opt.summary()
    assert said.step_count == 3
    assert said.groups[1].settings["lr"] == "0.125"
    assert [(one.name, one.group, one.shape, one.steps) for one in said.arrays] == [
        ("1.0", 1, (5, 3), 0),
        ("2.0", 2, (8, 6), 3),
        ("2.1", 2, (8, 8), 0),
        ("2.2", 2, (3, 8), 3),
    ]
    assert [len(one.state) for one in said.arrays] == [0, 2, 0, 2]
    assert said.state_bytes == opt.fastopt.state_bytes > 0
    assert "first gradient" not in str(said)
    assert repr(opt).startswith("Adam (\nParameter Group 0")
    page = opt._repr_html_()
    assert page.count("<tr>") == 5


# A recorder --------------------------------------------------------------------------------------


def history_by_hand(net: Any, opt: Any, steps: int, lr: Callable[[], float]) -> dict[str, Any]:
    """Train, and note what a recorder should."""
    found: dict[str, list[Any]] = {"grad": [], "update": [], "weight": [], "lr": []}
    used = [dict(net.named_parameters())[name] for name in USED]
    for _ in range(steps):
        backward(net, opt)
        held = [wide(param) for param in used]
        found["lr"].append(lr())
        opt.step()
        found["grad"].append([rms(param.grad) for param in used])
        found["weight"].append([*map(rms, held)])
        found["update"].append(
            [rms(wide(param) - before) for param, before in zip(used, held, strict=True)]
        )
    return found


@each_backend
def test_what_is_recorded_is_what_the_steps_do(backend: str) -> None:
    net = Net()
    opt = ours.Adam(net.named_parameters(), lr=0.1, backend=backend)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(opt, 0.5)
    seen = fastopt.watch(opt)  # before there is an optimizer within
    opt.register_step_post_hook(lambda *_: scheduler.step())
    by_hand = history_by_hand(net, opt, 4, lambda: opt.param_groups[0]["lr"])
    history = seen.history
    assert seen.names == USED
    assert history["step"].tolist() == [1.0, 2.0, 3.0, 4.0]
    close(history["grad_rms"], by_hand["grad"])
    close(history["weight_rms"], by_hand["weight"])
    close(history["update_rms"], by_hand["update"])
    close(history["lr"], by_hand["lr"])
    state = [opt.state[dict(net.named_parameters())[name]]["exp_avg"] for name in USED]
    close(history["m_rms"][-1], [*map(rms, state)])
    assert repr(seen) == "<Watch of Adam: 4 records, every=1>"


@each_backend
def test_it_goes_on_where_the_optimizer_within_is_another(backend: str) -> None:
    net = Net()
    opt = ours.Adam(net.named_parameters(), backend=backend)
    seen = fastopt.watch(opt, parameters=["unused.weight", "last.weight"])
    train(net, opt, 2)
    inner = opt.fastopt
    backward(net, opt)
    net.unused.weight.grad = torch.ones_like(net.unused.weight)
    opt.step()
    assert opt.fastopt is not inner
    opt.load_state_dict(copy.deepcopy(opt.state_dict()))
    for param in net.parameters():
        param.data = param.data.clone()
    train(net, opt, 1)
    net.double()
    train(net, opt, 1)
    history = seen.history
    assert history["step"].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert seen.names == ("last.weight", "unused.weight")
    grads = history["grad_rms"][:, 1]
    np.testing.assert_equal(grads, [math.nan, math.nan, 1.0, math.nan, math.nan])
    assert seen.active
    seen.stop()
    train(net, opt, 1)
    assert len(seen) == 5
    assert opt.before_step == opt.after_step == opt.fastopt.before_step == []


def test_steps_with_closures_and_a_scaler_and_those_it_leaves_out() -> None:
    net = Net()
    opt, scaler = ours.SGD(net.parameters(), lr=0.1), torch.amp.GradScaler("cpu", init_scale=64.0)
    with fastopt.watch(opt, every=2) as often, fastopt.watch(opt) as seen:
        for step in range(4):
            opt.zero_grad()
            loss = net(torch.as_tensor(INPUT).float()).square().mean()
            scaler.scale(loss).backward()
            if step == 1:
                net.last.weight.grad[0, 0] = math.inf
            seen.record(loss=loss.detach())
            scaler.step(opt)
            scaler.update()
        opt.step(lambda: backward(net, opt))
        opt.zero_grad()
        opt.step()  # without a gradient none is made
    assert seen.history["step"].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert np.isfinite(seen.history["loss"][:3]).all()
    np.testing.assert_allclose(
        seen.history["update_rms"], 0.1 * seen.history["grad_rms"], rtol=1e-4
    )
    assert often.history["step"].tolist() == [1.0, 3.0]


def test_a_run_is_the_same_to_the_bit_with_and_without() -> None:
    ends = []
    for watched in (False, True):
        torch.manual_seed(5)
        net = Net()
        opt = ours.Adam(net.parameters(), backend=CPU_BACKENDS[-1])
        seen = fastopt.watch(opt, every=2) if watched else None
        train(net, opt, 6)
        if seen is not None:
            assert len(seen) == 3
            opt.explain()
        ends.append([wide(param) for param in net.parameters()])
    np.testing.assert_equal(*ends)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_of_the_optimizer_have_no_hooks_as_with_pytorch(way: Any) -> None:
    net = Net()
    opt = ours.Adam(net.parameters())
    seen = fastopt.watch(opt)
    train(net, opt, 2)
    copied = way(opt)
    assert copied.before_step == []
    its = way(seen)
    assert (len(its), its.active) == (2, False)
    assert seen.active


def test_what_cannot_be_watched() -> None:
    net = Net()
    opt = ours.Adam(net.named_parameters())
    with pytest.raises(TypeError, match=r"torch\.optim\.adam\.Adam\. Of PyTorch's tensors the"):
        fastopt.watch(torch.optim.Adam(net.parameters()))
    with pytest.raises(TypeError, match=r"the class Adam: make one of it, Adam\(params\)"):
        fastopt.watch(ours.Adam)
    with pytest.raises(ValueError, match=r"called '0\.0'; there are first\.weight"):
        fastopt.watch(opt, parameters=["0.0"])
    assert opt.before_step == opt.after_step == []
