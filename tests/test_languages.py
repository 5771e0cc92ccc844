"""The pages in other languages: nothing is left in English, and the catalogues are complete."""

import ast
import gettext
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from django.contrib import admin
from django.test import Client
from django.urls import reverse
from django.utils import translation
from django.utils.translation import trans_real

import autorun
from autorun.admin.bulk_actions import ACTIONS
from autorun.admin.cards import title_of_runner
from autorun.admin.tables import runner_name
from autorun.declare import registry
from autorun.models import Batch, Run
from autorun.observe.explanation import explain
from autorun.state import origins, words
from sample_app.models import Scan
from tests import admin_walk, services
from tests.browser import scenes
from tests.test_command_line import typed

LOCALES = Path(autorun.__file__).parent / "locale"
LANGUAGES = ("de", "fr")
#: Parts of a message that the catalogues keep: placeholders, and HTML.
KEPT = re.compile(r"(%\(\w+\)[sr]|%[sr]|\{\w*\}|<[^>]+>)")
#: Words that are data, or the same in all languages.
DATA = re.compile(
    r"""
    sample_app[\w.]* | library\.\w+ | faultlab\.\w+ | [\w./-]*scans?[\w./-]* | celery@\S+
    | (?:\w+\.)?\w+Error | django_celery_beat\S*
    | 'default' | autorun:\ sweep | \w+:/{2,}\S+
    | input_file | path | checksum | caption | text | photos | subjects | ^no$
    | has\ no\ pixel\ data | \[Errno\ 5\]\ Cannot\ read | autorun-tests-\w+
    | \b(?:Autorun|CSV|JSON|Lines|UTC|MR|ada|root|ms|min)\b
    | \b(?:Scan|Document|Anatomical|Preprocessing|Echo)s?\b
    """,
    re.VERBOSE,
)
#: Elements whose words are code or data.
SILENT = ("script", "style", "code", "pre")
NO_PAGES = ("autorun_node_export", "autorun_run_text", "autorun_failure_change")
#: Parameters with which a page shows more.
GIVEN = {"autorun_health_changelist": {"now": 1}}
SHOWN = ("aria-label", "title", "alt", "placeholder", "data-name", "data-autorun-stale")


class Marked(gettext.NullTranslations):
    """A language in which every translated text is in brackets."""

    def gettext(self, message: str) -> str:
        text = message.rpartition("\x04")[2]
        if text.startswith("Y-m-d"):
            return text
        parts = KEPT.split(text)
        return "".join(each if KEPT.fullmatch(each) or not each else f"⟦{each}⟧" for each in parts)

    def ngettext(self, one: str, many: str, n: int) -> str:
        return self.gettext(one if n == 1 else many)

    def language(self) -> str:
        return "en"

    to_language = language


class Words(HTMLParser):
    """The words of autorun's part of a page that are in no brackets."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.silent = 0
        runners = registry.runners()
        self.names = [
            told for each in runners for told in (title_of_runner(each), runner_name(each.label))
        ]
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        given = dict(attrs)
        self.silent += tag in SILENT or given.get("class") == "ar-prose"
        if not self.silent:
            for name in SHOWN:
                self.handle_data(given.get(name) or "")

    def handle_endtag(self, tag: str) -> None:
        self.silent -= bool(self.silent) and tag in (*SILENT, "p")

    def handle_data(self, data: str) -> None:
        # A text with code in it is in several elements.
        left = re.sub(r"⟦[^⟦⟧]*(⟧|$)|^[^⟦⟧]*⟧", " ", data.strip())
        left = DATA.sub(" ", left)
        for each in self.names:
            left = left.replace(each, " ")
        if not self.silent and re.search(r"[^\W\d_]{2}", left):
            self.found.append(" ".join(left.split()))


def untranslated(html: str) -> list[str]:
    main = html[html.index('<div class="ar">') : html.index("<!-- END Content -->")]
    title = re.search("<title>(.*?)</title>", html, re.DOTALL)
    messages = re.findall('<li class="(?:success|info|warning|error)">(.*?)</li>', html, re.DOTALL)
    return [found for part in (main, title[1], *messages) for found in Words(part).found]


@pytest.fixture
def marked() -> Iterator[None]:
    before = getattr(trans_real._active, "value", None)
    trans_real._active.value = Marked()
    yield
    if before is None:
        del trans_real._active.value
    else:
        trans_real._active.value = before


@pytest.fixture
def user(client: Client) -> Client:
    client.force_login(scenes.add_user("root", is_superuser=True))
    return client


def pages(user: Client) -> Iterator[tuple[str, Any]]:
    row = Scan.objects.earliest("pk").pk
    for name, address in admin_walk.addresses(admin.site):
        label = re.search(r"sample_app\.(\w+)", address)
        if name in NO_PAGES or (label and label[1] != "ScanPreprocessingRunner"):
            continue
        given = GIVEN.get(name, {}) | ({"row": row} if name == "autorun_node_why" else {})
        page = user.get(address, given)
        if page.status_code == 200 and not page.streaming and '<div class="ar">' in page.text:
            yield address, page


@pytest.mark.django_db
def test_no_word_of_a_page_is_untranslated(user: Client, marked: None) -> None:
    scenes.few()

    found = {each for address, page in pages(user) for each in untranslated(page.text)}

    assert not found, "\n".join(sorted(found))


@pytest.mark.django_db
def test_no_message_of_an_action_is_untranslated(user: Client, marked: None, sent: list) -> None:
    scenes.few()
    found = set()
    batch = Batch.objects.latest("pk").pk
    failed = list(Run.objects.filter(status=Run.Status.FAILED).values_list("pk", flat=True))
    node = "/admin/autorun/node/sample_app.ScanPreprocessingRunner"
    posts = [
        *(("run/act/", {"action": name, "scope": "everything"}) for name in ACTIONS),
        *(("run/act/", {"action": name, "ids": failed, "confirmed": 1}) for name in ACTIONS),
        ("run/act/", {}),
        *((f"batch/{batch}/{what}/", {}) for what in ("pause", "resume", "cancel", "stop")),
        *((f"node/{what}/", {}) for what in ("pause-all", "resume-all")),
    ]

    for address, form in posts:
        page = user.post(f"/admin/autorun/{address}", form, follow=True)
        found.update(untranslated(page.text))
    for what in ("pause", "resume", "sweep"):
        found.update(untranslated(user.post(f"{node}/{what}/", follow=True).text))

    assert not found, "\n".join(sorted(found))


@pytest.mark.django_db
@pytest.mark.parametrize("language", LANGUAGES)
def test_each_page_answers_in_a_language(language: str, user: Client) -> None:
    scenes.few()

    with translation.override(language):
        found = [address for address, page in pages(user)]

    assert len(found) > 10


@pytest.mark.django_db
def test_the_index_and_the_titles_are_in_the_active_language(user: Client) -> None:
    scenes.few()
    batch = Batch.objects.latest("pk")

    with translation.override("fr"):
        index = user.get(reverse("admin:index")).text
        title = user.get(reverse("admin:autorun_batch_change", args=[batch.pk])).context["title"]

    for name in ("Exécutions", "Échecs", "Lots", "Santé"):
        assert f">{name}</a>" in index
    assert title == f"Rattrapage {batch.pk} : lignes à traiter"


@pytest.mark.django_db
def test_the_entries_of_filters_that_are_data_stay_as_they_are(user: Client) -> None:
    with translation.override("fr"):
        runs = user.get(reverse("admin:autorun_run_changelist"), {"exception": "error"}).text
        batches = user.get(reverse("admin:autorun_batch_changelist")).text

    assert '<option value="error" selected>error</option>' in runs  # not "erreur"
    assert '<option value="cancelled">annulée</option>' in runs  # une exécution
    assert '<option value="cancelled">annulé</option>' in batches  # un lot


@pytest.mark.django_db
def test_a_filter_may_have_an_entry_of_any_name(user: Client) -> None:
    runs = user.get(reverse("admin:autorun_run_changelist"), {"exception": "items"}).text

    assert '<option value="items" selected>items</option>' in runs


def test_states_agree_with_the_number_before_them() -> None:
    with translation.override("fr"):
        words_of = [words.in_words("not_applicable", number) for number in (0, 1, 2)]
        one, several = words.in_words("succeeded"), words.in_words("succeeded", 1_204)

    assert words_of == ["non applicable", "non applicable", "non applicables"]
    assert (one, several) == ("réussie", "réussies")


@pytest.mark.django_db
def test_the_reasons_and_formats_are_of_the_language() -> None:
    runner = scenes.few()
    scan = Scan.objects.latest("pk")

    with translation.override("de"):
        german = str(explain(runner, scan))
        assert words.number(98_765) == "98.765"
        assert words.duration(2.13) == "2,1 s"
        assert words.rate(1.5) == "1,5 Läufe/s"
    with translation.override("fr"):
        assert words.number(98_765) == "98\xa0765"

    assert german.startswith("Scan Preprocessing v1.0 ist für diese Zeile nicht gelaufen")


def test_the_user_of_the_command_line_is_named_in_the_language() -> None:
    with translation.override("de"):
        named = [*map(origins.requester, ("ada", "root (command line)", "command line"))]
        cancelled = origins.reason_in_words("Cancelled by root (command line).")
        other = origins.reason_in_words("ValueError: no pixel data")

    assert named == ["ada", "root (Befehlszeile)", "Befehlszeile"]
    assert cancelled == "Abgebrochen von root (Befehlszeile)."
    assert other == "ValueError: no pixel data"


@pytest.mark.django_db
def test_the_command_line_is_english(settings: Any) -> None:
    scenes.few()
    settings.LANGUAGE_CODE = "de"

    with translation.override("de"):
        told = typed("status")

    assert "Overview" not in told
    assert "failed" in told
    assert "fehlgeschlagen" not in told


@pytest.mark.once
@pytest.mark.parametrize("language", LANGUAGES)
def test_a_catalogue_is_complete_and_compiled(language: str) -> None:
    folder = LOCALES / language / "LC_MESSAGES"
    text = (folder / "django.po").read_text(encoding="utf-8")
    with (folder / "django.mo").open("rb") as file:
        compiled = gettext.GNUTranslations(file)._catalog

    entries = [_entry(each) for each in text.split("\n\n")[1:]]

    assert "fuzzy" not in text
    assert not [one for one, _, texts in entries if not all(texts)]
    for one, many, texts in entries:
        keys = [one] if not many else [(one, place) for place in range(len(texts))]
        assert [compiled[key] for key in keys] == texts, "run `make messages`"
        for each in texts:
            assert sorted(KEPT.findall(many or one)) == sorted(KEPT.findall(each))


@pytest.mark.once
@pytest.mark.parametrize("language", LANGUAGES)
def test_no_message_has_another_translation_in_the_admin(language: str) -> None:
    """The catalogues of apps that are installed before come first; a context tells them apart."""
    with (LOCALES / language / "LC_MESSAGES" / "django.mo").open("rb") as file:
        own = gettext.GNUTranslations(file)._catalog

    with translation.override(language):
        shown = {key: translation.gettext(key) for key in own if isinstance(key, str) and key}

    assert {key: own[key] for key in shown if "\x04" not in key} == {
        key: text for key, text in shown.items() if "\x04" not in key
    }


@pytest.mark.once
@pytest.mark.slow
def test_the_catalogues_have_the_messages_of_the_code(tmp_path: Path) -> None:
    if shutil.which("xgettext") is None:
        missing = pytest.fail if services.are_required() else pytest.skip
        missing("There is no xgettext: `apt-get install gettext`.")
    shutil.copytree(LOCALES.parent, tmp_path / "autorun")
    arguments = ("--all", "--no-location", "--no-wrap", "--no-obsolete", "--verbosity", "0")
    command = [sys.executable, "-m", "django", "makemessages", *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

    subprocess.run(command, cwd=tmp_path / "autorun", env=environment, check=True)

    for language in LANGUAGES:
        path = Path("locale", language, "LC_MESSAGES", "django.po")
        ours, found = (each / path for each in (LOCALES.parent, tmp_path / "autorun"))
        lines = found.read_text(encoding="utf-8").splitlines()
        kept = [each for each in lines if not each.startswith('"POT-Creation-Date')]
        assert ours.read_text(encoding="utf-8").splitlines() == kept, "run `make messages`"


def _entry(text: str) -> tuple[str, str, list[str]]:
    """The message with its context, its plural or '', and its translations in a paragraph."""
    values: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        key, _, value = ("", "", line) if line.startswith('"') else line.partition(" ")
        name = key or name
        values[name] = values.get(name, "") + ast.literal_eval(value)
    texts = [value for key, value in values.items() if key.startswith("msgstr")]
    message = "\x04".join(values[key] for key in ("msgctxt", "msgid") if key in values)
    return message, values.get("msgid_plural", ""), texts
