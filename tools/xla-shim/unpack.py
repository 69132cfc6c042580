"""Unpacks parts of a wheel: unpack.py WHEEL FOLDER FROM=TO...

FROM is a file of the wheel, or a folder of it (ending in a slash); TO is its place in FOLDER. The first pair that fits
a file decides; files that none fits are left in the wheel, which saves more than half of the disk space.
"""

import os
import sys
import time
import zipfile


class Counted:
    """Counts the bytes unpacked, to say how far the unpacking is."""

    def __init__(self, total):
        self.total, self.done, self.said, self.live = total, 0, 0.0, sys.stderr.isatty()

    def add(self, size):
        self.done += size
        if self.live and (time.monotonic() - self.said > 0.2 or self.done == self.total):
            self.said = time.monotonic()
            sys.stderr.write(f"\r  {100 * self.done // max(self.total, 1)}% \x1b[K")
            sys.stderr.flush()


def main():
    wheel, folder, *pairs = sys.argv[1:]
    pairs = [pair.split("=", 1) for pair in pairs]
    with zipfile.ZipFile(wheel) as archive:
        chosen, found = [], set()
        for info in archive.infolist():
            for source, target in pairs:
                if info.filename == source or (source.endswith("/") and info.filename.startswith(source)):
                    found.add(source)
                    if not info.is_dir():
                        chosen.append((info, os.path.join(folder, target + info.filename[len(source) :])))
                    break
        missing = [source for source, _ in pairs if source not in found]
        if missing:
            sys.exit(f"{wheel} has no {', '.join(missing)}")
        counted = Counted(sum(info.file_size for info, _ in chosen))
        for info, path in chosen:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            # Reading to the end also checks the file's checksum.
            with archive.open(info) as source, open(path, "wb") as target:
                while block := source.read(1 << 20):
                    target.write(block)
                    counted.add(len(block))
    if counted.live:
        sys.stderr.write("\r\x1b[K")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        sys.exit(f"unpacking failed: {error}")
