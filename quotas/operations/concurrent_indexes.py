"""`AddIndex` and `RemoveIndex` for migrations of live tables, which do not block reads or writes."""

from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.state import ProjectState


class AddIndex(migrations.AddIndex):
    """Add an index concurrently. Run again after a failure, it replaces the invalid index.

    Its migration must have `atomic = False`. SQLite adds the index in the ordinary way.
    """

    atomic = False

    def database_forwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        if not _drop_concurrently(schema_editor, self.index.name):  # an invalid index
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
    """Remove an index concurrently; the reverse migration adds it as Django does."""

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
    """Drop the index if it exists; return False, without doing so, if only an ordinary drop is possible."""
    if schema_editor.connection.vendor != "postgresql":
        return False
    schema_editor.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
    return True
