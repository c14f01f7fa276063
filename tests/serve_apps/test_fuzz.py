"""Schemathesis over the description, in process: no 5xx, nothing that the description does not say."""

from pathlib import Path

import pytest

from avrec_ray.feedback.config import FeedbackConfig
from tests.serve_apps.fuzzing import fuzz
from tests.serve_apps.test_auth import SECRETS, whole_api

pytestmark = [
    pytest.mark.slow,
    # Schemathesis' own: a response that Hypothesis drops, and what its dependencies deprecate.
    pytest.mark.filterwarnings("ignore"),
]


@pytest.mark.timeout(900)
def test_no_phase_of_schemathesis_finds_a_fault(tmp_path: Path) -> None:
    # Any future is accepted: that an event may not lie ahead of the server's clock is nothing a schema can say.
    feedback = FeedbackConfig(max_clock_skew_seconds=1e12)
    api = whole_api(tmp_path, feedback)
    found = fuzz(api, SECRETS["admin"], max_examples=15, seed=0)
    assert found.failures == {}
    assert {"examples", "coverage", "fuzzing", "stateful"} <= set(found.num_requests)
    assert found.operations == {
        f"{method.upper()} {path}" for path, methods in api.openapi()["paths"].items() for method in methods
    }
    assert found.statuses[200] > 500
    assert found.statuses[422] > 500
    assert not any(status >= 500 for status in found.statuses)
