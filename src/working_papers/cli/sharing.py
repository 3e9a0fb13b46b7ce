"""Sending a finished run to a site."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from working_papers.errors import UsageError, UserError

if TYPE_CHECKING:
    from working_papers.bench.record import Record

TIMEOUT = 60.0


@dataclass(frozen=True)
class Destination:
    """A site that takes runs.

    Attributes:
        address: of the site.
        token: of an account there.
    """

    address: str
    token: str

    @classmethod
    def of(cls, address: str) -> Destination:
        """Check where a run is to go, before it is made.

        Raises:
            UsageError: it is no address of a site, or there is no token.
        """
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(
                f"--share: expected the address of a site such as https://papers.example.org, got {address!r}"
            )
        if parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
            raise UsageError(f"--share: a token is not sent over an open line; expected https://, got {address!r}")
        token = os.environ.get("WORKING_PAPERS_TOKEN", "").strip()
        if not token:
            raise UsageError("--share needs a token in WORKING_PAPERS_TOKEN; it is made on your account's page there")
        return cls(address.rstrip("/"), token)

    def send(self, record: Record) -> str:
        """Send a run; returns what came of it, in a sentence.

        Raises:
            UserError: the site does not answer or does not take it.
        """
        import httpx

        url = f"{self.address}/api/v1/shared-runs"
        headers = {"authorization": f"Bearer {self.token}", "content-type": "application/json"}
        try:
            answer = httpx.post(url, content=record.model_dump_json().encode(), headers=headers, timeout=TIMEOUT)
        except httpx.HTTPError as error:
            raise UserError(
                f"{self.address} does not answer ({error}); the run is kept, share it again later"
            ) from error
        try:
            content = answer.json()
        except ValueError:
            content = {}
        if answer.status_code not in (200, 201) or not isinstance(content, dict):
            said = content.get("error") if isinstance(content, dict) else None
            raise UserError(
                f"{self.address} does not take the run (status {answer.status_code}): {said or 'no reason given'}"
            )
        if not content.get("new"):
            return f"{self.address} has this run already"
        same = "the code that the site has" if content.get("same_code") else "other code than the site has"
        return f"sent to {self.address}: shown there as a replication, with {same}"
