"""The first tables: runs and trials of the bench; papers, their topics and the imports of the daily."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "runs",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("slug", sa.String(80), nullable=False),
        sa.Column("scale", sa.String(10), nullable=False),
        sa.Column("sham", sa.Boolean(), nullable=False),
        sa.Column("seeds", sa.Integer(), nullable=False),
        sa.Column("code_hash", sa.String(64), nullable=False),
        sa.Column("status", sa.String(12), nullable=False),
        sa.Column("started", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished", sa.DateTime(timezone=True)),
        sa.Column("record", sa.JSON()),
        sa.Column("error", sa.Text()),
    )
    op.create_index("ix_runs_slug_id", "runs", ["slug", "id"])
    op.create_table(
        "trials",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("run_id", sa.Integer(), sa.ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("slug", sa.String(80), nullable=False),
        sa.Column("arm", sa.String(80), nullable=False),
        sa.Column("seed", sa.Integer(), nullable=False),
        sa.Column("scale", sa.String(10), nullable=False),
        sa.Column("phase", sa.String(10), nullable=False),
        sa.Column("setting", sa.JSON(), nullable=False),
        sa.Column("code_hash", sa.String(64), nullable=False),
        sa.Column("status", sa.String(12), nullable=False),
        sa.Column("numbers", sa.JSON(), nullable=False),
        sa.Column("arrays", sa.LargeBinary()),
        sa.Column("costs", sa.JSON(), nullable=False),
        sa.Column("error", sa.Text()),
        sa.Column("finished", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("ix_trials_run_id", "trials", ["run_id"])
    op.create_index("ix_trials_key", "trials", ["key"])

    op.create_table(
        "papers",
        sa.Column("number", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("abstract", sa.Text(), nullable=False),
        sa.Column("summary", sa.Text(), nullable=False),
        sa.Column("authors", sa.JSON(), nullable=False),
        sa.Column("author_count", sa.Integer(), nullable=False),
        sa.Column("published", sa.Date()),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("updated", sa.Date()),
        sa.Column("categories", sa.JSON(), nullable=False),
        sa.Column("comment_count", sa.Integer(), nullable=False),
        sa.Column("upvotes", sa.Integer(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("url", sa.Text()),
        sa.Column("doi", sa.Text()),
        sa.Column("journal", sa.Text()),
        sa.Column("room", sa.Text()),
        sa.Column("text_hash", sa.String(32), nullable=False),
        sa.Column("title_hash", sa.BigInteger(), nullable=False),
        sa.Column("first_seen", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
    )
    op.create_index("ix_papers_id", "papers", ["id"], unique=True)
    op.create_index("ix_papers_day_number", "papers", ["day", "number"])
    op.create_index("ix_papers_title_hash", "papers", ["title_hash"])
    op.create_index("ix_papers_revision", "papers", ["revision"], unique=True)
    for column, unique in (("doi", False), ("room", True)):
        present = sa.text(f"{column} IS NOT NULL")
        op.create_index(
            f"ix_papers_{column}",
            "papers",
            [column],
            unique=unique,
            sqlite_where=present,
            postgresql_where=present,
        )
    op.create_table(
        "paper_topics",
        sa.Column("topic", sa.Text(), primary_key=True),
        sa.Column("day", sa.Date(), primary_key=True),
        sa.Column("number", sa.Integer(), primary_key=True),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "paper_aliases",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("number", sa.Integer(), sa.ForeignKey("papers.number"), nullable=False),
    )
    state = op.create_table(
        "catalogue_state",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("last_number", sa.Integer(), nullable=False),
        sa.Column("last_revision", sa.BigInteger(), nullable=False),
    )
    op.bulk_insert(state, [{"id": 1, "last_number": 0, "last_revision": 0}])

    op.create_table(
        "imports",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("asked", sa.Text(), nullable=False),
        sa.Column("started", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished", sa.DateTime(timezone=True)),
        sa.Column("got", sa.Integer(), nullable=False),
        sa.Column("new", sa.Integer(), nullable=False),
        sa.Column("changed", sa.Integer(), nullable=False),
        sa.Column("unchanged", sa.Integer(), nullable=False),
        sa.Column("rejected", sa.Integer(), nullable=False),
        sa.Column("error", sa.Text()),
    )
    op.create_table(
        "import_rejections",
        sa.Column("import_id", sa.Integer(), sa.ForeignKey("imports.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("position", sa.Integer(), primary_key=True),
        sa.Column("line", sa.Integer()),
        sa.Column("reason", sa.Text(), nullable=False),
    )


def downgrade() -> None:
    """Drop them all."""
    for table in (
        "import_rejections",
        "imports",
        "catalogue_state",
        "paper_aliases",
        "paper_topics",
        "papers",
        "trials",
        "runs",
    ):
        op.drop_table(table)
