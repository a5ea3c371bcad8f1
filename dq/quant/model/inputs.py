"""The inputs that a model takes, by position and by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

# A batch of a data loader; see `Inputs.of_batch`.
Batch = Tensor | Sequence[Any] | Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Inputs:
    """The inputs with which a model was prepared; every call must give the same.

    Attributes:
        names: Of all inputs: first those given by position, then those given by name.
        num_positional: Number of inputs that the model's ``forward`` gets by position.
    """

    names: tuple[str, ...]
    num_positional: int

    @classmethod
    def of_examples(
        cls, model: nn.Module, positional: Sequence[Tensor], named: Mapping[str, Tensor]
    ) -> Inputs:
        """Return the inputs of a model, given an example of each.

        Args:
            model: Its ``forward`` takes the inputs.
            positional: Examples of the inputs given by position.
            named: Examples of the inputs given by name.

        Raises:
            ValueError: There is no example, one is not a tensor, or ``model.forward`` does not
                have such an input.
        """
        if not positional and not named:
            raise ValueError("prepare needs an example of each input: prepare(model, recipe, x)")
        for where, value in [*enumerate(positional), *named.items()]:
            if not isinstance(value, Tensor):
                raise ValueError(
                    f"the example of input {where} is a {type(value).__name__}, not a tensor; fix"
                    " other arguments beforehand, as functools.partial does"
                )
        try:
            bound = inspect.signature(model.forward).bind(*positional, **named)
        except TypeError as error:
            raise ValueError(f"{type(model).__name__}.forward: {error}") from error
        names = list(bound.arguments)[: len(positional)]
        if len(names) < len(positional) or any(
            not isinstance(bound.arguments[name], Tensor) for name in names
        ):
            # ``*inputs`` has no names.
            names = [f"input{number}" for number in range(len(positional))]
        return cls((*names, *named), len(positional))

    def caller(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that takes all inputs by position and calls ``forward`` with them."""

        def call(*values: Any) -> Any:
            named = dict(zip(self.names, values, strict=True))
            rest = {name: named[name] for name in self.names[self.num_positional :]}
            return forward(*values[: self.num_positional], **rest)

        return call

    def in_order(self, positional: Sequence[Any], named: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return the values of one call in the order of `names`.

        Raises:
            ValueError: An input is missing, or there are too many.
        """
        given = dict(zip(self.names, positional, strict=False)) | dict(named)
        twice = set(self.names[: len(positional)]) & set(named)
        if len(positional) > len(self.names) or twice or set(given) != set(self.names):
            raise ValueError(
                f"the model was prepared with the inputs {', '.join(self.names)}, and is called"
                f" with {len(positional)} by position and {', '.join(named) or 'none'} by name;"
                " prepare it with an example of each input that it should take"
            )
        return tuple(given[name] for name in self.names)

    def of_batch(self, batch: Batch) -> tuple[Any, ...]:
        """Return the inputs in a batch of a data loader, in the order of `names`.

        Args:
            batch: A tensor, for a model with one input; a tuple or list that begins with the inputs
                (targets may follow); or a mapping that contains each input by its name.

        Raises:
            ValueError: An input is missing.
        """
        if isinstance(batch, Tensor):
            return self.in_order((batch,), {})
        if isinstance(batch, Mapping):
            return self.in_order((), {name: batch[name] for name in self.names if name in batch})
        return self.in_order(tuple(batch)[: len(self.names)], {})
