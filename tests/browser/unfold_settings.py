"""The settings of the tests with django-unfold in place of the admin's own look."""

from settings.test import *  # noqa: F403

INSTALLED_APPS = ["unfold", *INSTALLED_APPS]  # noqa: F405
