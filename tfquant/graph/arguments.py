"""Call arguments of functions.

Parameters that carry tensors, and the values of the others when the function was traced.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

# Stands in for functions whose parameters cannot be read (built-in ones): everything goes by
# position.
_BY_POSITION = inspect.Signature([inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL)])


class ArgumentError(TypeError, ValueError):
    """Arguments do not match the function."""


@dataclasses.dataclass(frozen=True, eq=False)
class Arguments:
    """Signature of a call of one function: tensors and constants.

    Attributes:
      name: of the function, for messages.
      signature: its parameters.
      given: parameter -> what it was traced with: nested tensors or specs, or any other value.
    """

    name: str
    signature: inspect.Signature
    given: dict[str, Any]

    @classmethod
    def bound(cls, name: str, signature: inspect.Signature, batch: Any) -> Arguments:
        """Bind `batch` to arguments, see `arguments_of`.

        Raises:
          ArgumentError: the batch does not fit the parameters.
        """
        return cls(name, signature, _bind_batch(name, signature, batch))

    @property
    def tensors(self) -> dict[str, Any]:
        """Parameters that carry tensors; the others were constants of the trace."""
        return {name: value for name, value in self.given.items() if _carries_tensors(value)}

    def call(self, function: Callable, tensors: Mapping[str, Any]) -> Any:
        """Call `function` with other tensors and the same constants."""
        bound = inspect.BoundArguments(
            self.signature, {p: {**self.given, **tensors}[p] for p in self._order()}
        )
        return function(*bound.args, **bound.kwargs)

    def bind(self, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Map arguments of a call to the values of the tensor parameters.

        Raises:
          ArgumentError: they do not fit the parameters, or another constant is given than at the
            trace.
        """
        return self._checked(_bind(self.name, self.signature, args, kwargs))

    def bind_batch(self, batch: Any) -> dict[str, Any]:
        """Map a batch to the values of the tensor parameters.

        A tuple of arguments, a mapping with the names of parameters, or the only argument.
        """
        return self._checked(_bind_batch(self.name, self.signature, batch))

    def _order(self) -> list[str]:
        return [p for p in self.signature.parameters if p in self.given]

    def _checked(self, values: dict[str, Any]) -> dict[str, Any]:
        tensors = self.tensors
        missing = [p for p in tensors if p not in values]
        if missing:
            raise ArgumentError(
                f"{self.name} was traced with argument {missing[0]!r}, which is missing now"
            )
        for name, value in values.items():
            if name in tensors:
                continue
            if name in self.given:
                traced = self.given[name]
            else:
                traced = self.signature.parameters[name].default
            same = not _carries_tensors(value) and (traced is value or traced == value)
            if not same:
                raise ArgumentError(
                    f"{self.name}: argument {name!r} was {_shown(traced)} when the function was"
                    f" traced, now it is {_shown(value)}; arguments that are no tensors are"
                    " constants of the graph: quantize again for another value"
                )
        return {name: values[name] for name in tensors}


def arguments_of(function: Callable, batch: Any) -> Arguments:
    """Bind `batch` to the parameters of `function`: a tuple of arguments, a mapping with parameter
    names, or the only argument.

    The leaves may be specs (`tf.TensorSpec`).

    Raises:
      ArgumentError: the batch does not fit the function's parameters, or holds no tensor.
    """
    name, signature = name_of(function), _signature_of(function)
    result = Arguments.bound(name, signature, batch)
    if not result.tensors:
        raise ArgumentError(
            f"{name} is called with no tensor: pass arrays or tensors, numbers are constants of the"
            " graph"
        )
    return result


def own_arguments(function: Any) -> Arguments | None:
    """Default batch of a function, from its own signature.

    A `tf.function` with an input signature or a concrete function.
    """
    name, signature = name_of(function), _signature_of(function)
    if hasattr(function, "structured_input_signature"):
        args, kwargs = function.structured_input_signature
        return Arguments(name, signature, _bind(name, signature, args, kwargs))
    if getattr(function, "input_signature", None) is not None:
        return Arguments(
            name, signature, _bind(name, signature, tuple(function.input_signature), {})
        )
    return None


def name_of(function: Callable) -> str:
    return getattr(function, "__name__", None) or type(function).__name__


def _signature_of(function: Any) -> inspect.Signature:
    if hasattr(
        function, "structured_input_signature"
    ):  # a concrete function says `*args, **kwargs` otherwise
        return inspect.Signature(
            [inspect.Parameter(p.name, p.kind) for p in function.function_type.parameters.values()]
        )
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return _BY_POSITION


def _bind(
    name: str, signature: inspect.Signature, args: tuple, kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    try:
        return dict(signature.bind(*args, **kwargs).arguments)
    except TypeError as error:
        raise ArgumentError(
            f"{name}: {error}; it takes {', '.join(signature.parameters) or 'nothing'}"
        ) from error


def _bind_batch(name: str, signature: inspect.Signature, batch: Any) -> dict[str, Any]:
    if isinstance(batch, tuple):
        return _bind(name, signature, batch, {})
    if isinstance(batch, Mapping):
        parameters = signature.parameters.values()
        if set(batch) <= set(signature.parameters):
            return dict(batch)
        if any(p.kind is p.VAR_KEYWORD for p in parameters):
            return _bind(name, signature, (), batch)
    return _bind(name, signature, (batch,), {})


def _carries_tensors(value: Any) -> bool:
    kinds = (np.ndarray, np.generic, tf.TensorSpec, tf.Variable)
    return any(tf.is_tensor(leaf) or isinstance(leaf, kinds) for leaf in tf.nest.flatten(value))


def _shown(value: Any) -> str:
    if value is inspect.Parameter.empty:
        return "not given"
    return "a tensor" if _carries_tensors(value) else repr(value)
