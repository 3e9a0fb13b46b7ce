"""Runs that were made elsewhere: checked, kept beside the reference verdict, never mixed with it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from pydantic import ValidationError
from sqlalchemy import Engine, select
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from working_papers.bench.checks import Answer, joint
from working_papers.bench.code_hash import code_hash
from working_papers.bench.jobs import SharedRunRow
from working_papers.bench.record import FORMAT, Record
from working_papers.bench.rooms import Room
from working_papers.database import now
from working_papers.errors import UserError

MOST_SEEDS = 1000
LONGEST_TEXT = 4_000


@dataclass(frozen=True)
class Received:
    """What came of a run that was sent.

    Attributes:
        id: its number here.
        new: False when the same one was sent before.
        same_code: whether it ran the code that this installation has.
    """

    id: int
    new: bool
    same_code: bool


def receive_run(engine: Engine, rooms: Mapping[str, Room], account_id: int, data: bytes) -> Received:
    """Check a record that was sent and keep it.

    Args:
        engine: the database.
        rooms: the rooms of this installation.
        account_id: who sent it.
        data: the record as JSON, in the form of reference.json.

    Raises:
        UserError: it is no record, of no room that runs here, a sham, or contradicts itself or the room's study.
    """
    try:
        record = Record.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the record as a whole"
        raise UserError(f"{field}: {first['msg']}") from error
    room = rooms.get(record.slug)
    if room is None or not room.runs:
        raise UserError(f"slug is {record.slug!r}; there is no such study here")
    _check(record, room.reference)
    content = record.model_dump(mode="json")
    digest = hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()
    same = record.code_hash == code_hash(room)
    values: dict[str, Any] = {
        "slug": record.slug,
        "account_id": account_id,
        "digest": digest,
        "code_hash": record.code_hash,
        "same_code": same,
        "answer": record.answer,
        "record": content,
        "received": now(),
    }
    insert = postgresql_insert if engine.dialect.name == "postgresql" else sqlite_insert
    adding = insert(SharedRunRow).values(**values).on_conflict_do_nothing(index_elements=["digest"])
    with engine.begin() as connection:
        made = connection.execute(adding.returning(SharedRunRow.id)).scalar()
        if made is not None:
            return Received(int(made), new=True, same_code=same)
        known = connection.execute(select(SharedRunRow.id).where(SharedRunRow.digest == digest)).scalar_one()
        return Received(int(known), new=False, same_code=same)


def _check(record: Record, reference: Record | None) -> None:
    """Refuse what no run can have written.

    Raises:
        UserError: the message names the field.
    """
    if record.format != FORMAT:
        raise UserError(f"format is {record.format}; this site reads {FORMAT}")
    if record.sham_run:
        raise UserError("a sham control is no replication; send a run without --sham")
    answers = {answer.value for answer in Answer}
    if record.answer not in answers:
        raise UserError(f"answer is {record.answer!r}; expected one of {', '.join(sorted(answers))}")
    if record.scale not in ("smoke", "laptop", "paper"):
        raise UserError(f"scale is {record.scale!r}; expected smoke, laptop or paper")
    if not 1 <= record.seeds <= MOST_SEEDS:
        raise UserError(f"seeds is {record.seeds}; expected 1 to {MOST_SEEDS}")
    if record.date.tzinfo is None or record.date > now():
        raise UserError(f"date is {record.date}; expected a moment with its zone, not in the future")
    if len(record.code_hash) != 64 or not all(digit in "0123456789abcdef" for digit in record.code_hash):
        raise UserError("code_hash is not a SHA-256 in hexadecimal digits")
    for name, text in (("summary", record.summary), ("question", record.question), ("notes", record.notes)):
        if len(text) > LONGEST_TEXT * (1 if name != "notes" else 4):
            raise UserError(f"{name} has {len(text):,} characters, which is more than any study's")
    for mapping, name in ((record.versions, "versions"), (record.machine, "machine")):
        if len(mapping) > 20 or any(len(key) > 60 or len(value) > 200 for key, value in mapping.items()):
            raise UserError(f"{name} is larger than any run's")
    if record.method not in record.arms:
        raise UserError(f"method is {record.method!r}, which is none of the arms")
    for arm, described in record.arms.items():
        for measure, values in described.measures.items():
            if len(values) != record.seeds:
                raise UserError(f"arms.{arm}.measures.{measure} has {len(values)} values for {record.seeds} seeds")
            if not all(math.isfinite(value) for value in values):
                raise UserError(f"arms.{arm}.measures.{measure} holds a value that is not finite")
    verdicts = [check.answer for check in record.checks]
    if not verdicts or not set(verdicts) <= answers:
        raise UserError("checks: each has one of the three answers, and there is at least one")
    expected = joint([Answer(verdict) for verdict in verdicts]).value
    if record.answer != expected:
        raise UserError(f"answer is {record.answer!r}, but its checks say {expected!r}")
    if reference is not None and set(record.arms) != set(reference.arms) and record.code_hash == reference.code_hash:
        raise UserError("arms are not those of the study whose code it names")
