"""Keep functions out of the graphs of torch.compile, without importing the compiler where nothing is compiled.

`torch.compiler.disable` imports it at once, which takes as long as importing the rest of torch.
"""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def outside_graphs(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Let a function, and all that it calls, run uncompiled where a compiled function calls it."""

    @wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        # While a caller is traced, the compiler takes this branch and leaves the call to Python, after it.
        if torch.compiler.is_compiling():
            uncompiled: Callable[Arguments, Result] = torch.compiler.disable(function)
            return uncompiled(*args, **kwargs)
        return function(*args, **kwargs)

    return call
