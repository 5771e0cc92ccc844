"""Secrets and control characters stay out of what is shown, logged and sent."""

import logging

import django
import pytest
from django.core import mail
from django.views.debug import SafeExceptionReporterFilter

from autorun.analysis import Analysis
from autorun.broker.transport import path_of
from autorun.notifications import FailureReport, mail_admins
from autorun.observe.doctor import finding
from autorun.observe.failures import group_failures, group_key
from autorun.state.exception_text import describe_exception
from autorun.state.logs import get_logger
from autorun.state.masking import masked, secrets_in, without_secrets
from tests.celery_settings import configured
from tests.engine import declare, installed, work_off
from tests.library.models import Document

HOSTILE = "\x1b]52;c;aGk=\x07 \u202e\x9b2J\rAll is well\nERROR forged"
URLS = [
    "sqlite://user:SECRET@host/absolute",
    "redis://:SECRET@host:6379/0",
    "amqp://user:SE/CRET@host//",
    "amqp://user:SEC@RET@host//",
    "sentinel://user:SECRET@one:1;sentinel://user:SECRET@two:2",
    "https://SECRET@host/",
    "https://host/?token=SECRET&page=1",
    "https://host/?page=1&X-Amz-Signature=SECRET",
    "https://host/?sig=SECRET%3D&page=1",
    "postgresql://host/name?password=SECRET",
]


def is_harmless(text: str) -> bool:
    return not set(text) & set("\x1b\x07\u202e\x9b\r")


@pytest.mark.parametrize("url", URLS)
def test_a_password_is_masked_wherever_a_url_is_shown(url, caplog):
    def refuse():
        raise ConnectionError(f"Cannot connect to {url}: refused")

    @finding.examination("broker")
    def examine():
        yield finding.error(f"{url} does not answer.")
        refuse()

    with pytest.raises(ConnectionError) as raised:
        refuse()
    told = describe_exception(raised.value, max_bytes=10_000)
    get_logger("autorun.tests").warning("%s failed: %r", url, raised.value, exc_info=raised.value)
    shown = [
        masked(f"before {url} after"),
        told.message,
        told.traceback,
        str(without_secrets({"servers": [[url], {"other": (url,)}]})),
        caplog.text,
        *(each.message for each in examine()),
    ]

    for text in shown:
        assert not {"SECRET", "SEC", "RET"} & set(text.replace("@", "/").split("/"))
        assert "SECRET" not in text
        assert "RET@" not in text


@pytest.mark.parametrize(
    "url", ["sqlite://u:SECRET@h/abs", "sqlite://u:S'ECRET \"x@[h/abs", "sqlite://SECRET@h/"]
)
@pytest.mark.slow
def test_the_embedded_brokers_url_is_shown_without_its_password(url):
    with pytest.raises(ValueError, match="absolute path") as raised:
        path_of(url)

    assert "ECRET" not in str(raised.value)
    with configured(broker_url=url):
        findings = [each.message for examine in _of_the_broker() for each in examine()]
    assert findings
    assert "ECRET" not in " ".join(findings)


def _of_the_broker():
    from autorun.observe.doctor.messaging import examine_broker
    from autorun.observe.doctor.system_checks import examine_checks

    return examine_broker, examine_checks


def test_what_is_no_secret_is_shown():
    configuration = {"colour": "green", "max_tokens": 5, "use_auth": True, "sizes": [1, [2]]}
    configuration["session"] = "ses-01"

    assert without_secrets(configuration) == configuration
    for text in (
        *("http://host:80/a?page=1&sigma=5", "mail a@b.c", "password: This field is required."),
        *(
            "cookie: missing",
            "the bearer of authorization",
            "api_key: missing",
            "f(signature=None)",
        ),
    ):
        assert masked(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "{'Authorization': 'Bearer SECRET'}",
        "Authorization: Basic SECRET",
        "authorization=Bearer SECRET",
        "curl -H 'X-Api-Key: SECRET'",
        '{"X-Api-Key": "SECRET"}',
        "no user for Bearer SECRET-SECRET-SECRET",
        "Set-Cookie: a=SECRET; Path=/",
        "request had sessionid=SECRET",
    ],
)
def test_a_header_with_a_secret_is_masked(text):
    assert "SECRET" not in masked(text)
    assert list(secrets_in({"header": text})) == ["header"]


@pytest.mark.parametrize(
    "name",
    [
        *("auth", "authorization", "bearer", "cookie", "cookies", "credential", "credentials"),
        *("passphrase", "sessionid", "SESSION_KEY", "sessionCookie", "private-key", "apikey"),
    ],
)
def test_a_name_of_a_secret_is_known(name):
    configuration = {"service": {name: "SECRET"}}

    assert list(secrets_in(configuration)) == [f"service.{name}"]
    assert "SECRET" not in str(without_secrets(configuration))


@pytest.mark.parametrize("name", SafeExceptionReporterFilter.hidden_settings.pattern.split("|"))
def test_what_djangos_error_reports_mask_is_masked(name):
    assert "SECRET" not in str(without_secrets({f"my_{name.lower()}_a": "SECRET"}))


def test_a_secret_is_found_at_any_depth():
    configuration = {
        "accessKey": "x",
        "service": [{"password": "x"}, {"url": "amqp://u:p@host"}],
        "keyframes": "all",
        "author": "somebody",
        "max_tokens": 5,
        "password": "",
    }

    found = ["accessKey", "service[0].password", "service[1].url"]
    assert list(secrets_in(configuration)) == found


def test_an_error_quotes_no_secret_of_a_configuration():
    def connect(value: str, api_key: int, hosts: list[int], colour: int) -> None: ...

    configuration = {"api_key": "SECRET", "hosts": ["https://u:SECRET@h/"], "colour": "green"}

    problems = Analysis("Connect", "1.0", connect).check(configuration, "value")

    told = " ".join(each.message for each in problems)
    assert "SECRET" not in told
    assert told.count("********") == 2
    assert "not 'green' (str)" in told


@pytest.mark.parametrize(
    "text", ["://a", "token", "password'", "'", "://a:", "a", "authorization: bearer ", "&sig="]
)
def test_a_long_text_is_masked_in_time(text):
    assert masked(text * 100_000)


def test_a_line_of_the_log_acts_on_no_terminal_and_forges_no_other_line(caplog):
    error = ValueError(HOSTILE)

    get_logger("autorun.tests").error(
        "%s: %s, %.40r %d", HOSTILE, error, HOSTILE, 3, exc_info=error
    )

    assert is_harmless(caplog.text)
    line, *_ = caplog.text.splitlines()
    assert line.endswith("3")
    assert caplog.records[0].msg == "%s: %s, %.40r %d"


def test_every_logger_of_autorun_has_the_filter():
    import autorun.tasks  # noqa: F401
    from autorun.declare.console import logger as console

    names = [name for name in logging.root.manager.loggerDict if name.startswith("autorun.")]
    loggers = [logging.getLogger(name) for name in names]
    used = [each for each in loggers if each.name in _modules() and each is not console]

    assert used
    assert [each.name for each in used if not each.filters] == []


def _modules():
    import sys

    return {name for name, module in sys.modules.items() if hasattr(module, "logger")}


def test_the_key_of_a_group_of_failures_confirms_no_guess_without_the_projects_secret(settings):
    key = group_key(1, "ValueError", "HIV positive")

    settings.SECRET_KEY = "that of another project"

    assert group_key(1, "ValueError", "HIV positive") != key


@pytest.mark.django_db
def test_a_mail_acts_on_no_terminal(settings):
    admin = "admin@example.org"
    settings.ADMINS = [("Ada", admin)] if django.VERSION < (6,) else [admin]
    Document.objects.create(title="a")

    def fail(value):
        raise ValueError(HOSTILE)

    runner = declare(fail, MAX_ATTEMPTS=1)
    with installed(runner):
        runner().run()
        work_off()
        groups = group_failures(runner())
        report = FailureReport(
            *("tests.EchoRunner", "Echo", groups[0].last_at, groups),
            paused=HOSTILE,
            failed=1,
            finished=2,
            new_version=f"1.1{HOSTILE}",
        )
        mail_admins(report)

    (message,) = mail.outbox
    assert is_harmless(message.body + message.subject + str(report) + report.html)
    assert not any(line.startswith("ERROR forged") for line in message.body.splitlines())
    assert "\n" not in message.subject
