"""A walk over every address of autorun's pages on an admin site, with all that may stand in one."""

from collections.abc import Iterator
from itertools import product
from typing import Any

from django.contrib.admin import AdminSite
from django.urls import reverse

from autorun.admin.pages import PageAdmin
from autorun.declare import registry
from autorun.models import Batch, Chunk, Failure, Node, Run


def addresses(site: AdminSite) -> Iterator[tuple[str, str]]:
    """The name and the address of each view, once for each object or label it may be about."""
    known = arguments()
    for model_admin in site._registry.values():
        if isinstance(model_admin, PageAdmin):
            for url in model_admin.get_urls():
                for args in product(*(known[name] for name in url.pattern.converters)):
                    yield (
                        str(url.name),
                        reverse(f"admin:{url.name}", args=args, current_app=site.name),
                    )


def arguments() -> dict[str, list[Any]]:
    """Values of each argument in a route: all objects, and labels of runners there are or were."""
    labels = {runner.label for runner in registry.runners()}
    labels |= set(Chunk.objects.values_list("runner", flat=True))
    labels |= set(Batch.objects.values_list("runner", flat=True))
    models = {"batch_id": Batch, "failure_id": Failure, "run_id": Run, "node_id": Node}
    keys = {
        name: list(model.objects.values_list("pk", flat=True)) for name, model in models.items()
    }
    return {"label": sorted(labels), "part": ["input", "outputs"], "form": ["csv", "jsonl"], **keys}
