from __future__ import annotations

import sqlite3
import stat
import subprocess
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from edgekit.errors import InvalidFileError, MachineError, UsageError
from edgekit.process import python_command
from edgekit.sync.database import open_database
from edgekit.sync.tables import enrolment_tokens, metadata


def test_migrations_make_the_tables_that_the_code_uses(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path / 'sync.sqlite'}")
    with database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    database.close()


def test_a_commit_survives_a_power_cut(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path / 'sync.sqlite'}")
    with database.write() as connection:
        assert connection.execute(sa.text("PRAGMA journal_mode")).scalar() == "wal"
        assert connection.execute(sa.text("PRAGMA synchronous")).scalar() == 2  # FULL
        assert connection.execute(sa.text("PRAGMA foreign_keys")).scalar() == 1
    database.close()


def test_only_its_owner_reads_the_file(tmp_path: Path) -> None:
    path = tmp_path / "sync.sqlite"
    open_database(f"sqlite:///{path}").close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path / 'sync.sqlite'}")
    row = {"sha256": "h", "name": "", "created_unix_s": 0.0, "expires_unix_s": 0.0}
    with pytest.raises(sa.exc.IntegrityError), database.write() as connection:
        connection.execute(sa.insert(enrolment_tokens), [row, row])
    with database.read() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM enrolment_tokens")).scalar() == 0
    database.close()


def test_two_servers_that_start_together_migrate_once(tmp_path: Path) -> None:
    code = f"from edgekit.sync.database import open_database; open_database('sqlite:///{tmp_path}/sync.sqlite').close()"
    starts = [subprocess.Popen(python_command("-c", code), stderr=subprocess.PIPE) for _ in range(3)]
    for start in starts:
        _, errors = start.communicate(timeout=120)
        assert start.returncode == 0, errors.decode()
    connection = sqlite3.connect(tmp_path / "sync.sqlite")
    assert connection.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)
    connection.close()


def test_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sync.sqlite"
    open_database(f"sqlite:///{path}").close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.commit()
    connection.close()
    with pytest.raises(InvalidFileError, match="another version"):
        open_database(f"sqlite:///{path}")


def test_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "sync.sqlite"
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(InvalidFileError, match="no database"):
        open_database(f"sqlite:///{path}")
    assert path.read_bytes() == b"not a database" * 1000


@pytest.mark.parametrize("url", ["", "sync.sqlite", "sqlite://", "sqlite:///:memory:", "mysql://h/d"])
def test_url_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(UsageError):
        open_database(url)


def test_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="nowhere"):
        open_database(f"sqlite:///{tmp_path / 'nowhere' / 'sync.sqlite'}")
