"""`admin`: accounts, on the machine's own command line."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from working_papers.errors import UserError

Address = Annotated[str, typer.Argument(help="The e-mail address.", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="Accounts: make administrators, close and reopen accounts.", no_args_is_help=True)
    group.command()(create)
    group.command("list")(list_all)
    group.command()(close)
    group.command()(reopen)
    app.add_typer(group, name="admin")


def create(
    email: Address,
    name: Annotated[str | None, typer.Option(help="The name that others see.")] = None,
) -> None:
    """Make an administrator, and print a link by which they sign in without an e-mail."""
    from working_papers.config import load_settings
    from working_papers.daily.accounts.accounts import make_account
    from working_papers.daily.accounts.sign_in import request_link
    from working_papers.daily.digest.messages import base_address
    from working_papers.database import opened_database

    settings = load_settings()
    with opened_database(settings) as engine:
        account = make_account(engine, email, name, administrator=True)
        token = request_link(engine, account.email)
    sys.stdout.write(f"{account.email} ({account.name}) is an administrator\n")
    sys.stdout.write(f"sign in within 15 minutes: {base_address(settings)}/sign-in/{token}\n")


def list_all(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List all accounts."""
    from working_papers.config import load_settings
    from working_papers.daily.accounts.accounts import list_accounts
    from working_papers.database import opened_database

    with opened_database(load_settings()) as engine:
        accounts = list_accounts(engine)
    if as_json:
        rows = [
            {
                "email": account.email,
                "name": account.name,
                "administrator": account.administrator,
                "created": account.created.isoformat(timespec="seconds"),
                "closed": account.closed.isoformat(timespec="seconds") if account.closed else None,
            }
            for account in accounts
        ]
        sys.stdout.write(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
        return
    for account in accounts:
        notes = [*(["administrator"] if account.administrator else []), *(["closed"] if account.closed else [])]
        more = f" ({', '.join(notes)})" if notes else ""
        sys.stdout.write(f"{account.created:%Y-%m-%d}  {account.email}  {account.name}{more}\n")
    if not accounts:
        sys.stdout.write("no accounts yet; `working-papers admin create EMAIL` makes the first\n")


def close(email: Address) -> None:
    """Close an account: it may not sign in, its sessions and tokens end; what it wrote stays."""
    _change(email, open_again=False)


def reopen(email: Address) -> None:
    """Let a closed account sign in again."""
    _change(email, open_again=True)


def _change(email: str, *, open_again: bool) -> None:
    from working_papers.config import load_settings
    from working_papers.daily.accounts import accounts
    from working_papers.database import opened_database

    with opened_database(load_settings()) as engine:
        found = accounts.account_by_email(engine, accounts.normal_email(email))
        if found is None:
            raise UserError(f"there is no account of {email}; `working-papers admin list` shows them all")
        (accounts.reopen if open_again else accounts.close)(engine, found.id)
    sys.stdout.write(f"{found.email} {'may sign in again' if open_again else 'is closed'}\n")
