"""Choose the bundled sample from a folder of captioned pictures: `python -m data_prep.sample.build --pictures FOLDER`.

The same concepts drawn by several artists: four to train on, one held out to test on.  Concepts are taken in turn from many
topics, so that a task of ten names drawn from them makes sense.  The choice depends on the pictures alone.
"""

import argparse
import logging
import re
from collections import defaultdict
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.sample.pictures import SAMPLE_SCHEMA, SAMPLE_URI
from data_prep.url_list import parquet_files
from infra import storage
from infra.errors import BadInputError

logger = logging.getLogger(__name__)

MAX_PICTURE_BYTES = 4_350_000  # leaves room for the other columns below 4.5 MB


class Artist(NamedTuple):
    name: str
    licence: str
    attribution: str


TRAINING_ARTISTS = {
    "emoji-google-noto": Artist("noto", "Apache-2.0", "Noto Emoji, Google LLC"),
    "emoji-twemoji": Artist("twemoji", "CC-BY-4.0", "Twemoji, Twitter, Inc and other contributors"),
    "emoji-emojione2": Artist("emojione2", "CC-BY-4.0", "EmojiOne 2, Ranks.com Inc. (emojione.com)"),
    "emoji-google-blob2016": Artist("blob", "Apache-2.0", "Noto Emoji (2016 blobs), Google Inc."),
}
EVALUATION_ARTISTS = {"emoji-fluent-flat": Artist("fluent-flat", "MIT", "Fluent Emoji (flat), Microsoft Corporation")}

# Topics whose members can be told apart at 64 pixels; no flags, keycaps, letters, arrows, smileys or people.
TOPICS = re.compile(
    r"Animals & Nature/.*|Food & Drink/.*|Activities/.*"
    r"|Travel & Places/(place-.*|sky & weather|time|transport-.*)"
    r"|Objects/.*|Smileys & Emotion/face-costume"
)
# Large topics of things everyone knows give more than their turn.
TURNS = {"Animals & Nature/animal-mammal": 3, "Travel & Places/transport-ground": 2, "Food & Drink/food-prepared": 2}
# Variants of one thing, writing on a sheet, and pairs that differ by a detail.
TOO_ALIKE = re.compile(
    r"skin tone|o.clock|-thirty|oncoming|\bface\b|moon(?!cake| viewing)|sun behind|clinking|with (flash|arrow|wings|yen|pen|key"
    r"|decorative|rain|lightning|snow|slash|collar)|medal|globe showing|volume|(low|high|raised)"
    r"|bookmark|(green|blue|orange) book|closed umbrella|hourglass not|tilted right|woman.s (clothes|hat)"
    r"|mount fuji|snowman without|(light rail|metro|train)$"
    r"|railway car|locomotive|tram car|open file|index dividers|tray|unlocked|baby chick|hatching|two-hump|poodle|ewe|ox$"
    r"|(Japanese|love) (post|hotel)|derelict|with garden|chart increasing with|card file|spiral calendar|tear-off"
    r"|round pushpin|fork and knife with|beer mugs|video game|ledger|notebook with|leaf fluttering|envelope|lipstick mark"
    r"|hole$|station|motorway|suspension|aerial|desert island|dvd|tissues"
)


def build_sample(pictures_uri: str) -> pa.Table:
    """The bundled sample, chosen from the parquet files of a folder.

    Raises:
        BadInputError: the folder holds none, or too few concepts are there from every artist.
    """
    by_concept: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    artists = TRAINING_ARTISTS | EVALUATION_ARTISTS
    for picture in _candidates(pictures_uri, sources=list(artists)):
        best = by_concept[picture["concept"]].setdefault(picture["source"], picture)
        if picture["uid"] < best["uid"]:
            by_concept[picture["concept"]][picture["source"]] = picture
    complete = [drawings for drawings in by_concept.values() if len(drawings) == len(artists)]
    if len(complete) < 20:
        raise BadInputError(
            f"{pictures_uri} has {len(complete)} concepts drawn by all of {', '.join(artists)}; expected hundreds"
        )
    rows: list[dict[str, Any]] = []
    for drawings in _in_turn_by_topic(complete):
        size = sum(len(picture["image"]) for picture in drawings.values())
        if sum(len(row["image"]) for row in rows) + size > MAX_PICTURE_BYTES:
            break
        rows += [_row(drawings[source], artist) for source, artist in artists.items()]
    rows.sort(key=lambda row: (row["split"], row["uid"]))
    return pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA)


def _candidates(pictures_uri: str, *, sources: list[str]) -> list[dict[str, Any]]:
    found = []
    for uri in parquet_files(pictures_uri):
        evaluation = uri.rpartition("/")[2].startswith("eval-family")
        if not evaluation and not uri.rpartition("/")[2].startswith("train-"):
            continue
        with storage.open_read(uri) as file:
            table = pq.read_table(file)
        wanted = [source for source in sources if (source in EVALUATION_ARTISTS) == evaluation]
        table = table.filter(pc.is_in(table["source"], value_set=pa.array(wanted)))
        found += [row for row in table.to_pylist() if TOPICS.fullmatch(row["group"]) and not TOO_ALIKE.search(row["caption"])]
    return found


def _in_turn_by_topic(concepts: list[dict[str, dict[str, Any]]]) -> list[dict[str, dict[str, Any]]]:
    """One concept of every topic (or its `TURNS`), then the next, and so on; short names first, they make clearer classes."""
    topics: dict[str, list[dict[str, dict[str, Any]]]] = defaultdict(list)
    for drawings in concepts:
        topics[next(iter(drawings.values()))["group"]].append(drawings)
    ranked = []
    for topic, members in topics.items():
        members.sort(key=lambda drawings: _rank(next(iter(drawings.values()))))
        ranked += [(place // TURNS.get(topic, 1), topic, drawings) for place, drawings in enumerate(members)]
    return [drawings for _, _, drawings in sorted(ranked, key=lambda entry: entry[:2])]


def _rank(picture: dict[str, Any]) -> tuple[int, str]:
    return len(picture["caption"].split()), picture["concept"]


def _row(picture: dict[str, Any], artist: Artist) -> dict[str, Any]:
    code = picture["concept"].removeprefix("emoji:").lower()
    return {
        "uid": f"{artist.name}-{code}",
        "image": picture["image"],
        "caption": picture["caption"],
        "concept": picture["concept"],
        "group": picture["group"],
        "source": artist.name,
        "licence": artist.licence,
        "attribution": artist.attribution,
        "split": "evaluation" if artist in EVALUATION_ARTISTS.values() else "train",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", required=True, help="folder with train-*.parquet and eval-family.parquet")
    parser.add_argument("--output", default=SAMPLE_URI)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    table = build_sample(arguments.pictures)
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    storage.write_atomic(arguments.output, buffer.getvalue().to_pybytes())
    logger.info(
        "%d pictures of %d concepts by %d artists, %d bytes: %s",
        table.num_rows,
        len(table["concept"].unique()),
        len(table["source"].unique()),
        storage.size(arguments.output),
        arguments.output,
    )


if __name__ == "__main__":
    main()
