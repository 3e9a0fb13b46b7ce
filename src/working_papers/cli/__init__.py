"""The command line: one thin file a group of commands; whatever is heavy is imported inside the commands."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of `working-papers`: an error that the user can mend is one sentence, not a traceback."""
    from working_papers.cli.app import app
    from working_papers.errors import UsageError, UserError

    try:
        app()
    except UserError as error:
        sys.stderr.write(f"working-papers: {error}\n")
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped\n")
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has gone (`| head`)
        sys.stderr.close()
        sys.exit(0)
    except Exception as error:
        # Looked up, not imported: most commands do without a database, and start faster for it.
        library = sys.modules.get("sqlalchemy.exc")
        if library is None or not isinstance(error, library.DBAPIError):
            raise
        sys.stderr.write(
            f"working-papers: the database failed ({error.orig}); if it is damaged, move it away and import again\n"
        )
        sys.exit(1)
