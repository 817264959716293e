"""Vocabularies of tiktoken: found in its local cache, or fetched within a time limit.

`local_counter` never touches the network. `load` may, in a daemon thread. Nothing here imports tiktoken
before a vocabulary is asked for, and nothing changes it: its loader runs in a private copy, so that its
registry, and its lock, which a slow fetch would hold, stay untouched.
"""

from __future__ import annotations

import os
import tempfile
import threading
from importlib.util import find_spec, module_from_spec
from typing import TYPE_CHECKING, Any, Final

from tbc.errors import InvalidAmountError, VocabularyError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import tiktoken

__all__ = ["TiktokenCounter", "cache_directory", "encoding_name", "load", "local_counter"]

_DEFAULT_ENCODING: Final = "o200k_base"
#: Why 4,096: byte pair encoding is more than linear in the length of a run without spaces, and the regular
#: expression in front of it gives up on runs of about a million characters.
_WINDOW: Final = 4_096
#: What may come up while a vocabulary is read: files, their content, and a tiktoken of another build.
_NOT_LOADED: Final = (OSError, ValueError, LookupError, AttributeError)

_lock = threading.Lock()
_encodings: dict[tuple[str, str], tiktoken.Encoding] = {}
_fetches: dict[tuple[str, str], _Fetch] = {}


class TiktokenCounter:
    """Count with a vocabulary of tiktoken.

    Special markers such as ``<|endoftext|>`` count as the text that they are, lone surrogates as the
    replacement character. A text longer than 4,096 characters is counted in pieces that are cut at spaces or
    line breaks, which changes nothing; where a piece has neither, the cut may add a token or two.

    Parameters
    ----------
    encoding : str or tiktoken.Encoding
        The name of an encoding whose vocabulary is in tiktoken's local cache, or an encoding.

    Raises
    ------
    VocabularyError
        If the vocabulary is not in the cache. The network is not tried.
    """

    __slots__ = ("encoding", "name")

    estimated: Final = False

    def __init__(self, encoding: str | tiktoken.Encoding) -> None:
        #: The encoding of tiktoken that counts.
        self.encoding = _local_encoding(encoding) if isinstance(encoding, str) else encoding
        #: ``"tiktoken:"`` and the name of the encoding.
        self.name = f"tiktoken:{self.encoding.name}"

    def count(self, text: str, /) -> int:
        """Return the number of tokens of `text`."""
        encode = self.encoding.encode_ordinary
        if len(text) <= _WINDOW:
            return len(encode(text))
        total = start = 0
        while len(text) - start > _WINDOW:
            end = start + _WINDOW
            cut = text.rfind(" ", start + 1, end)
            if cut < 0 or text[cut - 1 : end] == "  ":
                cut = text.rfind("\n", start, end) + 1 or end
            total += len(encode(text[start:cut]))
            start = cut
        return total + len(encode(text[start:]))

    def __repr__(self) -> str:
        return f"<TiktokenCounter {self.name}>"


def local_counter(model: str | None = None) -> TiktokenCounter | None:
    """Return the counter of a model if its vocabulary is in tiktoken's local cache.

    The network is never touched. The cache is where tiktoken keeps it: ``TIKTOKEN_CACHE_DIR``, else
    ``DATA_GYM_CACHE_DIR``, else ``data-gym-cache`` among the temporary files; its files are checked (and
    damaged ones removed) by tiktoken's own rule. A vocabulary is read once for each directory and encoding.

    Parameters
    ----------
    model : str, optional
        The model, with or without ``provider/`` in front. Without one, and for models that tiktoken does not
        know, it is ``o200k_base``.

    Returns
    -------
    TiktokenCounter or None
        ``None`` if the vocabulary is not there.
    """
    try:
        return TiktokenCounter(encoding_name(model))
    except VocabularyError:
        return None


def load(model: str | None = None, *, timeout_s: float = 30.0) -> TiktokenCounter:
    """Return the counter of a model; fetch its vocabulary if it is not in tiktoken's cache.

    The fetch runs in a daemon thread. If it takes longer than `timeout_s` it goes on in the background: a
    later call finds it done, or waits for the same fetch. Blocks; in a coroutine call it through
    ``asyncio.to_thread``.

    Parameters
    ----------
    model : str, optional
        As in `local_counter`.
    timeout_s : float, default 30.0
        Seconds to wait at most, > 0.

    Raises
    ------
    VocabularyError
        If the vocabulary cannot be fetched, or not in time; the cause is chained.
    InvalidAmountError
        If `timeout_s` is not a finite number above 0.
    """
    if (
        isinstance(timeout_s, bool)
        or not isinstance(timeout_s, int | float)
        or not 0 < timeout_s < float("inf")
    ):
        raise InvalidAmountError("timeout_s", timeout_s, "a finite number of seconds above 0")
    counter = local_counter(model)
    if counter is not None:
        return counter
    key = (cache_directory(), encoding_name(model))
    with _lock:
        fetch = _fetches.get(key)
        if fetch is None:
            fetch = _fetches[key] = _Fetch(key)
    return fetch.wait(timeout_s)


class _Fetch:
    """One fetch of a vocabulary in a daemon thread, shared by all who wait for it."""

    def __init__(self, key: tuple[str, str]) -> None:
        self._key = key
        self._done = threading.Event()
        self._outcome: tiktoken.Encoding | BaseException = TimeoutError(f"{key[1]} is still being fetched")
        threading.Thread(target=self._run, name=f"tbc fetches {key[1]}", daemon=True).start()

    def _run(self) -> None:
        try:
            self._outcome = _encoding(self._key[1], _fetch_file)
        except BaseException as error:
            self._outcome = error
        with _lock:
            if not isinstance(self._outcome, BaseException):
                _encodings[self._key] = self._outcome
            del _fetches[self._key]
        self._done.set()

    def wait(self, timeout_s: float) -> TiktokenCounter:
        in_time = self._done.wait(min(timeout_s, threading.TIMEOUT_MAX))
        if not isinstance(self._outcome, BaseException):
            return TiktokenCounter(self._outcome)
        limit = "" if in_time else f" within {timeout_s} s"
        raise VocabularyError(
            f"The vocabulary of {self._key[1]!r} could not be fetched{limit}. Check the network and call "
            "tbc.tokens.load() again, with a longer timeout_s if need be; or point TIKTOKEN_CACHE_DIR at a "
            "directory that has it; or count with tbc.tokens.EstimateCounter()."
        ) from self._outcome


def encoding_name(model: str | None) -> str:
    """Return the name of the encoding of a model; ``o200k_base`` without one or for an unknown one."""
    from tiktoken.model import encoding_name_for_model

    for candidate in (model, model.rsplit("/", 1)[-1]) if model else ():
        try:
            return encoding_name_for_model(candidate)
        except KeyError:
            pass
    return _DEFAULT_ENCODING


def cache_directory() -> str:
    """Return where tiktoken keeps its vocabularies; ``""`` if it was told to keep none."""
    named = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    return os.path.join(tempfile.gettempdir(), "data-gym-cache") if named is None else named


def _local_encoding(name: str) -> tiktoken.Encoding:
    """Return an encoding from tiktoken's cache, the same one for everybody."""
    key = (cache_directory(), name)
    with _lock:
        if key not in _encodings:
            try:
                _encodings[key] = _encoding(name, _refuse_to_fetch)
            except _NOT_LOADED as error:
                raise VocabularyError(
                    f"The vocabulary of {name!r} is not in tiktoken's cache ({key[0]!r}). "
                    "tbc.tokens.load() fetches the vocabulary of a model."
                ) from error
        return _encodings[key]


def _encoding(name: str, fetch: Callable[[str], bytes]) -> tiktoken.Encoding:
    """Build an encoding from tiktoken's cache; what is not in the cache comes from `fetch`."""
    import tiktoken

    loader = _private_copy("tiktoken.load", read_file=fetch)
    functions = ("load_tiktoken_bpe", "data_gym_to_mergeable_bpe_ranks")
    public = _private_copy("tiktoken_ext.openai_public", **{each: loader[each] for each in functions})
    constructors: Mapping[str, Callable[[], Mapping[str, object]]] = public["ENCODING_CONSTRUCTORS"]
    return tiktoken.Encoding(**constructors[name]())  # type: ignore[arg-type]


def _private_copy(module: str, **replaced: object) -> dict[str, Any]:
    """Return the names of a fresh copy of a module, which nobody else sees, with some of them replaced."""
    spec = find_spec(module)
    if spec is None or spec.loader is None:
        raise LookupError(f"no module {module}")
    copy = module_from_spec(spec)
    spec.loader.exec_module(copy)
    names = vars(copy)
    if not replaced.keys() <= names.keys():
        raise LookupError(f"{module} has no {sorted(replaced.keys() - names.keys())}")
    names.update(replaced)
    return names


def _refuse_to_fetch(url: str) -> bytes:
    raise FileNotFoundError(f"{url} is not in the cache")


def _fetch_file(url: str) -> bytes:
    from tiktoken.load import read_file

    return read_file(url)
