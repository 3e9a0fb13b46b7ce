"""Frames of captures, read forward in pieces: pcap, pcapng, and both compressed by gzip.

Formats: pcap (https://datatracker.ietf.org/doc/draft-ietf-opsawg-pcap), pcapng
(https://datatracker.ietf.org/doc/draft-ietf-opsawg-pcapng), gzip (RFC 1952).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

import numpy as np
from numpy.typing import NDArray

from working_papers.data.packet_headers import LINKS, Frames
from working_papers.data.packet_table import PADDING, gather

Integers = NDArray[np.int64]

PIECE = 4 << 20
"""Bytes that are read at a time."""

LONGEST_FRAME = 262_144
"""Bytes of a frame that are taken for possible unless the capture speaks of more, as libpcap has it."""
LONGEST_BLOCK = 16 << 20
"""Bytes of a frame or block that are taken for possible at all."""

LATEST = 2**62
"""Nanoseconds from 1970, either way, that a time must lie within: the year 2116. Differences then fit 64 bits."""
SECOND = 1_000_000_000

PCAP_MAGIC = {
    b"\xd4\xc3\xb2\xa1": ("<", 1000),
    b"\xa1\xb2\xc3\xd4": (">", 1000),
    b"\x4d\x3c\xb2\xa1": ("<", 1),
    b"\xa1\xb2\x3c\x4d": (">", 1),
}
"""First bytes: byte order, and nanoseconds of the smaller unit of time."""
GZIP_MAGIC = b"\x1f\x8b"
SECTION_MAGIC = b"\x0a\x0d\x0d\x0a"  # reads the same in both byte orders

SECTION, INTERFACE, OBSOLETE_PACKET, SIMPLE_PACKET, ENHANCED_PACKET = 0x0A0D0D0A, 1, 2, 3, 6
SMALLEST = {OBSOLETE_PACKET: 32, SIMPLE_PACKET: 16, ENHANCED_PACKET: 32}
"""Packet blocks, with their bytes without a packet."""
NOT_STEPPED_OVER = {SECTION, INTERFACE, *SMALLEST}
SMALLEST_BLOCK, SMALLEST_SECTION, SMALLEST_INTERFACE = 12, 28, 20
END_OF_OPTIONS, TIME_RESOLUTION, TIME_OFFSET = 0, 9, 14
MOST_INTERFACES = 65_536


def read_frames(path: Path, batch: int) -> Iterator[Frames]:
    """Frames of a capture.

    Args:
        path: of the capture.
        batch: frames that are yielded at a time at most.

    Raises:
        ValueError: the file is no capture, or is damaged; names file and offset. Everything before it was yielded.
    """
    with path.open("rb") as file:
        window = _Window(path, file)
        magic = window.data[:4]
        if magic in PCAP_MAGIC:
            walk = _pcap(window)
        elif magic == SECTION_MAGIC:
            walk = _Blocks(window).walk()
        elif window.source.damage:
            window.damaged(0, window.source.damage)
        else:
            raise ValueError(
                f"{path} is no capture: at byte 0 it has {window.data[: min(4, window.size)].hex() or 'nothing'}; "
                "expected the first bytes of a pcap or pcapng"
            )
        for frames in walk:
            for first in range(0, len(frames.begin), batch):
                rows = slice(first, first + batch)
                yield Frames(frames.data, frames.begin[rows], frames.end[rows], frames.time[rows], frames.link[rows])


class _Source:
    """Bytes of a file, decompressed if it is a gzip.

    Attributes:
        damage: why there are no more bytes, if that is not the end of the file.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.damage = file, ""
        self.compressed = file.read(2) == GZIP_MAGIC
        file.seek(0)
        self._gzip = zlib.decompressobj(zlib.MAX_WBITS | 16)
        self._waiting = b""  # compressed bytes that were read
        self._ended = False

    def read(self, count: int) -> bytes:
        """So many bytes; fewer only at the end."""
        if not self.compressed:
            return self.file.read(count)
        parts: list[bytes] = []
        while count > 0 and not self._ended:
            part = self._decompress(count)
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _decompress(self, most: int) -> bytes:
        """Some bytes, or none."""
        if not self._waiting:
            self._waiting = self.file.read(1 << 16)
            self._ended = not self._waiting
        if self._gzip.eof:  # what follows is another member, or zeros
            self._waiting = self._waiting.lstrip(b"\0")
            if not self._waiting:
                return b""
            self._gzip = zlib.decompressobj(zlib.MAX_WBITS | 16)
        if self._ended:
            part = self._gzip.decompress(b"", most)  # may have been held back
            self._ended = not part
            if not part:
                self.damage = "the gzip ends early"
            return part
        before = self._gzip.copy()
        try:
            part = self._gzip.decompress(self._waiting, most)
        except zlib.error as error:
            self._ended, self.damage = True, f"the gzip is damaged ({error})"
            return self._salvage(before)
        self._waiting = self._gzip.unused_data if self._gzip.eof else self._gzip.unconsumed_tail
        return part

    def _salvage(self, before: zlib._Decompress) -> bytes:
        """What comes before a damage in the bytes that are waiting."""
        parts: list[bytes] = []
        with suppress(zlib.error):
            for place in range(len(self._waiting)):
                parts.append(before.decompress(self._waiting[place : place + 1]))
        return b"".join(parts)


class _Window:
    """The part of a file that lies in memory.

    Attributes:
        data: bytes, then 64 zeros.
        size: number of bytes without the zeros.
        offset: of the first byte in the (decompressed) file.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.source = path, _Source(file)
        self.data, self.size, self.offset = b"", 0, 0
        self.advance(0, 4)

    def advance(self, used: int, wanted: int) -> bool:
        """Leave bytes behind and read on.

        Args:
            used: bytes to leave behind, at most `size`.
            wanted: bytes that shall lie in memory then; if they do already, nothing is read.

        Returns:
            Whether they do; otherwise the file has ended.
        """
        left = self.size - used
        more = self.source.read(max(PIECE, wanted - left)) if left < wanted else b""
        rest = self.data[used : self.size]
        self.data = b"".join([rest, more, bytes(PADDING)])
        self.size = len(rest) + len(more)
        self.offset += used
        return self.size >= wanted

    def skip(self, count: int) -> bool:
        """Leave bytes behind, however many; False if the file has fewer."""
        while count > self.size:
            count -= self.size
            self.advance(self.size, 1)
            if self.size == 0:
                return False
        return self.advance(count, 0)

    def damaged(self, position: int, what: str) -> NoReturn:
        """Raise the error that names the place."""
        inside = " of what it holds decompressed" if self.source.compressed else ""
        raise ValueError(f"{self.path} is damaged at byte {self.offset + position}{inside}: {what}")

    def ended(self, position: int, what: str) -> NoReturn:
        """Raise the error of a file that ends too early."""
        self.damaged(position, self.source.damage or f"the file ends within {what}")


def _pcap(window: _Window) -> Iterator[Frames]:
    """Frames of a pcap."""
    order, unit = PCAP_MAGIC[window.data[:4]]
    if not window.advance(0, 24):
        window.ended(0, "the header of 24 bytes")
    snaplen, network = struct.unpack_from(f"{order}II", window.data, 16)
    link = network & 0xFFFF  # above stand the lengths of checksums
    if link not in LINKS:
        window.damaged(20, f"the link type is {link}; expected one of {', '.join(map(str, sorted(LINKS)))}")
    longest = max(LONGEST_FRAME, min(snaplen, LONGEST_BLOCK))
    length_at = struct.Struct(f"{order}I").unpack_from
    position = 24
    while True:
        data, size = window.data, window.size
        begins: list[int] = []
        last = size - 16
        while position <= last:
            begins.append(position)
            position += 16 + length_at(data, position + 8)[0]
        wanted = 16
        if position > size and begins:  # the last record does not lie in memory as a whole, or has an absurd length
            wanted = position - begins[-1]
            position = begins.pop()

        buffer = np.frombuffer(data, dtype=np.uint8)
        places = np.array(begins, dtype=np.int64)
        head = gather(buffer, places, 16).view(f"{order}u4").astype(np.int64)
        absurd = np.flatnonzero(head[:, 2] > longest)
        if len(absurd):
            places, head = places[: absurd[0]], head[: absurd[0]]
            position, wanted = begins[absurd[0]], int(length_at(data, begins[absurd[0]] + 8)[0]) + 16
        if len(places):
            begin, time = places + 16, head[:, 0] * SECOND + head[:, 1] * unit
            yield Frames(buffer, begin, begin + head[:, 2], time, np.full(len(places), link))
        if wanted - 16 > longest:
            window.damaged(position, f"a packet of {wanted - 16} bytes; expected at most {longest}")
        if not window.advance(position, wanted):
            if window.size or window.source.damage:
                window.ended(0, "a packet")
            return
        position = 0


@dataclass(frozen=True)
class _Interface:
    """An interface of a pcapng.

    Attributes:
        link: link type.
        snaplen: bytes of a packet that are captured at most, 0 without limit.
        units: of time a second.
        offset: seconds to add to times.
    """

    link: int
    snaplen: int
    units: int
    offset: int


class _Blocks:
    """The blocks of a pcapng.

    Packet blocks of one kind that follow one another are gathered in a run, whose columns are taken at once.
    """

    def __init__(self, window: _Window) -> None:
        self.window = window
        self.order = "<"
        self.interfaces: list[_Interface] = []

    def walk(self) -> Iterator[Frames]:
        """Frames of all sections."""
        window = self.window
        position, kind = 0, ENHANCED_PACKET
        while True:
            run: list[int] = []
            position = self._run(position, kind, run)
            if run:
                frames, bad = self._frames(run, kind)
                yield frames
                if bad is not None:
                    window.damaged(*bad)
            if position + SMALLEST_BLOCK > window.size:
                if not window.advance(position, SMALLEST_BLOCK):
                    if window.size or window.source.damage:
                        window.ended(0, "a block")
                    return
                position = 0
                continue
            # some other block, or one that does not lie in memory as a whole
            found, length = self._head(position)
            if found in SMALLEST:
                kind = found
                position = self._whole(position, length)
            elif found == INTERFACE:
                position = self._whole(position, length)
                self._interface(position, length)
                position += length
            else:
                if found == SECTION:
                    self._section(position)
                position = self._step_over(position, length)

    def _run(self, position: int, kind: int, run: list[int]) -> int:
        """Gather places of whole packet blocks of a kind; returns the place of the first block that is something else.

        Unknown blocks between them are stepped over.
        """
        data, size = self.window.data, self.window.size
        head_at = struct.Struct(f"{self.order}II").unpack_from
        smallest, last = SMALLEST[kind], size - SMALLEST_BLOCK
        while position <= last:
            found, length = head_at(data, position)
            behind = position + length
            if behind > size or length & 3:
                break
            if found == kind:
                if length < smallest or length > LONGEST_BLOCK:
                    break
                run.append(position)
            elif (
                found in NOT_STEPPED_OVER
                or length < SMALLEST_BLOCK
                or data[behind - 4 : behind] != data[position + 4 : position + 8]
            ):
                break
            position = behind
        return position

    def _head(self, position: int) -> tuple[int, int]:
        """Kind and length of a block, after a look at whether they are possible."""
        window = self.window
        found, length = struct.unpack_from(f"{self.order}II", window.data, position)
        if found == SECTION:
            magic = window.data[position + 8 : position + 12]
            if magic not in (b"\x4d\x3c\x2b\x1a", b"\x1a\x2b\x3c\x4d"):
                window.damaged(position, f"a section whose byte order is {magic.hex()}; expected 1a2b3c4d")
            self.order = "<" if magic[0] == 0x4D else ">"
            (length,) = struct.unpack_from(f"{self.order}I", window.data, position + 4)
        smallest = {SECTION: SMALLEST_SECTION, INTERFACE: SMALLEST_INTERFACE, **SMALLEST}.get(found, SMALLEST_BLOCK)
        if length < smallest or length % 4:
            window.damaged(position, f"a block of {length} bytes; expected a multiple of 4 from {smallest} on")
        if (found in SMALLEST or found == INTERFACE) and length > LONGEST_BLOCK:
            window.damaged(position, f"a block of {length} bytes; expected at most {LONGEST_BLOCK}")
        return found, length

    def _whole(self, position: int, length: int) -> int:
        """Bring a block into memory as a whole; returns where it begins then."""
        window = self.window
        if position + length > window.size:
            if not window.advance(position, length):
                window.ended(0, "a block")
            position = 0
        self._compare(position, window.data[position + 4 : position + 8], position + length - 4)
        return position

    def _step_over(self, position: int, length: int) -> int:
        """Leave a block of any length behind; returns where the next one begins."""
        window = self.window
        first, place = window.data[position + 4 : position + 8], window.offset + position
        behind = position + length
        if behind > window.size:
            if not (window.skip(behind - 4) and window.advance(0, 4)):
                window.ended(place - window.offset, "a block")
            behind = 4
        self._compare(place - window.offset, first, behind - 4)
        return behind

    def _compare(self, position: int, first: bytes, second: int) -> None:
        """Compare the two lengths of a block."""
        if self.window.data[second : second + 4] != first:
            self.window.damaged(position, "a block whose two lengths differ")

    def _section(self, position: int) -> None:
        """Begin a section."""
        if position + SMALLEST_SECTION > self.window.size and not self.window.advance(0, position + SMALLEST_SECTION):
            self.window.ended(position, "the header of a section")
        (major,) = struct.unpack_from(f"{self.order}H", self.window.data, position + 12)
        if major != 1:
            self.window.damaged(position, f"a section of version {major}; expected 1")
        self.interfaces = []

    def _interface(self, position: int, length: int) -> None:
        """Take notice of an interface."""
        window = self.window
        data = window.data
        if len(self.interfaces) == MOST_INTERFACES:
            window.damaged(position, f"a section with more than {MOST_INTERFACES} interfaces")
        link, snaplen = struct.unpack_from(f"{self.order}HxxI", data, position + 8)
        units, offset = 10**6, 0
        place, end = position + 16, position + length - 4
        while place + 4 <= end:
            code, size = struct.unpack_from(f"{self.order}HH", data, place)
            if code == END_OF_OPTIONS:
                break
            expected = {TIME_RESOLUTION: 1, TIME_OFFSET: 8}.get(code, size)
            if size != expected or place + 4 + size > end:
                window.damaged(place, f"an option {code} of {size} bytes; expected {expected}, within its block")
            if code == TIME_RESOLUTION:
                exponent = data[place + 4]
                units = 2 ** (exponent & 0x7F) if exponent & 0x80 else 10**exponent
            elif code == TIME_OFFSET:
                (offset,) = struct.unpack_from(f"{self.order}q", data, place + 4)
            place += 4 + size + -size % 4
        self.interfaces.append(_Interface(link, snaplen, units, offset))

    def _frames(self, run: list[int], kind: int) -> tuple[Frames, tuple[int, str] | None]:
        """Frames of a run up to the first bad one, and where and what that is."""
        buffer = np.frombuffer(self.window.data, dtype=np.uint8)
        place = np.array(run, dtype=np.int64)
        head = gather(buffer, place, 28).view(f"{self.order}u4").astype(np.int64)
        length = head[:, 1]
        twice = gather(buffer, place + length - 4, 4).view(f"{self.order}u4")[:, 0]
        if kind == SIMPLE_PACKET:
            interface, ticks, begin = np.zeros_like(place), np.zeros(len(place), dtype=np.uint64), place + 12
            snaplen = self.interfaces[0].snaplen if self.interfaces else 0
            captured = np.minimum(head[:, 2], snaplen) if snaplen else head[:, 2]
        else:
            short = gather(buffer, place + 8, 2).view(f"{self.order}u2")[:, 0].astype(np.int64)
            interface = short if kind == OBSOLETE_PACKET else head[:, 2]
            ticks = head[:, 3].astype(np.uint64) << np.uint64(32) | head[:, 4].astype(np.uint64)
            captured, begin = head[:, 5], place + 28
        behind = begin + captured
        problems = [
            (twice != length, "a block whose two lengths differ"),
            (behind > place + length - 4, "a packet that its block has no room for"),
            (interface >= len(self.interfaces), f"an interface beyond the {len(self.interfaces)} that are described"),
        ]
        bad = np.logical_or.reduce([wrong for wrong, _ in problems])
        interface = np.where(bad, 0, interface)
        time, late = np.zeros_like(place), np.zeros_like(bad)
        if kind != SIMPLE_PACKET:
            time, late = self._times(interface, ticks, bad)
        problems.append((late, "a time that lies beyond the year 2116"))
        first = int(np.argmax(bad | late)) if (bad | late).any() else len(place)
        links = np.array([each.link for each in self.interfaces] or [0], dtype=np.int64)
        rows = slice(0, first)
        frames = Frames(buffer, begin[rows], behind[rows], time[rows], links[interface[rows]])
        if first == len(place):
            return frames, None
        return frames, (run[first], next(what for wrong, what in problems if wrong[first]))

    def _times(
        self, interface: Integers, ticks: NDArray[np.uint64], bad: NDArray[np.bool_]
    ) -> tuple[Integers, NDArray[np.bool_]]:
        """Nanoseconds since 1970, and where they are beyond what is possible."""
        time, late = np.zeros(len(ticks), dtype=np.int64), np.zeros(len(ticks), dtype=np.bool_)
        for number in np.unique(interface[~bad]).tolist():
            rows = np.flatnonzero((interface == number) & ~bad)
            units, offset = self.interfaces[number].units, self.interfaces[number].offset * SECOND
            if SECOND % units == 0 and abs(offset) < LATEST:
                scale = SECOND // units
                late[rows] = ticks[rows] > np.uint64(LATEST // scale)
                time[rows] = np.where(late[rows], 0, ticks[rows]).astype(np.int64) * scale + offset
                late[rows] |= np.abs(time[rows]) >= LATEST
            else:  # finer or binary units need more than 64 bits on the way
                exact = [each * SECOND // units + offset for each in ticks[rows].tolist()]
                late[rows] = [abs(each) >= LATEST for each in exact]
                time[rows] = [each if abs(each) < LATEST else 0 for each in exact]
        return time, late
