"""robots.txt (RFC 9309) and X-Robots-Tag: what a site does not want fetched or used.

An origin is asked once and its answer kept for a while.  Protego judges the paths; which group of rules is ours is decided
here, so that a hostile file costs time and memory in proportion to its length (500 KiB at most), and only our rules are kept.
"""

import itertools
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable

from data_prep.fetch.connections import Answer
from data_prep.fetch.deadline import Deadline
from data_prep.fetch.policy import FetchError, FetchPolicy, Origin, origin_of, redirected
from data_prep.fetch.web import NotConnectedError, Web

REDIRECTS = {301, 302, 303, 307, 308}
MAX_FILE_BYTES = 500 * 1024
MAX_REDIRECTS = 5
MAX_RULES = 10_000
"""Of one site for us; each URL is held against them all."""
KEPT_S = 3600.0
FAILURE_KEPT_S = 60.0
ATTEMPTS = 2
MAX_ORIGINS = 10_000
MAX_KEPT_CHARACTERS = 2_000_000
"""Of the rules of all origins together; parsed, they take some 30 times as much at worst."""

_USER_AGENT_LINE = re.compile(r"\s*user[-\s]*agent\b[\s:]*(.*)", re.IGNORECASE)
_DIRECTIVES_WITH_COLON = {"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"}


class Rules:
    """What one origin says to us; or that it could not be asked."""

    def __init__(self, text: str = "", *, failure: FetchError | None = None) -> None:
        self.size = len(text)
        self.failure = failure
        self.good_until = time.monotonic() + (FAILURE_KEPT_S if failure else KEPT_S)
        self._parsed = None
        if text:
            from protego import Protego  # not in every image that reads our configuration

            self._parsed = Protego.parse(f"User-agent: *\n{text}")

    def allows(self, url: str) -> bool:
        return self._parsed is None or self._parsed.can_fetch(url, "*")

    @property
    def crawl_delay_s(self) -> float:
        return (self._parsed.crawl_delay("*") or 0.0) if self._parsed else 0.0


class RobotsTxt:
    """The rules of origins, asked for through the same hardened path as pictures.  Thread-safe."""

    def __init__(self, policy: FetchPolicy, web: Web) -> None:
        self._policy, self._web = policy, web
        self._known: OrderedDict[Origin, Rules] = OrderedDict()
        self._kept_characters = 0
        self._being_asked: dict[Origin, threading.Event] = {}
        self._lock = threading.Lock()

    def spacing_s(self, url: str, deadline: Deadline) -> float:
        """Check one URL; returns the Crawl-delay of its site, 0 without one.

        Raises:
            FetchError: `robots_disallowed`; `robots_unreachable` when the site fails to say; what stands in the way when the
                site is not to be reached at all.
        """
        origin = origin_of(url)
        if not self._policy.robots_txt:
            return 0.0
        rules = self._rules_of(origin, deadline)
        if rules.failure:
            raise FetchError(rules.failure.reason, rules.failure.message, later=True)
        if not rules.allows(url):
            raise FetchError("robots_disallowed", f"{origin}/robots.txt does not want {url} fetched")
        return rules.crawl_delay_s

    def _rules_of(self, origin: Origin, deadline: Deadline) -> Rules:
        while True:
            with self._lock:
                if (known := self._known.get(origin)) and time.monotonic() < known.good_until:
                    self._known.move_to_end(origin)
                    return known
                asked = self._being_asked.get(origin)
                if asked is None:
                    mine = self._being_asked[origin] = threading.Event()
                    break
            try:
                answered = asked.wait(deadline.remaining_s())
            except TimeoutError:
                answered = False
            if not answered:
                return Rules(failure=FetchError("robots_unreachable", f"{origin}/robots.txt is slow to come"))
        try:
            hurried = deadline.remaining_s() < self._policy.timeout_s / 2
            rules = self._ask(origin, deadline)
            if not (rules.failure and hurried):  # a failure for want of time says nothing of the site
                self._keep(origin, rules)
            return rules
        except TimeoutError as error:
            return Rules(failure=FetchError("timeout", f"{origin}: {error}"))
        finally:
            with self._lock:
                del self._being_asked[origin]
            mine.set()

    def _keep(self, origin: Origin, rules: Rules) -> None:
        with self._lock:
            if before := self._known.pop(origin, None):
                self._kept_characters -= before.size
            self._known[origin] = rules
            self._kept_characters += rules.size
            while len(self._known) > MAX_ORIGINS or (self._kept_characters > MAX_KEPT_CHARACTERS and len(self._known) > 1):
                _, oldest = self._known.popitem(last=False)
                self._kept_characters -= oldest.size

    def _ask(self, origin: Origin, deadline: Deadline) -> Rules:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return Rules(self._fetch(f"{origin}/robots.txt", deadline))
            except NotConnectedError as error:
                # a new one, because it is kept: the old one holds the frames it came through
                failure: FetchError = NotConnectedError(error.reason, error.message)
            except FetchError as error:
                if error.reason == "host_busy":  # nobody was asked, so nothing is known
                    raise
                failure = FetchError("robots_unreachable", f"{origin}/robots.txt gives no answer: {error}", later=error.later)
            if attempt == ATTEMPTS or failure.later or not failure.passing or deadline.has_passed:
                break
            time.sleep(min(self._policy.retry_wait_s, deadline.remaining_s()))
        return Rules(failure=failure)

    def _fetch(self, url: str, deadline: Deadline) -> str:
        """The rules for us in the file at a URL, empty when there are none.

        Raises:
            FetchError: the server is in trouble (RFC 9309: nothing may be fetched then), or the file cannot be read.
        """
        for hop in range(MAX_REDIRECTS + 1):
            try:
                with self._web.get(url, deadline, accept="text/plain,*/*;q=0.5", max_body_bytes=2 * MAX_FILE_BYTES) as answer:
                    location = answer.headers.get("Location")
                    if answer.status not in REDIRECTS or not location:
                        return self._read(answer, url)
            except NotConnectedError as error:
                if hop == 0:
                    raise
                raise FetchError(error.reason, error.message) from error  # of another place than the one asked
            url = redirected(url, location)
        return ""  # as if there were none, says RFC 9309

    def _read(self, answer: Answer, url: str) -> str:
        if answer.status == 429 or answer.status >= 500 or answer.status < 200 or answer.status in REDIRECTS:
            raise FetchError(
                f"http_{answer.status}", f"{url} answered {answer.status} {answer.reason}", later=answer.wants_long_pause
            )
        if answer.status >= 300:
            return ""
        if answer.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
            raise FetchError("bad_answer", f"{url} is compressed, which was not asked for")
        body = bytearray()
        while len(body) < MAX_FILE_BYTES and (block := answer.read(1 << 16)):
            body += block
        if len(body) < MAX_FILE_BYTES and answer.length:
            raise FetchError("truncated", f"{url} ended {answer.length:,} bytes early")
        return rules_for(body[:MAX_FILE_BYTES].decode("utf-8-sig", errors="replace"), self._policy.user_agent_token)


def rules_for(text: str, token: str) -> str:
    """The lines of a robots.txt that are for one crawler: of all groups that name it, else of those for `*`."""
    ours: list[str] = []
    everyones: list[str] = []
    named: set[str] = set()
    found, in_rules = False, False
    for line in text.splitlines():
        line = line.partition("#")[0].strip()
        if agent := _USER_AGENT_LINE.match(line):
            if in_rules:
                named, in_rules = set(), False
            value = agent[1].strip().lower()
            name = re.match(r"[a-z0-9_-]+", value)
            named.add("*" if value == "*" else token if name and name[0] == token else "")
            found = found or token in named
        elif line and not line.lower().startswith(("sitemap", "host")):
            in_rules = True
            if token in named:
                ours.append(line)
            if "*" in named:
                everyones.append(line)
    kept = dict.fromkeys(ours if found else everyones)  # a rule said twice says no more, and costs every URL
    return "\n".join(itertools.islice(kept, MAX_RULES))


def refused_by_tag(values: Iterable[str], *, token: str, directives: Iterable[str]) -> str | None:
    """The directive of X-Robots-Tag headers that refuses the use of a picture, or None.

    `noai`, `noindex, noai`, `ourname: noai` and `other: noindex, ourname: noai` are all in use: a name counts until the next.
    `none` means `noindex, nofollow`.
    """
    refusing = {directive.strip().lower() for directive in directives}
    for value in values:
        agent = None
        for part in value.lower().split(","):
            head, colon, rest = part.partition(":")
            if colon and re.fullmatch(r"[a-z0-9*_-]+", head.strip()) and head.strip() not in _DIRECTIVES_WITH_COLON:
                agent, part = head.strip(), rest
            word = part.strip()
            if agent in (None, "*", token) and (word in refusing or (word == "none" and "noindex" in refusing)):
                return word
    return None
