"""Devices, tokens, nonces, windows, events."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def _device() -> sa.Column[str]:
    return sa.Column("device_id", sa.String(64), sa.ForeignKey("devices.id"), primary_key=True)


def upgrade() -> None:
    op.create_table(
        "devices",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("public_key", sa.LargeBinary(32), nullable=False, unique=True),
        sa.Column("enrolled_unix_s", sa.Double, nullable=False),
        sa.Column("revoked_unix_s", sa.Double),
        sa.Column("last_seen_unix_s", sa.Double),
        sa.Column("agent", sa.String(200), nullable=False, server_default=""),
        sa.Column("queued_windows", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("lost_windows", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("clock_ahead_s", sa.Double, nullable=False, server_default="0"),
    )
    op.create_table(
        "enrolment_tokens",
        sa.Column("sha256", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("created_unix_s", sa.Double, nullable=False),
        sa.Column("expires_unix_s", sa.Double, nullable=False),
        sa.Column("used_unix_s", sa.Double),
        sa.Column("device_id", sa.String(64)),
    )
    op.create_table(
        "nonces",
        _device(),
        sa.Column("nonce", sa.String(32), primary_key=True),
        sa.Column("expires_unix_s", sa.Double, nullable=False),
    )
    op.create_table(
        "windows",
        _device(),
        sa.Column("boot", sa.String(64), primary_key=True),
        sa.Column("seq", sa.BigInteger, primary_key=True),
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("at_unix_s", sa.Double, nullable=False),
        sa.Column("clock", sa.String(16), nullable=False),
        sa.Column("received_unix_s", sa.Double, nullable=False),
        sa.Column("report", sa.LargeBinary, nullable=False),
    )
    op.create_index("windows_by_time", "windows", ["device_id", "model", "at_unix_s"])
    op.create_table(
        "latest",
        _device(),
        sa.Column("model", sa.String(200), primary_key=True),
        sa.Column("at_unix_s", sa.Double, nullable=False),
        sa.Column("boot", sa.String(64), nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "events",
        _device(),
        sa.Column("boot", sa.String(64), primary_key=True),
        sa.Column("seq", sa.BigInteger, primary_key=True),
        sa.Column("ordinal", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("at_unix_s", sa.Double, nullable=False),
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("kind", sa.String(200), nullable=False),
        sa.Column("level", sa.String(16), nullable=False),
        sa.Column("text", sa.Text, nullable=False),
    )
    op.create_index("events_by_time", "events", ["at_unix_s"])


def downgrade() -> None:
    for table in ("events", "latest", "windows", "nonces", "enrolment_tokens", "devices"):
        op.drop_table(table)
