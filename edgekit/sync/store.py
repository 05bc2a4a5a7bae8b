"""The server's SQL: enrolment, and storing reports exactly once in effect."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql, sqlite

from edgekit.identity import device_id_of
from edgekit.sync.intake import Judged, PlacedWindow, SignedHeaders
from edgekit.sync.problems import ProblemError
from edgekit.sync.tables import devices, enrolment_tokens, events, latest, nonces, windows
from edgekit.sync.wire import CLOCK_WINDOW_S, Enrolment, Refused, Reports

__all__ = ["check_token", "enrol", "make_token", "public_key_of", "revoke", "store_reports"]

#: Requests of one device in the time that a nonce is remembered (20 minutes).
MAX_NONCES = 4096
#: Models of one device: a device must not fill the overview with invented names.
MAX_MODELS = 64


def make_token(connection: Connection, name: str, now_unix_s: float, expires_s: float) -> str:
    """Store a new one-time enrolment token, hashed, and return it; it can never be read again."""
    token = "ek1_" + secrets.token_urlsafe(32)
    connection.execute(
        enrolment_tokens.insert().values(
            sha256=_sha256(token),
            name=name,
            created_unix_s=now_unix_s,
            expires_unix_s=now_unix_s + expires_s,
        )
    )
    return token


def _sha256(token: str) -> str:
    # the token has 256 random bits, so that a fast hash without salt is enough
    return hashlib.sha256(token.encode()).hexdigest()


def check_token(connection: Connection, token: str, public_key: bytes, now_unix_s: float) -> None:
    """Refuse a token that the owner of `public_key` cannot enrol with; writes nothing.

    Raises:
        ProblemError: `token-unknown`, `token-expired`, `token-used`.
    """
    _usable_token(connection, token, device_id_of(public_key), now_unix_s)


def enrol(connection: Connection, ask: Enrolment, public_key: bytes, now_unix_s: float) -> tuple[str, str]:
    """Enrol the owner of `public_key`, and return the device's id and name.

    The same key with the same token again is answered the same: the first reply may have been lost.

    Raises:
        ProblemError: `token-unknown`, `token-expired`, `token-used` (by another key), `revoked`.
    """
    device = device_id_of(public_key)
    token = _usable_token(connection, ask.token, device, now_unix_s)
    name = token.name or ask.name or device
    _insert_once(
        connection,
        devices,
        [{"id": device, "name": name, "public_key": public_key, "enrolled_unix_s": now_unix_s}],
    )
    row = connection.execute(sa.select(devices).where(devices.c.id == device)).one()
    if row.revoked_unix_s is not None:
        raise ProblemError("revoked", f"the device {device} has been revoked")
    connection.execute(
        enrolment_tokens.update()
        .where(enrolment_tokens.c.sha256 == token.sha256, enrolment_tokens.c.device_id.is_(None))
        .values(device_id=device, used_unix_s=now_unix_s)
    )
    return device, row.name


def _usable_token(connection: Connection, token: str, device: str, now_unix_s: float) -> sa.Row[Any]:
    query = sa.select(enrolment_tokens).where(enrolment_tokens.c.sha256 == _sha256(token)).with_for_update()
    row = connection.execute(query).one_or_none()
    if row is None:
        raise ProblemError("token-unknown", "this enrolment token is not known here")
    if row.device_id == device:
        return row
    if row.device_id is not None:
        raise ProblemError("token-used", "this enrolment token was used by another device")
    if row.expires_unix_s < now_unix_s:
        raise ProblemError("token-expired", "this enrolment token has expired")
    return row


def revoke(connection: Connection, device: str, now_unix_s: float) -> bool:
    """Let the device send nothing more; its windows stay. False when there is no such device."""
    found = connection.execute(
        devices.update()
        .where(devices.c.id == device)
        .values(revoked_unix_s=sa.func.coalesce(devices.c.revoked_unix_s, now_unix_s))
    )
    return found.rowcount == 1


def public_key_of(connection: Connection, device: str) -> bytes:
    """Return the device's raw public key.

    Raises:
        ProblemError: `unknown-device`.
    """
    key = connection.execute(sa.select(devices.c.public_key).where(devices.c.id == device)).scalar()
    if key is None:
        raise ProblemError("unknown-device", f"the device {device} is not enrolled here")
    return bytes(key)


def store_reports(
    connection: Connection, signed: SignedHeaders, reports: Reports, judged: Judged, now_unix_s: float
) -> Judged:
    """Store a batch in the caller's transaction, and return what was stored and refused.

    A window that is there already is not stored again and counts as stored.

    Raises:
        ProblemError: `revoked`, `replay`, `too-many-requests`; nothing is stored then.
    """
    _touch(connection, signed.device_id, reports, now_unix_s)
    _spend_nonce(connection, signed, now_unix_s)
    judged = _bound_models(connection, signed.device_id, judged)
    _insert_windows(connection, signed.device_id, judged.windows, now_unix_s)
    _insert_events(connection, signed.device_id, judged, now_unix_s)
    return judged


def _touch(connection: Connection, device: str, reports: Reports, now_unix_s: float) -> None:
    found = connection.execute(
        devices.update()
        .where(devices.c.id == device, devices.c.revoked_unix_s.is_(None))
        .values(
            last_seen_unix_s=now_unix_s,
            agent=reports.agent,
            queued_windows=reports.queued_windows,
            lost_windows=reports.lost_windows,
            clock_ahead_s=reports.sent_unix_s - now_unix_s,
        )
    )
    if found.rowcount == 0:
        raise ProblemError("revoked", f"the device {device} has been revoked")


def _spend_nonce(connection: Connection, signed: SignedHeaders, now_unix_s: float) -> None:
    mine = nonces.c.device_id == signed.device_id
    connection.execute(nonces.delete().where(mine, nonces.c.expires_unix_s < now_unix_s))
    if connection.execute(sa.select(sa.func.count()).where(mine)).scalar_one() >= MAX_NONCES:
        raise ProblemError("too-many-requests", "too many requests of this device", retry_after_s=60)
    # a timestamp is accepted until it is CLOCK_WINDOW_S old, so its nonce is remembered as long
    expires = signed.timestamp_ms / 1000 + CLOCK_WINDOW_S
    row = {"device_id": signed.device_id, "nonce": signed.nonce, "expires_unix_s": expires}
    if _insert_once(connection, nonces, [row]) == 0:
        raise ProblemError("replay", "this request was received before")


def _bound_models(connection: Connection, device: str, judged: Judged) -> Judged:
    new = {window.model for window in judged.windows}
    known = set(connection.execute(sa.select(latest.c.model).where(latest.c.device_id == device)).scalars())
    room = MAX_MODELS - len(known)
    excess = set(sorted(new - known)[max(room, 0) :])
    if not excess:
        return judged
    refused = tuple(
        Refused(window.boot, window.seq, "invalid", f"more than {MAX_MODELS} models on one device")
        for window in judged.windows
        if window.model in excess
    )
    kept = tuple(window for window in judged.windows if window.model not in excess)
    return Judged(kept, judged.refused + refused)


def _insert_windows(
    connection: Connection, device: str, placed: Sequence[PlacedWindow], now_unix_s: float
) -> None:
    _insert_once(
        connection,
        windows,
        [
            {
                "device_id": device,
                "boot": window.boot,
                "seq": window.seq,
                "model": window.model,
                "at_unix_s": window.at_unix_s,
                "clock": window.clock,
                "received_unix_s": now_unix_s,
                "report": window.report,
            }
            for window in placed
        ],
    )
    newest: dict[str, PlacedWindow] = {}
    for window in placed:
        best = newest.setdefault(window.model, window)
        if (window.at_unix_s, window.seq) > (best.at_unix_s, best.seq):
            newest[window.model] = window
    _upsert_latest(connection, device, newest.values())


def _upsert_latest(connection: Connection, device: str, newest: Iterable[PlacedWindow]) -> None:
    for window in newest:
        # read back: when the window came before, it lies where it was put then
        stored = connection.execute(
            sa.select(windows.c.model, windows.c.at_unix_s).where(
                windows.c.device_id == device, windows.c.boot == window.boot, windows.c.seq == window.seq
            )
        ).one()
        statement = _dialect_insert(connection, latest).values(
            device_id=device, model=stored.model, at_unix_s=stored.at_unix_s, boot=window.boot, seq=window.seq
        )
        new = statement.excluded
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=[latest.c.device_id, latest.c.model],
                set_={"at_unix_s": new.at_unix_s, "boot": new.boot, "seq": new.seq},
                where=new.at_unix_s >= latest.c.at_unix_s,
            )
        )


def _insert_events(connection: Connection, device: str, judged: Judged, now_unix_s: float) -> None:
    rows = [
        {
            "device_id": device,
            "boot": window.boot,
            "seq": window.seq,
            "ordinal": ordinal,
            "at_unix_s": event.at_unix_s,
            "model": window.model,
            "kind": event.kind,
            "level": event.level,
            "text": event.text,
        }
        for window in judged.windows
        for ordinal, event in enumerate(window.events)
    ]
    rows += [
        {
            "device_id": device,
            "boot": refused.boot,
            "seq": refused.seq,
            "ordinal": -1,
            "at_unix_s": now_unix_s,
            "model": "",
            "kind": "report-refused",
            "level": "warning",
            "text": f"Window {refused.boot}/{refused.seq} was not stored: {refused.detail}",
        }
        for refused in judged.refused
        if refused.code == "invalid"
    ]
    _insert_once(connection, events, rows)


def _dialect_insert(connection: Connection, table: Table) -> sqlite.Insert | postgresql.Insert:
    # the same words in both dialects, but Core has no common form of ON CONFLICT
    return sqlite.insert(table) if connection.dialect.name == "sqlite" else postgresql.insert(table)


def _insert_once(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> int:
    """Insert rows whose key is new; return how many that were."""
    if not rows:
        return 0
    statement = _dialect_insert(connection, table).on_conflict_do_nothing()
    return connection.execute(statement, list(rows)).rowcount
