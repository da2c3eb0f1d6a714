"""Lists the files of a data set with untrusted lists: no file outside the root, no file twice, no file missing."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from saga_dist.data.formats import EXAMPLES
from saga_dist.data.image_sets import FolderImageSet
from saga_dist.data.left_out import LeftOut, summary
from saga_dist.errors import DataError


def find_root(root: str | Path, markers: Sequence[str] = (), *, inside: Sequence[str] = (), layout: str = "") -> Path:
    """Returns the folder of the data set, ``root`` or the first of ``inside`` with all markers, with links resolved.

    Args:
        root: folder given by the user; may be a symbolic link.
        markers: names of files or folders that the folder of the data set contains.
        inside: other candidates, relative to the root.
        layout: description of the expected content, for the error message.

    Raises:
        DataError: ``root`` cannot be read, or no candidate has all markers.
    """
    if not str(root):
        raise DataError("no folder given", where="data.root", expected="the folder of the data set")
    try:
        resolved = Path(root).resolve(strict=True)
        os.scandir(resolved).close()
        folders = [resolved, *(resolved / name for name in inside)]
        lacks = [[marker for marker in markers if not (folder / marker).exists()] for folder in folders]
        best = min(range(len(folders)), key=lambda index: len(lacks[index]))
        if not lacks[best]:
            return folders[best].resolve()
    except (OSError, ValueError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DataError(f"cannot read the data set ({reason})", where=str(root), fix="check data.root") from error
    raise DataError(
        f"{lacks[best][0]} is missing",
        where=str(folders[best]),
        expected=layout,
        fix="check data.root and data.layout, or complete the data set",
    )


def read_list_bytes(path: Path) -> bytes:
    """Returns the content of a list.

    Raises:
        DataError: the file is missing, unreadable or not a regular file (reading a FIFO would block).
    """
    try:
        if path.exists() and not path.is_file():
            raise DataError("not a regular file", where=str(path), expected="a list", fix="replace it")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError(f"cannot read the list ({reason})", where=str(path), fix="check the path") from error


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields the number, from 1, and the stripped text of every line that is not blank.

    Raises:
        DataError: the file is unreadable, not UTF-8 or blank, begins with a byte order mark, or contains a NUL.
    """
    content = read_list_bytes(path)
    if content.startswith(b"\xef\xbb\xbf"):
        raise DataError("the list begins with a byte order mark", where=f"{path}:1", fix="save it as UTF-8 without BOM")
    empty = True
    for number, line in enumerate(content.split(b"\n"), start=1):
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise DataError("not UTF-8 text", where=f"{path}:{number}", fix="save the list as UTF-8") from error
        if "\0" in text:
            raise DataError("a NUL character", where=f"{path}:{number}", fix="restore the list from the original")
        if text:
            empty = False
            yield number, text
    if empty:
        raise DataError("the list is empty", where=str(path), fix="restore it from the original")


def parse_id(text: str, where: str, name: str = "id") -> int:
    """Returns the positive integer in a field of a list.

    Args:
        text: the field.
        where: file and line number, for the error message.
        name: name of the field, for the error message.

    Raises:
        DataError: the text is not a positive integer.
    """
    if not (text.isascii() and text.isdigit() and len(text) < 19 and int(text) > 0):
        raise DataError(f"{name} {text!r}", where=where, expected="a positive integer", fix="correct the line")
    return int(text)


def link_target(link: Path, root: Path) -> Path:
    """Returns the target of a symbolic link.

    Raises:
        DataError: the target does not exist, or is outside the root.
    """
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise DataError("a link to nowhere", where=str(link), fix="remove it") from error
    if not target.is_relative_to(root):
        raise DataError(f"a link out of the data set (to {target})", where=str(link), fix="copy the file instead")
    return target


class ClassFiles:
    """The image files of each class of a data set, every file at most once.

    Args:
        root: folder of the data set, with links resolved.
        beside: another collection of files of the same data set; a file may be in only one of the two.
    """

    def __init__(self, root: Path, *, beside: ClassFiles | None = None) -> None:
        self.root = root
        self.left_out: list[LeftOut] = []
        """Files that were found in the folders of the classes and left out."""
        self._files: dict[str, list[tuple[str, int]]] = {}
        self._real_folders: dict[str, Path] = {}
        self._seen: dict[Path, str] = {} if beside is None else beside._seen
        self._missing: list[tuple[str, str]] = [] if beside is None else beside._missing

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order in which they were declared."""
        return list(self._files)

    def declare(self, class_name: str, where: str) -> None:
        """Adds a class without images; does nothing if the class exists.

        Args:
            class_name: name of the class.
            where: file and row, for the error message.

        Raises:
            DataError: the name is empty, or contains characters that are not printable.
        """
        if class_name not in self._files:
            if not class_name.strip() or not class_name.isprintable():
                raise DataError(f"class name {class_name!r}", where=where, expected="a printable name")
            self._files[class_name] = []

    def add(self, class_name: str, listed: str, where: str, *, folder: str = ".") -> None:
        """Adds a file from a list; a file that does not exist is noted for ``refuse_missing``.

        Args:
            class_name: class of the file.
            listed: path relative to ``folder``, as it is in the list.
            where: file and row of the list, for error messages.
            folder: folder relative to the root.

        Raises:
            DataError: the path leaves the root, is not a regular file, or is a file that was added before.
        """
        self.declare(class_name, where)
        path = PurePosixPath(folder) / _safe_path(listed, where)
        full = self.root / path
        try:
            status = full.lstat()
            if stat.S_ISLNK(status.st_mode):
                real = link_target(full, self.root)
                status = full.stat()
            else:
                real = self._real_folder(path.parent.as_posix()) / path.name
        except (FileNotFoundError, NotADirectoryError):
            self._missing.append((where, path.as_posix()))
            return
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise DataError(f"cannot read {listed!r} ({reason})", where=where, fix="correct the path") from error
        self.add_found(class_name, path.as_posix(), status, real, where)

    def add_found(self, class_name: str, path: str, status: os.stat_result, real: Path, where: str) -> None:
        """Adds a file whose status is known.

        Args:
            class_name: class of the file, declared before.
            path: path relative to the root.
            status: status of the file.
            real: path with links resolved.
            where: file and row, for error messages.

        Raises:
            DataError: the path is not a regular file, or is a file that was added before.
        """
        if not stat.S_ISREG(status.st_mode):
            raise DataError("not a regular file", where=str(self.root / path), expected="an image", fix="remove it")
        # A file with two names could be in training and in test.
        other = self._seen.get(real)
        if other is not None:
            raise DataError(f"{path} is the same file as {other}", where=where, fix="remove one of them")
        self._seen[real] = path
        self._files[class_name].append((path, status.st_size))

    def refuse_missing(self) -> None:
        """Checks that all listed files exist.

        Raises:
            DataError: some do not; the message names the first ones and gives the number of the others.
        """
        if self._missing:
            where, path = self._missing[0]
            others = [path for _, path in self._missing[1:]]
            more = f" (and {len(others):,} more), as are {', '.join(others[:2])}" if others else ""
            raise DataError(
                f"{path} is missing{more}", where=where, expected=f"it below {self.root}", fix="complete the data set"
            )

    def size(self, class_name: str) -> int:
        """Returns the number of images of a class."""
        return len(self._files.get(class_name, ()))

    def images(
        self,
        class_names: Sequence[str],
        *,
        image_size: int,
        banner: int = 0,
        fast_jpeg: bool = False,
        allow_empty: bool = False,
    ) -> FolderImageSet:
        """Returns the images of the given classes, sorted by class and path.

        Args:
            class_names: [C] classes, in the order of their labels.
            image_size: side of the square that images are scaled to, pixels.
            banner: rows at the bottom of every image that are not part of it, pixels.
            fast_jpeg: True to decode large JPEG files at a reduced scale (see ``read_image``).
            allow_empty: True to accept classes without images, for data with a separate gallery, where the images of a
                class may all be queries or all be in the gallery.

        Raises:
            DataError: a class has no image, and ``allow_empty`` is False.
        """
        files: list[tuple[str, int]] = []
        labels: list[int] = []
        for label, class_name in enumerate(class_names):
            listed = sorted(self._files.get(class_name, ()))
            if not listed and not allow_empty:
                raise DataError(
                    f"class {class_name!r} has no images{self._left_out_of(class_name)}",
                    where=str(self.root),
                    expected=EXAMPLES,
                    fix="add images or remove the class",
                )
            files += listed
            labels += [label] * len(listed)
        images = FolderImageSet(
            root=self.root,
            files=tuple(path for path, _ in files),
            sizes_bytes=tuple(size for _, size in files),
            labels_I=np.array(labels, np.int64),
            class_names=tuple(class_names),
            image_size=image_size,
            banner=banner,
            fast_jpeg=fast_jpeg,
        )
        return self._readable(images)

    def _readable(self, images: FolderImageSet) -> FolderImageSet:
        """Returns listed images in the form in which they are read: here, each is a file of its own."""
        return images

    def _left_out_of(self, class_name: str) -> str:
        """Returns what was left out of the folder of a class, in brackets; empty for nothing."""
        own = [one for one in self.left_out if class_name in one.path.split("/")[:2]]
        return f" ({summary(own)})" if own else ""

    def _real_folder(self, folder: str) -> Path:
        if folder not in self._real_folders:
            self._real_folders[folder] = link_target(self.root / folder, self.root)
        return self._real_folders[folder]


def _safe_path(listed: str, where: str) -> PurePosixPath:
    path = PurePosixPath(listed)
    if not listed or "\0" in listed or path.is_absolute() or ".." in path.parts or not path.name:
        raise DataError(
            f"path {listed!r}", where=where, expected="a path below the data set's folder", fix="correct it"
        )
    if path.name.startswith("._"):
        raise DataError(f"{listed!r} is no image but macOS metadata", where=where, fix="remove the row")
    return path
