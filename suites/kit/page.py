"""A page as a tree, and what a browser shows and prints of it: for the tests of report.html."""

from __future__ import annotations

import html
import re
import shutil
import struct
import subprocess
import tempfile
import zlib
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

EMPTY = {"meta", "br", "path", "rect", "polyline", "polygon", "img", "input", "link", "base"}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str | None]
    children: list[Element | str] = field(default_factory=list)

    def walk(self) -> list[Element]:
        found = [self]
        for child in self.children:
            if isinstance(child, Element):
                found += child.walk()
        return found

    def all(self, tag: str, look: str = "") -> list[Element]:
        """Elements of this tag, of this class too where one is named."""
        return [e for e in self.walk() if e.tag == tag
                and (not look or look in (e.attributes.get("class") or "").split())]

    def text(self) -> str:
        return "".join(c if isinstance(c, str) else c.text() for c in self.children)


class _Builder(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("", {})
        self.open = [self.root]
        self.faults: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs))
        self.open[-1].children.append(element)
        if tag not in {"meta", "br"}:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].children.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if self.open[-1].tag != tag:
            self.faults.append(f"</{tag}> closes <{self.open[-1].tag}>")
        else:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def parse(html: str) -> Element:
    """Raises ValueError where the elements do not nest."""
    builder = _Builder()
    builder.feed(html)
    builder.close()
    faults = builder.faults + [f"<{e.tag}> stays open" for e in builder.open[1:]]
    if faults:
        raise ValueError("; ".join(faults[:5]))
    return builder.root


def browser() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser")


def screenshot(page: Path, width: int, height: int, dark: bool = False) -> np.ndarray:
    """The pixels of a page in a frame of this width: uint8 [height, width, 3]."""
    with tempfile.TemporaryDirectory(prefix="dsv32-page-") as folder:
        frame, image = Path(folder) / "frame.html", Path(folder) / "page.png"
        frame.write_text(
            "<!doctype html><style>body{margin:0}iframe{border:0;display:block}</style>"
            f'<iframe src="{page.resolve().as_uri()}" width="{width}" height="{height}"></iframe>'
        )
        command = [
            str(browser()), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            "--force-device-scale-factor=1", "--allow-file-access-from-files",
            f"--user-data-dir={folder}/profile", f"--screenshot={image}",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            f"--window-size={max(width, 600)},{height}", frame.as_uri(),
        ]
        subprocess.run(command, capture_output=True, timeout=180, check=True)
        return read_png(image)[:height, :width]


Word = tuple[float, float, float, float, str]  # its box in points, from the top left; itself


@dataclass
class Sheet:
    """A printed page."""

    width: float  # points
    height: float
    words: list[Word]
    pixels: np.ndarray  # uint8 [height, width, 3]

    def text(self) -> str:
        return " ".join(word[-1] for word in self.words)


def can_print() -> bool:
    return bool(browser() and shutil.which("pdftotext") and shutil.which("pdftoppm"))


def printed(page: Path, dark: bool = False) -> list[Sheet]:
    """The page on paper, sheet by sheet. `dark`: as a reader with a dark screen prints it."""
    with tempfile.TemporaryDirectory(prefix="dsv32-paper-") as folder:
        paper, words = Path(folder) / "paper.pdf", Path(folder) / "words.html"
        command = [
            str(browser()), "--headless", "--no-sandbox", "--disable-gpu",
            "--no-pdf-header-footer", f"--user-data-dir={folder}/profile",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            f"--print-to-pdf={paper}", page.resolve().as_uri(),
        ]
        subprocess.run(command, capture_output=True, timeout=180, check=True)
        subprocess.run(["pdftotext", "-bbox", paper, words], check=True)
        subprocess.run(["pdftoppm", "-r", "36", paper, f"{folder}/sheet"], check=True)
        pixels = [_read_ppm(image) for image in sorted(Path(folder).glob("sheet-*.ppm"))]
        texts = words.read_text().split("<page ")[1:]
        return [_sheet(text, image) for text, image in zip(texts, pixels, strict=True)]


def _sheet(text: str, pixels: np.ndarray) -> Sheet:
    number = r'="(-?[\d.]+)"'
    boxes = rf"<word xMin{number} yMin{number} xMax{number} yMax{number}>(.*?)</word>"
    size = re.match(rf"width{number} height{number}", text)
    assert size, text[:100]
    words = [(*map(float, box), html.unescape(word)) for *box, word in re.findall(boxes, text)]
    return Sheet(float(size[1]), float(size[2]), words, pixels)


def _read_ppm(path: Path) -> np.ndarray:
    """8 bits a channel, RGB: uint8 [height, width, 3]."""
    head = re.match(rb"P6\n(\d+) (\d+)\n255\n", data := path.read_bytes())
    assert head, path
    return np.frombuffer(data, np.uint8, offset=head.end()).reshape(int(head[2]), int(head[1]), 3)


def read_png(path: Path) -> np.ndarray:
    """8 bits a channel, RGB or RGBA, not interlaced: uint8 [height, width, 3]."""
    data, at, packed = path.read_bytes(), 8, b""
    width = height = channels = 0
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at:at + 8])
        body = data[at + 8:at + 8 + length]
        if kind == b"IHDR":
            width, height, _, colour = struct.unpack(">IIBB", body[:10])
            channels = {2: 3, 6: 4}[colour]
        packed += body if kind == b"IDAT" else b""
        at += 12 + length
    return _unfiltered(zlib.decompress(packed), width, height, channels)[:, :, :3]


def _unfiltered(raw: bytes, width: int, height: int, channels: int) -> np.ndarray:
    lines = np.frombuffer(raw, np.uint8).reshape(height, width * channels + 1)
    out = np.zeros((height + 1, width + 1, channels), np.uint8)  # a border of zeros
    for y in range(height):
        kind, line = lines[y, 0], lines[y, 1:].reshape(width, channels)
        if kind in (0, 2):
            out[y + 1, 1:] = line + (out[y, 1:] if kind == 2 else 0)
        elif kind == 1:
            out[y + 1, 1:] = np.cumsum(line, axis=0, dtype=np.uint64).astype(np.uint8)
        else:
            for x in range(width):
                left, up = out[y + 1, x].astype(int), out[y, x + 1].astype(int)
                guess = (left + up) // 2 if kind == 3 else _paeth(left, up, out[y, x].astype(int))
                out[y + 1, x + 1] = line[x] + guess.astype(np.uint8)
    return out[1:, 1:]


def _paeth(left: np.ndarray, up: np.ndarray, corner: np.ndarray) -> np.ndarray:
    guess = left + up - corner
    near_left, near_up, near_corner = (abs(guess - v) for v in (left, up, corner))
    by_up = np.where(near_up <= near_corner, up, corner)
    return np.where((near_left <= near_up) & (near_left <= near_corner), left, by_up)
