"""A traced function without the graph in Python that it was traced as.

TensorFlow computes from a function's definition; the graph beside it, an object per operation, is only for
tracing, and four times as large.
"""

import weakref
from itertools import count
from typing import Any

from tensorflow.python.eager import context

_number = count()
"""Of functions; a name is forgotten with the first of its owners, so each has one of its own."""


class CompactFunction:
    """Takes what the function traced takes, as tensors, and returns its outputs as a list."""

    def __init__(self, concrete: Any) -> None:
        """Nothing of `concrete` is kept, unless it calls functions that go with it."""
        definition = concrete.function_def
        definition.signature.name += f"_compact_{next(_number)}"
        self.operations = len(definition.node_def)
        """How many it is made of."""
        self._name: bytes = definition.signature.name.encode()
        self._outputs = len(definition.signature.output_arg)
        self.captured: list[Any] = list(concrete.captured_inputs)
        """The tensors from outside, which it takes after those it is given."""
        self._keep = concrete if concrete.graph.as_graph_def().library.function else None
        context.context().add_function_def(definition)
        forget = weakref.finalize(self, context.remove_function, definition.signature.name)
        forget.atexit = False

    def __call__(self, *tensors: Any) -> list[Any]:
        """Compute the outputs."""
        found: list[Any] = context.context().call_function(
            self._name, [*tensors, *self.captured], self._outputs
        )
        return found
