"""Installs a recorder on a model and takes everything off again: hooks, wrapped rotary functions.

Rotary embedding is a plain function in most code, not a module, so hooks do not see it; and it is
looked up by name in the file of the attention class. That name is replaced while a pass runs.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import types
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from .recorder import Recorder
from .tensors import all_tensors, detached

# How forks call the function that rotates.
ROTARY = re.compile(r"(apply|rotate).*(rotary|rope)|rotary_pos_emb|rotary_emb$", re.IGNORECASE)


def _code_globals(cls: type) -> Iterator[dict[str, Any]]:
    """The namespaces in which the methods of a class look up functions.

    Usually that of the model's file; a class whose methods are inherited or decorated has several,
    and each of them may hold a rotary function of its own.
    """
    for base in cls.__mro__:
        for value in vars(base).values():
            function = inspect.unwrap(value) if callable(value) else None
            if (
                isinstance(function, types.FunctionType)
                and function.__module__.split(".")[0] != "torch"
            ):
                yield function.__globals__


@contextlib.contextmanager
def watch_rotary(recorder: Recorder) -> Iterator[None]:
    """Wraps the rotary functions that the attention and indexer classes call."""
    owners = {
        type(recorder.model.get_submodule(name))
        for name, part in recorder.parts.items()
        if part.role in ("attention", "indexer")
    }
    spaces = {id(space): space for cls in owners for space in _code_globals(cls)}
    with contextlib.ExitStack() as undo:
        for space in spaces.values():
            _wrap_functions(recorder, space, undo)
        for cls in owners:
            _wrap_methods(recorder, cls, undo)
        yield


def _wrap_functions(recorder: Recorder, space: dict[str, Any], undo: contextlib.ExitStack) -> None:
    for name, value in list(space.items()):
        if ROTARY.search(name) and callable(value) and not isinstance(value, type):
            undo.callback(space.__setitem__, name, value)
            space[name] = _watched(recorder, value)


def _wrap_methods(recorder: Recorder, cls: type, undo: contextlib.ExitStack) -> None:
    for name, value in list(vars(cls).items()):
        if ROTARY.search(name) and isinstance(value, (types.FunctionType, staticmethod)):
            undo.callback(setattr, cls, name, value)
            if isinstance(value, staticmethod):
                setattr(cls, name, staticmethod(_watched(recorder, value.__func__)))
            else:
                setattr(cls, name, _watched(recorder, value))


def _watched(recorder: Recorder, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, telling the recorder of its calls; inputs are copied, it may work in place."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not recorder.recording:
            return function(*args, **kwargs)
        inputs = [t.detach().clone() for t in all_tensors(args, kwargs) if t.is_floating_point()]
        out = function(*args, **kwargs)
        recorder.on_rotary(inputs, out)
        return out

    return call


@contextlib.contextmanager
def watch_modules(recorder: Recorder, whole: bool = True) -> Iterator[None]:
    """Tells the recorder of every module call, before and after.

    whole: the model itself too; not from within its own call, whose hooks torch has counted.
    """
    handles = []
    for name, module in recorder.model.named_modules():
        if not name and not whole:
            continue
        before = functools.partial(recorder.before, name)
        after = functools.partial(recorder.after, name)
        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def live_indexers(recorder: Recorder) -> Iterator[None]:
    """Cuts the indexers off from the rest of the model and lets them have gradients."""

    def detach(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
        return detached(args), detached(kwargs)

    undo: list[Callable[[], Any]] = []
    for name, part in recorder.parts.items():
        if part.role == "indexer":
            indexer = recorder.model.get_submodule(name)
            undo.append(indexer.register_forward_pre_hook(detach, with_kwargs=True).remove)
            trained = any(parameter.requires_grad for parameter in indexer.parameters())
            for parameter in () if trained else indexer.parameters():
                undo.append(functools.partial(parameter.requires_grad_, parameter.requires_grad))
                parameter.requires_grad_(parameter.is_floating_point())
    recorder.live = True
    try:
        yield
    finally:
        recorder.live = False
        for step in undo:
            step()
