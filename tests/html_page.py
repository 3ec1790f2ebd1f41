"""An HTML page taken apart, for tests of what it says."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """Tags with their attributes, the cells of every table, and all text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self._in_cell = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._in_cell:
            self.tables[-1][-1][-1] += data

    def table(self, heading: str) -> list[list[str]]:
        """Rows of the table whose head names this column; white space is one blank."""
        found = next(table for table in self.tables if any(heading in cell for cell in table[0]))
        return [[" ".join(cell.split()) for cell in row] for row in found[1:]]
