"""The database of a service: SQLite by default, PostgreSQL by URL. Transactions, durability, and the version of the tables."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from ctm.foreign.text import plain
from ctm.safety.head import check_place

__all__ = ["Database", "DatabaseFailure"]

_MIGRATIONS = Path(__file__).with_name("migrations")
_LOCK = 0x63746D20  # of PostgreSQL: the number of the lock that writers of the record hold
_LOG = "ctm"
_WAIT = 30  # seconds that a writer waits for another


class DatabaseFailure(OSError):
    """The database cannot be read or written. The message names it without its password."""


class Database:
    """Connections to one database, whose tables are brought to this version when it is opened.

    url: of SQLAlchemy, e.g. sqlite:////srv/state/service.sqlite3 or postgresql+psycopg://user:password@host/name. A connection
    that the database has closed, as when it was started again, is replaced before it is used. to_read: it is only read, so tables
    of this version need no permission to write. Raises ValueError for a URL that is none and for tables of a newer version,
    DatabaseFailure for a database that does not answer."""

    def __init__(self, url: str, to_read: bool = False) -> None:
        frozen = _frozen(url) if to_read else None
        try:
            options: dict[str, Any] = {"hide_parameters": True, "logging_name": _LOG, "pool_pre_ping": True}
            self.engine: Engine = create_engine(frozen or _with_driver(url), **options)
        except (ArgumentError, NoSuchModuleError) as error:
            raise ValueError(f"the database's URL cannot be read: {plain(str(error), 200)}") from None
        except ModuleNotFoundError as error:
            raise ValueError(
                f"this database needs the package {error.name}, which is not installed: for PostgreSQL "
                'pip install "ctm-torch[postgresql]"'
            ) from None
        logging.getLogger(f"sqlalchemy.engine.Engine.{_LOG}").setLevel(logging.WARNING)  # else DEBUG shows each row
        self.name = self.engine.url.render_as_string(hide_password=True)
        self.is_sqlite = self.engine.dialect.name == "sqlite"
        if self.is_sqlite and self.engine.url.database in (None, "", ":memory:"):
            raise ValueError("a database in memory keeps no record: give sqlite:///FILE")
        if self.is_sqlite:
            event.listen(self.engine, "connect", _prepare if frozen is None else _prepare_frozen)
            event.listen(self.engine, "begin", _begin)
        if not (to_read and self._is_current()):
            self._migrate()

    @property
    def path(self) -> Path | None:
        """The file of a SQLite database, None of another."""
        return Path(str(self.engine.url.database)) if self.is_sqlite else None

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database."""
        with self._failures(), self.engine.connect() as connection:
            if not self.is_sqlite:
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that is alone among writers, of all processes, from its beginning on. It is on the disk when the block
        ends, and leaves nothing if the block raises."""
        with self._failures(), self.engine.connect() as connection:
            connection = connection.execution_options(ctm_writes=True)
            with connection.begin():
                if not self.is_sqlite:
                    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
                yield connection

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    def forget_deleted(self) -> None:
        """SQLite: write what the log beside the file holds into the file and empty the log, so that deleted bytes, which are
        overwritten by zeros (secure_delete), are in neither."""
        if self.is_sqlite:
            with self._failures(), self.engine.connect() as connection:
                raw = connection.connection.dbapi_connection
                if raw is not None:
                    raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # type: ignore[attr-defined, unused-ignore]

    def _is_current(self) -> bool:
        """Whether the tables are of this version."""
        with self.reading() as connection:
            present = MigrationContext.configure(connection).get_current_revision()
        return present == ScriptDirectory.from_config(_config()).get_current_head()

    def _migrate(self) -> None:
        """Bring the tables to this version, one process at a time."""
        config = _config()
        scripts = ScriptDirectory.from_config(config)
        with self.writing() as connection:
            present = MigrationContext.configure(connection).get_current_revision()
            if present == scripts.get_current_head():
                return
            known = {script.revision for script in scripts.walk_revisions()}
            if present is not None and present not in known:
                raise ValueError(
                    f"{self.name} has tables of version {plain(present)}, newer than this ctm knows "
                    f"({scripts.get_current_head()}): use the ctm that wrote it, or a newer one"
                )
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Inside the block, a failure of the database is a DatabaseFailure with one sentence."""
        try:
            yield
        except DBAPIError as error:
            reason = plain(str(error.orig).strip().split("\n")[0], 200)
            reason += " (the disk may be full)" if reason == "disk I/O error" else ""
            raise DatabaseFailure(f"the database {self.name} fails: {reason}") from error


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    return config


def _frozen(url: str) -> str | None:
    """The URL of a SQLite file in a directory that cannot be written to, or whose disk is full, so that it is read as it is; None
    for any other. A log beside it that is not empty belongs to the file, and needs a directory that can be written to."""
    path = Path(url.removeprefix("sqlite:///"))
    if not url.startswith("sqlite:///") or not path.is_file():
        return None
    try:
        check_place(path)
        return None
    except OSError as error:
        reason = error.strerror
    log = path.with_name(f"{path.name}-wal")
    if log.is_file() and log.stat().st_size > 0:
        raise ValueError(
            f"{path.parent} cannot be written to ({reason}), and {log.name} there holds entries that {path.name} lacks: make "
            "room, or copy the whole directory to where it can be written to"
        )
    return f"sqlite:///file:{quote(str(path.absolute()))}?mode=ro&immutable=1&uri=true"


def _prepare_frozen(connection: Any, _: Any) -> None:
    connection.isolation_level = None


def _with_driver(url: str) -> str:
    """The URL with psycopg as PostgreSQL's driver, where it names none: so hosts give it, postgres://… or postgresql://…."""
    kind, mark, rest = url.partition("://")
    return f"postgresql+psycopg{mark}{rest}" if kind in ("postgres", "postgresql") else url


def _prepare(connection: Any, _: Any) -> None:
    """Of each new SQLite connection: transactions begin where `_begin` says, a commit is on the disk, deleted bytes are zeros."""
    connection.isolation_level = None
    for setting in (
        f"busy_timeout={_WAIT * 1000}",
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        "secure_delete=ON",
    ):
        connection.execute(f"PRAGMA {setting}").close()


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get("ctm_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
