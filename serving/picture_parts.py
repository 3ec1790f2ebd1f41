"""The pictures of a multipart form one by one, while it arrives: what is held is the picture that is arriving.

Text fields may come before the pictures: they say what to do with them.
"""

from collections.abc import Collection

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from serving.problems import ProblemError
from serving.requests import MAX_BYTES_A_CHARACTER, MAX_FIELD_CHARACTERS, unknown_field

MAX_BOUNDARY = 200


class PictureParts:
    """Feed it the body, take out the pictures that are whole; one that is too long is None, and its bytes are not kept."""

    def __init__(self, content_type: str, *, max_picture_bytes: int, texts: Collection[str] = (), max_texts: int = 0) -> None:
        """Args: texts, names of the text fields that there may be, with `max_texts` values in all.

        Raises ProblemError: not a form, or one without a usable boundary.
        """
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not 0 < len(boundary) <= MAX_BOUNDARY:
            raise ProblemError(
                415, "unsupported_media_type", "a stream takes its pictures as multipart/form-data with a boundary"
            )
        self._max, self._texts, self._max_texts = max_picture_bytes, texts, max_texts
        self.fields: dict[str, list[str]] = {}
        """The text fields that have arrived: all of them, once there is a picture."""
        self._text_name: str | None = None
        self._num_texts = 0
        self._has_pictures = False
        self._whole: list[bytes | None] = []
        self._data = bytearray()
        self._too_long = False
        self._header, self._value = bytearray(), bytearray()
        self._disposition = b""
        self.ended = False
        self.problem: ProblemError | None = None
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._part_begins,
                "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                "on_header_end": self._header_ends,
                "on_headers_finished": self._check_field,
                "on_part_data": self._part_data,
                "on_part_end": self._part_ends,
                "on_end": self._form_ends,
            },
        )

    def feed(self, data: bytes) -> list[bytes | None]:
        """The pictures that these bytes complete, in order; `problem` says why there will be no more."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            self.problem = ProblemError(400, "malformed_form", f"the multipart form cannot be read: {error}")
        except ProblemError as error:  # of `_check_field`
            self.problem = error
        whole, self._whole = self._whole, []
        return whole

    def _part_begins(self) -> None:
        self._data, self._too_long, self._disposition, self._text_name = bytearray(), False, b"", None

    def _header_ends(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header, self._value = bytearray(), bytearray()

    def _check_field(self) -> None:
        _, options = parse_options_header(self._disposition)
        if options.get(b"name") == b"images" and b"filename" in options:
            self._has_pictures = True
            return
        name = options.get(b"name", b"").decode(errors="replace")[:60]
        if name not in self._texts or b"filename" in options:
            raise unknown_field(name, self._texts, is_file=b"filename" in options)
        if self._has_pictures:
            raise ProblemError(422, "field_too_late", f"{name!r} comes after a picture; a stream takes its fields before them")
        self._num_texts += 1
        if self._num_texts > self._max_texts:
            raise ProblemError(422, "too_many_fields", f"the form holds more than {self._max_texts:,} text fields")
        self._text_name = name

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._text_name is not None:
            if len(self._data) + end - start > MAX_BYTES_A_CHARACTER * MAX_FIELD_CHARACTERS:
                detail = f"a value of {self._text_name!r} is longer than {MAX_FIELD_CHARACTERS:,} characters"
                raise ProblemError(422, "field_too_long", detail)
            self._data += data[start:end]
            return
        if self._too_long or len(self._data) + end - start > self._max:
            self._too_long = True
            self._data = bytearray()
            return
        self._data += data[start:end]

    def _part_ends(self) -> None:
        if self._text_name is not None:
            try:
                value = self._data.decode()
            except UnicodeDecodeError as error:
                raise ProblemError(400, "malformed_form", f"a value of {self._text_name!r} is not UTF-8: {error}") from error
            self.fields.setdefault(self._text_name, []).append(value)
            return
        self._whole.append(None if self._too_long else bytes(self._data))
        self._data = bytearray()

    def _form_ends(self) -> None:
        self.ended = True
