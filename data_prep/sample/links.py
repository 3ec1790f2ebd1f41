"""The URL list of the bundled sample: one link a picture, and, as on the web, a few that are dead, wrong or dangerous.

What the server answers to each bad link is in `serve.py`; here is the list of them and what must become of it.
"""

import hashlib
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.sample.pictures import Split, read_sample
from infra import storage

HASHED_EVERY = 3
"""One row in three carries the SHA-256 of its picture."""


class BadLink(NamedTuple):
    name: str
    url: str
    """`{base}` is the server, `{uid}` a picture that is there."""
    outcome: str
    """The failure's word; `downloaded` for a link that works; `duplicate` for one that curation drops."""
    wrong_hash: bool = False


BAD_LINKS = [
    *(BadLink(f"gone-{i}", f"{{base}}/gone/{i}.webp", "http_404") for i in range(5)),
    BadLink("forbidden", "{base}/status/403", "http_403"),
    BadLink("broken", "{base}/status/500", "http_500"),
    BadLink("page", "{base}/page.html", "not_an_image"),
    BadLink("oversized", "{base}/oversized.webp", "too_large"),
    BadLink("bomb", "{base}/bomb.png", "too_many_pixels"),
    BadLink("cut", "{base}/cut/{uid}.webp", "truncated"),
    BadLink("loop", "{base}/loop", "too_many_redirects"),
    BadLink("inside", "{base}/inside", "forbidden_address"),
    BadLink("scheme", "ftp://pictures.invalid/{uid}.webp", "bad_url"),
    BadLink("changed", "{base}/{uid}.webp?changed", "sha256_mismatch", wrong_hash=True),
    BadLink("moved", "{base}/moved/{uid}.webp", "duplicate"),
    BadLink("copy", "{base}/copy/{uid}.webp", "duplicate"),
]


def write_url_list(output_uri: str, *, split: Split, base_url: str) -> int:
    """Write the URL list of a split; returns the number of rows.  The bad links are in `train` only."""
    rows = []
    for row, picture in enumerate(read_sample(split).to_pylist()):
        image = picture.pop("image")
        sha256 = hashlib.sha256(image).hexdigest() if row % HASHED_EVERY == 0 else None
        carried = {name: picture[name] for name in ("uid", "caption", "concept", "group", "source", "licence")}
        rows.append(carried | {"url": f"{base_url}/{picture['uid']}.webp", "sha256": sha256})
    if split == "train":
        step = len(rows) // len(BAD_LINKS)
        for place, link in enumerate(BAD_LINKS):
            original = rows[place * step]
            url = link.url.format(base=base_url, uid=original["uid"])
            sha256 = hashlib.sha256(b"another picture").hexdigest() if link.wrong_hash else None
            rows.append(original | {"uid": f"bad-{link.name}", "url": url, "sha256": sha256})
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    storage.write_atomic(output_uri, buffer.getvalue().to_pybytes())
    return len(rows)
