import hashlib
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from sample_app.images import describe, holds_image, installed_directories, is_image
from sample_app.models import Scan, Subject


class Command(BaseCommand):
    help = "Record the brain scans that nibabel and pydicom install, or those of a directory."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--source", type=Path, help="a directory to search instead")
        parser.add_argument("--limit", type=int, help="record at most this many scans")
        parser.add_argument(
            "--bulk",
            action="store_true",
            help="write with bulk_create, which sends no signal, instead of save()",
        )

    def handle(self, *, source: Path | None, limit: int | None, bulk: bool, **options: Any) -> None:
        known = set(Scan.objects.values_list("path", flat=True))
        new = [path for path in _find(source) if str(path) not in known][:limit]
        scans = [_examine(path) for path in new]
        if bulk:
            Scan.objects.bulk_create(scans)
        else:
            for scan in scans:
                scan.save()
        how = "by bulk_create, without a signal" if bulk else "by save()"
        self.stdout.write(f"{len(scans)} scans recorded {how}; {len(known)} existed before.")


def _find(source: Path | None) -> list[Path]:
    if source and not source.is_dir():
        raise CommandError(f"{source} is not a directory. Give --source one that holds scans.")
    directories = [source.absolute()] if source else installed_directories()
    return [
        path
        for directory in directories
        for path in sorted(directory.rglob("*"))
        if path.is_file() and is_image(path) and holds_image(path)
    ]


def _examine(path: Path) -> Scan:
    description, modality, code = describe(path)
    subject = Subject.objects.get_or_create(code=code[:64])[0] if code else None
    content = path.read_bytes()
    return Scan(
        path=str(path),
        subject=subject,
        description=description[:200],
        modality=modality[:16],
        size=len(content),
        checksum=hashlib.sha256(content).hexdigest(),
    )
