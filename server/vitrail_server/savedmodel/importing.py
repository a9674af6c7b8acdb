"""Puts graphs that bring functions with them, loops for example, into a function that is being traced."""

import weakref
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import context

from vitrail_server.savedmodel.flat import Node

_number = count()
"""Of graphs that brought functions."""


def imported(definition: Any, inputs: Mapping[str, Any], outputs: Sequence[str]) -> list[Any]:
    """Put a GraphDef into the function that is being traced, and return the tensors wanted.

    TensorFlow knows functions by name, in the whole process, forgets a name as soon as one of its owners
    goes, and does not count an import as one. So those of the graph get names that nothing else has, for as
    long as the traced function lives.
    """
    if definition.library.function:
        definition = _with_names_of_its_own(definition)
        for function in definition.library.function:
            context.context().add_function_def(function)
            forget = weakref.finalize(
                tf.compat.v1.get_default_graph(), context.remove_function, function.signature.name
            )
            forget.atexit = False
    tensors: list[Any] = tf.graph_util.import_graph_def(definition, inputs, outputs, name="")
    return tensors


def _with_names_of_its_own(definition: Any) -> Any:
    own = tf.compat.v1.GraphDef()
    own.CopyFrom(definition)
    own.library.ClearField("gradient")  # of functions; nothing that is imported is differentiated
    number = next(_number)
    names = {each.signature.name: f"{each.signature.name}_import_{number}" for each in own.library.function}
    for function in own.library.function:
        function.signature.name = names[function.signature.name]
        _rename_functions(function.node_def, names)
    _rename_functions(own.node, names)
    return own


def _rename_functions(nodes: Iterable[Node], names: Mapping[str, str]) -> None:
    for node in nodes:
        node.op = names.get(node.op, node.op)
        for value in node.attr.values():
            functions = [value.func] if value.HasField("func") else value.list.func
            for function in functions:
                function.name = names.get(function.name, function.name)
