"""What a worker is started with: the app by name, and how the folder is opened.

Nothing of the supervising process crosses but names: a worker imports the classes itself, from the
search path, from a FILE, or from the script that was run (loaded as `__mp_main__`, as
multiprocessing does it, so that its guarded part does not run).

Invariants:
    What cannot be found by its name is refused before a worker is started.
"""

from __future__ import annotations

import io
import logging
import pickle
import sys
from typing import Any

import msgspec

from perdure.actors import process_child as wire
from perdure.actors.host import Replay
from perdure.actors.processes import preparation
from perdure.engine.app import App, load_app, merge_apps
from perdure.errors import InvalidArgumentError, PerdureError
from perdure.limits import Limits
from perdure.storage.records import Durability


class AppNames(msgspec.Struct, frozen=True, kw_only=True):
    """An app by name. Where `files` are given, they are all there is to it."""

    files: tuple[str, ...]
    classes: tuple[tuple[str, str], ...]
    env: tuple[str, str] | None
    hooks: bytes


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All that a worker needs to know but its number."""

    root: str
    app: AppNames
    limits: Limits
    durability: Durability
    replay: Replay
    log_level: int
    log_format: str
    preparation: bytes


def settings_for(app: App, *, root: str, durability: Durability, replay: Replay) -> bytes:
    """Return what the workers of `app` are started with. Raises `InvalidArgumentError`."""
    return msgspec.msgpack.encode(
        Settings(
            root=root,
            app=_names(app),
            limits=app.limits,
            durability=durability,
            replay=replay,
            log_level=logging.getLogger().getEffectiveLevel(),
            log_format="%(levelname)s %(message)s",
            preparation=pickle.dumps(preparation(), wire.PICKLE_PROTOCOL),
        )
    )


def read_settings(data: bytes) -> Settings:
    """Return the settings that `settings_for` made."""
    return msgspec.msgpack.decode(data, type=Settings)


def load_settings(settings: Settings) -> App:
    """Import the app in a worker, whose search path becomes the supervisor's. Raises `PerdureError`."""
    sources = wire.Sources(pickle.loads(settings.preparation))  # noqa: S301 - from our own supervisor
    names = settings.app
    if names.files:
        app = merge_apps([load_app(file) for file in names.files])
    else:
        hooks = wire.Unpickler(io.BytesIO(names.hooks), sources).load()
        app = App(
            [_found(sources, name) for name in names.classes],
            env=None if names.env is None else _found(sources, names.env),
            hooks=hooks,
        )
    app.limits = settings.limits
    return app


def _found(sources: wire.Sources, name: tuple[str, str]) -> Any:
    module, qualname = name
    try:
        return wire.find(sources.module(module), qualname)
    except Exception as error:
        raise PerdureError(f"a worker cannot import {module}.{qualname}: {error!r}") from error


def _names(app: App) -> AppNames:
    if app.files:
        return AppNames(files=app.files, classes=(), env=None, hooks=b"")
    try:
        hooks = pickle.dumps(app.hooks, wire.PICKLE_PROTOCOL)
    except Exception as error:
        raise InvalidArgumentError(
            f"workers: the hooks of the app cannot be sent to another process ({error}): make them of"
            " functions at the top level of a module"
        ) from error
    return AppNames(
        files=(),
        classes=tuple(_name(definition.cls) for definition in app.definitions.values()),
        env=None if app.env is None else _env_name(app.env),
        hooks=hooks,
    )


def _env_name(env: Any) -> tuple[str, str]:
    if not hasattr(env, "__qualname__"):
        raise InvalidArgumentError(
            f"workers: env is {env!r}, a value of this process; each worker makes its own, so give a function"
            " at the top level of a module that returns an async context manager"
        )
    return _name(env)


def _name(thing: Any) -> tuple[str, str]:
    """Return the name by which another process finds a class or function."""
    module, qualname = thing.__module__, thing.__qualname__
    try:
        found = wire.find(sys.modules.get(module), qualname)
    except AttributeError:
        found = None
    if found is not thing:
        raise InvalidArgumentError(
            f"workers: {module}.{qualname} cannot be imported by that name: a worker is another process, so"
            " define it at the top level of a module"
        )
    if module == "__main__" and not getattr(sys.modules["__main__"], "__file__", None):
        raise InvalidArgumentError(
            f"workers: {qualname} is defined in an interactive session, which a worker cannot import: put it"
            " into a file"
        )
    return module, qualname
