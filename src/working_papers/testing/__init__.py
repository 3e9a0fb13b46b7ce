"""Helpers for tests of methods, and the conformance suite that every room passes; other people's rooms may use them too."""

from working_papers.testing.conformance import ROOM_CHECKS, check_room
from working_papers.testing.methods import (
    assert_deterministic,
    assert_equivariant,
    assert_gradients_reach_parameters,
    assert_invariant,
    assert_numerical_gradient,
    assert_state_dict_round_trip,
    random_rotation,
)

__all__ = [
    "ROOM_CHECKS",
    "assert_deterministic",
    "assert_equivariant",
    "assert_gradients_reach_parameters",
    "assert_invariant",
    "assert_numerical_gradient",
    "assert_state_dict_round_trip",
    "check_room",
    "random_rotation",
]
