"""Replies that are consumed later: chunks pass through, are counted, and end the hold with them.

A generator function stays one, and a provider's stream object keeps its own attributes. What is left half-way
(closed, dropped, collected as garbage) is booked as far as it came.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Protocol

__all__ = ["AsyncStream", "Followed", "Stream", "follow", "follow_async"]


class Followed(Protocol):
    """What a stream tells the governed call that it belongs to."""

    def running(self) -> AbstractContextManager[object]:
        """Return what to enter around every step."""

    def add_chunk(self, chunk: Any) -> bool:
        """Count a chunk; returns whether it is time to keep the hold alive."""

    def keep_alive(self) -> None:
        """Let the hold live on."""

    async def aside(self, work: Callable[..., Any], *values: Any) -> Any:
        """Await what may wait for a store."""

    def finish_stream(self, result: Any = None) -> None:
        """Settle: the chunks have ended, and a generator returned `result`."""

    def abandon(self) -> None:
        """Book what came: nobody will ask for more. Never waits."""

    def fail(self, error: BaseException) -> None:
        """Book what came: the call raised."""


def follow(
    begin: Callable[[tuple[Any, ...], dict[str, Any]], tuple[Followed, Any]],
) -> Callable[..., Generator[Any, Any, Any]]:
    """Return a generator function that passes chunks through, counts them, and ends the hold with them."""

    def following(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        call, chunks = begin(args, kwargs)
        step: Callable[[], Any] = chunks.__next__
        try:
            while True:
                with call.running():
                    chunk = step()
                if call.add_chunk(chunk):
                    call.keep_alive()
                try:
                    sent = yield chunk
                except GeneratorExit:
                    raise
                except BaseException as thrown:
                    step = functools.partial(_throw, chunks, thrown)
                else:
                    step = chunks.__next__ if sent is None else functools.partial(chunks.send, sent)
        except StopIteration as stop:
            call.finish_stream(stop.value)
            return stop.value
        except GeneratorExit:
            call.abandon()
            _close(chunks)
            raise
        except BaseException as error:
            call.fail(error)
            raise

    return following


def follow_async(
    begin: Callable[[tuple[Any, ...], dict[str, Any]], Awaitable[tuple[Followed, Any]]],
) -> Callable[..., AsyncGenerator[Any, Any]]:
    """Return the same as an async generator function: only the waiting differs."""

    async def following(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        call, chunks = await begin(args, kwargs)
        step: Callable[[], Awaitable[Any]] = chunks.__anext__
        try:
            while True:
                with call.running():
                    chunk = await step()
                if call.add_chunk(chunk):
                    await call.aside(call.keep_alive)
                try:
                    sent = yield chunk
                except GeneratorExit:
                    raise
                except BaseException as thrown:
                    step = functools.partial(_athrow, chunks, thrown)
                else:
                    step = chunks.__anext__ if sent is None else functools.partial(chunks.asend, sent)
        except StopAsyncIteration:
            await call.aside(call.finish_stream)
        except GeneratorExit:
            call.abandon()
            if hasattr(chunks, "aclose"):
                with contextlib.suppress(RuntimeError):  # it is being closed, or runs, elsewhere
                    await chunks.aclose()
            raise
        except BaseException as error:
            await call.aside(call.fail, error)
            raise

    return following


class Stream:
    """A provider's stream object, governed: iterates through us, everything else is its own."""

    def __init__(self, call: Followed, inner: Any) -> None:
        self._call = call
        self._inner = inner
        self._chunks = follow(lambda args, kwargs: (call, inner))()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self._chunks)

    def send(self, value: Any) -> Any:
        """Send a value into a generator."""
        return self._chunks.send(value)

    def throw(self, error: BaseException) -> Any:
        """Throw an exception into a generator."""
        return self._chunks.throw(error)

    def __enter__(self) -> Any:
        if hasattr(self._inner, "__enter__"):
            self._inner.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Any:
        self.close()
        return self._inner.__exit__(kind, error, trace) if hasattr(self._inner, "__exit__") else None

    def close(self) -> None:
        """Close the stream; what has been streamed is booked."""
        self._call.abandon()
        self._chunks.close()
        _close(self._inner)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._inner, name)

    def __del__(self) -> None:
        self._call.abandon()


class AsyncStream:
    """The same for an async stream object."""

    def __init__(self, call: Followed, inner: Any) -> None:
        self._call = call
        self._inner = inner

        async def begun(*_: Any) -> tuple[Followed, Any]:
            return call, inner

        self._chunks = follow_async(begun)()

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        return await anext(self._chunks)

    async def __aenter__(self) -> Any:
        if hasattr(self._inner, "__aenter__"):
            await self._inner.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Any:
        self._call.abandon()
        if hasattr(self._inner, "__aexit__"):
            return await self._inner.__aexit__(kind, error, trace)
        return None

    async def aclose(self) -> None:
        """Close the stream; what has been streamed is booked."""
        self._call.abandon()
        await self._chunks.aclose()
        for name in ("aclose", "close"):
            if hasattr(self._inner, name):
                closing = getattr(self._inner, name)()
                if inspect.isawaitable(closing):
                    await closing
                return

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._inner, name)

    def __del__(self) -> None:
        self._call.abandon()


def _throw(chunks: Any, error: BaseException) -> Any:
    if hasattr(chunks, "throw"):
        return chunks.throw(error)
    raise error


async def _athrow(chunks: Any, error: BaseException) -> Any:
    if hasattr(chunks, "athrow"):
        return await chunks.athrow(error)
    raise error


def _close(chunks: Any) -> None:
    if hasattr(chunks, "close"):
        chunks.close()
