"""`App`: what a process can run. Commands, workers and tests use the same object.

A FILE given to the command line defines `app = perdure.App(...)`, or just workflow classes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import sys
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from perdure.actors.concurrency import rule_of
from perdure.actors.durations import Duration
from perdure.actors.limiting import check_limits
from perdure.actors.retention import Retention, retention_of
from perdure.actors.schedules import schedule_id
from perdure.actors.workflow import Definition, define, is_workflow
from perdure.errors import InvalidArgumentError, PerdureError, UnknownWorkflowError
from perdure.limits import Limits
from perdure.storage.codec import Codec, TypeHook
from perdure.storage.places import Rule


class App:
    """The workflows of a program, their environment and their limits.

    `env` is a value, or a function that returns an async context manager, which is entered once
    per process before the first workflow runs. `hooks` store types of the user's own. `retention` is how
    long instances are kept that have ended, where neither they nor their class say otherwise.

    Raises `InvalidArgumentError` for what is not a workflow, and for two of one name.
    """

    def __init__(
        self,
        workflows: Sequence[type] = (),
        *,
        env: Any = None,
        limits: Limits | None = None,
        hooks: Sequence[TypeHook] = (),
        retention: Retention | Duration | None = None,
    ) -> None:
        self.env = env
        self.limits = limits or Limits()
        check_limits(self.limits, "App(limits=)")
        self.hooks = tuple(hooks)
        self.retention = retention_of(retention, "App(retention=)")
        self.files: tuple[str, ...] = ()  # where all of it comes from files, which workers load again
        self.definitions: dict[str, Definition] = {}
        for cls in workflows:
            definition = define(cls)
            known = self.definitions.get(definition.name)
            if known is not None and known.cls is not cls:
                raise InvalidArgumentError(
                    f"two workflows are called {definition.name!r}: {known.cls.__module__}."
                    f"{known.cls.__qualname__} and"
                    f" {cls.__module__}.{cls.__qualname__}; give one of them a class attribute `name`"
                )
            folded = {name.casefold(): name for name in self.definitions}
            other = folded.get(definition.name.casefold(), definition.name)
            if other != definition.name:
                raise InvalidArgumentError(
                    f"the workflows {other!r} and {definition.name!r} differ in case alone, and their folders"
                    " would be one on some file systems: give one of them a class attribute `name`"
                )
            self._check_schedules(definition)
            self.definitions[definition.name] = definition

    @property
    def rules(self) -> dict[str, Rule]:
        """How many instances of a workflow may run at a time, for those that bound it."""
        return {
            name: rule_of(definition.concurrency)
            for name, definition in self.definitions.items()
            if definition.concurrency is not None
        }

    def _check_schedules(self, definition: Definition) -> None:
        """Refuse a schedule whose params no instance could be created with."""
        for schedule in definition.schedules:
            if schedule.params is None and not definition.has_params:
                continue
            try:
                Codec(self.hooks).coder(definition.params).accept(schedule.params)
            except InvalidArgumentError as error:
                error.args = (f"the schedule {schedule_id(schedule)!r} of {definition.name}: {error}",)
                raise

    def definition(self, workflow: type | str) -> Definition:
        """Return what is known of a workflow, by class or name. Raises `UnknownWorkflowError`."""
        if isinstance(workflow, str):
            found = self.definitions.get(workflow)
            if found is not None:
                return found
            known = ", ".join(sorted(self.definitions)) or "none"
            raise UnknownWorkflowError(f"no workflow is called {workflow!r}; this app knows: {known}")
        definition = define(workflow)
        registered = self.definitions.get(definition.name)
        if registered is None or registered.cls is not workflow:
            known = ", ".join(sorted(self.definitions)) or "none"
            raise UnknownWorkflowError(
                f"{workflow.__qualname__} does not belong to this app, which knows: {known}; add it to"
                " App(workflows=[...]) or open_runtime(workflows=[...])"
            )
        return definition

    def with_workflows(self, workflows: Sequence[type]) -> App:
        """Return an app that has `workflows` besides its own."""
        own = [definition.cls for definition in self.definitions.values()]
        more = [cls for cls in workflows if cls not in own]
        app = App([*own, *more], env=self.env, limits=self.limits, hooks=self.hooks, retention=self.retention)
        app.files = () if more else self.files
        return app

    @contextlib.asynccontextmanager
    async def open_env(self) -> AsyncGenerator[Any]:
        """Enter the environment, where it is a function, and yield what workflows see as `self.env`."""
        env = self.env
        if callable(env) and not isinstance(env, type):
            env = env()
            if inspect.isawaitable(env):
                env = await env
        if hasattr(env, "__aenter__") and hasattr(env, "__aexit__"):
            async with cast("AbstractAsyncContextManager[Any]", env) as entered:
                yield entered
        else:
            yield env


def load_app(file: str | Path) -> App:
    """Import a Python file and return its app: its variable `app`, or all workflow classes in it.

    The file's folder is importable while it loads, as with `python FILE`. Raises `PerdureError`
    with the line for a file that is missing, cannot be imported, or has no workflow.
    """
    module = load_module(file)
    app = getattr(module, "app", None)
    if isinstance(app, App):
        app.files = (str(Path(file).resolve()),)
        return app
    classes: list[type] = [
        value
        for value in vars(module).values()
        if is_workflow(value) and value.__module__ == module.__name__ and "run" in vars(value)
    ]
    if not classes:
        raise PerdureError(
            f"{file} defines no workflow: write `class Hello(perdure.WorkflowEntrypoint)` in it, or"
            " `app = perdure.App(...)`"
        )
    app = App(classes)
    app.files = (str(Path(file).resolve()),)
    return app


def merge_apps(apps: Iterable[App]) -> App:
    """Return one app that has the workflows of all. Raises `InvalidArgumentError` where two clash."""
    all_apps = list(apps)
    if len(all_apps) == 1:
        return all_apps[0]
    with_env = [app for app in all_apps if app.env is not None]
    if len(with_env) > 1:
        raise InvalidArgumentError(
            "several files define an app with an env: put their workflows into one app, or serve each"
            " from a state folder of its own"
        )
    merged = App(
        [definition.cls for app in all_apps for definition in app.definitions.values()],
        env=with_env[0].env if with_env else None,
        limits=(with_env or all_apps)[0].limits,
        hooks=[hook for app in all_apps for hook in app.hooks],
    )
    if all(app.files for app in all_apps):
        merged.files = tuple(file for app in all_apps for file in app.files)
    return merged


def load_module(file: str | Path) -> ModuleType:
    """Import the Python file as a module named after it."""
    path = Path(file).resolve()
    if not path.is_file():
        raise PerdureError(f"there is no file {file}")
    name = path.stem
    known = sys.modules.get(name)
    if known is not None:
        if getattr(known, "__file__", None) == str(path):
            return known
        name = f"perdure_user_{name}"
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PerdureError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except PerdureError:
        sys.modules.pop(name, None)
        raise
    except Exception as error:
        sys.modules.pop(name, None)
        raise PerdureError(
            f"{file} cannot be imported: {type(error).__name__}: {error}{_where(error, path)}"
        ) from error
    return module


def _where(error: BaseException, path: Path) -> str:
    traceback = error.__traceback__
    line: int | None = None
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == str(path):
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return f" (line {line})" if line is not None else ""


EnvFactory = Callable[[], AbstractAsyncContextManager[Any]]
