"""The settings of the site that a browser is shown: those of the product, and the development sign-in."""

import os

from quotasite.settings import *  # noqa: F403

DEVELOPMENT_SIGNING_KEY = os.environ["TEST_SIGNING_KEY"]
