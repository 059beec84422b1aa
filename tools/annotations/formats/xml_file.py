"""XML files of annotation tools. Entities are refused: a few lines can expand to gigabytes or name other files."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

LINE = "line-number"  # not a name that an XML attribute can clash with by accident


def read_xml(path: Path) -> Element:
    """Parse an XML file in any declared encoding.

    Args:
        path: the file.

    Returns:
        The root element. Every element has its line number in the attribute `LINE`.

    Raises:
        ValueError: the file is not well-formed, or declares entities; the message has the line.
    """
    builder = TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True

    def start(name: str, attributes: dict[str, str]) -> None:
        builder.start(name, {**attributes, LINE: str(parser.CurrentLineNumber)})

    def refuse(*_: Any) -> int:
        raise ValueError(f"line {parser.CurrentLineNumber}: it declares entities, which annotations do not need")

    parser.StartElementHandler = start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.EntityDeclHandler = refuse
    parser.ExternalEntityRefHandler = refuse
    try:
        parser.Parse(path.read_bytes(), True)
        return builder.close()
    except (expat.ExpatError, LookupError, AssertionError) as error:
        raise ValueError(str(error)) from error


def text(element: Element | None, name: str) -> str:
    """The text of a child element.

    Args:
        element: the parent; None stands for one without children.
        name: the child's name.

    Returns:
        Its text without surrounding space; empty if there is none.
    """
    child = None if element is None else element.find(name)
    return "" if child is None or child.text is None else child.text.strip()


def line(element: Element) -> str:
    """The line number of an element."""
    return element.get(LINE, "?")
