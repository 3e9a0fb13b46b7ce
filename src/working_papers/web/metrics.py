"""Numbers for Prometheus, and a log line for each request: both by route, neither with anything personal in it."""

from __future__ import annotations

import ipaddress
import logging
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fastapi import APIRouter
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from working_papers.bench.jobs import JobRow
from working_papers.daily.catalogue import paper_count
from working_papers.daily.community.models import CommentRow, VoteRow
from working_papers.daily.mail.models import MailRow
from working_papers.database import reading
from working_papers.web.site import site_of

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)

SECRET_PARTS = {"token", "key", "secret"}
"""Names of path parameters whose value must not stand in a log."""

QUIET = {"/static/{name}", "/healthz", "/metrics"}
"""Routes that are asked for all the time; logged only at the level debug."""

logger = logging.getLogger("working_papers.requests")
router = APIRouter(include_in_schema=False)


class Metrics:
    """What one process has counted."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "working_papers_requests",
            "Requests answered.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "working_papers_request_seconds",
            "Time to the first byte of the answer.",
            ("route",),
            buckets=SECONDS,
            registry=self.registry,
        )

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """One request."""
        self.requests.labels(method, route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)


class DatabaseNumbers(Collector):
    """Counts that are read when they are asked for."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The present numbers; none when the database cannot be read, which `working_papers_database_up` says."""
        try:
            found = list(self._read())
        except SQLAlchemyError:
            yield GaugeMetricFamily("working_papers_database_up", "Whether the database can be read.", value=0)
            return
        yield GaugeMetricFamily("working_papers_database_up", "Whether the database can be read.", value=1)
        yield from found

    def _read(self) -> Iterator[GaugeMetricFamily]:
        yield GaugeMetricFamily("working_papers_papers", "Papers in the catalogue.", value=paper_count(self.engine))
        with reading(self.engine) as connection:
            for name, about, table in (
                ("votes", "Votes cast.", VoteRow),
                ("comments", "Comments written.", CommentRow),
            ):
                count = connection.execute(select(func.count()).select_from(table)).scalar_one()
                yield GaugeMetricFamily(f"working_papers_{name}", about, value=count)
            for name, about, column in (
                ("mails", "E-mails by state.", MailRow.status),
                ("jobs", "Runs that were asked for, by state.", JobRow.status),
            ):
                family = GaugeMetricFamily(f"working_papers_{name}", about, labels=("state",))
                for state, count in connection.execute(select(column, func.count()).group_by(column)):
                    family.add_metric((state,), count)
                yield family


class Watched:
    """Counts and logs each request by its route."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        answered: list[tuple[int, float]] = []

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start" and not answered:
                answered.append((message["status"], time.perf_counter() - started))
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            status, seconds = answered[0] if answered else (500, time.perf_counter() - started)
            route = _route(scope)
            self.metrics.count(scope["method"], route, status, seconds)
            quiet = route in QUIET and status < 500
            logger.log(
                logging.DEBUG if quiet else logging.INFO,
                "%s %s %d",
                scope["method"],
                _shown_path(scope, route),
                status,
                extra={"route": route, "milliseconds": round(1000 * seconds, 1)},
            )


def _route(scope: Scope) -> str:
    """The route's own path, such as /papers/{paper_id}: addresses without a route are counted as one."""
    path = getattr(scope.get("route"), "path", "")
    return str(path) if path else "none"


def _shown_path(scope: Scope, route: str) -> str:
    """The path without its query; the route's in place of one that carries a secret."""
    if SECRET_PARTS & set(scope.get("path_params", {})):
        return route
    path = str(scope["path"])[:200]
    return "".join(character if character.isprintable() else "?" for character in path)


@router.get("/metrics")
def metrics(request: Request) -> Response:
    """The numbers, for programs on this machine: behind a proxy, let it through by a rule of its own if you want it."""
    client = request.client.host if request.client else ""
    if not _local(client):
        raise HTTPException(404)
    counted: Metrics = request.app.state.metrics
    body = generate_latest(counted.registry) + generate_latest(_registry_of(DatabaseNumbers(site_of(request).engine)))
    return Response(body, headers={"Content-Type": CONTENT_TYPE_LATEST, "Cache-Control": "no-store"})


def _registry_of(collector: Collector) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(collector)
    return registry


def _local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "testclient"
