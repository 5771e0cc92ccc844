"""The frame of all pages, the permission to see them, and the views that change something."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import wraps
from typing import Any, TypeVar, cast

from django.contrib import admin, messages
from django.contrib.admin import AdminSite
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.core.checks import CheckMessage
from django.core.exceptions import PermissionDenied
from django.db.models import Model
from django.http import Http404, HttpRequest, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.template.response import TemplateResponse
from django.urls import NoReverseMatch, URLPattern, path, reverse
from django.utils.decorators import method_decorator
from django.utils.html import format_html
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _, gettext_lazy
from django.views.decorators.http import require_POST

from autorun.admin.markup import django_engine, harmless_html
from autorun.declare import page_time, registry
from autorun.declare.base import Runner
from autorun.exceptions import RunTimeout, bare_message
from autorun.observe.checks.names import check_site
from autorun.observe.glance import Tally, take_tally
from autorun.state.words import harmless, in_one_line, number


class Permission(StrEnum):
    """The permissions that users and groups get in Django's admin."""

    VIEW = "autorun.view_run"
    START = "autorun.start_run"
    BACKFILL = "autorun.backfill_run"
    RETRY = "autorun.retry_run"
    CANCEL = "autorun.cancel_run"
    PAUSE = "autorun.pause_run"
    SEE_PAYLOAD = "autorun.view_payload"


def is_admitted(request: HttpRequest, site: AdminSite) -> bool:
    """Whether the site admits the user. Django's own needs `is_staff`, if users have that."""
    is_djangos = site.__class__.has_permission is AdminSite.has_permission
    user: Any = request.user
    if is_djangos and not hasattr(user, "is_staff"):
        return bool(user.is_active)
    return bool(site.has_permission(request))


def sees_payload(request: HttpRequest) -> bool:
    """Whether the user may see inputs, outputs, and all that people and a project's code wrote."""
    # That may contain data of a row: messages of errors, reasons, what a body says of its progress.
    return bool(request.user.has_perm(Permission.SEE_PAYLOAD))


#: How often the script refreshes a page while runs are in progress, and while none are.
LIVELY_SECONDS, IDLE_SECONDS = 5, 30

View = TypeVar("View", bound=Callable[..., HttpResponseBase])

TABS = (
    ("overview", gettext_lazy("Overview"), "autorun_node_changelist"),
    ("runs", gettext_lazy("Runs"), "autorun_run_changelist"),
    ("failures", gettext_lazy("Failures"), "autorun_failure_changelist"),
    ("batches", gettext_lazy("Batches"), "autorun_batch_changelist"),
    ("health", gettext_lazy("Health"), "autorun_health_changelist"),
)


@dataclass(frozen=True)
class Tab:
    """One tab of the pages; `count` is '' for none, and `words` say what is counted."""

    key: str
    name: str
    url: str
    count: str = ""
    words: str = ""
    mark: str = ""


class PageResponse(TemplateResponse):
    """A page; if its site lacks one that it leads to, a page that says so (`autorun.E047`)."""

    @property
    def rendered_content(self) -> str:
        try:
            html = super().rendered_content
        except NoReverseMatch as error:
            if "autorun_" not in str(error):
                raise
            self.template_name = "autorun/lacking.html"
            html = super().rendered_content
        return harmless_html(html)


class PageAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """A ModelAdmin with pages of its own: nothing is added, changed or deleted."""

    #: The tab the pages belong to.
    tab = ""

    def __init__(self, model: type[Model], admin_site: admin.AdminSite) -> None:
        super().__init__(model, admin_site)
        # The name in the admin's index and sidebar: in the model, it would need a migration.
        names = {key: name for key, name, _url in TABS}
        self.opts.verbose_name_plural = names.get(self.tab, self.opts.verbose_name_plural)

    def check(self, **options: Any) -> list[CheckMessage]:
        """Also that the site has the pages of all tabs that others need."""
        names = [address.split("_")[1] for key, _, address in TABS if key != "health"]
        return [*super().check(**options), *check_site(self, names)]

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return request.user.has_perm(Permission.VIEW)

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    has_module_permission = has_view_permission
    has_change_permission = has_delete_permission = has_add_permission

    def get_urls(self) -> list[URLPattern]:
        """The views with a route, in the order of the class, named `autorun_<model>_<view>`."""
        views = {name: each for cls in type(self).__mro__ for name, each in vars(cls).items()}
        return [
            path(
                view.route,
                self.admin_site.admin_view(getattr(self, name)),
                name=f"autorun_{self.opts.model_name}_{name}",
            )
            for name, view in views.items()
            if hasattr(view, "route")
        ]

    def render(
        self, request: HttpRequest, template: str, title: str, **context: Any
    ) -> TemplateResponse:
        """A page in the admin's frame; with a `tally` in the context, none is taken."""
        tally = context.pop("tally") if "tally" in context else take_tally()
        frame = {
            **self.admin_site.each_context(request),
            "title": title,
            "opts": self.opts,
            "tab": self.tab,
            "tabs": self._tabs(tally),
            "refresh_seconds": LIVELY_SECONDS if tally.unfinished else IDLE_SECONDS,
        }
        return self.fragment(request, template, **(frame | context))

    def _tabs(self, tally: Tally) -> list[Tab]:
        unfinished = number(tally.unfinished or None, is_about=bool(tally.crowd))
        counts = {
            "runs": (unfinished, _("in progress"), "running"),
            "failures": (number(tally.failed or None), _("failed"), "failed"),
            "batches": (number(tally.batches or None), _("unfinished"), "running"),
            "health": ("!" * tally.has_no_worker, _("no worker"), "failed"),
        }
        tabs = [(key, str(name), self.url(url)) for key, name, url in TABS]
        return [Tab(*each, *counts.get(each[0], ())) for each in tabs if each[2]]

    def fragment(self, request: HttpRequest, template: str, **context: Any) -> TemplateResponse:
        """A template alone: a part of a page that the script fetches."""
        # `{% url %}` resolves by it if there are several admin sites.
        request.current_app = self.admin_site.name
        name, engine = f"autorun/{template}.html", django_engine()
        return PageResponse(request, name, context, using=engine)

    def url(self, name: str, *args: Any) -> str:
        return address_of(self.admin_site, name.removeprefix("autorun_"), *args)

    def redirect(self, name: str, *args: Any) -> HttpResponseRedirect:
        address = self.url(name, *args)
        return HttpResponseRedirect(
            address or reverse("admin:index", current_app=self.admin_site.name)
        )

    def back(self, request: HttpRequest, otherwise: str) -> HttpResponseRedirect:
        """Redirect to the page the form names as its own, if it is on this site."""
        following = request.POST.get("next", "")
        is_ours = url_has_allowed_host_and_scheme(
            following, {request.get_host()}, require_https=request.is_secure()
        )
        return HttpResponseRedirect(following if is_ours else otherwise)

    def note(
        self,
        request: HttpRequest,
        what: str,
        *objects: Model,
        about: str = "",
        detail: str = "",
        links: SafeString | str = "",
    ) -> None:
        """Show the user a message, and leave an entry in the admin's log for each object.

        Without objects, one entry for what `about` describes. `detail` appears in the log only,
        `links` in the message only.
        """
        message = in_one_line(f"{what} {detail}".strip())
        entry = {"user_id": request.user.pk, "action_flag": CHANGE, "change_message": message}
        entries: list[Any] = [(each, each.pk, str(each)) for each in objects]
        for subject, key, text in entries or [(self.model, None, about)]:
            name = in_one_line(text[:200])
            content_type = ContentType.objects.get_for_model(subject)
            LogEntry.objects.create(
                content_type=content_type, object_id=key, object_repr=name, **entry
            )
        messages.success(request, format_html("{}{}", harmless(what), links))


def page(route: str, *permissions: Permission) -> Callable[[View], View]:
    """A view at that route, for users who may see autorun's pages and have the permissions."""

    def with_route(view: View) -> View:
        @wraps(view)
        def checked(
            self: PageAdmin, request: HttpRequest, *args: Any, **kwargs: Any
        ) -> HttpResponseBase:
            require(request, *permissions)
            try:
                with page_time.budget():
                    return view(self, request, *args, **kwargs)
            except RunTimeout as error:
                messages.error(request, bare_message(error))
                response = self.render(request, "base", _("Too slow"))
                response.status_code = 503
                return response

        checked.route = route  # type: ignore[attr-defined]
        return cast("View", checked)

    return with_route


def action(route: str, permission: Permission) -> Callable[[View], View]:
    """A view that changes something: by POST only, for users who have the permission."""
    return lambda view: page(route, permission)(method_decorator(require_POST)(view))


def address_of(site: admin.AdminSite, page: str, *args: Any) -> str:
    """The address of one of autorun's pages; '' if the site does not have it."""
    with suppress(NoReverseMatch):
        return reverse(f"admin:autorun_{page}", args=args, current_app=site.name)
    return ""


def require(request: HttpRequest, *permissions: Permission) -> None:
    """Raise PermissionDenied unless the user has them, and may see the pages at all."""
    if not request.user.has_perms((Permission.VIEW, *permissions)):
        raise PermissionDenied


def is_fetched(request: HttpRequest) -> bool:
    """Whether the pages' script fetches a part of a page."""
    return request.headers.get("X-Requested-With") == "autorun"


def get_runner(label: str) -> Runner:
    """The registered runner of that label; raises Http404 if there is none."""
    runner = registry.find(label)
    if runner is None:
        raise Http404(f"No runner is registered as {label!r}.")
    return runner


def who(request: HttpRequest) -> str:
    """The user's name, as `requested_by` of a batch."""
    return request.user.get_username()[:255]
