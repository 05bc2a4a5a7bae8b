"""The server's tables, in SQLAlchemy Core that SQLite and PostgreSQL both understand.

Times are Unix seconds of the server's clock, unless the name says otherwise. The migrations make the same
tables; a test holds the two against each other.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

__all__ = ["devices", "enrolment_tokens", "events", "latest", "metadata", "nonces", "windows"]

metadata = MetaData()


def _device() -> Column[str]:
    return Column("device_id", String(64), ForeignKey("devices.id"), primary_key=True)


devices = Table(
    "devices",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", String(200), nullable=False),
    Column("public_key", LargeBinary(32), nullable=False, unique=True),
    Column("enrolled_unix_s", Double, nullable=False),
    Column("revoked_unix_s", Double),
    Column("last_seen_unix_s", Double),
    Column("agent", String(200), nullable=False, server_default=""),
    Column("queued_windows", BigInteger, nullable=False, server_default="0"),
    Column("lost_windows", BigInteger, nullable=False, server_default="0"),
    # how far the device's clock is ahead of the server's; nothing is refused for it
    Column("clock_ahead_s", Double, nullable=False, server_default="0"),
)

#: A token itself is never stored. `device_id` says who used it.
enrolment_tokens = Table(
    "enrolment_tokens",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("name", String(200), nullable=False),
    Column("created_unix_s", Double, nullable=False),
    Column("expires_unix_s", Double, nullable=False),
    Column("used_unix_s", Double),
    Column("device_id", String(64)),
)

nonces = Table(
    "nonces",
    metadata,
    _device(),
    Column("nonce", String(32), primary_key=True),
    Column("expires_unix_s", Double, nullable=False),
)

#: One row per window, for ever unique by (device, boot, seq). `report` is the report as JSON; the other
#: columns are what is searched by.
windows = Table(
    "windows",
    metadata,
    _device(),
    Column("boot", String(64), primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    Column("model", String(200), nullable=False),
    Column("at_unix_s", Double, nullable=False),
    Column("clock", String(16), nullable=False),
    Column("received_unix_s", Double, nullable=False),
    Column("report", LargeBinary, nullable=False),
    Index("windows_by_time", "device_id", "model", "at_unix_s"),
)

#: The newest window of each model of each device, so that the overview reads no history.
latest = Table(
    "latest",
    metadata,
    _device(),
    Column("model", String(200), primary_key=True),
    Column("at_unix_s", Double, nullable=False),
    Column("boot", String(64), nullable=False),
    Column("seq", BigInteger, nullable=False),
)

#: What devices tell (ordinal from 0) and what the server notes about a window (ordinal -1).
events = Table(
    "events",
    metadata,
    _device(),
    Column("boot", String(64), primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    Column("ordinal", BigInteger, primary_key=True, autoincrement=False),
    Column("at_unix_s", Double, nullable=False),
    Column("model", String(200), nullable=False),
    Column("kind", String(200), nullable=False),
    Column("level", String(16), nullable=False),
    Column("text", Text, nullable=False),
    Index("events_by_time", "at_unix_s"),
)
