"""jobs.rotate_user_keys: every stored name of a user under the key that comes first, in the store and in files."""

from avrec_ray.config import JobConfig
from avrec_ray.durable import crash_point
from avrec_ray.feedback.rekey import Rekeyed
from avrec_ray.feedback.user_files import rename_in_files
from avrec_ray.pipelines.erase_user import read_tombstones, write_tombstones
from avrec_ray.pipelines.stage import Loop
from avrec_ray.pipelines.users_of_job import open_store


def run(loop: Loop, job: JobConfig) -> Rekeyed:
    """Rename everybody, a few rows at a time; the service may go on, if it has both keys. Killed, run it again.

    Raises:
        ConfigError: there are no keys, or one is missing under which users are stored.
    """
    store = open_store(job, rotating=True)
    try:
        rekeyed = store.rekey()
        store.resume_erasures(read_tombstones(loop.storage))
        write_tombstones(loop.storage, store)
        crash_point("rotate.store")
        num_files = rename_in_files(loop.storage.root, store.pseudonyms)
        crash_point("rotate.files")
        store.compact()
        loop.echo(f"renamed {rekeyed.events} events, {rekeyed.impressions} impressions, {num_files} files")
        return rekeyed
    finally:
        store.close()
