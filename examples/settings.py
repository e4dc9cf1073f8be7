"""The settings of every shop: config.yml, and MONGODB_URI for its mongodb_host if that is set."""

import os
from pathlib import Path
from typing import Any

import yaml

SETTINGS: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("config.yml").read_text())
SETTINGS["mongodb_host"] = os.environ.get("MONGODB_URI") or SETTINGS["mongodb_host"]
