"""Alembic runs this file: migrate on the connection that it was given, within that connection's transaction."""

from alembic import context

from avrec_ray.feedback.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=context.config.attributes["version_table"],
)
context.run_migrations()
