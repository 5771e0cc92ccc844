from django.contrib import admin
from django.utils.html import format_html
from django.utils.safestring import SafeString

from autorun.admin import AutorunAdminMixin
from autorun.models import Run
from sample_app.models import Scan, Subject
from sample_app.runners import ScanPreprocessingRunner


@admin.register(Subject)
class SubjectAdmin(AutorunAdminMixin, admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ("__str__", "age")
    search_fields = ("code",)


@admin.register(Scan)
class ScanAdmin(AutorunAdminMixin, admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ("__str__", "description", "modality", "size")
    list_filter = ("modality",)
    search_fields = ("path", "description")
    readonly_fields = ("created_at", "updated_at", "middle_slice")

    def middle_slice(self, scan: Scan) -> SafeString:
        """The thumbnail from the preprocessing."""
        node = ScanPreprocessingRunner().get_node()
        run = Run.objects.filter(node=node, object_id=scan.pk, is_current=True).first()
        if run is None or not run.outputs or "thumbnail" not in run.outputs:
            return SafeString("-")
        return format_html(
            '<img src="{}" width="128" alt="Middle slice">', run.outputs["thumbnail"]
        )
