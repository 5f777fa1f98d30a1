"""Makes methods of the two clients from operations: the same one, blocking and awaiting."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast

from polyolo.client.call import Call
from polyolo.client.uploads import Conversation
from polyolo.errors import PolyoloError

if TYPE_CHECKING:
    from polyolo.client.session import AsyncClient, Client

P = ParamSpec("P")
T = TypeVar("T")


def blocking(operation: Callable[P, Call[T]]) -> Callable[Concatenate[Client, P], T]:
    """Return a method of Client that sends an operation's call."""

    @functools.wraps(operation)
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.send(operation(*args, **kwargs))

    return _as_method(method)


def awaiting(
    operation: Callable[P, Call[T]],
) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    """Return a method of AsyncClient that sends an operation's call."""

    @functools.wraps(operation)
    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.send(operation(*args, **kwargs))

    return _as_method(method)


def conversing(
    operation: Callable[P, Conversation[T]],
) -> Callable[Concatenate[Client, P], T]:
    """Return a method of Client that holds an operation's conversation."""

    @functools.wraps(operation)
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        talk = operation(*args, **kwargs)
        try:
            step = next(talk)
            while True:
                try:
                    answer = self.take(step)
                except (PolyoloError, OSError) as error:
                    step = talk.throw(error)
                else:
                    step = talk.send(answer)
        except StopIteration as done:
            return cast("T", done.value)

    return _as_method(method)


def conversing_async(
    operation: Callable[P, Conversation[T]],
) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    """Return a method of AsyncClient that holds an operation's conversation."""

    @functools.wraps(operation)
    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        talk = operation(*args, **kwargs)
        try:
            step = next(talk)
            while True:
                try:
                    answer = await self.take(step)
                except (PolyoloError, OSError) as error:
                    step = talk.throw(error)
                else:
                    step = talk.send(answer)
        except StopIteration as done:
            return cast("T", done.value)

    return _as_method(method)


M = TypeVar("M", bound=Callable[..., object])


def _as_method(method: M) -> M:
    """Have `help()` show the method: a self to leave out, and the result without its Call."""
    signature = inspect.signature(method)
    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    result = str(signature.return_annotation).removesuffix("]").split("[", 1)[-1]
    method.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[itself, *signature.parameters.values()], return_annotation=result
    )
    return method
