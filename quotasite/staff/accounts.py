"""Staff accounts and their groups: Django's own pages, but for what no screen reader could tell on them.

Superusers alone edit them, whatever the permissions say: who edits an account could give it any right, or
take one that has it by a password of his own.
"""

from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin, UserAdmin
from django.contrib.auth.forms import ReadOnlyPasswordHashField, UserChangeForm
from django.contrib.auth.models import Group, User
from django.db.models import Model
from django.http import HttpRequest

admin.site.unregister([Group, User])


def by_superusers(admin: object, request: HttpRequest, obj: Model | None = None) -> bool:
    return request.user.is_active and request.user.is_superuser


class StaffForm(UserChangeForm):  # type: ignore[type-arg] # Django's is not generic when it runs
    password = ReadOnlyPasswordHashField()  # a help text would be named by an id that is not on the page


@admin.register(User)
class StaffAdmin(UserAdmin):  # type: ignore[type-arg]
    has_add_permission = has_change_permission = has_delete_permission = by_superusers
    form = StaffForm
    readonly_fields = ["last_login", "date_joined"]  # as fields they are two boxes each, without a label
    filter_horizontal = ()  # its icons name themselves where ARIA forbids it: a plain list is read well


@admin.register(Group)
class StaffGroupAdmin(GroupAdmin):
    has_add_permission = has_change_permission = has_delete_permission = by_superusers
    filter_horizontal = ()
