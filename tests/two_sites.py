"""URLs of a project with several admin sites: all pages of autorun, all but one, only columns."""

from django.contrib import admin
from django.contrib.auth.models import Group
from django.urls import path

from autorun.admin import Health
from autorun.models import Batch, Failure, Node, Run
from sample_app.models import Scan

MODELS = (Batch, Failure, Node, Run)

other = admin.AdminSite(name="other")
brief = admin.AdminSite(name="brief")
bare = admin.AdminSite(name="bare")
for model in (Batch, Failure, Health, Node, Run, Scan):
    other.register(model, type(admin.site._registry[model]))
    if model is not Health:
        brief.register(model, type(admin.site._registry[model]))
partial = [admin.AdminSite(name=f"no_{each._meta.model_name}") for each in MODELS]
for site, without in zip(partial, MODELS, strict=True):
    for model in {*MODELS, Scan} - {without}:
        site.register(model, type(admin.site._registry[model]))
for model in (Scan, Group):
    bare.register(model, type(admin.site._registry[model]))

urlpatterns = [
    path("admin/", admin.site.urls),
    path("other/", other.urls),
    path("brief/", brief.urls),
    path("bare/", bare.urls),
    *(path(f"{each.name}/", each.urls) for each in partial),
]
