"""Staff in the console's tests: sign in with exactly the given permissions, send and confirm an action."""

from typing import Any
from uuid import uuid4

from django.contrib.auth.models import Group, Permission, User
from django.http import HttpResponse
from django.test import Client

LIST = "/admin/quotas/challengequota/"
PAGE = f"{LIST}user_5F1/change/"  # the admin writes _5F for the _ of user_1
SCRIPT = "<script>alert(1)</script>"
ACTING = (
    "view_challengequota",
    "change_challengequota",
    "change_plan_of_quota",
    "view_ledgerentry",
    "view_plan",
    "change_plan",
)


class Browser(Client):
    """A client that uses HTTPS, which the site requires."""

    def generic(self, *args: Any, secure: bool = True, **options: Any) -> HttpResponse:
        return super().generic(*args, secure=True, **options)


def sign_in(*codenames: str, group: str = "", is_superuser: bool = False) -> Client:
    """Return a client signed in as the new staff member alice."""
    user = User.objects.create_user("alice", is_staff=True, is_superuser=is_superuser)
    user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
    user.groups.set(Group.objects.filter(name=group))
    client = Browser()
    client.force_login(user)
    return client


def send(client: Client, action: str, *user_ids: str, path: str = LIST, **data: object) -> HttpResponse:
    sent = {"action": action, "_selected_action": user_ids, **data}
    return client.post(path, sent, follow=True)


def confirm(client: Client, action: str, *user_ids: str, token: object = None, **data: object) -> str:
    sent = {"token": token or uuid4(), "reason": "a kind word", "confirmed": "1", **data}
    return text(send(client, action, *user_ids, **sent))


def text(response: HttpResponse) -> str:
    return (response.getvalue() if response.streaming else response.content).decode()
