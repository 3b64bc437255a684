"""The request headers of a browser, and the example commands on the page at /."""

import html
import re

BROWSER_ACCEPT = "text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,*/*;q=0.8"
BROWSER_HEADERS = {"Accept": BROWSER_ACCEPT}


def example_commands(page: str) -> str:
    """Return the shell commands on the page, without their HTML escapes."""
    [commands] = re.findall(r"<pre[^>]*><code>(.*?)</code></pre>", page, flags=re.DOTALL)
    return html.unescape(commands)
