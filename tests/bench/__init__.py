"""Tests of the bench; `made_up` writes the rooms that they run."""
