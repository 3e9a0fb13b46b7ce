"""Query parameters, read so that nothing a reader puts into an address is an error."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import urlencode

from starlette.datastructures import QueryParams

LONGEST_SHOWN = 40

Choice = TypeVar("Choice", bound=str)


@dataclass
class Parameters:
    """Reads parameters one by one; what cannot be used is left out and named in `notices`."""

    given: QueryParams
    notices: list[str] = field(default_factory=list)

    def text(self, name: str) -> str:
        """As it was typed, without white space around it and without what no database takes."""
        value = self.given.get(name, "").replace("\x00", " ")
        return value.encode("utf-8", "replace").decode("utf-8").strip()

    def choice(self, name: str, options: Collection[Choice], default: Choice) -> Choice:
        """One of the options."""
        value = self.text(name)
        for option in options:
            if value == option:
                return option
        if value:
            self._ignored(name, value, f"one of {', '.join(option for option in options if option)}")
        return default

    def date(self, name: str) -> dt.date | None:
        """A day such as 2025-10-07."""
        value = self.text(name)
        if not value:
            return None
        try:
            return dt.date.fromisoformat(value)
        except ValueError:
            self._ignored(name, value, "a day such as 2025-10-07")
            return None

    def flag(self, name: str) -> bool:
        """Whether a box is ticked."""
        return self.text(name).lower() in {"1", "true", "yes", "on"}

    def page(self, most: int) -> int:
        """Number of a page, from 1."""
        value = self.text("page")
        if not value:
            return 1
        if not (value.isascii() and value.isdigit() and len(value) <= 9 and int(value) >= 1):
            self._ignored("page", value, "a number from 1")
            return 1
        return min(int(value), most)

    def _ignored(self, name: str, value: str, expected: str) -> None:
        shown = value if len(value) <= LONGEST_SHOWN else f"{value[:LONGEST_SHOWN]}…"
        self.notices.append(f"“{shown}” was left out: {name} is {expected}.")


def address(path: str, **parameters: object) -> str:
    """An address with the parameters that are not empty."""
    given = {name.rstrip("_"): str(value) for name, value in parameters.items() if value not in (None, "", False)}
    return f"{path}?{urlencode(given)}" if given else path
