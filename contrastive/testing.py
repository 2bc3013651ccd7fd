"""A public conformance suite: an objective, of this library or your own, enters every check by being listed once.

    case = ObjectiveCase("InfoNCE", partial(InfoNCE, temperature=0.2), twin=naive_info_nce)
    check_objective(case)                       # all checks
    CHECKS["gradients"](case)                   # or one of them, as a pytest parameter

Each check that compares two results also breaks one of them on purpose and demands that the comparison fails,
so that no tolerance is wide enough to pass by itself.
"""

import atexit
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn

from contrastive.objectives.base import Objective

Twin = Callable[..., Tensor]
Result = tuple[Tensor, list[Tensor]]


@dataclass(frozen=True)
class ObjectiveCase:
    """An objective and what the suite must know about it.

    Attributes:
        name: Shown in errors.
        factory: Builds a fresh objective without arguments. Must be picklable (a class, or
            :func:`functools.partial` of one), because the checks over processes start some.
        twin: The same loss written naively, for instance with loops, as ``twin(*views, labels=labels)``, and
            ``teacher=...`` if it is called with one.
        num_views: Views it is called with.
        labels: Whether it is called with labels.
        teacher: Whether it is called with ``teacher``, further embeddings of the views that need no gradient.
        gathers: Whether an anchor meets samples of other processes. False where each anchor meets only state
            that all processes share.
        positions: Whether an anchor finds itself among the samples of all processes by its position there.
        smooth: Whether the loss is the function that is differentiated. False for surrogates whose value or
            weights carry no gradient; finite differences then say nothing.
        sized: Whether to tell its ``setup`` the number of classes and the width of embeddings too.
    """

    name: str
    factory: Callable[[], Objective]
    twin: Twin | None = None
    num_views: int = 2
    labels: bool = False
    teacher: bool = False
    gathers: bool = True
    positions: bool = True
    smooth: bool = True
    sized: bool = False

    def inputs(
        self, batch: int, dim: int, *, seed: int = 0, dtype: torch.dtype = torch.float64
    ) -> dict[str, Any]:
        """Random views, labels that repeat, indices, a teacher's views: ``{"views": ..., "labels": ..., ...}``."""
        generator = torch.Generator().manual_seed(seed)
        base = torch.randn(batch, dim, generator=generator, dtype=torch.float64)
        noise = [
            torch.randn(batch, dim, generator=generator, dtype=torch.float64) for _ in range(self.num_views)
        ]
        labels = torch.arange(batch)[torch.randperm(batch, generator=generator)] // 3 if self.labels else None
        index = torch.randperm(4 * batch, generator=generator)[:batch]
        inputs = {"views": [(base + 0.5 * n).to(dtype) for n in noise], "labels": labels, "index": index}
        if self.teacher:
            others = [torch.randn(n.shape, generator=generator, dtype=torch.float64) for n in noise]
            inputs["teacher"] = [(base + 0.5 * n).to(dtype) for n in others]
        return inputs

    def build(self, num_samples: int, dtype: torch.dtype = torch.float64, *, dim: int) -> Objective:
        """A fresh objective in ``dtype``, sized for embeddings ``(num_samples / 4, dim)``."""
        objective = self.factory()
        if self.sized:
            objective.setup(num_samples, num_classes=num_samples // 12 + 1, dim=dim)  # three samples a class
        else:
            objective.setup(num_samples)
        return objective.to(dtype)


def check_objective(case: ObjectiveCase, *, skip: Sequence[str] = ()) -> None:
    """Run every check of :data:`CHECKS` but those named in ``skip``.

    Raises:
        AssertionError: naming the objective, the check and the difference found.
    """
    for name, check in CHECKS.items():
        if name not in skip:
            check(case)


def check_twin(case: ObjectiveCase) -> None:
    """Loss and gradients equal the naive twin's, in float64 and float32, at several sizes."""
    twin = case.twin
    if twin is None:
        return
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-5)):
        for batch, dim in ((2, 3), (7, 5), (33, 16)):
            inputs = case.inputs(batch, dim, seed=batch)
            known = {name: value for name, value in _arguments(inputs).items() if name != "index"}
            exact = _loss_and_gradients(lambda *v, known=known: twin(*v, **known), inputs["views"])
            ours = _run(case, inputs, dtype)
            _expect_equal(case, f"twin, batch {batch}, {dtype}", ours, exact, tolerance)
    other = _run(case, case.inputs(33, 16, seed=34))
    _expect_different(case, "twin on other inputs", other, exact, 2e-5)


def check_gradients(case: ObjectiveCase) -> None:
    """Finite differences agree with the gradients of views and of the objective's own parameters."""
    if not case.smooth:
        return
    inputs = case.inputs(5, 4)
    objective = case.build(20, dim=4).eval()
    parameters = dict(objective.named_parameters())

    def loss(*tensors: Tensor) -> Tensor:
        views, values = tensors[: case.num_views], tensors[case.num_views :]
        result: Tensor = torch.func.functional_call(
            objective, dict(zip(parameters, values, strict=True)), views, _arguments(inputs)
        )
        return result

    tensors = [x.detach().clone().requires_grad_() for x in (*inputs["views"], *parameters.values())]
    if not torch.autograd.gradcheck(loss, tensors, raise_exception=False):
        _fail(case, "gradients", "finite differences do not agree with autograd")

    def scaled(*tensors: Tensor) -> Tensor:
        # Same values, other gradients: finite differences must notice.
        return loss(*(x + 0.01 * (x - x.detach()) for x in tensors))

    if torch.autograd.gradcheck(scaled, tensors, raise_exception=False):
        _fail(case, "gradients", "finite differences do not notice a gradient that is 1 % wrong")


def check_dtypes(case: ObjectiveCase) -> None:
    """Half precision and autocast give a float32 loss close to the exact one."""
    inputs = case.inputs(24, 16)
    exact, _ = _run(case, inputs)
    for dtype, tolerance in ((torch.float16, 5e-3), (torch.bfloat16, 5e-2)):
        half = _cast(inputs, dtype)
        objective = case.build(96, torch.float32, dim=16)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            loss = objective(*half["views"], **_arguments(half))
        if loss.dtype != torch.float32:
            _fail(case, "dtypes", f"the loss of {dtype} views has dtype {loss.dtype}, expected float32")
        if not torch.isclose(loss.double(), exact, rtol=tolerance, atol=tolerance):
            _fail(case, "dtypes", f"loss {float(loss)} of {dtype} views, {float(exact)} in float64")
    plain = _run(case, inputs, torch.float32)
    mixed = _run(case, inputs, torch.float32, torch.autocast("cpu", torch.bfloat16))
    _expect_equal(case, "autocast", mixed, plain, 1e-6)


def check_permutation(case: ObjectiveCase) -> None:
    """The order of the samples in the batch does not matter; which views belong together does."""
    inputs = case.inputs(11, 6)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(1))
    loss, gradients = _run(case, inputs)
    shuffled = _run(case, _take(inputs, order))
    _expect_equal(case, "permutation", shuffled, (loss, [g[order] for g in gradients]), 1e-9)
    torn = {**inputs, "views": [inputs["views"][0], *(view[order] for view in inputs["views"][1:])]}
    if case.num_views > 1:
        _expect_different(case, "permutation of some views only", _run(case, torn), (loss, gradients), 1e-9)


def check_small_batches(case: ObjectiveCase) -> None:
    """Batches of no, one and two samples give a finite, differentiable loss, or a ValueError that explains."""
    for batch in (0, 1, 2):
        inputs = case.inputs(batch, 4)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                loss, gradients = _run(case, inputs)
        except ValueError as error:
            if batch == 2 or len(str(error)) < 20:
                _fail(case, "small batches", f"{batch} samples raise {error!r}")
            continue
        if not torch.isfinite(loss) or not all(torch.isfinite(g).all() for g in gradients):
            _fail(
                case,
                "small batches",
                f"{batch} samples give loss {float(loss)} or gradients that are not finite",
            )


def check_resume(case: ObjectiveCase) -> None:
    """Saved after two steps and loaded into a fresh objective, the next two steps repeat bit for bit."""
    objective = case.build(40, torch.float32, dim=6)
    _steps(case, objective, seeds=(0, 1))
    saved = {name: value.clone() for name, value in objective.state_dict().items()}
    expected = _steps(case, objective, seeds=(2, 3))

    resumed = case.build(40, torch.float32, dim=6)
    resumed.load_state_dict(saved)
    losses = _steps(case, resumed, seeds=(2, 3))
    if losses != expected:
        _fail(case, "resume", f"losses after loading are {losses}, without interruption {expected}")
    for name, value in objective.state_dict().items():
        if not torch.equal(value, resumed.state_dict()[name]):
            _fail(case, "resume", f"{name} differs two steps after loading")
    if saved and _steps(case, case.build(40, torch.float32, dim=6), seeds=(2, 3)) == expected:
        _fail(case, "resume", "a fresh objective repeats the losses too, so the state has no effect")


def check_streaming(case: ObjectiveCase) -> None:
    """Blocks of a few rows give what one dense block gives, and a spoiled block is noticed."""
    inputs = case.inputs(37, 8)
    dense = _run(case, inputs)
    with _small_blocks():
        streamed = _run(case, inputs)
    _expect_equal(case, "streamed against dense", streamed, dense, 1e-10)
    with _small_blocks(spoil=True):
        spoiled = _run(case, inputs)
    _expect_different(case, "spoiled blocks", spoiled, dense, 1e-10)


def check_memory(case: ObjectiveCase, batch: int = 512) -> None:
    """In blocks of fixed size, twice the batch takes far less than four times the memory."""
    with _small_blocks(rows_per_block=32, tile=64):
        small, large = (_peak_bytes(case, size) for size in (batch, 2 * batch))
    if large > 2.6 * small:
        message = f"{small:,} bytes at batch {batch}, {large:,} at {2 * batch}: grows like a square"
        _fail(case, "memory", message)


def check_processes(case: ObjectiveCase, world_sizes: Sequence[int] = (2, 4)) -> None:
    """Two and four processes, with uneven batches, are one: losses, gradients and state over three steps.

    The loss is averaged over processes, as are the gradients of an encoder in front of the objective and of the
    objective's own parameters. A wrong offset of the own rows, or a gather without gradient, must be noticed.
    """
    case = replace(case, twin=None)  # which need not be importable by the processes
    single = _train_on_rank(0, 1, case, [12], "")
    for counts in ([7, 5], [5, 3, 3, 1]):
        if len(counts) not in world_sizes:
            continue
        results = run_on_processes(len(counts), _train_on_rank, case, counts, "")
        for rank, result in enumerate(results):
            for name, value in single.items():
                if not torch.allclose(value, result[name], rtol=1e-9, atol=1e-11):
                    difference = float((value - result[name]).abs().max())
                    _fail(
                        case,
                        "processes",
                        f"{name} on rank {rank} of {len(counts)} is off by {difference:.1e}",
                    )
        if not case.gathers:
            continue
        for damage in ("detached gather", *(["wrong offset"] if case.positions else [])):
            damaged = run_on_processes(len(counts), _train_on_rank, case, counts, damage)
            if all(
                torch.allclose(v, r[n], rtol=1e-9, atol=1e-11) for r in damaged for n, v in single.items()
            ):
                _fail(case, "processes", f"a {damage} goes unnoticed on {len(counts)} processes")


CHECKS: dict[str, Callable[[ObjectiveCase], None]] = {
    "twin": check_twin,
    "gradients": check_gradients,
    "dtypes": check_dtypes,
    "permutation": check_permutation,
    "small_batches": check_small_batches,
    "resume": check_resume,
    "streaming": check_streaming,
    "memory": check_memory,
    "processes": check_processes,
}
"""All checks by name."""


def run_on_processes(world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call ``function(rank, world_size, *arguments)`` in so many gloo processes and return their results.

    The processes (at most 4) are started once and serve all later calls.

    Raises:
        RuntimeError: with the traceback of the first process that failed.
    """
    if not 1 <= world_size <= _Processes.COUNT:
        raise ValueError(f"run_on_processes: world_size is {world_size}; give 1 to {_Processes.COUNT}.")
    return _Processes.shared().call(world_size, function, arguments)


class _Processes:
    """Worker processes that form a fresh process group for every call."""

    COUNT = 4
    _instance: "_Processes | None" = None

    @classmethod
    def shared(cls) -> "_Processes":
        if cls._instance is None:
            cls._instance = cls()
            atexit.register(cls._instance.close)
        return cls._instance

    def __init__(self) -> None:
        context = torch.multiprocessing.get_context("spawn")
        self.folder = tempfile.TemporaryDirectory()
        self.calls = 0
        self.pipes, self.processes = [], []
        for _ in range(self.COUNT):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)

    def call(self, world_size: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> list[Any]:
        self.calls += 1
        store = str(Path(self.folder.name) / f"store-{self.calls}")
        for rank, pipe in enumerate(self.pipes[:world_size]):
            pipe.send((store, rank, world_size, function, arguments))
        answers = [pipe.recv() for pipe in self.pipes[:world_size]]
        for rank, (ok, answer) in enumerate(answers):
            if not ok:
                raise RuntimeError(f"process {rank} of {world_size} failed:\n{answer}")
        return [answer for _, answer in answers]

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.send(None)
        for process in self.processes:
            process.join(timeout=10)
        self.folder.cleanup()


def _serve(pipe: Any) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    while True:
        try:
            task = pipe.recv()
        except EOFError:  # the caller is gone
            return
        except Exception:  # what was sent cannot be imported here
            pipe.send((False, traceback.format_exc()))
            continue
        if task is None:
            return
        store, rank, world_size, function, arguments = task
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
        try:
            pipe.send((True, function(rank, world_size, *arguments)))
        except Exception:
            pipe.send((False, traceback.format_exc()))
        finally:
            dist.destroy_process_group()


def _train_on_rank(
    rank: int, world_size: int, case: ObjectiveCase, counts: list[int], damage: str
) -> dict[str, Tensor]:
    """Three steps of a linear encoder on this rank's part of each global batch; what must not depend on the ranks."""
    total, dim = sum(counts), 6
    start = sum(counts[:rank])
    own = torch.arange(start, start + counts[rank])
    torch.manual_seed(0)
    encoder = nn.Linear(dim, dim, dtype=torch.float64)
    objective = case.build(4 * total, dim=dim)
    parameters = [*encoder.parameters(), *objective.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    results: dict[str, Tensor] = {}
    with _damage(damage):
        for step in range(3):
            inputs = _take(case.inputs(total, dim, seed=step), own)
            loss = objective(*map(encoder, inputs["views"]), **_arguments(inputs))
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            averaged = [loss.detach().clone(), *(p.grad for p in parameters if p.grad is not None)]
            if world_size > 1:
                for tensor in averaged:
                    dist.all_reduce(tensor)
                    tensor /= world_size
            results[f"loss of step {step}"] = averaged[0]
            results.update({f"gradient {i} of step {step}": g.clone() for i, g in enumerate(averaged[1:])})
            optimizer.step()
    results.update({f"state {name}": value.clone() for name, value in objective.state_dict().items()})
    return results


@contextmanager
def _damage(kind: str) -> Iterator[None]:
    """Break gathering on purpose."""
    from contrastive.similarity import distributed

    if kind == "wrong offset":
        with mock.patch.object(distributed, "_own_start", return_value=0):
            yield
    elif kind == "detached gather":
        apply = distributed._GatherRows.apply
        with mock.patch.object(
            distributed._GatherRows, "apply", lambda *arguments: apply(*arguments).detach()
        ):
            yield
    else:
        with nullcontext():
            yield


@contextmanager
def _small_blocks(*, rows_per_block: int = 5, tile: int = 7, spoil: bool = False) -> Iterator[None]:
    """Make the engine stream small problems in many blocks; ``spoil`` makes every block's product 1 % too large."""
    from contrastive.similarity import gaussian, rows, softmax

    mm = torch.mm

    def spoiled(a: Tensor, b: Tensor, **options: Any) -> Tensor:
        return mm(1.01 * a, b, **options)

    with (
        mock.patch.object(rows, "DENSE_ENTRIES", 0),
        mock.patch.object(rows, "choose_block_size", return_value=rows_per_block),
        mock.patch.object(softmax, "DENSE_ENTRIES", 0),
        mock.patch.object(softmax, "_KEPT_ENTRIES", 2 * tile**2),
        mock.patch.object(softmax, "_tile_size", return_value=tile),
        mock.patch.object(gaussian, "_tile_size", return_value=tile),
        mock.patch.object(torch, "mm", spoiled) if spoil else nullcontext(),
    ):
        yield


def _run(
    case: ObjectiveCase,
    inputs: dict[str, Any],
    dtype: torch.dtype = torch.float64,
    context: AbstractContextManager[Any] | None = None,
) -> Result:
    """Loss, computed within ``context``, and gradients of the views, for a fresh objective."""
    objective = case.build(4 * max(1, len(inputs["index"])), dtype, dim=inputs["views"][0].shape[1])
    inputs = _cast(inputs, dtype)
    return _loss_and_gradients(
        lambda *views: objective(*views, **_arguments(inputs)), inputs["views"], context
    )


def _loss_and_gradients(
    loss: Callable[..., Tensor], views: Sequence[Tensor], context: AbstractContextManager[Any] | None = None
) -> Result:
    leaves = [view.detach().clone().requires_grad_() for view in views]
    with context or nullcontext():
        value = loss(*leaves)
    found = torch.autograd.grad(value, leaves, allow_unused=True)
    grads = [torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True)]
    return value.detach(), grads


def _steps(case: ObjectiveCase, objective: Objective, seeds: Sequence[int]) -> list[float]:
    """One step of SGD on the objective's own parameters for each seed; the losses."""
    losses = []
    for seed in seeds:
        inputs = case.inputs(10, 6, seed=seed, dtype=torch.float32)
        views = [view.requires_grad_() for view in inputs["views"]]
        loss = objective(*views, **_arguments(inputs))
        torch.autograd.backward(loss)
        with torch.no_grad():
            for parameter in objective.parameters():
                if parameter.grad is not None:
                    parameter.sub_(0.1 * parameter.grad)
                    parameter.grad = None
        losses.append(float(loss.detach()))
    return losses


def _peak_bytes(case: ObjectiveCase, batch: int) -> int:
    """Peak of the memory allocated during forward and backward, above what the views take."""
    inputs = case.inputs(batch, 8, dtype=torch.float32)
    objective = case.build(4 * batch, torch.float32, dim=8)
    views = [view.requires_grad_() for view in inputs["views"]]
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        torch.autograd.backward(objective(*views, **_arguments(inputs)))
    now = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


def _arguments(inputs: dict[str, Any]) -> dict[str, Any]:
    """What an objective is called with besides views."""
    return {name: value for name, value in inputs.items() if name != "views"}


def _cast(inputs: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {
        name: [x.to(dtype) for x in value] if isinstance(value, list) else value
        for name, value in inputs.items()
    }


def _take(inputs: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    return {
        name: [x[rows] for x in value] if isinstance(value, list) else None if value is None else value[rows]
        for name, value in inputs.items()
    }


def _largest_difference(a: Result, b: Result) -> float:
    """Largest difference of losses and gradients, relative to their scale."""
    pairs = [(a[0], b[0]), *zip(a[1], b[1], strict=True)]
    return max(
        float((x.double() - y.double()).abs().max() / y.double().abs().max().clamp(min=1)) for x, y in pairs
    )


def _expect_equal(case: ObjectiveCase, what: str, result: Result, expected: Result, tolerance: float) -> None:
    difference = _largest_difference(result, expected)
    if not difference <= tolerance:
        _fail(case, what, f"difference {difference:.1e}, allowed {tolerance:.1e}")


def _expect_different(
    case: ObjectiveCase, what: str, result: Result, other: Result, tolerance: float
) -> None:
    if _largest_difference(result, other) <= tolerance:
        _fail(case, what, "must differ but does not, so the check proves nothing")


def _fail(case: ObjectiveCase, what: str, message: str) -> None:
    raise AssertionError(f"{case.name}: {what}: {message}.")
