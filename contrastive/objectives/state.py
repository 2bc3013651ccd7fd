"""State that an objective keeps for every sample of the data set."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class SampleState(nn.Module):
    """Numbers kept for each sample: persistent buffers ``(N,)``, read and written by sample index.

    They have at least float32 also in a module that is cast to half precision. N grows, and never shrinks, by
    :meth:`grow` and to fit a checkpoint; samples that are new start from the initial values.

    Args:
        **initial: name and initial value of each number.
    """

    def __init__(self, **initial: float) -> None:
        super().__init__()
        self._initial = initial
        for name in initial:
            self.register_buffer(name, torch.empty(0))

    def __len__(self) -> int:
        """Number of samples, N."""
        return len(self.get_buffer(next(iter(self._initial))))

    def grow(self, num_samples: int) -> None:
        """Make room for ``num_samples`` samples, keeping what is known of the present ones."""
        for name in self._initial:
            setattr(self, name, self._grown(name, self.get_buffer(name), num_samples))

    def read(self, index: Tensor) -> dict[str, Tensor]:
        """Numbers ``(B,)`` by name, of the samples ``index`` ``(B,)``."""
        return {name: self.get_buffer(name)[index] for name in self._initial}

    def write(self, index: Tensor, values: dict[str, Tensor]) -> None:
        """Replace numbers of the samples ``index``, which are distinct."""
        for name, value in values.items():
            buffer = self.get_buffer(name)
            buffer[index] = value.to(buffer.dtype)

    def table(self) -> dict[str, Tensor]:
        """A copy of all numbers, on the CPU: ``(N,)`` by name."""
        return {name: self.get_buffer(name).to("cpu", copy=True) for name in self._initial}

    def _grown(self, name: str, old: Tensor, num_samples: int) -> Tensor:
        new = old.new_full((max(num_samples - len(old), 0),), self._initial[name])
        return torch.cat([old, new])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        saved = [len(state_dict[prefix + name]) for name in self._initial if prefix + name in state_dict]
        size = max([len(self), *saved])
        self.grow(size)
        for name in self._initial:
            if prefix + name in state_dict:
                state_dict[prefix + name] = self._grown(name, state_dict[prefix + name], size)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SampleState":
        before = {name: self.get_buffer(name) for name in self._initial}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in before.items():
            new = self.get_buffer(name)
            if new.dtype in (torch.float16, torch.bfloat16):
                setattr(self, name, old.to(new.device))
            elif (
                new.dtype == torch.float64 != old.dtype
            ):  # the initial value has more digits than float32 kept
                new[(old == old.new_tensor(self._initial[name])).to(new.device)] = self._initial[name]
        return self
