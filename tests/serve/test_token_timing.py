"""R22: the time of a refusal does not tell how much of a token was right.

Long, as it looks at nanoseconds. `test_safety.py` has the short form: whatever is sent, hashes of 32 bytes are compared
by a function of constant time, all of them.
"""

import secrets
import sys
import time

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from thalweg.serve.safety.tokens import Tokens, hashed

pytestmark = pytest.mark.slow
CALLS = 20_000  # of each kind
LEVEL = 0.01  # of one comparison
TRIES = 3  # a leak is seen in each; without one the chance of that is LEVEL³ = 1e-6


class EarlyExit(Tokens):
    """The mutant: tokens as they are, compared byte after byte up to the first that differs."""

    token = b""

    def _known(self, scope):
        token = scope["headers"][0][1].partition(b" ")[2]
        return len(token) == len(self.token) and all(a == b for a, b in zip(token, self.token, strict=True))


class Equal(Tokens):
    """The mutant that people write: `==`, which looks at the first byte and then calls C's memcmp."""

    token = b""

    def _known(self, scope):
        return scope["headers"][0][1].partition(b" ")[2] == self.token


def refusals(tokens, token):
    """Nanoseconds (2, CALLS) of refusals of tokens that are wrong in the last character, and in the first one.

    Both kinds take turns by chance, and each token is new, so that neither has a place in memory of its own.
    """
    kinds = np.random.default_rng(22).permutation(np.repeat([0, 1], CALLS))
    took = np.empty(2 * CALLS)
    for call, kind in enumerate(kinds):
        text = token[:-1] + "~" if kind == 0 else "~" + token[1:]
        scope = {"headers": [(b"authorization", b"Bearer " + text.encode())]}
        began = time.perf_counter_ns()
        allowed = tokens.allows(scope)
        took[call] = time.perf_counter_ns() - began
        assert not allowed
    return np.stack([took[kinds == 0], took[kinds == 1]])


def p_values(tokens, token):
    """Of Mann and Whitney's test (1947) that both kinds take as long; stops at the first that sees no difference."""
    found = []
    while len(found) < TRIES and (not found or found[-1] <= LEVEL):
        found.append(float(mannwhitneyu(*refusals(tokens, token)).pvalue))
    return found


def mutant(cls, token):
    made = cls(None, [hashed(token)])
    made.token = token.encode()
    return made


@pytest.mark.parametrize("length", [64, 4096])
def test_a_right_prefix_takes_as_long_as_a_wrong_one(length):
    token = secrets.token_hex(length // 2)
    found = p_values(Tokens(None, [hashed(token), hashed(secrets.token_hex(32))]), token)
    sys.stderr.write(f"R22, {length} characters: p = {found}\n")
    assert found[-1] > LEVEL


@pytest.mark.parametrize("cls", [EarlyExit, Equal])
def test_mutants_that_stop_early_are_seen(cls):
    token = secrets.token_hex(32)
    found = p_values(mutant(cls, token), token)
    sys.stderr.write(f"R22, {cls.__name__}: p = {found}\n")
    assert max(found) <= LEVEL
    assert len(found) == TRIES
