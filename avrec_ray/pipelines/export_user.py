"""jobs.export_user: all that is kept of one user, as JSON for the user."""

import json
import os
from pathlib import Path
from typing import Any

from avrec_ray.bundle import load_bundle_profiles
from avrec_ray.config import JobConfig
from avrec_ray.errors import ConfigError
from avrec_ray.feedback.bundle_names import profile_data
from avrec_ray.pipelines.stage import Loop, read_record
from avrec_ray.pipelines.users_of_job import absolute, open_store


def run(loop: Loop, job: JobConfig) -> dict[str, Any]:
    """Events, impressions and the bundle's profile of `job.user`, written to `job.output` where that is given.

    The file is readable by its owner alone.

    Raises:
        ConfigError: no user is given, or the output is relative.
    """
    if not job.user:
        raise ConfigError("user is empty; give user=<id>")
    output = absolute(job.output) if job.output else None
    store = open_store(job)
    try:
        name = store.pseudonyms.of(job.user)
        data = {"user_id": job.user, **store.user_data(name), "profile": None}
        if job.bundle or read_record(loop.storage, "bundle"):
            profiles = load_bundle_profiles(loop.bundle_to_serve(job.bundle))
            data["profile"] = None if store.is_erased(name) else profile_data(profiles, store.pseudonyms.aliases(name))
    finally:
        store.close()
    if output:
        _write_private(output, json.dumps(data, indent=1))
    return data


def _write_private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(descriptor, 0o600)  # also where it was there before, with other rights
        file.write(text + "\n")
