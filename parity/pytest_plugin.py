"""The pytest plugin: a fixture `parity`, and a line that says how close it was.

Nothing is imported until a test asks for the fixture.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from zlib import crc32

import pytest

if TYPE_CHECKING:
    from parity.api import Agreement

_PROPERTY = "parity_bound_used"


class Parity:
    """What the fixture `parity` is: `assert_parity` with the test's own seed.

    Parameters
    ----------
    seed : int
        Made from the test's name, so that a test always sees the same numbers.
    record : callable
        Gets what was measured.
    """

    def __init__(self, seed: int, record: Callable[[str, object], None]) -> None:
        self.seed = seed
        self._record = record

    def __call__(
        self, candidate: Any, reference: Any, inputs: Any, **options: Any
    ) -> Agreement:
        """Compare; see `parity.assert_parity`."""
        # A failure then shows the report, not these lines.
        __tracebackhide__ = True
        from parity.api import assert_parity
        from parity.errors import ParityError

        try:
            options = {"seed": self.seed} | options
            agreement = assert_parity(candidate, reference, inputs, **options)
        except ParityError as error:
            report = str(error)
        else:
            self._record(_PROPERTY, agreement.share)
            return agreement
        # Raised within `except`, it would show the report twice.
        pytest.fail(report, pytrace=False)

    assert_parity = __call__


@pytest.fixture
def parity(
    request: pytest.FixtureRequest,
    record_property: Callable[[str, object], None],
) -> Parity:
    """Return `assert_parity` with a seed of the test's own.

    Its largest share of the error bound is among the test's properties, and so in
    JUnit's XML, as 'parity_bound_used'.
    """
    return Parity(crc32(request.node.nodeid.encode()) % 2**16, record_property)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how much of the error bound was used, and by which test."""
    measured = [
        (float(value), report.nodeid)
        for report in terminalreporter.stats.get("passed", [])
        if report.when == "call"
        for name, value in report.user_properties
        if name == _PROPERTY
    ]
    if measured:
        share, test = max(measured)
        terminalreporter.write_line(
            f"parity: {len(measured)} comparisons, "
            f"at most {share:.2f} of the error bound used, in {test}"
        )
