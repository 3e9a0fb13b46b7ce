"""Working Papers: a daily-papers service in which the papers run."""

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "__version__":  # reading the installed version takes longer than starting a command should
        from importlib.metadata import version

        return version("working-papers")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
