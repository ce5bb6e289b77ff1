import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

os.environ["ENV_FILE"] = (
    ""  # no test reads the .env of whoever runs it; nor do the processes that tests start
)
