"""Building a network whose weights are replaced at once, without drawing random ones first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# `nn.init` hands its functions to a mode as well, and what they call no longer comes to it.
RANDOM = frozenset(
    {
        Tensor.normal_,
        Tensor.uniform_,
        Tensor.erfinv_,
        nn.init.normal_,
        nn.init.uniform_,
        nn.init.trunc_normal_,
        nn.init.kaiming_normal_,
        nn.init.kaiming_uniform_,
        nn.init.xavier_uniform_,
    }
)


class Unfilled(TorchFunctionMode):
    """A context in which tensors are not filled with random numbers: they hold whatever is in their memory.

    For a network that gets all its weights afterwards; ones and zeros are filled as usual. Only for this thread.
    """

    def __torch_function__(  # type: ignore[explicit-any]  # any function of PyTorch
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Call the function, unless it fills a tensor with random numbers; that tensor comes back as it is."""
        named = kwargs or {}
        if func in RANDOM:
            return args[0] if args else named["tensor"]
        return func(*args, **named)
