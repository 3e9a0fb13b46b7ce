"""Helpers for tests of methods, and the conformance suite that every room passes, other people's rooms too."""

from working_papers.testing.conformance import REFERENCE_CHECKS, ROOM_CHECKS, RoomCheck, check_room, run_smoke
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
    "REFERENCE_CHECKS",
    "ROOM_CHECKS",
    "RoomCheck",
    "assert_deterministic",
    "assert_equivariant",
    "assert_gradients_reach_parameters",
    "assert_invariant",
    "assert_numerical_gradient",
    "assert_state_dict_round_trip",
    "check_room",
    "random_rotation",
    "run_smoke",
]
