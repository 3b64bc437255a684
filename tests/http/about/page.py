"""How tests ask for the page at /, and what they read from it."""

import html
import re

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,*/*;q=0.8"
AS_A_BROWSER = {"Accept": BROWSER}


def conversation(page: str) -> str:
    [lines] = re.findall(r"<pre[^>]*><code>(.*?)</code></pre>", page, flags=re.DOTALL)
    return html.unescape(lines)
