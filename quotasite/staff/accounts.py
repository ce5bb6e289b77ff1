"""Staff accounts and groups: Django's own pages, without the widgets that screen readers cannot announce.

Only superusers may edit them, whatever the permissions grant: editing an account can give it any right, and
setting a superuser's password takes over that account.
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


class StaffForm(UserChangeForm):  # type: ignore[type-arg] # Django's is not generic at run time
    password = ReadOnlyPasswordHashField()  # without a help text: aria-describedby would name a missing id


@admin.register(User)
class StaffAdmin(UserAdmin):  # type: ignore[type-arg]
    has_add_permission = has_change_permission = has_delete_permission = by_superusers
    form = StaffForm
    readonly_fields = ["last_login", "date_joined"]  # as inputs they are two boxes each, without labels
    filter_horizontal = ()  # its icons carry names where ARIA forbids them: use a plain list


@admin.register(Group)
class StaffGroupAdmin(GroupAdmin):
    has_add_permission = has_change_permission = has_delete_permission = by_superusers
    filter_horizontal = ()
