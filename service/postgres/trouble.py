"""What the driver raises, in the service's own words. The one place where trouble with a database becomes `Unavailable`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from sqlalchemy import exc

from service.errors import BadRequest, Unavailable

STORAGE_UNAVAILABLE = "storage_unavailable"  # code of `Unavailable`: the database is away
_READ_ONLY = "25006"  # SQLSTATE of a write to a standby, as after a failover
_CROWDED = ("too many clients", "too many connections", "connection slots")


@contextmanager
def connection_errors() -> Iterator[None]:
    """Turns what SQLAlchemy and the driver raise about the connection or about a value into the service's own errors.

    Mistakes in statements stay as they are: those are ours.
    """
    try:
        yield
    except (exc.DataError, psycopg.DataError) as error:
        raise BadRequest(
            f"A value cannot be stored ({_first_line(error)}). Remove NUL characters and numbers out of range.",
            code="invalid_value",
        ) from error
    except (exc.OperationalError, exc.InterfaceError, exc.TimeoutError) as error:
        raise unavailable(error) from error
    except exc.DBAPIError as error:
        if not error.connection_invalidated and getattr(error.orig, "sqlstate", None) != _READ_ONLY:
            raise
        raise unavailable(error) from error
    except psycopg.Error as error:  # where the driver is used directly
        if not isinstance(error, psycopg.OperationalError | psycopg.InterfaceError) and error.sqlstate != _READ_ONLY:
            raise
        raise unavailable(error) from error


def unavailable(why: Exception | str) -> Unavailable:
    said = why if isinstance(why, str) else _first_line(why)
    return Unavailable(f"The database does not answer ({said}). Try again shortly.", code=STORAGE_UNAVAILABLE)


def is_crowded(error: Exception) -> bool:
    """A connection was refused for there are too many: the database answers, to others."""
    return any(word in str(error) for word in _CROWDED)


def _first_line(error: Exception) -> str:
    lines = str(getattr(error, "orig", None) or error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
