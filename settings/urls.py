from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.urls import include, path
from django.views.generic import RedirectView


def no_icon(_request: HttpRequest) -> HttpResponse:
    """Browsers ask for an icon of every site; without an answer, their consoles complain."""
    return HttpResponse(status=204)


urlpatterns = [
    path("favicon.ico", no_icon),
    path("", RedirectView.as_view(pattern_name="admin:index")),
    path("admin/", admin.site.urls),
    path("autorun/api/", include("autorun.contrib.api")),
]
