"""Runners that preprocess scans."""

import logging
import os

from django.db.models import Q, QuerySet

from autorun.runner import QuerySetRunner
from sample_app.models import Scan


class ScanPreprocessingRunner(QuerySetRunner):
    """Every scan."""

    DATA_MODEL = Scan
    ANALYSIS = "Scan Preprocessing"
    # A project writes "1.0" here and raises it in a commit. The demo raises it while it runs.
    ANALYSIS_VERSION = os.environ.get("SCAN_PREPROCESSING_VERSION", "1.0")
    ANALYSIS_CONFIGURATION = {"harder": True, "better": 100, "stronger": "faster"}
    INPUT_KEY = "input_file"
    # An edited description is not a change; a replaced file is.
    INPUT_FIELDS = ("path", "checksum")
    # A second attempt helps if a disk was unavailable; a broken file stays broken.
    MAX_ATTEMPTS = 2
    RETRY_BACKOFF = 1

    def get_instance_representation(self, instance: Scan) -> str:
        return instance.path


class AnatomicalPreprocessingRunner(ScanPreprocessingRunner):
    """Anatomical scans only, with every voxel and without the brightest hundredth."""

    ANALYSIS_CONFIGURATION = {"harder": True, "better": 99, "stronger": "finer"}
    FILTER_QUERYSET_START = "Filtering anatomical scans..."

    def filter_queryset(
        self, queryset: QuerySet[Scan], log_level: int = logging.INFO
    ) -> QuerySet[Scan]:
        queryset = super().filter_queryset(queryset, log_level)
        self.log_filter_start(log_level)
        words = ("anat", "brain", "t1")
        anatomical = queryset.filter(
            Q(*(("description__icontains", word) for word in words), _connector=Q.OR)
        )
        self.log_filter_end(anatomical.count(), log_level)
        return anatomical
