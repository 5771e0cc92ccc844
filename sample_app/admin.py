from django.contrib import admin
from django.utils.html import format_html
from django.utils.safestring import SafeString

from autorun.admin import AutorunAdminMixin
from sample_app.models import Scan, Subject


@admin.register(Subject)
class SubjectAdmin(AutorunAdminMixin, admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ("__str__", "age")
    search_fields = ("code",)


@admin.register(Scan)
class ScanAdmin(AutorunAdminMixin, admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ("__str__", "modality")
    list_filter = ("modality",)
    search_fields = ("path", "description")
    readonly_fields = ("created_at", "updated_at", "mean", "deviation", "middle_slice")

    def middle_slice(self, scan: Scan) -> SafeString:
        """The thumbnail from the preprocessing."""
        if not scan.thumbnail:
            return SafeString("-")
        return format_html('<img src="{}" width="128" alt="Middle slice">', scan.thumbnail)
