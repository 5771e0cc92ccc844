"""The demo of embeddings: SQLite, the embedded broker, and a language model."""

import os

from settings.sqlite import *  # noqa: F403

# The model comes with its package.
os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
INSTALLED_APPS += ["sample_app.embeddings"]  # noqa: F405
