"""What comes out of an upload: two files, or a sentence; never anything outside the folder."""

import gzip
import io
import os
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.adapters.roots import open_below
from app.adapters.staging import UploadedFile, stage_files, stage_folder
from app.errors import AdapterError, AdapterRejected, AdapterTooLarge
from softserve.schema.adapters import CONFIG_FILE, WEIGHTS_FILE
from tests.adapter_files import (
    Files,
    pack_files_zip,
    pack_tar,
    pack_tar_gz,
    pack_zip,
)
from tests.bad_adapters import MAX_ADAPTER_BYTES

PLAIN = settings(deadline=None, derandomize=True, database=None, max_examples=150)
CONFIG, WEIGHTS = b'{"peft_type": "LORA"}', bytes(range(256)) * 5
ADAPTER: Files = [(CONFIG_FILE, CONFIG), (WEIGHTS_FILE, WEIGHTS)]
# What PEFT, its trainers and the hub put beside an adapter.
BYSTANDERS: Files = [
    ("README.md", b"# An adapter"),
    (".gitattributes", b"*.safetensors filter=lfs"),
    ("tokenizer.json", b"{}"),
    ("special_tokens_map.json", b"{}"),
    ("training_args.bin", b"\x80\x04."),
    ("optimizer.pt", b"\x80\x04."),
    ("adapter_model.bin", b"\x80\x04."),
    ("empty.txt", b""),
    ("._adapter_config.json", b"\0\5\x16\7"),
    ("__MACOSX/._adapter_config.json", b"\0\5\x16\7"),
]


@pytest.fixture
def into(tmp_path: Path) -> Path:
    folder = tmp_path / "staging"
    folder.mkdir()
    return folder


@pytest.fixture(autouse=True)
def _nothing_outside(tmp_path: Path) -> Iterator[None]:
    """Whatever a test does, no file appears beside the staging folder, or in it but the two."""
    yield
    for file in tmp_path.rglob("*"):
        assert file.name in {"staging", "source", "elsewhere", CONFIG_FILE, WEIGHTS_FILE}


def _stage(files: Files, into: Path, max_bytes: int = MAX_ADAPTER_BYTES) -> dict[str, bytes]:
    uploads = [UploadedFile(name, io.BytesIO(content)) for name, content in files]
    stage_files(uploads, into, max_bytes)
    return {file.name: file.read_bytes() for file in into.iterdir()}


def _in_folder(files: Files, folder: str = "my adapter") -> Files:
    return [(f"{folder}/{name}", content) for name, content in files]


def _gnu_tar(files: Files) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        folder = tarfile.TarInfo("x" * 150)
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in _in_folder(files, "x" * 150):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


PACKED: dict[str, tuple[str, Callable[[Files], bytes]]] = {
    "tar.gz": ("a.tar.gz", pack_tar),
    "tgz": ("a.tgz", lambda files: pack_tar(_in_folder(files))),
    "tar": ("a.tar", lambda files: pack_tar(files, "w:")),
    "tar with ./": ("a.tar", lambda files: pack_tar(_in_folder(files, "."), "w:")),
    "tar with long names": ("a.tar", lambda files: pack_tar(_in_folder(files, "x" * 200), "w:")),
    "tar with ustar prefixes": (
        "a.tar",
        lambda files: pack_tar(_in_folder(files, "x" * 90), "w:"),
    ),
    "tar by GNU": ("a.tar", _gnu_tar),
    "tar with accents": ("a.tar", lambda files: pack_tar(_in_folder(files, "Gemüse"), "w:")),
    "zip": ("a.zip", pack_files_zip),
    "zip with folder": (
        "a.zip",
        lambda files: pack_files_zip([("d/", b""), *_in_folder(files, "d")]),
    ),
    "zip by Windows": ("a.zip", lambda files: pack_files_zip([(f"d\\{n}", c) for n, c in files])),
    "zip, stored": ("a.zip", lambda files: pack_files_zip(files, zipfile.ZIP_STORED)),
    "zip called tar.gz": ("a.tar.gz", pack_files_zip),
    "tar.gz without a name": ("file", pack_tar),
}


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("files", [ADAPTER, [*BYSTANDERS, *ADAPTER[::-1]]], ids=["two", "many"])
def test_an_archive(name: str, files: Files, into: Path) -> None:
    filename, pack = PACKED[name]
    assert _stage([(filename, pack(files))], into) == dict(ADAPTER)


@pytest.mark.parametrize(
    "files",
    [ADAPTER, ADAPTER[::-1], [*BYSTANDERS, *ADAPTER], _in_folder(ADAPTER)],
    ids=["two", "reversed", "many", "folder"],
)
def test_files(files: Files, into: Path) -> None:
    assert _stage(files, into) == dict(ADAPTER)


@pytest.mark.parametrize("pack", [pack_tar_gz, pack_zip])
def test_the_makers_of_these_tests(pack: Callable[[Path], bytes], into: Path) -> None:
    source = into.with_name("source")
    source.mkdir()
    for name, content in ADAPTER:
        (source / name).write_bytes(content)
    assert _stage([("adapter", pack(source))], into) == dict(ADAPTER)


def test_no_files(into: Path) -> None:
    with pytest.raises(AdapterRejected, match="no file was sent"):
        _stage([], into)


class _Unread(io.BytesIO):
    def read(self, size: int | None = -1, /) -> bytes:
        raise AssertionError


def test_a_pickle_is_not_read(into: Path) -> None:
    uploads = [
        UploadedFile(CONFIG_FILE, io.BytesIO(CONFIG)),
        UploadedFile("adapter_model.bin", _Unread()),
    ]
    with pytest.raises(AdapterRejected, match="safe_serialization=True"):
        stage_files(uploads, into, MAX_ADAPTER_BYTES)


@pytest.mark.parametrize(
    "upload",
    [ADAPTER, [("a.tar.gz", pack_tar(ADAPTER))], [("a.zip", pack_files_zip(ADAPTER))]],
    ids=["files", "tar.gz", "zip"],
)
def test_limits_are_inclusive(upload: Files, into: Path) -> None:
    with pytest.raises(AdapterTooLarge, match="above the limit of 1,279 bytes"):
        _stage(upload, into, len(WEIGHTS) - 1)
    for file in into.iterdir():
        file.unlink()
    assert _stage(upload, into, len(WEIGHTS)) == dict(ADAPTER)


def test_a_thousand_members(into: Path) -> None:
    files = [*ADAPTER, *((f"{number}.txt", b"") for number in range(998))]
    assert _stage([("a.zip", pack_files_zip(files))], into) == dict(ADAPTER)


def test_many_uploaded_files(into: Path) -> None:
    files = [(f"{number}.txt", b"") for number in range(1001)]
    with pytest.raises(AdapterRejected, match="more than 1,000 files"):
        _stage(files, into)


def test_no_archive_of_another_kind(into: Path) -> None:
    for content in (b"7z\xbc\xaf\x27\x1c", b"BZh91AY&SY", b"hello"):
        with pytest.raises(AdapterRejected, match="is not an archive that can be read"):
            _stage([("adapter.7z", content)], into)


def test_a_bomb_takes_little_memory(into: Path) -> None:
    """A declared gigabyte in a header of tar, in one of 1 MiB after unpacking."""
    header = tarfile.TarInfo("header")
    header.type, header.size = tarfile.XHDTYPE, 1 << 30
    bomb = gzip.compress(header.tobuf() + bytes(1 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(AdapterRejected, match="too large headers"):
            _stage([("a.tar.gz", bomb)], into)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


END = bytes(2 * tarfile.BLOCKSIZE)
HEADERS = {
    "POSIX": tarfile.XHDTYPE,
    "POSIX, global": tarfile.XGLTYPE,
    "Solaris": tarfile.SOLARIS_XHDTYPE,
    "GNU long name": tarfile.GNUTYPE_LONGNAME,
    "GNU long link": tarfile.GNUTYPE_LONGLINK,
}


def _tar_member(
    name: str = "a.txt", content: bytes = b"", kind: bytes = tarfile.REGTYPE, size: bytes = b""
) -> bytes:
    """A header with a right checksum, and its content; `size` is what it declares instead."""
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, len(content)
    header = bytearray(member.tobuf())
    header[124 : 124 + len(size)] = size
    return _with_checksum(header) + content + bytes(-len(content) % tarfile.BLOCKSIZE)


def _with_checksum(header: bytearray) -> bytes:
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def _record(text: bytes) -> bytes:
    """A record of a POSIX header; its length, of two digits, counts itself."""
    return b"%d %s\n" % (len(text) + 4, text)


@pytest.mark.parametrize("kind", HEADERS.values(), ids=HEADERS)
@pytest.mark.parametrize("content", [b"", _record(b"comment=a")], ids=["empty", "full"])
def test_endless_headers(kind: bytes, content: bytes, into: Path) -> None:
    """`tarfile` calls itself for each of them."""
    with pytest.raises(AdapterRejected, match="too large headers"):
        _stage([("a.tar", _tar_member("header", content, kind) * 3001)], into)


def test_many_headers_take_little_memory(into: Path) -> None:
    """`tarfile` holds what is global, and a copy of it for every member."""
    keys = b"".join(_record(b"%06d=" % key) for key in range(1000))
    tar = b"".join(
        _tar_member("header", keys, tarfile.XGLTYPE) + _tar_member(f"{number}.txt")
        for number in range(200)
    )
    tracemalloc.start()
    try:
        with pytest.raises(AdapterRejected, match="are missing"):
            _stage([("a.tar.gz", gzip.compress(tar + END))], into)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_an_endless_map_of_a_sparse_file(into: Path) -> None:
    """An extension of the old header of GNU, which says that one more follows."""
    header = bytearray(_tar_member(kind=tarfile.GNUTYPE_SPARSE))
    header[482] = 1
    extension = bytes(504) + b"\1" + bytes(7)
    with pytest.raises(AdapterRejected, match="too large headers"):
        _stage([("a.tar", _with_checksum(header) + extension * 3000)], into)


HOSTILE_RECORDS = {
    "no length": b"path=a",
    "a length of zero": b"0 path=a\n",
    "a charset that is not text": _record(b"hdrcharset=\xff"),
    "a size that is not a number": _record(b"size=a"),
    "a size below zero": _record(b"size=-512"),
    "a size that nothing has": _record(b"size=99999999999999"),
    "a sparse file's map that is not numbers": _record(b"GNU.sparse.map=a"),
    "a sparse file's size that is not a number": _record(b"GNU.sparse.size=a"),
    "a sparse file's map without an end": (
        _record(b"GNU.sparse.major=1") + _record(b"GNU.sparse.minor=0")
    ),
}


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE], ids=["next", "global"])
@pytest.mark.parametrize("records", HOSTILE_RECORDS.values(), ids=HOSTILE_RECORDS)
def test_hostile_records(kind: bytes, records: bytes, into: Path) -> None:
    tar = _tar_member("header", records, kind) + _tar_member(CONFIG_FILE, b"\xff" * 512) + END
    with pytest.raises(AdapterRejected):
        _stage([("a.tar", tar)], into)


def test_a_run_of_digits(into: Path) -> None:
    """`tarfile` of some Pythons would take minutes for a few of them."""
    tar = _tar_member("header", b"1" * 12_000, tarfile.XHDTYPE) + _tar_member(CONFIG_FILE, CONFIG)
    with pytest.raises(AdapterRejected, match="is damaged or cut short"):
        _stage([("a.tar", tar + END)], into)


@pytest.mark.parametrize("kind", [*HEADERS.values(), tarfile.REGTYPE, tarfile.DIRTYPE])
def test_a_size_below_zero(kind: bytes, into: Path) -> None:
    """Who believes it goes back, and reads the same header again."""
    size = b"\xff" * 10 + b"\xfe\0"
    tar = _tar_member(CONFIG_FILE, CONFIG) + _tar_member(kind=kind, size=size) + END
    with pytest.raises(AdapterRejected, match="is damaged or cut short"):
        _stage([("a.tar", tar)], into)


BEHIND_BOTH_FILES = {
    "no end": b"",
    "half a header": _tar_member()[:200],
    "a wrong checksum": _tar_member().replace(b"a.txt", b"b.txt") + END,
    "a header of nothing": _tar_member("header", _record(b"comment=a"), tarfile.XHDTYPE) + END,
}


@pytest.mark.parametrize("behind", BEHIND_BOTH_FILES.values(), ids=BEHIND_BOTH_FILES)
def test_damage_behind_both_files(behind: bytes, into: Path) -> None:
    """Where `tarfile` takes a damaged header for the end."""
    tar = b"".join(_tar_member(name, content) for name, content in ADAPTER)
    with pytest.raises(AdapterRejected, match="is damaged or cut short"):
        _stage([("a.tar", tar + behind)], into)


def test_a_wrong_checksum_of_what_is_compressed(into: Path) -> None:
    content = bytearray(pack_tar(ADAPTER))
    content[-8] ^= 1
    with pytest.raises(AdapterRejected, match="is damaged or cut short"):
        _stage([("a.tar.gz", bytes(content))], into)


def test_a_name_that_is_not_text(into: Path) -> None:
    tar = b"".join(_tar_member(name, content) for name, content in ADAPTER)
    readme = bytearray(_tar_member())
    readme[0] = 0xFF
    assert _stage([("a.tar", _with_checksum(readme) + tar + END)], into) == dict(ADAPTER)


# Folders of this machine.


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for name, content in ADAPTER:
        (folder / name).write_bytes(content)
    return folder


def test_a_folder(source: Path, into: Path) -> None:
    stage_folder(source, into, MAX_ADAPTER_BYTES)
    assert {file.name: file.read_bytes() for file in into.iterdir()} == dict(ADAPTER)


def test_a_folder_that_is_too_large(source: Path, into: Path) -> None:
    with pytest.raises(AdapterTooLarge, match="above the limit of 1,000 bytes"):
        stage_folder(source, into, 1000)


def _link(file: Path) -> None:
    elsewhere = file.parent.with_name("elsewhere")
    file.rename(elsewhere)
    file.symlink_to(elsewhere)


def _dangling_link(file: Path) -> None:
    file.unlink()
    file.symlink_to("nowhere")


def _fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_link, "is a link that leads outside"),
        (_dangling_link, "is missing, or a link that leads nowhere"),
        (_fifo, "is not a regular file"),
        (_folder, "is not a regular file"),
        (Path.unlink, "is missing"),
        (lambda file: file.write_bytes(b""), "is empty"),
    ],
    ids=["link", "dangling", "pipe", "folder", "missing", "empty"],
)
def test_a_folder_with_something_else(
    source: Path, into: Path, name: str, change: Callable[[Path], Any], sentence: str
) -> None:
    change(source / name)
    with pytest.raises(AdapterRejected, match=f"{name} {sentence}"):
        stage_folder(source, into, MAX_ADAPTER_BYTES)


def test_a_folder_with_a_pickle(source: Path, into: Path) -> None:
    (source / WEIGHTS_FILE).rename(source / "adapter_model.bin")
    with pytest.raises(AdapterRejected, match="safe_serialization=True"):
        stage_folder(source, into, MAX_ADAPTER_BYTES)
    (source / "adapter_model.bin").unlink()


def test_no_folder(source: Path, into: Path) -> None:
    with pytest.raises(AdapterRejected, match="there is no such folder"):
        stage_folder(source / "nowhere", into, MAX_ADAPTER_BYTES)
    with pytest.raises(AdapterRejected, match="there is no such folder"):
        stage_folder(source / CONFIG_FILE, into, MAX_ADAPTER_BYTES)
    (source.with_name("elsewhere")).symlink_to(source)
    with pytest.raises(AdapterRejected, match="there is no such folder"):
        stage_folder(source.with_name("elsewhere"), into, MAX_ADAPTER_BYTES)


# Folders of links: the hub's cache, and volumes of Kubernetes.


def _hub_cache(repository: Path) -> Path:
    """A snapshot of two links into the blobs."""
    snapshot = repository / "snapshots" / "0123abcd"
    for folder in (snapshot, repository / "blobs"):
        folder.mkdir(parents=True)
    for name, content in ADAPTER:
        blob = repository / "blobs" / f"of-{name}"
        blob.write_bytes(content)
        (snapshot / name).symlink_to(f"../../blobs/{blob.name}")
    return snapshot


@pytest.fixture
def apart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that may hold anything."""
    return tmp_path_factory.mktemp("apart").resolve()


@pytest.mark.parametrize("root", [".", "models--a--b", "models--a--b/snapshots"])
def test_a_snapshot_of_the_hubs_cache(apart: Path, into: Path, root: str) -> None:
    snapshot = _hub_cache(apart / "models--a--b")
    stage_folder(snapshot, into, MAX_ADAPTER_BYTES, roots=[apart / root])
    assert {file.name: file.read_bytes() for file in into.iterdir()} == dict(ADAPTER)


def test_a_volume_of_kubernetes(apart: Path, into: Path) -> None:
    """Each file is a link into `..data`, which is a link to a folder with the time in its name."""
    (apart / "volume" / "..2026_01_01").mkdir(parents=True)
    (apart / "volume" / "..data").symlink_to("..2026_01_01")
    for name, content in ADAPTER:
        (apart / "volume" / "..data" / name).write_bytes(content)
        (apart / "volume" / name).symlink_to(f"..data/{name}")
    stage_folder(apart / "volume", into, MAX_ADAPTER_BYTES, roots=[apart])
    assert {file.name: file.read_bytes() for file in into.iterdir()} == dict(ADAPTER)


@pytest.mark.parametrize("root", ["other", "models--a--b/snapshots/0123abcd/x"])
def test_a_link_is_not_followed_out_of_the_roots(apart: Path, into: Path, root: str) -> None:
    snapshot = _hub_cache(apart / "models--a--b")
    (apart / root).mkdir(parents=True)
    with pytest.raises(AdapterRejected, match="is a link that leads outside"):
        stage_folder(snapshot, into, MAX_ADAPTER_BYTES, roots=[apart / root])
    assert b"".join(file.read_bytes() for file in into.iterdir()) == b""


def test_a_folder_that_becomes_a_link_after_it_was_judged(
    apart: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at a path and its opening, nobody can have it lead elsewhere."""
    for folder in ("root/inside", "outside"):
        (apart / folder).mkdir(parents=True)
        (apart / folder / CONFIG_FILE).write_text(folder)
    resolve = os.path.realpath

    def swap(path: str | Path, *, strict: bool = False) -> str:
        resolved = str(resolve(path, strict=strict))
        if Path(resolved).name == CONFIG_FILE:
            (apart / "root" / "inside").rename(apart / "root" / "moved")
            (apart / "root" / "inside").symlink_to(apart / "outside")
        return resolved

    monkeypatch.setattr(os.path, "realpath", swap)
    with (
        pytest.raises(NotADirectoryError),
        open_below(apart / "root" / "inside" / CONFIG_FILE, [apart / "root"]),
    ):
        pass


# Which adapter is meant, where training leaves more than one.

TRAINED: Files = [
    *_in_folder([(CONFIG_FILE, b"old"), (WEIGHTS_FILE, b"old"), *BYSTANDERS], "checkpoint-500"),
    ("checkpoint-500/global_step500/zero.pt", b"PK\3\4"),
    ("runs/events.gz", b"\x1f\x8b"),
    ("training_args.bin", b"PK\3\4"),
    ("eval.npz", b"PK\3\4"),
]


def _unpacked(files: Files, folder: Path) -> Path:
    for name, content in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def _stage_as(kind: str, files: Files, into: Path, apart: Path) -> dict[str, bytes]:
    match kind:
        case "folder":
            stage_folder(_unpacked(files, apart), into, MAX_ADAPTER_BYTES)
            return {file.name: file.read_bytes() for file in into.iterdir()}
        case "upload":
            return _stage([each for each in files if not each[0].endswith(".gz")], into)
        case "tar":
            return _stage([("a", pack_tar(files))], into)
        case _:
            return _stage([("a", pack_files_zip(files))], into)


EVERY_WAY = pytest.mark.parametrize("kind", ["folder", "upload", "tar", "zip"])


@EVERY_WAY
@pytest.mark.parametrize(
    "files", [[*TRAINED, *ADAPTER], [*ADAPTER, *TRAINED]], ids=["last", "first"]
)
def test_the_adapter_on_top_is_meant(kind: str, files: Files, into: Path, apart: Path) -> None:
    assert _stage_as(kind, files, into, apart) == dict(ADAPTER)


@EVERY_WAY
def test_the_only_one_below_is_meant(kind: str, into: Path, apart: Path) -> None:
    files = [("training_args.bin", b"PK\3\4"), *_in_folder(ADAPTER, "out/default")]
    assert _stage_as(kind, files, into, apart) == dict(ADAPTER)


@EVERY_WAY
def test_several_below_and_none_on_top(kind: str, into: Path, apart: Path) -> None:
    files = [*_in_folder(ADAPTER, "checkpoint-500"), *_in_folder(ADAPTER, "checkpoint-1000")]
    with pytest.raises(AdapterRejected) as raised:
        _stage_as(kind, files, into, apart)
    assert raised.value.message == (
        "adapter files lie in 'checkpoint-1000' and in 'checkpoint-500': give the folder of one "
        "adapter"
    )


@EVERY_WAY
def test_no_checkpoint_takes_the_place_of_a_pickle_on_top(
    kind: str, into: Path, apart: Path
) -> None:
    files = [*TRAINED, ADAPTER[0], ("adapter_model.bin", b"\x80\x04.")]
    with pytest.raises(AdapterRejected, match=r"^adapter_model\.bin is a pickle"):
        _stage_as(kind, files, into, apart)


@pytest.mark.parametrize(
    "folder", ["/home/me/out/", "C:\\out\\", "C:/out/", "runs/a/out/", "//host/"]
)
def test_the_folder_in_a_sent_files_name_says_nothing(folder: str, into: Path) -> None:
    assert _stage([(f"{folder}{name}", content) for name, content in ADAPTER], into) == dict(
        ADAPTER
    )


def test_a_pickle_is_told_by_its_whole_path(into: Path) -> None:
    files = [("/a/adapter_config.json", CONFIG), ("/a/adapter_model.bin", b"\x80\x04.")]
    with pytest.raises(AdapterRejected, match=r"^adapter_model\.bin is a pickle"):
        _stage(files, into)


def test_two_files_of_different_folders_are_sent(into: Path) -> None:
    files = [(f"{number}/{name}", content) for number, (name, content) in enumerate(ADAPTER)]
    assert _stage(files, into) == dict(ADAPTER)


# Whatever is sent.

ARCHIVES = {name: pack([*BYSTANDERS[:3], *ADAPTER]) for name, (_, pack) in PACKED.items()}


@PLAIN
@given(
    archive=st.sampled_from(sorted(ARCHIVES)),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
    end=st.floats(0.2, 1),
)
def test_damaged_archives_end_in_a_sentence(
    tmp_path_factory: pytest.TempPathFactory,
    archive: str,
    edits: list[tuple[float, int]],
    end: float,
) -> None:
    content = bytearray(ARCHIVES[archive])
    for position, byte in edits:
        content[int(position * len(content))] = byte
    _ends_in_a_sentence([("a", bytes(content[: int(end * len(content))]))], tmp_path_factory)


@PLAIN
@given(start=st.sampled_from([b"", b"PK\x03\x04", b"\x1f\x8b\x08\0"]), content=st.binary())
def test_random_bytes_end_in_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, start: bytes, content: bytes
) -> None:
    _ends_in_a_sentence([("a", start + content)], tmp_path_factory)


@PLAIN
@given(content=st.binary(min_size=500, max_size=1500))
def test_random_tars_end_in_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    """Random members with a right checksum, so that what is behind it is reached."""
    header = bytearray(content[:512].ljust(512, b"\0"))
    header[257:265] = b"ustar\x0000"
    header[124:136] = b"00000000100\0"
    _ends_in_a_sentence([("a", _with_checksum(header) + content[512:])], tmp_path_factory)


@PLAIN
@given(
    members=st.lists(
        st.tuples(
            st.sampled_from([*HEADERS.values(), tarfile.GNUTYPE_SPARSE, tarfile.REGTYPE]),
            st.lists(st.sampled_from([*HOSTILE_RECORDS.values(), _record(b"path=a")])).map(b"".join)
            | st.binary(max_size=600),
            st.sampled_from([b"", b"\xff" * 12, b"7" * 11, b"\x80"]),
        ),
        max_size=6,
    )
)
def test_random_headers_end_in_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, members: list[tuple[bytes, bytes, bytes]]
) -> None:
    tar = b"".join(_tar_member("a.txt", content, kind, size) for kind, content, size in members)
    _ends_in_a_sentence([("a", tar + END)], tmp_path_factory)


def _ends_in_a_sentence(files: Files, factory: pytest.TempPathFactory) -> None:
    into = factory.mktemp("staging")
    refusal = _refusal(files, into)
    staged = {file.name for file in into.iterdir()}
    if refusal is None:
        assert staged == {CONFIG_FILE, WEIGHTS_FILE}
    else:
        assert refusal.isprintable()
        assert staged <= {CONFIG_FILE, WEIGHTS_FILE}


def _refusal(files: Files, into: Path) -> str | None:
    try:
        _stage(files, into)
    except AdapterError as error:
        return error.message
    return None
