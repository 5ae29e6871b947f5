"""An insert for the case of a cartridge: which it is, what is on it, how to read it without us."""

from __future__ import annotations

import datetime as dt
import importlib.util
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from reportlab.graphics import renderPDF
from reportlab.graphics.barcode.qr import QrCodeWidget
from reportlab.graphics.shapes import Drawing
from reportlab.lib.pagesizes import A4
from reportlab.lib.units import mm
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas

from tapefs.archive.portrait import first_and_last_ns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

# Width and height in mm: the face of the cartridge, less what a case takes of it.
SIZES_MM: Final = {"lto": (99.0, 102.0), "8mm": (92.0, 59.0), "dat": (70.0, 51.0)}
# What has to be on it is readable from this size on.
SIZE_MIN_MM: Final = (65.0, 50.0)
SIZE_MAX_MM: Final = (180.0, 180.0)

_MARGIN: Final = 3.5 * mm
# In points; what does not fit in these is cut off.
_LETTERS_MIN: Final = 3.5
_DEJAVU: Final = Path("/usr/share/fonts/truetype/dejavu")
_PLAIN, _BOLD, _FIXED = "TapefsPlain", "TapefsBold", "TapefsFixed"


def insert_pdf(
    portrait: Mapping[str, Any],
    size_mm: tuple[float, float],
    made_ns: int,
    bytes_text: Callable[[float], str],
) -> bytes:
    """A page of A4 with the insert for what `tapefs.archive.portrait.portrait` returned.

    `size_mm`: its width and height, between SIZE_MIN_MM and SIZE_MAX_MM. `made_ns`: now.
    `bytes_text` writes a number of bytes. The QR code holds the volume's UUID.
    """
    _register_fonts()
    made = io.BytesIO()
    canvas = Canvas(made, pagesize=A4, invariant=True)
    canvas.setTitle(f"{portrait['name']} - tapefs")
    width, height = size_mm[0] * mm, size_mm[1] * mm
    canvas.translate((A4[0] - width) / 2, A4[1] - height - 25 * mm)
    _cut_marks(canvas, width, height)
    _Insert(canvas, portrait, (width, height), made_ns, bytes_text).draw()
    canvas.showPage()
    canvas.save()
    return made.getvalue()


class _Insert:
    """One insert, drawn from its lower left corner, from the top down."""

    def __init__(
        self,
        canvas: Canvas,
        portrait: Mapping[str, Any],
        size: tuple[float, float],
        made_ns: int,
        bytes_text: Callable[[float], str],
    ) -> None:
        self._canvas, self._portrait = canvas, portrait
        width, self._height = size
        self._made_ns, self._bytes_text = made_ns, bytes_text
        # What is small holds less, in smaller letters.
        self._letters = 7.0 if self._height > 80 * mm else 5.5
        self._left, self._right = _MARGIN, width - _MARGIN
        self._at = self._height - _MARGIN

    def draw(self) -> None:
        """Everything, the contents as far as there is room between what has to be there."""
        portrait, small = self._portrait, self._letters
        side = min(26 * mm, self._height * 0.3)
        self._code(portrait["uuid"], self._right - side, self._height - _MARGIN - side, side)
        beside = self._right - side - 2 * mm
        self._fitting(portrait["name"], _BOLD, 22, beside)
        self._fitting(portrait["uuid"], _FIXED, small - 0.5, beside)
        for text in self._facts():
            self._line(text, _PLAIN, small, beside)
        self._at = min(self._at, self._height - _MARGIN - side) - small * 0.6
        how = list(_how_to_read(portrait))
        bottom = _MARGIN + (len(how) + 1.4) * small * 1.25
        self._contents(bottom)
        self._at = bottom
        self._rule()
        self._line("Without tapefs, on any Unix:", _BOLD, small, self._right)
        for text in how:
            # A command that is cut off is none.
            self._fitting(text, _FIXED, small - 0.8, self._right)

    def _facts(self) -> Iterator[str]:
        portrait = self._portrait
        yield f"{portrait['files_count']:,} files, {self._bytes_text(portrait['size_bytes'])}"
        written = first_and_last_ns(portrait["tape_files"])
        if written is not None:
            yield f"written {_day(written[0])} to {_day(written[1])}"
        proven = portrait["proven_good_ns"]
        yield f"proven good {_day(proven)}" if proven else "not verified since it was written"
        yield f"tapefs, tape with tar archives; insert of {_day(self._made_ns)}"
        if portrait["waiting_bytes"]:
            yield f"not on it yet: {self._bytes_text(portrait['waiting_bytes'])}"

    def _contents(self, bottom: float) -> None:
        self._rule()
        step, small = self._letters * 1.25, self._letters
        entries = [
            (each["name"] + "/", each["bytes"])
            for each in sorted(self._portrait["contents"]["in"], key=lambda one: -one["bytes"])
        ]
        entries += [(path, size) for path, size, *_ in self._portrait["files"] if "/" not in path]
        room = int((self._at - bottom) / step) - 1
        shown = entries[: max(room, 0)]
        for name, size in shown:
            self._canvas.setFont(_PLAIN, small)
            self._canvas.drawRightString(self._right, self._at - small, self._bytes_text(size))
            self._line(name, _PLAIN, small, self._right - 18 * mm)
        if len(shown) < len(entries):
            self._line(f"and {len(entries) - len(shown):,} more", _PLAIN, small, self._right)

    def _line(self, text: str, font: str, size: float, right: float) -> None:
        """One line, cut off where `right` is, with an ellipsis."""
        room = right - self._left
        if pdfmetrics.stringWidth(text, font, size) > room:
            while text and pdfmetrics.stringWidth(text + "…", font, size) > room:
                text = text[:-1]
            text += "…"
        self._canvas.setFont(font, size)
        self._canvas.drawString(self._left, self._at - size, text)
        self._at -= size * 1.25

    def _fitting(self, text: str, font: str, size: float, right: float) -> None:
        """One line in letters as large as fit, up to `size`."""
        room = right - self._left
        size = max(_LETTERS_MIN, min(size, size * room / pdfmetrics.stringWidth(text, font, size)))
        self._line(text, font, size, right)

    def _rule(self) -> None:
        self._canvas.setLineWidth(0.4)
        self._canvas.line(self._left, self._at, self._right, self._at)
        self._at -= self._letters * 0.4

    def _code(self, text: str, x: float, y: float, side: float) -> None:
        code = QrCodeWidget(text, barLevel="M", barWidth=side, barHeight=side, barBorder=1)
        drawing = Drawing(side, side)
        drawing.add(code)
        renderPDF.draw(drawing, self._canvas, x, y)


def _how_to_read(portrait: Mapping[str, Any]) -> Iterator[str]:
    blocks = portrait["record_bytes"] // 512
    yield "mt -f /dev/nst0 setblk 0; mt -f /dev/nst0 fsf 1"
    yield f"tar -b {blocks} --xattrs --acls -xpf /dev/nst0"
    yield "mt -f /dev/nst0 fsf 1; and tar again, until there is no more"
    yield "mt -f /dev/nst0 rewind; tar -xf /dev/nst0: a README.txt"


def _cut_marks(canvas: Canvas, width: float, height: float) -> None:
    canvas.setLineWidth(0.3)
    canvas.setDash(2, 2)
    canvas.rect(0, 0, width, height)
    canvas.setDash()


def _register_fonts() -> None:
    """DejaVu, which knows most scripts, where Debian has it; else what reportlab brings along."""
    bundled = importlib.util.find_spec("reportlab")
    assert bundled is not None
    assert bundled.origin is not None
    vera = Path(bundled.origin).parent / "fonts"
    for name, file, other in (
        (_PLAIN, "DejaVuSans.ttf", "Vera.ttf"),
        (_BOLD, "DejaVuSans-Bold.ttf", "VeraBd.ttf"),
        (_FIXED, "DejaVuSansMono.ttf", ""),
    ):
        path = _DEJAVU / file
        if not path.exists():
            # Without one of fixed width the other does: commands are readable all the same.
            path = vera / (other or "Vera.ttf")
        pdfmetrics.registerFont(TTFont(name, path))


def _day(time_ns: int) -> str:
    return dt.datetime.fromtimestamp(time_ns // 10**9, dt.UTC).strftime("%Y-%m-%d")
