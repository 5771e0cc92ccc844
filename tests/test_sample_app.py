"""The sample app: real files, and what its analysis makes of them."""

import base64
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db.models.signals import post_save
from django.test import Client

from autorun.outputs import with_outputs
from sample_app.analyses import preprocess, preprocess_foreground
from sample_app.embeddings import analyses
from sample_app.embeddings.runners import DescriptionByRowRunner, DescriptionRunner
from sample_app.images import holds_image, installed_directories, is_image
from sample_app.models import Scan
from sample_app.processes import Processes
from sample_app.runners import ScanPreprocessingRunner
from tests.engine import installed, work_off

CONFIGURATION = {"harder": True, "better": 100, "stronger": "faster"}

pytestmark = [
    pytest.mark.once,
    # The files are broken on purpose, and the libraries say so.
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::ResourceWarning"),
]


@pytest.fixture
def anatomical() -> Path:
    return installed_directories()[0] / "anatomical.nii"


@pytest.fixture
def saved() -> list[str]:
    """Paths of scans whose saving sent a signal."""
    paths: list[str] = []

    def note(instance: Scan, **kwargs: object) -> None:
        paths.append(instance.path)

    post_save.connect(note, sender=Scan)
    yield paths
    post_save.disconnect(note, sender=Scan)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Addresses that `up` started a web server for; none of its processes runs."""
    addresses: list[str] = []

    def interrupt(processes: Processes) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Processes, "start_web", lambda self, address: addresses.append(address))
    for name in ("start_worker", "start_beat"):
        monkeypatch.setattr(Processes, name, lambda self, **kwargs: None)
    monkeypatch.setattr(Processes, "ended", interrupt)
    return addresses


@pytest.mark.django_db
def test_load_scans_saves_each_scan_of_both_libraries(saved: list[str]) -> None:
    call_command("load_scans", stdout=StringIO())

    assert len(saved) == Scan.objects.count() > 110
    assert Scan.objects.filter(path__endswith="anatomical.nii").exists()
    assert set(
        Scan.objects.filter(path__contains="MR_small").values_list("modality", flat=True)
    ) == {"MR"}


def test_files_without_an_image_are_told_apart() -> None:
    data = installed_directories()[1]
    named = {path.name: path for path in data.rglob("*.dcm")}

    assert holds_image(named["MR_small.dcm"])
    assert not holds_image(named["rtplan.dcm"])


@pytest.mark.django_db
def test_load_scans_in_bulk_sends_no_signal(saved: list[str]) -> None:
    call_command("load_scans", "--bulk", "--limit", "5", stdout=StringIO())

    assert Scan.objects.count() == 5
    assert saved == []


@pytest.mark.django_db
def test_load_scans_goes_on_where_it_stopped() -> None:
    call_command("load_scans", "--limit", "5", stdout=StringIO())

    call_command("load_scans", "--limit", "5", stdout=StringIO())

    assert Scan.objects.count() == 10


@pytest.mark.django_db
def test_load_scans_from_nowhere_says_what_to_do() -> None:
    with pytest.raises(CommandError, match=r"is not a directory\. Give --source"):
        call_command("load_scans", "--source", "/nowhere")


@pytest.mark.parametrize("analysis", [preprocess, preprocess_foreground])
def test_most_installed_images_have_thumbnails_and_a_few_are_broken(analysis) -> None:
    outputs, errors = [], []

    for path in _installed():
        try:
            outputs.append(analysis(path, **CONFIGURATION))
        except Exception as error:  # noqa: BLE001
            errors.append(type(error).__module__.partition(".")[0])

    assert len(outputs) > 80
    assert 5 < len(errors) < len(outputs) / 2  # without a decoder, more of them
    assert {"builtins", "nibabel"} <= set(errors)
    pngs = (base64.b64decode(each["thumbnail"].partition(",")[2]) for each in outputs)
    assert all(png.startswith(b"\x89PNG") for png in pngs)


def test_harder_normalises_to_z_scores(anatomical: Path) -> None:
    outputs = preprocess(anatomical, **CONFIGURATION)

    low, high = outputs["range"]
    assert low < 0
    assert high == pytest.approx((outputs["percentile"] - outputs["mean"]) / outputs["std"])


def test_better_clips_bright_voxels(anatomical: Path) -> None:
    every, most = (
        preprocess(anatomical, harder=False, better=better, stronger="faster")
        for better in (100, 90)
    )

    assert most["range"][1] == most["percentile"] < every["percentile"]


def test_stronger_chooses_how_many_voxels_count(anatomical: Path) -> None:
    faster, finer = (
        preprocess(anatomical, harder=True, better=100, stronger=stronger)["shape"]
        for stronger in ("faster", "finer")
    )

    assert finer == (25, 41, 33)
    assert faster == (25, 21, 17)


def test_unknown_resampling_says_which_there_are(anatomical: Path) -> None:
    with pytest.raises(ValueError, match="one of 'faster', 'finer', not 'tougher'"):
        preprocess(anatomical, harder=True, better=100, stronger="tougher")


def _installed() -> list[Path]:
    return [
        path
        for directory in installed_directories()
        for path in directory.rglob("*")
        if path.is_file() and is_image(path) and holds_image(path)
    ]


OPEN = [
    "0.0.0.0:8000",
    "0:8000",
    "[::]:8000",
    "192.0.2.7:80",
    "example.org:80",
    "localhost.example.org:80",
]


@pytest.mark.django_db
@pytest.mark.parametrize("address", OPEN)
def test_up_listens_on_no_other_address_while_anyone_knows_the_password(address: str) -> None:
    with pytest.raises(CommandError, match="createsuperuser"):
        call_command("up", address)

    assert not User.objects.exists()

    User.objects.create_superuser("admin", password="admin")

    with pytest.raises(CommandError, match="changepassword"):
        call_command("up", address)


@pytest.mark.django_db
@pytest.mark.parametrize(
    "address", ["8000", "127.0.0.1:80", "127.0.0.2:80", "[::1]:80", "localhost:80"]
)
def test_up_listens_on_loopback_with_the_known_password(address: str, started: list[str]) -> None:
    call_command("up", address, stdout=(out := StringIO()))

    assert started == [address]
    assert "password admin" in out.getvalue()


@pytest.mark.django_db
@pytest.mark.parametrize("address", OPEN)
def test_up_listens_anywhere_with_a_password_of_ones_own(address: str, started: list[str]) -> None:
    User.objects.create_superuser("admin", password="correct horse")

    call_command("up", address, stdout=(out := StringIO()))

    assert started == [address]
    assert "password admin" not in out.getvalue()


@pytest.mark.django_db
def test_a_scan_has_what_its_preprocessing_found(anatomical, admin_client):
    scan = Scan.objects.create(path=str(anatomical), size=1, checksum="a")
    ScanPreprocessingRunner().run()
    work_off()

    scan.refresh_from_db()

    outputs = ScanPreprocessingRunner().outputs_of(scan)
    found = {"mean": scan.mean, "std": scan.deviation, "thumbnail": scan.thumbnail}
    assert found == {name: outputs[name] for name in found}
    assert not ScanPreprocessingRunner().pending().exists()
    page = admin_client.get(f"/admin/sample_app/scan/{scan.pk}/change/").content.decode()
    assert f'<img src="{scan.thumbnail}"' in page


class Lengths:
    """Stands for the language model, which is too large to be installed for a test."""

    def encode(self, texts: list[str], *, normalize_embeddings: bool) -> np.ndarray:
        return np.array([[len(text), 1.0] for text in texts])


@pytest.mark.django_db
def test_descriptions_are_embedded_by_batch_as_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analyses, "load_model", Lengths)
    for description in ("head", "", "knee joint"):
        Scan.objects.create(path=f"/{description}.nii", description=description, size=1)
    with installed(DescriptionRunner, DescriptionByRowRunner):
        for runner in (DescriptionRunner(), DescriptionByRowRunner()):
            runner.backfill()
        work_off()

        found = with_outputs(
            Scan.objects.all(), batch=DescriptionRunner, row=DescriptionByRowRunner
        )
        vectors = {each.description: (each.batch, each.row) for each in found}

    assert vectors == {
        "head": ([7, 1], [7, 1]),
        "knee joint": ([13, 1], [13, 1]),
        "": (None, None),
    }


def test_the_icon_that_browsers_ask_for_is_no_error_in_their_console(client: Client) -> None:
    assert client.get("/favicon.ico").status_code == 204
