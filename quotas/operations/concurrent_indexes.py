"""What a migration may do to a live table: `online.AddIndex` and `RemoveIndex` lock nobody out."""

from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.state import ProjectState


class AddIndex(migrations.AddIndex):
    """Add an index beside the traffic. Where that broke off, it can be done again.

    Its migration must have `atomic = False`. SQLite knows one way only.
    """

    atomic = False

    def database_forwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        if not _drop_concurrently(schema_editor, self.index.name):  # one that was half made
            super().database_forwards(app_label, schema_editor, from_state, to_state)
            return
        model = to_state.apps.get_model(app_label, self.model_name)
        schema_editor.add_index(model, self.index, concurrently=True)  # type: ignore[call-arg] # PostgreSQL's

    def database_backwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        if not _drop_concurrently(schema_editor, self.index.name):
            super().database_backwards(app_label, schema_editor, from_state, to_state)


class RemoveIndex(migrations.RemoveIndex):
    """Remove an index beside the traffic; the way back makes it as Django does."""

    atomic = False

    def database_forwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        if not _drop_concurrently(schema_editor, self.name):
            super().database_forwards(app_label, schema_editor, from_state, to_state)


def _drop_concurrently(schema_editor: BaseDatabaseSchemaEditor, name: str) -> bool:
    """Drop the index if it is there, where the database can do so without locking anybody out."""
    if schema_editor.connection.vendor != "postgresql":
        return False
    schema_editor.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
    return True
