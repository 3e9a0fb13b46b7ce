"""The model of a room's `paper.toml`: what the catalogue knows of a paper before anything has run."""

from __future__ import annotations

import datetime as dt
import re
import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, HttpUrl, ValidationError, field_validator, model_validator

from working_papers.errors import UserError

TOPICS: tuple[str, ...] = (
    "architecture search",
    "architectures",
    "combinatorial optimisation",
    "compression",
    "data protection",
    "distillation",
    "fairness",
    "generative models",
    "geometry",
    "graphs",
    "learning theory",
    "medical imaging",
    "networks and wireless",
    "neuroscience",
    "optimisation",
    "physics",
    "representation learning",
    "symmetry",
    "transfer and robustness",
    "vision",
)

ARXIV_ID = re.compile(r"^(\d{4}\.\d{4,5}|[a-z-]+(\.[A-Z]{2})?/\d{7})$")
SUMMARY_WORDS = (80, 150)

Text = Annotated[str, Field(min_length=1)]


class PaperFileError(UserError, ValueError):
    """A `paper.toml` that cannot be used; the message names the file and the field."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)


class Number(_Record):
    """One headline number of a claim, as the paper reports it."""

    metric: Text
    value: float
    unit: str = ""
    dataset: str = ""
    baseline: str = ""
    baseline_value: float | None = None
    source: Text = Field(description="Where the number was read: 'abstract', 'Table 2', 'from memory' ...")

    @model_validator(mode="after")
    def _baseline_is_named(self) -> Number:
        if self.baseline_value is not None and not self.baseline:
            raise ValueError(f"baseline_value {self.baseline_value} has no baseline; name what it was compared to")
        return self


class Claim(_Record):
    """A falsifiable sentence of ours about what the paper says, with the paper's own numbers."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
    statement: Text
    numbers: tuple[Number, ...] = ()


class Code(_Record):
    """The paper's own repository, as it was found."""

    url: HttpUrl
    licence: Text = Field(description="SPDX name, or 'none stated'")
    last_commit: dt.date | None = None
    note: str = ""


class Paper(_Record):
    """What `paper.toml` says."""

    title: Text
    arxiv: str | None = None
    first_date: dt.date
    authors: tuple[Text, ...] = ()
    authors_count: Annotated[int, Field(ge=1)]
    topics: Annotated[tuple[str, ...], Field(min_length=1, max_length=4)]
    venue: str = ""
    summary: Text
    code: Code | None = None
    claims: Annotated[tuple[Claim, ...], Field(min_length=1)]

    @field_validator("arxiv")
    @classmethod
    def _arxiv_id(cls, value: str | None) -> str | None:
        if value is not None and not ARXIV_ID.match(value):
            raise ValueError(f"{value!r} is not an arXiv id such as '2510.05491' (no version)")
        return value

    @field_validator("topics")
    @classmethod
    def _known_topics(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [topic for topic in value if topic not in TOPICS]
        if unknown:
            raise ValueError(f"unknown topic {unknown[0]!r}; the topics are: {', '.join(TOPICS)}")
        return value

    @field_validator("summary")
    @classmethod
    def _summary_length(cls, value: str) -> str:
        words = len(value.split())
        low, high = SUMMARY_WORDS
        if not low <= words <= high:
            raise ValueError(f"the summary has {words} words; expected {low} to {high}")
        return " ".join(value.split())

    @model_validator(mode="after")
    def _consistent(self) -> Paper:
        if self.authors and len(self.authors) > self.authors_count:
            raise ValueError(f"authors lists {len(self.authors)} names but authors_count is {self.authors_count}")
        ids = [claim.id for claim in self.claims]
        repeated = {id for id in ids if ids.count(id) > 1}
        if repeated:
            raise ValueError(f"claims: the id {min(repeated)!r} is used twice")
        return self


def read_paper(path: Path) -> Paper:
    """Read and check one `paper.toml`.

    Raises:
        PaperFileError: the file is missing, is not TOML, or a field is wrong; the message names both.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PaperFileError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PaperFileError(f"{path}: not valid TOML ({error})") from error
    try:
        return Paper.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file as a whole"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise PaperFileError(f"{path}: {field}: {first['msg'].removeprefix('Value error, ')}{more}") from error
