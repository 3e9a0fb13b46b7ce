"""Working Papers: a daily-papers service in which the papers run."""

from importlib.metadata import version

__version__ = version("working-papers")
