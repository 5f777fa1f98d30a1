"""Rate limits: how many detections a second a tenant may ask for, over all gateways together.

By GCRA, the form of the token bucket that keeps one number a tenant, in throttled-py. With Redis
the number is shared by all gateways and Redis's clock counts. Without it, or while it is away,
each of N gateways grants 1/N of rate and burst, by its own monotonic clock. The only module that
knows the library. On the event loop's thread.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from fractions import Fraction
from typing import Any

from throttled import asyncio as shared
from throttled import exceptions, store
from throttled.asyncio.rate_limiter.gcra import GCRARateLimiter as SharedLimiter
from throttled.rate_limiter import RateLimitResult, per_duration
from throttled.rate_limiter.gcra import GCRARateLimiter as OwnLimiter

from polyolo import telemetry
from polyolo.errors import InvalidValueError
from polyolo.types import Plan, TenantRoute

_REDIS_S = 0.25  # Redis is near and answers in 0.1 ms; who waits is every request
_AWAY_S = 1.0  # between tries while Redis is away, so that not every request waits for it
_KEYS = 1_000_000  # tenants counted at once; about 300 bytes each

DETECTIONS, CALLS = "detections", "calls"
"""What is counted: requests that are billed, and the others that a runtime answers."""

_NAME = "polyolo"
_PREFIX = f"{_NAME}:v1:gcra:"
"""What the library puts before a key, version and algorithm included."""

_log = telemetry.logger("rates")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A plan's rate in the form that the library takes, for one of so many gateways."""

    capacity: int
    """Requests at once, here."""
    interval_s: float
    """Between two requests, here, once the burst is used up."""
    whole_s: float
    """Seconds in which the whole platform's burst is there again."""
    policy: str
    """Of the whole platform, as RateLimit-Policy says it."""
    own: OwnLimiter
    shared: SharedLimiter | None

    @property
    def depth_s(self) -> float:
        """Return the seconds in which a burst that is used up is there again, here."""
        return self.capacity * self.interval_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What was found about one request."""

    limited: bool
    retry_s: float
    """Seconds after which the next one is let in."""
    headers: dict[str, str]
    """For the answer, whatever it is."""


class Rates:
    """Counts the requests of each tenant against its plan's rate."""

    def __init__(
        self, redis: str | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Count here, and with a URL in Redis. clock: the one that the library uses.

        Raises InvalidValueError for a URL that is none, or without the client for Redis.
        """
        self._clock = clock
        self._counts = store.MemoryStore(options={"MAX_SIZE": _KEYS})
        self._redis = None if redis is None else _opened(redis)
        self._away_until = -math.inf
        self._gateways = 1
        self._rules: dict[tuple[float, int], Rule] = {}
        self._seen: dict[str, tuple[float, float]] = {}
        self._owed: dict[str, tuple[int, float]] = {}
        self._carried: set[str] | None = None
        self._carried_at = 0.0

    def share(self, gateways: int) -> None:
        """Grant one of so many shares from now on, where each gateway counts for itself."""
        if gateways != self._gateways:
            self._gateways = gateways
            self._rules.clear()

    def carry(self, routes: Iterable[TenantRoute]) -> None:
        """Take it that tenants with a rate used up their bursts before this gateway started, so
        that a restart gives none anew. Only the first call counts: who comes later cannot have.
        """
        if self._carried is None:
            self._carried_at = self._clock()
            self._carried = {
                f"{DETECTIONS}:{route.tenant}" for route in routes if route.plan.requests_per_second
            }

    async def close(self) -> None:
        """Close the connections to Redis."""
        if self._redis is not None:
            await _client(self._redis).connection_pool.disconnect()

    async def take(self, tenant: str, plan: Plan, what: str) -> Grant | None:
        """Count one request; None for a plan without a rate.

        what: DETECTIONS or CALLS, which are counted apart. A refused request does not count.
        """
        if not plan.requests_per_second:
            return None
        rule = self._rules.get((plan.requests_per_second, plan.burst))
        if rule is None:
            rule = self._rule(plan)
        key = f"{what}:{tenant}"
        if rule.shared is not None and self._clock() >= self._away_until:
            try:
                return _grant(rule, what, await self._in_redis(rule, key))
            except (exceptions.StoreUnavailableError, OSError, TimeoutError) as error:
                self._lost(error)
        return _grant(rule, what, self._here(rule, key))

    async def _in_redis(self, rule: Rule, key: str) -> RateLimitResult:
        assert rule.shared is not None
        assert self._redis is not None
        result = await rule.shared.limit(key)
        while not result.limited and self._repays(rule, key):
            result = await rule.shared.limit(key)
        state = result.state
        stale = state.reset_after > rule.whole_s + 1.0
        if stale and await self._redis.ttl(_PREFIX + key) > 1:  # else it has been said
            # Counted far into the future: Redis's clock was set back, or the rate was lower just
            # now. Start anew, rather than refuse until that time.
            await self._redis.expire(_PREFIX + key, 1)
        self._seen[key] = (self._clock(), state.reset_after)
        if len(self._seen) + len(self._owed) > _KEYS:
            self._seen.clear()
            self._owed.clear()
        return result

    def _lost(self, error: Exception) -> None:
        now = self._clock()
        if now >= self._away_until + 10 * _AWAY_S:
            _log.warning(
                "Redis is away: each gateway grants its share of the rates", why=str(error)
            )
        self._away_until = now + _AWAY_S

    def _here(self, rule: Rule, key: str) -> RateLimitResult:
        if key in self._seen:  # what Redis said last is where we go on
            at, reset_after = self._seen.pop(key)
            self._full_at(rule, key, at + reset_after)
        if self._carried and key in self._carried:
            self._carried.discard(key)
            self._full_at(rule, key, self._carried_at + rule.depth_s)
        result = rule.own.limit(key)
        if result.state.reset_after > rule.depth_s * 1.001:  # counted by a rate that was lower
            full = self._clock() + rule.depth_s
            self._counts.set(_PREFIX + key, full, math.ceil(rule.depth_s))
            result = rule.own.limit(key)
        if rule.shared is not None and not result.limited:
            owed, _ = self._owed.get(key, (0, 0.0))
            self._owed[key] = owed + 1, self._clock()
        return result

    def _repays(self, rule: Rule, key: str) -> bool:
        """Say whether what Redis has just granted was used already, here, while it was away."""
        owed, since = self._owed.pop(key, (0, 0.0))
        if not owed or self._clock() - since > rule.whole_s:  # the burst would be there again
            return False
        self._owed[key] = owed - 1, since
        return True

    def _full_at(self, rule: Rule, key: str, moment: float) -> None:
        """Have the whole burst be there then at the soonest; so far off, that none of it is left.

        Such a moment is all that the library keeps, so nothing is rounded to whole requests.
        """
        now = self._clock()
        moment = min(moment, now + rule.depth_s)
        if moment > max(now, float(self._counts.get(_PREFIX + key) or 0.0)):
            self._counts.set(_PREFIX + key, moment, math.ceil(moment - now))

    def _rule(self, plan: Plan) -> Rule:
        rate = Fraction(plan.requests_per_second).limit_denominator(1000)
        burst = plan.burst or math.ceil(rate)
        share = self._gateways
        quota = per_duration(
            timedelta(seconds=rate.denominator * share), rate.numerator, max(1, burst // share)
        )
        whole = per_duration(timedelta(seconds=rate.denominator), rate.numerator, burst)
        rule = Rule(
            capacity=quota.burst,
            interval_s=quota.emission_interval,
            whole_s=float(burst / rate),
            policy=f"q={burst};w={max(1, math.ceil(burst / rate))}",
            own=OwnLimiter(quota, self._counts, key_prefix=_NAME),
            shared=SharedLimiter(whole, self._redis, key_prefix=_NAME) if self._redis else None,
        )
        self._rules[plan.requests_per_second, plan.burst] = rule
        return rule


def _opened(url: str) -> shared.RedisStore:
    options = {
        "REUSE_CONNECTION": False,  # the pool is ours; the library's would be global
        "SOCKET_TIMEOUT": _REDIS_S,
        "SOCKET_CONNECT_TIMEOUT": _REDIS_S,
    }
    try:
        made = shared.RedisStore(server=url, options=options)
        _client(made)  # reads the URL; it connects when it is first used
    except ImportError:
        raise InvalidValueError(
            "to count rates in Redis its client is needed: pip install 'polyolo[redis]'"
        ) from None
    except ValueError:  # its words may hold the password
        raise InvalidValueError(
            "the URL of Redis must begin with redis://, rediss:// or unix://"
        ) from None
    return made


def _client(store: shared.RedisStore) -> Any:
    return store._backend.get_client()  # noqa: SLF001  # there is no other way to it


def _grant(rule: Rule, what: str, result: RateLimitResult) -> Grant:
    state = result.state
    return Grant(
        limited=result.limited,
        retry_s=state.retry_after,
        headers={
            "ratelimit-policy": f'"{what}";{rule.policy}',
            "ratelimit": f'"{what}";r={state.remaining};t={math.ceil(state.reset_after)}',
        },
    )
