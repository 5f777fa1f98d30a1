"""Runs the migrations on the connection that `migrations.upgrade` brings."""

from alembic import context

from polyolo.control import db

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=db.metadata,
    render_as_batch=True,  # SQLite alters a table by copying it
)
with context.begin_transaction():
    context.run_migrations()
