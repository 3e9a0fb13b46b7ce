"""Limits on how often one client may do a thing; counted in memory, by each process for itself."""

from __future__ import annotations

import ipaddress
import math
import threading
import time
from collections import OrderedDict, deque

from starlette.exceptions import HTTPException
from starlette.requests import Request

MOST_CLIENTS = 20_000
"""Clients that are remembered; of more, those that were away longest are forgotten."""


class Limiter:
    """Counts within sliding windows."""

    def __init__(self) -> None:
        self._seen: OrderedDict[tuple[str, str], deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, name: str, key: str, most: int, seconds: float, moment: float | None = None) -> float:
        """Count one use.

        Returns:
            0.0 when it is within the limit; else the seconds until the next use is.
        """
        present = time.monotonic() if moment is None else moment
        with self._lock:
            uses = self._seen.setdefault((name, key), deque())
            self._seen.move_to_end((name, key))
            while uses and uses[0] <= present - seconds:
                uses.popleft()
            if len(uses) >= most:
                return uses[0] + seconds - present
            uses.append(present)
            while len(self._seen) > MOST_CLIENTS:
                self._seen.popitem(last=False)
        return 0.0


def client_of(request: Request) -> str:
    """The client's address; of IPv6 the part that one household has."""
    host = request.client.host if request.client else "unknown"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.version == 6:
        return str(ipaddress.ip_network(f"{host}/64", strict=False))
    return host


def limit(request: Request, name: str, most: int, seconds: int, key: str | None = None) -> None:
    """Count a use of something by this client, and refuse it when there are too many.

    Args:
        request: the present one.
        name: of what is limited.
        most: uses in the time.
        seconds: the time.
        key: whose uses are counted; the client's address by default.

    Raises:
        HTTPException: 429, with the time to wait.
    """
    limiter: Limiter = request.app.state.limiter
    wait = limiter.take(name, client_of(request) if key is None else key, most, seconds)
    if wait > 0:
        left = math.ceil(wait)
        raise HTTPException(
            429,
            f"That was too often. It goes on in {_words(left)}.",
            headers={
                "Retry-After": str(left),
                "ratelimit": f'"{name}";r=0;t={left}',
                "ratelimit-policy": f'"fixed window";"{name}";q={most};w={seconds}',
            },
        )


def _words(seconds: int) -> str:
    if seconds < 90:
        return f"{seconds} second{'' if seconds == 1 else 's'}"
    return f"{math.ceil(seconds / 60)} minutes"
