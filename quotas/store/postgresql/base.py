"""Django's engine for PostgreSQL, which refuses a standby; DATABASES names it as ENGINE.

libpq refuses one when it connects (`target_session_attrs`), by what the server says of itself. A pooler
repeats what a server said once, and may lead an open connection to another one. So this asks at each
connection, and in the health check before the first query of a request by the ORM. The store's reads ask by
themselves (sql.CLOCK).
"""

from django.db import Error, OperationalError
from django.db.backends.postgresql import base

from quotas.store.errors import TAKES_NO_WRITES


class DatabaseWrapper(base.DatabaseWrapper):
    def init_connection_state(self) -> None:
        super().init_connection_state()
        if self._is_standby():
            self.close()  # Django would take it for connected
            raise OperationalError(TAKES_NO_WRITES)

    def is_usable(self) -> bool:
        try:
            return self.connection is not None and not self._is_standby()
        except Error:
            return False

    def _is_standby(self) -> bool:
        with self.wrap_database_errors, self.connection.cursor() as cursor:
            cursor.execute("SELECT pg_is_in_recovery()")
            return bool(cursor.fetchone()[0])
