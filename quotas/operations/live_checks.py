"""An operation for migrations that replaces a CHECK of a live table without blocking reads or writes."""

from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.state import ProjectState
from django.db.transaction import atomic


class ReplaceCheck(migrations.AlterConstraint):
    """Replace a CHECK by another one of its name: new rows must meet it at once, and then the others.

    Its migration must have `atomic = False`, so that the others are checked without a lock on the table.
    """

    def database_forwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        model = to_state.apps.get_model(app_label, self.model_name)
        constraint = to_state.models[app_label, self.model_name_lower].get_constraint_by_name(self.name)
        with atomic(schema_editor.connection.alias):
            if schema_editor.connection.vendor != "postgresql":
                schema_editor.add_constraint(model, constraint)  # SQLite makes the table anew
                return
            schema_editor.remove_constraint(model, constraint)
            schema_editor.execute(f"{constraint.create_sql(model, schema_editor)} NOT VALID", None)
        table, name = (schema_editor.quote_name(each) for each in (model._meta.db_table, self.name))
        schema_editor.execute(f"ALTER TABLE {table} VALIDATE CONSTRAINT {name}")

    database_backwards = database_forwards
