"""Runners that preprocess scans, and one that compares the scans of each subject."""

import logging
import os
from typing import Any

from django.db.models import Q, QuerySet

from autorun.outputs import with_outputs
from autorun.runner import Each, QuerySetRunner
from sample_app.models import Scan, Subject


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
    OUTPUT_FIELDS = {"mean": "mean", "std": "deviation", "thumbnail": "thumbnail"}

    def get_instance_representation(self, instance: Scan) -> str:
        return instance.path


class AnatomicalPreprocessingRunner(ScanPreprocessingRunner):
    """Anatomical scans only, with every voxel and without the brightest hundredth."""

    ANALYSIS_CONFIGURATION = {"harder": True, "better": 99, "stronger": "finer"}
    FILTER_QUERYSET_START = "Filtering anatomical scans..."
    # The fields of a scan are those of the other runner.
    OUTPUT_FIELDS = {}

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


class SubjectIntensityRunner(QuerySetRunner):
    """Every subject, once all of its scans are preprocessed, and again when one of them changes."""

    DATA_MODEL = Subject
    ANALYSIS = "Subject Intensity"
    ANALYSIS_VERSION = "1.0"
    INPUT_KEY = "means"
    INPUT_FIELDS = ()
    BASE_QUERY = Q(scans__isnull=False)
    DEPENDS_ON = (Each(ScanPreprocessingRunner, "scans"),)

    def get_instance_representation(self, instance: Subject) -> list[float]:
        scans: QuerySet[Any] = instance.scans.order_by("pk")
        done = with_outputs(scans, preprocessed=ScanPreprocessingRunner)
        return [scan.preprocessed["mean"] for scan in done]
