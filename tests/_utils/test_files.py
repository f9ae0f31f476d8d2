"""Files are complete or absent."""

import errno
import multiprocessing
import os
import signal

import pytest

from skdeepcluster._utils import files
from skdeepcluster._utils.files import (
    CURES,
    TEMPORARY_MARK,
    escape_path,
    make_folder,
    shorten_name,
    write_atomically,
)


def test_complete_file_replaces_another(tmp_path):
    path = tmp_path / "file"
    for content in (b"one", b"two"):
        with write_atomically(path) as file:
            file.write(content)
            assert path.exists() == (content == b"two")
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="modes of POSIX")
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_file_has_the_usual_permissions(tmp_path, umask):
    before = os.umask(umask)
    try:
        with write_atomically(tmp_path / "file") as file:
            file.write(b"content")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_error_keeps_the_old_file(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write():
        with write_atomically(path) as file:
            file.write(b"new")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_invalid_paths_are_refused(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match=r"no folder .*nowhere. Make it first"),
        write_atomically(tmp_path / "nowhere" / "file"),
    ):
        pass
    with (
        pytest.raises(IsADirectoryError, match=r"is a folder. Name a file in it"),
        write_atomically(tmp_path),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_folder_is_made_unless_the_path_is_a_file(tmp_path):
    assert make_folder(str(tmp_path / "a" / "b"), "cache") == tmp_path / "a" / "b"
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=r"cache='.*' is, or lies in, a file"):
            make_folder(path, "cache")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.png", "a.png"),
        ("x" * 20 + ".png", "x" * 12 + ".png"),
        # 3 bytes a letter: 12 bytes are 4 letters, 11 bytes are 3 letters.
        ("写" * 9 + ".png", "写" * 4 + ".png"),
        ("写" * 9 + ".jpeg", "写" * 3 + ".jpeg"),
        ("x\udce9" * 9 + ".png", "x\udce9" * 6 + ".png"),
        ("." + "x" * 20, "." + "x" * 15),
        ("a." + "x" * 20, "a." + "x" * 14),
    ],
)
def test_long_names_keep_their_ending(name, expected):
    assert shorten_name(name, 16) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("写真 é\n.png", "写真 é\n.png"),
        ("caf\udce9.png", r"caf\xe9.png"),
        ("\udcff\udcfe", r"\xff\xfe"),
        ("é\udcc3.png", r"é\xc3.png"),
        ("\ud83d and \udce9", r"\ud83d and \udce9"),
    ],
)
def test_paths_for_people_are_valid_unicode(text, expected):
    assert escape_path(text) == expected


@pytest.mark.parametrize("name", ["x" * 255, "写" * 85, "é" * 127 + "x"])
def test_names_of_the_greatest_length_are_written(tmp_path, name):
    with write_atomically(tmp_path / name) as file:
        file.write(b"content")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_no_temporary_file_stays_if_the_target_is_refused(tmp_path):
    target = tmp_path / "file"
    with pytest.raises(OSError, match="file"), write_atomically(target):
        (target / "folder").mkdir(parents=True)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def raise_error(number):
    raise OSError(number, os.strerror(number))


@pytest.mark.parametrize("number", CURES)
@pytest.mark.parametrize("function", ["fsync", "replace", "posix_fallocate"])
def test_errors_of_the_disk_name_the_argument(monkeypatch, tmp_path, number, function):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, function, lambda *args: raise_error(number), raising=False)
    with (
        pytest.raises(OSError, match=r"cache_dir='c': the folder .*cannot be") as error,
        write_atomically(path, "cache_dir='c'", n_bytes=3) as file,
    ):
        file.write(b"new")
    assert str(tmp_path) in str(error.value)
    assert CURES[number] in str(error.value)
    assert error.value.errno == number
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_errors_of_other_disks_are_not_explained(tmp_path):
    with (
        pytest.raises(OSError, match=r"^\[Errno 5\] Input/output error$"),
        write_atomically(tmp_path / "file"),
    ):
        # The block may read images from another disk.
        raise_error(errno.EIO)


def test_failed_cleaning_does_not_hide_the_error(monkeypatch, tmp_path):
    monkeypatch.setattr(
        type(tmp_path), "unlink", lambda *a, **k: raise_error(errno.EIO)
    )
    with pytest.raises(KeyboardInterrupt), write_atomically(tmp_path / "file"):
        raise KeyboardInterrupt


def write_and_die(path):
    with write_atomically(path):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(files.fcntl is None, reason="locks of POSIX")
@pytest.mark.parametrize("name", ["file", "[*] x"])
def test_files_of_killed_processes_are_removed(monkeypatch, tmp_path, name):
    path = tmp_path / name
    context = multiprocessing.get_context("fork")
    job = context.Process(target=write_and_die, args=(path,))
    job.start()
    job.join()
    (temporary,) = tmp_path.iterdir()
    # Neither a file of another target nor one without the mark is removed.
    kept = tmp_path / temporary.name.replace(name, "other"), tmp_path / f".{name}-00"
    for other in kept:
        other.touch()
    monkeypatch.setattr(files, "NEW_SECONDS", 0.0)
    with write_atomically(path):
        assert not temporary.exists()
    assert sorted(tmp_path.iterdir()) == sorted([path, *kept])


def test_files_that_are_being_written_stay(monkeypatch, tmp_path):
    path = tmp_path / "file"
    monkeypatch.setattr(files, "NEW_SECONDS", 0.0)
    with write_atomically(path) as first_file:
        first_file.write(b"first")
        with write_atomically(path) as second_file:
            second_file.write(b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_reserved_space_that_is_not_used_is_given_back(tmp_path):
    with write_atomically(tmp_path / "file", n_bytes=1000) as file:
        (temporary,) = tmp_path.iterdir()
        assert temporary.name.endswith(TEMPORARY_MARK)
        assert temporary.stat().st_size in (0, 1000)
        file.write(b"content")
    assert (tmp_path / "file").read_bytes() == b"content"


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_folders_that_cannot_be_made_are_named(monkeypatch, tmp_path, number):
    monkeypatch.setattr(os, "mkdir", lambda *args: raise_error(number))
    with pytest.raises(OSError, match=r"cache_dir='.*new'.* a folder") as error:
        make_folder(tmp_path / "new", "cache_dir")
    assert error.value.errno == number
