"""When a failed step runs again: the records users write, and the arithmetic of waiting.

Nobody else computes a delay or decides what a step's missing options default to. Nothing here
asks a clock or draws a random number: both are passed in.

Invariants:
    A `Retries` or `StepConfig` that exists is valid; every rule is checked when it is made.
    A computed delay is finite, not negative, and never above the longest delay, at any attempt.
    A call that names no option gets `DEFAULT_CONFIG` itself, at the cost of four comparisons.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, Final, Literal, TypeAlias, assert_never, cast, get_args

import msgspec
import trio

from perdure.actors.durations import Duration, seconds
from perdure.errors import InvalidArgumentError, InvalidDurationError, RetryDelayError

Backoff = Literal["constant", "linear", "exponential"]
Sensitive = Literal["input", "output", "both"]

# The first argument is the attempt's StepContext, which lives above this module.
DelayFunction: TypeAlias = Callable[[Any, BaseException], Duration | Awaitable[Duration]]

DELAY_S_MAX_DEFAULT: Final = 3_600.0
"""A doubling delay reaches days within a dozen retries; an outage of an hour is long enough to ask again."""

_DOUBLINGS_MAX: Final = 64
"""2**64 times any delay above a nanosecond is beyond every bound, and still a float."""


# Above the records, whose defaults are checked while this module is being imported.


def _require_positive(name: str, value: Duration) -> None:
    if _seconds_of("", name, value) <= 0:
        raise InvalidArgumentError(f"{name}={value!r}: {name} must be longer than 0.")


def _seconds_of(owner: str, name: str, value: Duration) -> float:
    try:
        return seconds(value)
    except InvalidDurationError as error:
        given = f"{owner}({name}=...)" if owner else f"{name}="
        raise InvalidDurationError(f"{given}: {error}") from None


def _is_number(value: object, kind: Any) -> bool:
    """Tell a number from a bool, which is an int to Python and here a misplaced flag."""
    return isinstance(value, kind) and not isinstance(value, bool)


def _listed(values: tuple[str, ...]) -> str:
    return ", ".join(repr(value) for value in values)


class Retries(msgspec.Struct, frozen=True, kw_only=True):
    """How often a failed step is tried again, and how long it waits each time.

    `limit` counts retries, so a step makes up to `limit + 1` attempts. `delay` is a duration, or a
    function `(context, error)` that returns one, or an awaitable of one: its answer is taken as it
    is, without backoff, longest delay or jitter, so that a server's "retry after" is obeyed.
    `backoff` says how `delay` grows: not at all, by itself each time, or doubling. `delay_max`
    bounds that; None means an hour, or `delay` where it is longer. `jitter` is the fraction by which
    a delay is lengthened or shortened at random, so that what failed together does not come back
    together.

    Raises InvalidArgumentError, and InvalidDurationError for a duration.

    >>> Retries(limit=3, delay="2 seconds").backoff
    'exponential'
    """

    limit: int = 5
    delay: Duration | DelayFunction = "10 seconds"
    backoff: Backoff = "exponential"
    delay_max: Duration | None = None
    jitter: float = 0.1

    def __post_init__(self) -> None:
        if not _is_number(self.limit, int) or self.limit < 0:
            raise InvalidArgumentError(
                f"Retries(limit={self.limit!r}): limit must be a whole number, 0 or more."
            )
        if self.backoff not in get_args(Backoff):
            raise InvalidArgumentError(
                f"Retries(backoff={self.backoff!r}): backoff must be one of {_listed(get_args(Backoff))}."
            )
        if not _is_number(self.jitter, int | float) or not 0 <= self.jitter <= 1:
            raise InvalidArgumentError(
                f"Retries(jitter={self.jitter!r}): "
                f"jitter must be a fraction from 0 to 1; 0.1 is a tenth up or down."
            )
        delay_s = 0.0 if callable(self.delay) else _seconds_of("Retries", "delay", self.delay)
        if self.delay_max is not None and _seconds_of("Retries", "delay_max", self.delay_max) < delay_s:
            raise InvalidArgumentError(
                f"Retries(delay_max={self.delay_max!r}): "
                f"delay_max must not be shorter than delay, {self.delay!r}."
            )

    @property
    def delay_max_s(self) -> float:
        """The longest delay that backoff may reach, in seconds."""
        if self.delay_max is not None:
            return seconds(self.delay_max)
        return DELAY_S_MAX_DEFAULT if callable(self.delay) else max(DELAY_S_MAX_DEFAULT, seconds(self.delay))


class StepConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The options of one step, none missing. `timeout` and `heartbeat_timeout` are of one attempt.

    Raises InvalidArgumentError, and InvalidDurationError for a duration.

    >>> StepConfig(timeout="2 minutes").timeout_s
    120.0
    """

    retries: Retries = Retries()
    timeout: Duration = "10 minutes"
    heartbeat_timeout: Duration | None = None
    sensitive: Sensitive | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.retries, Retries):  # pyright: ignore[reportUnnecessaryIsInstance]  # untyped callers
            raise InvalidArgumentError(f"StepConfig(retries={self.retries!r}): retries must be a Retries.")
        _require_positive("timeout", self.timeout)
        if self.heartbeat_timeout is not None:
            _require_positive("heartbeat_timeout", self.heartbeat_timeout)
        if self.sensitive is not None and self.sensitive not in get_args(Sensitive):
            raise InvalidArgumentError(
                f"sensitive={self.sensitive!r}: "
                f"sensitive must be one of {_listed(get_args(Sensitive))}, or None."
            )

    @property
    def timeout_s(self) -> float:
        """How long one attempt may take, in seconds."""
        return seconds(self.timeout)

    @property
    def heartbeat_timeout_s(self) -> float | None:
        """How long an attempt may be silent, in seconds; None: as long as it likes."""
        return None if self.heartbeat_timeout is None else seconds(self.heartbeat_timeout)


DEFAULT_CONFIG: Final = StepConfig()
"""What a step has when its call names no option."""


def resolve_config(
    retries: Retries | int | None = None,
    timeout: Duration | None = None,
    heartbeat_timeout: Duration | None = None,
    sensitive: Sensitive | None = None,
) -> StepConfig:
    """Fill in the defaults of a step's options and check all of them.

    An int is a number of retries with everything else by default. Raises InvalidArgumentError, and
    InvalidDurationError for a duration.

    >>> resolve_config(retries=2, timeout="1 minute").retries.limit
    2
    >>> resolve_config() is DEFAULT_CONFIG
    True
    """
    if retries is None and timeout is None and heartbeat_timeout is None and sensitive is None:
        return DEFAULT_CONFIG
    return StepConfig(
        retries=DEFAULT_CONFIG.retries if retries is None else _retries_of(retries),
        timeout=DEFAULT_CONFIG.timeout if timeout is None else timeout,
        heartbeat_timeout=heartbeat_timeout,
        sensitive=sensitive,
    )


def backoff_delay_s(retries: Retries, attempt: int, base_s: float, random: Callable[[], float]) -> float:
    """Return how long to wait after a failed attempt, in seconds.

    `attempt` is the one that failed, counted from 1; `base_s` comes from `base_delay_s`; `random`
    gives a number from 0 up to 1.

    >>> [backoff_delay_s(Retries(delay="10 seconds"), attempt, 10.0, lambda: 0.5) for attempt in (1, 2, 3)]
    [10.0, 20.0, 40.0]
    """
    if callable(retries.delay):
        return base_s
    longest_s = retries.delay_max_s
    shaken_s = min(base_s * _growth(retries.backoff, attempt), longest_s) * (
        1.0 + retries.jitter * (2.0 * random() - 1.0)
    )
    # Folded back at the bound, not cut off: cutting would bring half of all late retries back at one moment.
    return 2.0 * longest_s - shaken_s if shaken_s > longest_s else shaken_s


async def base_delay_s(retries: Retries, context: Any, error: BaseException, *, timeout_s: float) -> float:
    """Return the delay that backoff grows from, in seconds, asking the delay function where there is one.

    A synchronous delay function runs here, in the loop; an asynchronous one may take `timeout_s`
    (`Limits.delay_function_timeout_s`). Raises RetryDelayError when it raises, is late, or answers
    what is not a duration.
    """
    delay = retries.delay
    if not callable(delay):
        return seconds(delay)
    try:
        with trio.fail_after(timeout_s):
            answer = delay(context, error)
            if inspect.isawaitable(answer):
                answer = await answer
    except trio.TooSlowError as late:
        raise RetryDelayError(
            f"The delay function {qualified_name(delay)} took longer than {timeout_s:g} s. "
            f"It should compute a delay, not wait for one: return the duration to wait."
        ) from late
    except Exception as failure:
        raise RetryDelayError(f"The delay function {qualified_name(delay)} raised {failure!r}.") from failure
    try:
        return seconds(answer)
    except InvalidDurationError as nonsense:
        raise RetryDelayError(
            f"The delay function {qualified_name(delay)} returned no duration: {nonsense}"
        ) from nonsense


def _growth(backoff: Backoff, attempt: int) -> float:
    match backoff:
        case "constant":
            return 1.0
        case "linear":
            return float(attempt)
        case "exponential":
            return 2.0 ** min(attempt - 1, _DOUBLINGS_MAX)
        case _:
            assert_never(backoff)


def config_json(config: StepConfig) -> str:
    """Return the options as JSON text for the journal; a delay function is shown by its qualified name.

    >>> config_json(resolve_config(retries=0, timeout=30))
    '{"retries":{"limit":0,"delay":"10 seconds","backoff":"exponential","delay_max":null,"jitter":0.1},\
"timeout":30,"heartbeat_timeout":null,"sensitive":null}'
    """
    return _DEFAULT_JSON if config is DEFAULT_CONFIG else _config_json(config)


def qualified_name(fn: Any) -> str:
    """Return what people call a function: `module.qualname`, through partials, else its class's.

    >>> qualified_name(timedelta)
    'datetime.timedelta'
    """
    while hasattr(fn, "func") and not hasattr(fn, "__qualname__"):  # functools.partial
        fn = fn.func
    named = fn if hasattr(fn, "__qualname__") else cast("Any", type(fn))
    module = getattr(named, "__module__", None)
    return f"{module}.{named.__qualname__}" if module else str(named.__qualname__)


def _config_json(config: StepConfig) -> str:
    retries = config.retries
    shown: dict[str, Any] = {
        "retries": {
            "limit": retries.limit,
            "delay": qualified_name(retries.delay) if callable(retries.delay) else _shown(retries.delay),
            "backoff": retries.backoff,
            "delay_max": _shown(retries.delay_max),
            "jitter": retries.jitter,
        },
        "timeout": _shown(config.timeout),
        "heartbeat_timeout": _shown(config.heartbeat_timeout),
        "sensitive": config.sensitive,
    }
    return msgspec.json.encode(shown).decode()


def _shown(value: Duration | None) -> str | float | None:
    """As written, save that JSON has no timedelta."""
    return value.total_seconds() if isinstance(value, timedelta) else value


def _retries_of(value: Retries | int) -> Retries:
    if isinstance(value, Retries):
        return value
    if not _is_number(value, int) or value < 0:
        raise InvalidArgumentError(
            f"retries={value!r}: retries must be a Retries, or a whole number of retries, 0 or more."
        )
    return Retries(limit=value)


_DEFAULT_JSON: Final = _config_json(DEFAULT_CONFIG)
