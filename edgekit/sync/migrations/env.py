"""Alembic's entry: run the migrations on the connection that `edgekit.sync.database` hands over."""

from __future__ import annotations

from alembic import context

from edgekit.sync.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite can do DDL in a transaction; two servers that start together must not both migrate
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
