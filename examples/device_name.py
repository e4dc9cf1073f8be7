"""What a browser says of itself, in the few words that its owner knows it by."""

import re
from collections.abc import Mapping

# The first that is found counts: most browsers also name those that they descend from.
BROWSERS = {
    "A robot": r"bot\b|crawler|spider",
    "Edge": r"\bEdg(e|A|iOS)?/",
    "Opera": r"\b(OPR|OPT|OPX|Opera)/",
    "Samsung Internet": r"\bSamsungBrowser/",
    "Firefox": r"\b(Firefox|FxiOS)/",
    "Chrome": r"Chrom(e|ium)/|\bCriOS/",
    "Safari": r"\bVersion/.*\bSafari/",
    "curl": r"^curl/",
}
SYSTEMS = {
    "iPhone": r"\biPhone\b",
    "iPad": r"\biPad\b",
    "Android": r"\bAndroid\b",
    "ChromeOS": r"\bCrOS\b",
    "Windows": r"\bWindows\b",
    "Mac": r"\bMacintosh\b",
    "Linux": r"\bLinux\b",
}
LONGEST = 500
"""Characters of a User-Agent that are looked at; what browsers send is shorter."""


def device_name(user_agent: str) -> str:
    """Say in words what a User-Agent header tells of a device: "Firefox on Windows"."""
    said = user_agent[:LONGEST]
    browser, system = _first(BROWSERS, said), _first(SYSTEMS, said)
    if system is None:
        return browser or "A device"
    return f"{browser or 'A browser'} on {system}"


def _first(patterns: Mapping[str, str], text: str) -> str | None:
    return next((name for name in patterns if re.search(patterns[name], text)), None)
