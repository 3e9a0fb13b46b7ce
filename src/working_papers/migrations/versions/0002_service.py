"""The daily as a service: accounts, votes, comments, submissions, saved searches, e-mails, digest, queue of runs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def moment(name: str, *, needed: bool = False) -> sa.Column[object]:
    """A column with a moment."""
    return sa.Column(name, sa.DateTime(timezone=True), nullable=not needed)


def account(name: str = "account_id", *, primary: bool = False) -> sa.Column[int]:
    """A column with an account; what it holds goes when the account goes."""
    key = sa.ForeignKey("accounts.id", ondelete="CASCADE")
    return sa.Column(name, sa.Integer(), key, nullable=False, primary_key=primary)


def upgrade() -> None:
    """Make the tables."""
    _accounts()
    _community()
    _mail_and_digest()
    _jobs()
    _schedule()


def _accounts() -> None:
    op.create_table(
        "accounts",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("email", sa.Text(), nullable=False, unique=True),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("administrator", sa.Boolean(), nullable=False),
        moment("created", needed=True),
        moment("closed"),
    )
    op.create_table(
        "sign_in_links",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("secret_hash", sa.String(64), nullable=False, unique=True),
        moment("created", needed=True),
        moment("expires", needed=True),
        moment("used"),
    )
    op.create_index("ix_sign_in_links_email_created", "sign_in_links", ["email", "created"])
    op.create_table(
        "sessions",
        sa.Column("id", sa.Integer(), primary_key=True),
        account(),
        sa.Column("secret_hash", sa.String(64), nullable=False, unique=True),
        sa.Column("browser", sa.Text(), nullable=False),
        moment("created", needed=True),
        moment("seen", needed=True),
        moment("expires", needed=True),
        moment("revoked"),
    )
    op.create_index("ix_sessions_account_id", "sessions", ["account_id"])
    op.create_table(
        "api_tokens",
        sa.Column("id", sa.Integer(), primary_key=True),
        account(),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("secret_hash", sa.String(64), nullable=False, unique=True),
        sa.Column("ending", sa.String(8), nullable=False),
        moment("created", needed=True),
        moment("used"),
        moment("revoked"),
    )
    op.create_index("ix_api_tokens_account_id", "api_tokens", ["account_id"])
    op.create_table(
        "site_secrets",
        sa.Column("name", sa.String(40), primary_key=True),
        sa.Column("value", sa.LargeBinary(), nullable=False),
    )


def _community() -> None:
    paper = sa.ForeignKey("papers.number")
    op.create_table(
        "votes",
        sa.Column("number", sa.Integer(), paper, primary_key=True),
        account(primary=True),
        moment("created", needed=True),
    )
    op.create_index("ix_votes_created", "votes", ["created"])
    op.create_index("ix_votes_account_id", "votes", ["account_id"])
    op.create_table(
        "comments",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("number", sa.Integer(), sa.ForeignKey("papers.number"), nullable=False),
        account(),
        sa.Column("body", sa.Text(), nullable=False),
        moment("created", needed=True),
        moment("edited"),
        moment("deleted"),
        moment("hidden"),
        sa.Column("hidden_by", sa.Integer(), sa.ForeignKey("accounts.id", ondelete="SET NULL")),
    )
    op.create_index("ix_comments_number_id", "comments", ["number", "id"])
    op.create_index("ix_comments_account_id", "comments", ["account_id"])
    op.create_index("ix_comments_created", "comments", ["created"])
    op.create_table(
        "submissions",
        sa.Column("number", sa.Integer(), sa.ForeignKey("papers.number"), primary_key=True),
        account(),
        moment("created", needed=True),
    )
    op.create_index("ix_submissions_account_id_created", "submissions", ["account_id", "created"])
    op.create_table(
        "saved_searches",
        sa.Column("id", sa.Integer(), primary_key=True),
        account(),
        sa.Column("key", sa.String(32), nullable=False, unique=True),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("query", sa.JSON(), nullable=False),
        moment("created", needed=True),
    )
    op.create_index("ix_saved_searches_account_id", "saved_searches", ["account_id"])


def _mail_and_digest() -> None:
    op.create_table(
        "mails",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("key", sa.Text(), nullable=False, unique=True),
        sa.Column("recipient", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("message", sa.LargeBinary()),
        sa.Column("status", sa.String(10), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        moment("due", needed=True),
        moment("claimed"),
        sa.Column("claimed_by", sa.String(64)),
        moment("created", needed=True),
        moment("sent"),
        sa.Column("error", sa.Text()),
    )
    op.create_index("ix_mails_status_due", "mails", ["status", "due"])
    op.create_index("ix_mails_recipient", "mails", ["recipient"])
    op.create_table(
        "subscriptions",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("email", sa.Text(), nullable=False, unique=True),
        sa.Column("account_id", sa.Integer(), sa.ForeignKey("accounts.id", ondelete="SET NULL")),
        sa.Column("frequency", sa.String(6), nullable=False),
        sa.Column("trending", sa.Boolean(), nullable=False),
        sa.Column("topics", sa.JSON(), nullable=False),
        sa.Column("searches", sa.JSON(), nullable=False),
        sa.Column("secret", sa.String(64), nullable=False, unique=True),
        moment("created", needed=True),
        moment("confirmed"),
        moment("ended"),
        sa.Column("end_reason", sa.Text()),
    )
    op.create_index("ix_subscriptions_account_id", "subscriptions", ["account_id"])
    op.create_table(
        "digest_issues",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("frequency", sa.String(6), nullable=False),
        sa.Column("first_day", sa.Date(), nullable=False),
        sa.Column("last_day", sa.Date(), nullable=False),
        moment("created", needed=True),
        moment("completed"),
    )
    op.create_index("ix_digest_issues_frequency_first_day", "digest_issues", ["frequency", "first_day"], unique=True)


def _jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("slug", sa.String(80), nullable=False),
        sa.Column("scale", sa.String(10), nullable=False),
        sa.Column("seeds", sa.Integer()),
        sa.Column("sham", sa.Boolean(), nullable=False),
        sa.Column("fresh", sa.Boolean(), nullable=False),
        sa.Column("asked_by", sa.Integer()),
        sa.Column("status", sa.String(10), nullable=False),
        sa.Column("cancel", sa.Boolean(), nullable=False),
        sa.Column("worker", sa.String(80)),
        moment("beat"),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("progress", sa.JSON()),
        sa.Column("run_id", sa.Integer(), sa.ForeignKey("runs.id", ondelete="SET NULL")),
        sa.Column("error", sa.Text()),
        moment("created", needed=True),
        moment("started"),
        moment("finished"),
    )
    op.create_index("ix_jobs_status_id", "jobs", ["status", "id"])
    op.create_index("ix_jobs_slug_id", "jobs", ["slug", "id"])
    op.create_table(
        "shared_runs",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("slug", sa.String(80), nullable=False),
        sa.Column("account_id", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False, unique=True),
        sa.Column("code_hash", sa.String(64), nullable=False),
        sa.Column("same_code", sa.Boolean(), nullable=False),
        sa.Column("answer", sa.String(20), nullable=False),
        sa.Column("record", sa.JSON(), nullable=False),
        moment("received", needed=True),
    )
    op.create_index("ix_shared_runs_slug_id", "shared_runs", ["slug", "id"])


def _schedule() -> None:
    op.create_table(
        "scheduled_tasks",
        sa.Column("task", sa.String(40), primary_key=True),
        sa.Column("day", sa.Date(), primary_key=True),
        sa.Column("holder", sa.Text(), nullable=False),
        moment("beat", needed=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        moment("due"),
        moment("finished"),
        sa.Column("error", sa.Text()),
    )
    op.create_table(
        "ingest_places",
        sa.Column("source", sa.String(10), primary_key=True),
        sa.Column("part", sa.String(40), primary_key=True),
        sa.Column("through", sa.Date(), nullable=False),
        sa.Column("token", sa.Text()),
        moment("updated", needed=True),
    )


def downgrade() -> None:
    """Remove the tables."""
    for table in (
        "ingest_places",
        "scheduled_tasks",
        "shared_runs",
        "jobs",
        "digest_issues",
        "subscriptions",
        "mails",
        "saved_searches",
        "submissions",
        "comments",
        "votes",
        "site_secrets",
        "api_tokens",
        "sessions",
        "sign_in_links",
        "accounts",
    ):
        op.drop_table(table)
