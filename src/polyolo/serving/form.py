"""Reads the picture out of a multipart/form-data body, in memory, as the body arrives.

Only the push parser of python-multipart is used: its form parser, like Starlette's, would spool
a large file to disk, and a picture must never touch one.
"""

from __future__ import annotations

from python_multipart.multipart import MultipartParser, parse_options_header

from polyolo.errors import InvalidValueError, MalformedRequestError

_PICTURE_FIELDS = (b"image", b"file")
_MOST_PARTS = 32  # a form with a picture has a handful of fields

_ONE = "send one picture a request, in one field named image (or file)"


def is_form(content_type: str) -> bool:
    """Return True for multipart/form-data, whatever its case and parameters."""
    return content_type.partition(";")[0].strip().lower() == "multipart/form-data"


class PictureForm:
    """One form on its way in: push the body's chunks with `write`, then take the picture.

    query_only: names of parameters that belong into the query; a field of such a name is
    refused, since ignoring it would silently give other boxes than asked for.
    """

    def __init__(self, content_type: str, query_only: frozenset[str]) -> None:
        _, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if not 1 <= len(boundary) <= 70:  # RFC 2046
            raise MalformedRequestError("the form's Content-Type names no usable boundary")
        # What the parser calls must not lead back to the parser: a cycle would keep the picture
        # in memory until the next run of the garbage collector.
        self._parts = parts = _Parts(query_only)
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": parts.begin,
                "on_part_data": parts.take_data,
                "on_header_begin": parts.begin_header,
                "on_header_field": parts.take_header,
                "on_header_value": parts.take_value,
                "on_header_end": parts.end_header,
                "on_end": parts.end,
            },
        )

    def write(self, chunk: bytes) -> None:
        """Take the next bytes of the body. Raises MalformedRequestError where it is broken."""
        try:
            self._parser.write(chunk)
        except ValueError:  # the parser's own errors all are
            raise MalformedRequestError("the multipart body is broken") from None

    def picture(self) -> bytes:
        """Return the picture once the whole body is written; MalformedRequestError without one."""
        if not self._parts.ended:
            raise MalformedRequestError("the multipart body ends before its closing boundary")
        if self._parts.pictures == 0:
            raise MalformedRequestError(f"the form has no picture; {_ONE}")
        return b"".join(self._parts.chunks)


class _Parts:
    """What has been seen of a form's parts."""

    def __init__(self, query_only: frozenset[str]) -> None:
        self.pictures = 0
        self.chunks: list[bytes] = []
        self.ended = False
        self._query_only = query_only
        self._count = 0
        self._is_picture = False
        self._header = b""
        self._value = b""

    def begin(self) -> None:
        self._count += 1
        if self._count > _MOST_PARTS:
            raise MalformedRequestError(f"the form has more than {_MOST_PARTS} fields")
        self._is_picture = False

    def begin_header(self) -> None:
        self._header = self._value = b""

    def take_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def take_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def end_header(self) -> None:
        if self._header.lower() != b"content-disposition":
            return
        _, options = parse_options_header(self._value)
        name = options.get(b"name", b"")
        if name in _PICTURE_FIELDS:
            self.pictures += 1
            if self.pictures > 1:
                raise MalformedRequestError(f"the form has several pictures; {_ONE}")
            self._is_picture = True
        elif (known := name.decode("latin-1")) in self._query_only:
            raise InvalidValueError(
                f"{known} is a query parameter, not a form field: POST /v1/detect?{known}=…"
            )

    def take_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_picture:
            self.chunks.append(data[start:end])

    def end(self) -> None:
        self.ended = True
