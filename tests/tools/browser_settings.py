"""The settings of the site in tests with a browser: the product's, with the development sign-in."""

import os

from quotasite.settings import *  # noqa: F403

DEVELOPMENT_SIGNING_KEY = os.environ["TEST_SIGNING_KEY"]
