"""Staff accounts and their groups: Django's own pages, but for what no screen reader could tell on them."""

from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin, UserAdmin
from django.contrib.auth.forms import ReadOnlyPasswordHashField, UserChangeForm
from django.contrib.auth.models import Group, User

admin.site.unregister([Group, User])


class StaffForm(UserChangeForm):  # type: ignore[type-arg] # Django's is not generic when it runs
    password = ReadOnlyPasswordHashField()  # a help text would be named by an id that is not on the page


@admin.register(User)
class StaffAdmin(UserAdmin):  # type: ignore[type-arg]
    form = StaffForm
    readonly_fields = ["last_login", "date_joined"]  # as fields they are two boxes each, without a label
    filter_horizontal = ()  # its icons name themselves where ARIA forbids it: a plain list is read well


@admin.register(Group)
class StaffGroupAdmin(GroupAdmin):
    filter_horizontal = ()
