"""Uploads that no server may accept, whatever its model, each with the sentence that refuses it.

Each is made for a base model, from its hidden size and its modules, and is right but for one thing.
The limits that they break are the defaults, except `MAX_ADAPTER_BYTES`. The real server is sent all
of them.
"""

import gzip
import io
import json
import math
import stat
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from app.engine.protocol import ModuleShape
from softserve.schema.adapters import CONFIG_FILE, WEIGHTS_FILE
from tests.adapter_files import (
    Config,
    Files,
    Tensors,
    as_files,
    cpt_config,
    lora_config,
    lora_tensors,
    multitask_config,
    multitask_tensors,
    pack_files_zip,
    pack_tar,
    soft_prompt_config,
    soft_prompt_tensors,
)

# What a server that is sent these has to be started with, so that a bomb can be small.
MAX_ADAPTER_BYTES = 32 << 20
BOMB_BYTES = 64 << 20
ABOVE_ANY_LIMIT = 1_000_000

Modules = Mapping[str, ModuleShape]
Make = Callable[[int, Modules], Files]
Change = Callable[[Config, Tensors], object]


@dataclass(frozen=True, slots=True)
class BadAdapter:
    """`sentence` is a part of the message; `make` takes the hidden size and the modules."""

    id: str
    make: Make
    status: int
    sentence: str


# Made right, then changed.


def good_lora(modules: Modules) -> tuple[Config, Tensors]:
    """A LoRA of one linear module."""
    name, shape = _first(modules, "linear")
    return lora_config(2, target_modules=[name]), lora_tensors({name: shape}, 2)


def good_soft_prompt(hidden_size: int) -> tuple[Config, Tensors]:
    return soft_prompt_config(3, hidden_size), soft_prompt_tensors(3, hidden_size)


def good_multitask(hidden_size: int) -> tuple[Config, Tensors]:
    """Three tasks of two ranks."""
    return multitask_config(4, hidden_size, 3), multitask_tensors(4, hidden_size, 3)


def good_cpt(hidden_size: int) -> tuple[Config, Tensors]:
    return cpt_config(3, hidden_size), soft_prompt_tensors(3, hidden_size)


def _first(modules: Modules, kind: str) -> tuple[str, ModuleShape]:
    return next(item for item in modules.items() if item[1].kind == kind)


def _lora(change: Change) -> Make:
    def make(hidden_size: int, modules: Modules) -> Files:
        config, tensors = good_lora(modules)
        change(config, tensors)
        return as_files(config, tensors)

    return make


def _soft_prompt(
    change: Change, good: Callable[[int], tuple[Config, Tensors]] = good_soft_prompt
) -> Make:
    def make(hidden_size: int, modules: Modules) -> Files:
        config, tensors = good(hidden_size)
        change(config, tensors)
        return as_files(config, tensors)

    return make


def _multitask(change: Change) -> Make:
    return _soft_prompt(change, good_multitask)


def _cpt(change: Change) -> Make:
    return _soft_prompt(change, good_cpt)


def _set(**fields: Any) -> Change:
    return lambda config, tensors: config.update(fields)


def _without(field: str) -> Change:
    return lambda config, tensors: config.pop(field)


def _magnitudes(change: Callable[[Any], Any], *, use_dora: bool = True) -> Change:
    """A DoRA whose magnitudes are right but for a change."""

    def add(config: Config, tensors: Tensors) -> None:
        config["use_dora"] = use_dora
        for name, half in list(tensors.items()):
            if name.endswith(".lora_B.weight"):
                magnitude = change(torch.ones(half.shape[0]))
                tensors[name.replace(".lora_B.weight", ".lora_magnitude_vector")] = magnitude

    return add


def _halves(change: Callable[[Tensors, str, str], object]) -> Change:
    """Change the two tensors of a LoRA, by their names."""
    return lambda config, tensors: change(tensors, *list(tensors))


def _rename_a(name: str) -> Change:
    return _halves(lambda tensors, half_a, half_b: tensors.update({name: tensors.pop(half_a)}))


def _replace_b(change: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    return _halves(
        lambda tensors, half_a, half_b: tensors.update({half_b: change(tensors[half_b])})
    )


def _all(change: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    return lambda config, tensors: tensors.update(
        {name: change(tensor) for name, tensor in tensors.items()}
    )


def _one(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    return lambda config, tensors: tensors.update({name: change(tensors[name])})


def _drop(name: str) -> Change:
    return lambda config, tensors: tensors.pop(name)


def _fill(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor[-1, -1] = value
        return tensor

    return change


def _other_kind(hidden_size: int, modules: Modules) -> Files:
    """An embedding's tensors for a linear module."""
    name, shape = _first(modules, "linear")
    embedding = {name: ModuleShape("embedding", shape.in_features, shape.out_features)}
    return as_files(lora_config(2, target_modules=[name]), lora_tensors(embedding, 2))


def _wrong_vocabulary(hidden_size: int, modules: Modules) -> Files:
    name, shape = _first(modules, "embedding")
    tensors = lora_tensors({name: ModuleShape("embedding", 7, shape.out_features)}, 2)
    return as_files(lora_config(2, target_modules=[name]), tensors)


def _surplus(hidden_size: int, modules: Modules) -> Files:
    """The tensors of two modules, where `target_modules` names one."""
    names = [name for name in modules if modules[name].kind == "linear"][:2]
    tensors = lora_tensors({name: modules[name] for name in names}, 2)
    return as_files(lora_config(2, target_modules=names[:1]), tensors)


def _rows_of_a_token(token_id: int) -> Make:
    """A LoRA that has a row of its own for one token."""

    def make(hidden_size: int, modules: Modules) -> Files:
        config, tensors = good_lora(modules)
        name, shape = _first(modules, "embedding")
        rows = torch.zeros(1, shape.out_features)
        tensors[f"base_model.model.{name}.token_adapter.trainable_tokens_delta"] = rows
        return as_files(config | {"trainable_token_indices": [token_id]}, tensors)

    return make


def _base_copy(hidden_size: int, modules: Modules) -> Files:
    config, tensors = good_lora(modules)
    name, _ = _first(modules, "embedding")
    tensors[f"base_model.model.{name}.weight"] = torch.zeros(2, 2)
    return as_files(config, tensors)


def _many_tasks(hidden_size: int, modules: Modules) -> Files:
    """A small file that is a large one when its tasks' rows are made."""
    num_tasks = 1 + MAX_ADAPTER_BYTES // (256 * hidden_size * 4)
    config = multitask_config(256, hidden_size, num_tasks, 1)
    return as_files(config, multitask_tensors(256, hidden_size, num_tasks, 1))


# Files that are not what they are called.


def _config_bytes(content: bytes) -> Make:
    def make(hidden_size: int, modules: Modules) -> Files:
        (_, _), weights = as_files(*good_lora(modules))
        return [(CONFIG_FILE, content), weights]

    return make


def _weights_bytes(change: Callable[[bytes], bytes]) -> Make:
    def make(hidden_size: int, modules: Modules) -> Files:
        config, (_, content) = as_files(*good_lora(modules))
        return [config, (WEIGHTS_FILE, change(content))]

    return make


def safetensors(header: object, data: bytes = b"") -> bytes:
    """A file with this header, which may be wrong."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


OVERLAP = safetensors(
    {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "ab"}, bytes(4)
)


def _huge_header(hidden_size: int, modules: Modules) -> Files:
    """17 MiB of spaces, packed."""
    header = b"{}" + b" " * (17 << 20)
    config, _ = as_files(*good_lora(modules))
    return _packed([config, (WEIGHTS_FILE, struct.pack("<Q", len(header)) + header)])


def _big_config() -> bytes:
    return b'{"peft_type": "LORA", "note": "' + b"x" * (1 << 20) + b'"}'


# Uploads and archives.


def _files(change: Callable[[Files], Files]) -> Make:
    return lambda hidden_size, modules: change(as_files(*good_lora(modules)))


def _packed(files: Files) -> Files:
    return [("adapter.tar.gz", pack_tar(files))]


def _tar(change: Callable[[Files], Files]) -> Make:
    """An archive of the changed files."""
    return _files(lambda files: _packed(change(files)))


def _zip(change: Callable[[Files], Files]) -> Make:
    return _files(lambda files: [("adapter.zip", pack_files_zip(change(files)))])


def _bytes_of(make: Make, change: Callable[[bytes], bytes]) -> Make:
    """The one file of an upload, changed."""

    def changed(hidden_size: int, modules: Modules) -> Files:
        ((name, content),) = make(hidden_size, modules)
        return [(name, change(content))]

    return changed


def _same(files: Files) -> Files:
    return files


def _renamed(config_name: str) -> Callable[[Files], Files]:
    return lambda files: [(config_name, files[0][1]), files[1]]


def _tar_member(kind: bytes, name: str = CONFIG_FILE) -> Make:
    """An archive with one more member, which has no content of its own."""

    def change(files: Files) -> Files:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            member = tarfile.TarInfo(name)
            member.type = kind
            member.linkname = "/etc/passwd"
            archive.addfile(member)
        return [("adapter.tgz", buffer.getvalue())]

    return _files(change)


def _zip_mode(kind: int) -> Make:
    def change(files: Files) -> Files:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            member = zipfile.ZipInfo(WEIGHTS_FILE)
            member.create_system = 3
            member.external_attr = (kind | 0o777) << 16
            archive.writestr(member, "/etc/passwd")
        return [("adapter.zip", buffer.getvalue())]

    return _files(change)


def _encrypted(content: bytes) -> bytes:
    """Set the bit for a password in both headers of every member."""
    changed = bytearray(content)
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = changed.find(magic)
        while start >= 0:
            changed[start + offset] |= 1
            start = changed.find(magic, start + 1)
    return bytes(changed)


def _flip_byte(position: float) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        changed = bytearray(content)
        changed[int(position * len(content))] ^= 0xFF
        return bytes(changed)

    return change


def _cut(share: float) -> Callable[[bytes], bytes]:
    return lambda content: content[: int(share * len(content))]


def _twice(files: Files) -> Files:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [("adapter.zip", pack_files_zip([*files, files[0]]))]


def _bzip2_zip(files: Files) -> Files:
    return [("adapter.zip", pack_files_zip(files, zipfile.ZIP_BZIP2))]


def _with_bomb(name: str) -> Callable[[Files], Files]:
    return lambda files: [files[0], (name, bytes(BOMB_BYTES))]


def _pickled(name: str) -> Callable[[Files], Files]:
    return lambda files: [files[0], (name, b"\x80\x04cos\nsystem\n(S'false'\ntR.")]


def _long_pax_header(files: Files) -> Files:
    """A header that declares a gigabyte, which a reader may want to hold."""
    member = tarfile.TarInfo("header")
    member.type, member.size = tarfile.XHDTYPE, 1 << 30
    return [("adapter.tar", member.tobuf() + bytes(10_240))]


def _sparse(files: Files) -> Files:
    """A member of nothing that a reader may fill with a gigabyte of zeros."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo(WEIGHTS_FILE)
        member.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.realsize": str(1 << 30)}
        archive.addfile(member)
    return [("adapter.tar", buffer.getvalue())]


def _long_zip_index(files: Files) -> Files:
    """An end that declares an index of two megabytes."""
    size = 2 << 20
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, size, 30, 0)
    return [("adapter.zip", b"PK\x03\x04" + bytes(26 + size) + end)]


GZIPPED_TEXT = gzip.compress(b"hello " * 100)
EMPTY_ZIP = pack_files_zip([])
MISSING = f"{WEIGHTS_FILE} is missing"
DAMAGED = "the archive is damaged or cut short"
NOT_SAFETENSORS = "is not a safetensors file, or it is damaged or cut short"


WRONG_UPLOAD: list[tuple[str, Make, int, str]] = [
    ("no adapter files", _files(lambda files: [("README.md", b"# hi")]), 422, "not an archive"),
    ("an empty file alone", _files(lambda files: [("adapter.zip", b"")]), 422, "not an archive"),
    ("no weights", _files(lambda files: files[:1]), 422, MISSING),
    ("no configuration", _files(lambda files: files[1:]), 422, f"{CONFIG_FILE} is missing"),
    ("empty configuration", _config_bytes(b""), 422, f"{CONFIG_FILE} is empty"),
    ("empty weights", _weights_bytes(lambda content: b""), 422, f"{WEIGHTS_FILE} is empty"),
    ("a file twice", _files(lambda files: [*files, files[0]]), 422, "is there twice"),
    ("pickled weights", _files(_pickled("adapter_model.bin")), 422, "safe_serialization=True"),
    ("a pickle alone", _files(lambda files: _pickled("lora.pt")(files)[1:]), 422, "pickle"),
    ("a checkpoint", _files(_pickled("lora.CKPT")), 422, "safe_serialization=True"),
    ("an archive beside", _files(lambda files: [*files, *_packed(files)]), 422, "beside other"),
    ("configuration too large", _config_bytes(_big_config()), 413, "the limit of 1,048,576"),
]

WRONG_ARCHIVE: list[tuple[str, Make, int, str]] = [
    ("tar: no members", _tar(lambda files: []), 422, "are missing"),
    ("tar: no weights", _tar(lambda files: files[:1]), 422, MISSING),
    ("tar: empty weights", _tar(lambda files: [files[0], (WEIGHTS_FILE, b"")]), 422, "is empty"),
    ("tar: pickled weights", _tar(_pickled("adapter_model.bin")), 422, "safe_serialization=True"),
    ("tar: ..", _tar(_renamed(f"a/../../{CONFIG_FILE}")), 422, "leads out"),
    ("tar: absolute", _tar(_renamed(f"/etc/{CONFIG_FILE}")), 422, "is an absolute path"),
    ("tar: far apart", _tar(_renamed(f"home/me/{CONFIG_FILE}")), 422, "the folder of one adapter"),
    (
        "tar: two adapters",
        _tar(lambda files: [(f"{folder}/{name}", each) for folder in "ab" for name, each in files]),
        422,
        "adapter files lie in 'a' and in 'b': give the folder of one adapter",
    ),
    ("tar: two folders", _tar(_renamed(f"other/{CONFIG_FILE}")), 422, "the folder of one adapter"),
    ("tar: a file twice", _tar(lambda files: [files[0], *files]), 422, "is there twice"),
    (
        "tar: twice by ./",
        _tar(lambda files: [*files, (f"./{CONFIG_FILE}", b"")]),
        422,
        "there twice",
    ),
    ("tar: symlink", _tar_member(tarfile.SYMTYPE), 422, "is a symbolic link"),
    ("tar: symlink to ignore", _tar_member(tarfile.SYMTYPE, "a"), 422, "is a symbolic link"),
    ("tar: hard link", _tar_member(tarfile.LNKTYPE), 422, "is a hard link"),
    ("tar: character device", _tar_member(tarfile.CHRTYPE), 422, "is a device"),
    ("tar: block device", _tar_member(tarfile.BLKTYPE), 422, "is a device"),
    ("tar: named pipe", _tar_member(tarfile.FIFOTYPE), 422, "is a named pipe"),
    ("tar: GNU sparse", _tar_member(tarfile.GNUTYPE_SPARSE), 422, "neither a file nor a folder"),
    ("tar: POSIX sparse", _files(_sparse), 422, "neither a file nor a folder"),
    ("tar: long header", _files(_long_pax_header), 422, "too large headers"),
    (
        "tar: many members",
        _tar(lambda files: [(f"{number}.txt", b"") for number in range(1001)]),
        422,
        "more than 1,000 files",
    ),
    (
        "tar: an archive inside",
        _tar(lambda files: [("inner.tar.gz", pack_tar(files))]),
        422,
        "is an archive in an archive",
    ),
    ("tar: not a tar", _bytes_of(_tar(_same), lambda content: GZIPPED_TEXT), 422, DAMAGED),
    ("tar: cut short", _bytes_of(_tar(_same), _cut(0.6)), 422, DAMAGED),
    ("tar: without its end", _bytes_of(_tar(_same), lambda content: content[:-4]), 422, DAMAGED),
    ("tar: damaged", _bytes_of(_tar(_same), _flip_byte(0.5)), 422, DAMAGED),
    ("tar: bomb", _tar(_with_bomb(WEIGHTS_FILE)), 413, "is above the limit of 33,554,432"),
    ("tar: bomb to ignore", _tar(_with_bomb("notes.txt")), 413, "unpacks to more than"),
    (
        "tar: bomb as configuration",
        _tar(lambda files: [(CONFIG_FILE, bytes(BOMB_BYTES))]),
        413,
        "the limit of 1,048,576",
    ),
    ("zip: no members", _zip(lambda files: []), 422, "are missing"),
    ("zip: ..", _zip(_renamed(f"../{CONFIG_FILE}")), 422, "leads out"),
    ("zip: .. by Windows", _zip(_renamed(f"..\\{CONFIG_FILE}")), 422, "leads out"),
    ("zip: absolute on Windows", _zip(_renamed(f"C:\\{CONFIG_FILE}")), 422, "is an absolute path"),
    ("zip: absolute", _zip(_renamed(f"/{CONFIG_FILE}")), 422, "is an absolute path"),
    ("zip: a file twice", _files(_twice), 422, "is there twice"),
    ("zip: symlink", _zip_mode(stat.S_IFLNK), 422, "is a symbolic link"),
    ("zip: named pipe", _zip_mode(stat.S_IFIFO), 422, "neither a file nor a folder"),
    ("zip: device", _zip_mode(stat.S_IFCHR), 422, "neither a file nor a folder"),
    ("zip: encrypted", _bytes_of(_zip(_same), _encrypted), 422, "is encrypted"),
    ("zip: bzip2", _files(_bzip2_zip), 422, "pack it with deflate"),
    ("zip: long index", _files(_long_zip_index), 422, "too large an index"),
    (
        "zip: many members",
        _zip(lambda files: [(f"{number}.txt", b"") for number in range(1001)]),
        422,
        "more than 1,000 files",
    ),
    ("zip: an archive inside", _zip(lambda files: [("a.zip", b"")]), 422, "archive in an archive"),
    ("zip: cut short", _bytes_of(_zip(_same), _cut(0.6)), 422, DAMAGED),
    ("zip: damaged", _bytes_of(_zip(_same), _flip_byte(0.5)), 422, DAMAGED),
    ("zip: bomb", _zip(_with_bomb(WEIGHTS_FILE)), 413, "is above the limit of 33,554,432"),
]

WRONG_CONFIG: list[tuple[str, Make, int, str]] = [
    ("config: not UTF-8", _config_bytes(b'{"peft_type": "\xff"}'), 422, "is not UTF-8"),
    ("config: not JSON", _config_bytes(b"peft_type: LORA"), 422, "is not JSON"),
    ("config: a list", _config_bytes(b"[]"), 422, "is not a JSON object"),
    ("config: empty object", _config_bytes(b"{}"), 422, "has peft_type None"),
    ("config: NaN", _config_bytes(b'{"lora_alpha": NaN}'), 422, "must be finite"),
    ("config: infinity", _config_bytes(b'{"lora_alpha": -Infinity}'), 422, "must be finite"),
    ("config: overflow", _config_bytes(b'{"lora_alpha": 1e999}'), 422, "must be finite"),
    ("config: 5,000 digits", _config_bytes(b'{"r": ' + b"9" * 5000 + b"}"), 422, "is not JSON"),
    ("config: deep", _config_bytes(b'{"a":' * 101 + b"1" + b"}" * 101), 422, "is nested more"),
    ("config: very deep", _config_bytes(b'{"a":' + b"[" * 500_000), 422, "is nested more"),
    ("no type", _lora(_without("peft_type")), 422, "has peft_type None; expected LORA"),
    ("type: a list", _lora(_set(peft_type=["LORA"])), 422, "has peft_type ['LORA']"),
    ("type: lower case", _lora(_set(peft_type="lora")), 422, "has peft_type 'lora'"),
    ("type: OFT", _lora(_set(peft_type="OFT")), 422, "has peft_type 'OFT'"),
    ("type: prefix", _soft_prompt(_set(peft_type="PREFIX_TUNING")), 422, "vLLM has no place for"),
    ("task: SEQ_CLS", _lora(_set(task_type="SEQ_CLS")), 422, "has task_type 'SEQ_CLS'"),
    ("task: SEQ_2_SEQ_LM", _soft_prompt(_set(task_type="SEQ_2_SEQ_LM")), 422, "has task_type"),
    (
        "another base model",
        _lora(_set(base_model_name_or_path="someone/another-model-900B")),
        422,
        "was trained on 'someone/another-model-900B'",
    ),
    ("base model: number", _lora(_set(base_model_name_or_path=7)), 422, "expected a name"),
    ("base model: escape", _lora(_set(base_model_name_or_path="\x1b[2J")), 422, "expected a name"),
    ("base model: lone surrogate", _lora(_set(base_model_name_or_path="\ud800")), 422, "'\\ud800'"),
    ("r: null", _lora(_set(r=None)), 422, "has r None; expected a positive integer"),
    ("r: bool", _lora(_set(r=True)), 422, "has r True"),
    ("r: zero", _lora(_set(r=0)), 422, "has r 0"),
    ("r: float", _lora(_set(r=2.0)), 422, "has r 2.0"),
    ("r: too high", _lora(_set(r=ABOVE_ANY_LIMIT)), 422, "--max-lora-rank"),
    ("r: 4,300 digits", _lora(_set(r=10**4299)), 422, "--max-lora-rank"),
    ("rank_pattern: too high", _lora(_set(rank_pattern={".*": 10**9})), 422, "--max-lora-rank"),
    ("rank_pattern: bool", _lora(_set(rank_pattern={"a": True})), 422, "has rank_pattern True"),
    ("rank_pattern: a list", _lora(_set(rank_pattern=["a"])), 422, "expected an object"),
    (
        "alpha_pattern: look-around",
        _lora(_set(alpha_pattern={"(?!k).*": 2})),
        422,
        "a pattern without look-around",
    ),
    ("alpha_pattern: no pattern", _lora(_set(alpha_pattern={"a)|(b": 2})), 422, "RE2 says"),
    ("alpha_pattern: text", _lora(_set(alpha_pattern={"q": "2"})), 422, "has alpha_pattern '2'"),
    (
        "rank_pattern: many keys",
        _lora(_set(rank_pattern={f"m{number}": 1 for number in range(20_000)})),
        422,
        "has 20,000 keys",
    ),
    ("lora_alpha: null", _lora(_set(lora_alpha=None)), 422, "has lora_alpha None"),
    ("lora_alpha: bool", _lora(_set(lora_alpha=False)), 422, "has lora_alpha False"),
    ("lora_alpha: text", _lora(_set(lora_alpha="8")), 422, "has lora_alpha '8'"),
    ("lora_alpha: 400 digits", _lora(_set(lora_alpha=10**400)), 422, "expected a finite number"),
    ("lora_alpha: overflows", _lora(_set(lora_alpha=1e300)), 422, "lower lora_alpha"),
    ("target_modules: empty", _lora(_set(target_modules=[])), 422, "has target_modules []"),
    ("target_modules: numbers", _lora(_set(target_modules=[1])), 422, "has target_modules [1]"),
    ("bias: another word", _lora(_set(bias="some")), 422, "has bias 'some'"),
    ("use_rslora: text", _lora(_set(use_rslora="no")), 422, "has use_rslora 'no'"),
    ("modules_to_save: number", _lora(_set(modules_to_save=3)), 422, "has modules_to_save 3"),
    ("use_dora: text", _lora(_set(use_dora="yes")), 422, "has use_dora 'yes'"),
    (
        "magnitudes without use_dora",
        _lora(_magnitudes(lambda tensor: tensor, use_dora=False)),
        422,
        "set it to true",
    ),
    ("magnitude: short", _lora(_magnitudes(lambda tensor: tensor[1:])), 422, "has the shape"),
    ("magnitude: NaN", _lora(_magnitudes(lambda tensor: tensor * math.nan)), 422, "holds NaN"),
    (
        "use_dora without magnitudes",
        _lora(_set(use_dora=True)),
        422,
        "has no lora_magnitude_vector",
    ),
    ("lora_bias", _lora(_set(lora_bias=True)), 422, "sets lora_bias"),
    ("aLoRA", _lora(_set(alora_invocation_tokens=[1])), 422, "sets alora_invocation_tokens"),
    ("layer_replication", _lora(_set(layer_replication=[[0, 1]])), 422, "sets layer_replication"),
    ("use_bdlora", _lora(_set(use_bdlora={"nblocks": 2})), 422, "sets use_bdlora"),
    ("use_qalora", _lora(_set(use_qalora=True)), 422, "sets use_qalora"),
    (
        "trained tokens: none there",
        _lora(_set(trainable_token_indices=[0])),
        422,
        "has no trainable_tokens_delta",
    ),
    (
        "trained tokens: text",
        _lora(_set(trainable_token_indices=["a"])),
        422,
        "expected a list of token ids",
    ),
    ("trained tokens: beyond", _rows_of_a_token(10**9), 422, "is trained, and the base model's"),
    ("trained tokens: negative", _rows_of_a_token(-1), 422, "token -1 is trained"),
    ("parameters", _lora(_set(target_parameters=["a.b"])), 422, "sets target_parameters"),
    ("megatron", _lora(_set(megatron_config={"a": 1})), 422, "sets megatron_config"),
    ("arrow", _lora(_set(arrow_config={"top_k": 1})), 422, "sets arrow_config"),
    ("kasa", _lora(_set(kasa_config={"beta": 1})), 422, "sets kasa_config"),
    ("monteclora", _lora(_set(monteclora_config={"a": 1})), 422, "sets monteclora_config"),
    ("init: a list", _lora(_set(init_lora_weights=[1])), 422, "has init_lora_weights [1]"),
    *(
        (f"init: {init}", _lora(_set(init_lora_weights=init)), 422, f"init_lora_weights '{init}'")
        for init in ("pissa", "pissa_niter_4", "olora", "corda", "loftq", "Pissa", "unheard_of")
    ),
    ("no virtual tokens", _soft_prompt(_set(num_virtual_tokens=0)), 422, "num_virtual_tokens 0"),
    ("virtual tokens: null", _soft_prompt(_set(num_virtual_tokens=None)), 422, "tokens None"),
    (
        "virtual tokens: too many",
        _soft_prompt(_set(num_virtual_tokens=ABOVE_ANY_LIMIT)),
        422,
        "--max-virtual-tokens",
    ),
    ("token_dim", _soft_prompt(_set(token_dim=7)), 422, "has token_dim 7; expected"),
    ("token_dim: a list", _soft_prompt(_set(token_dim=["64"])), 422, "has token_dim ['64']"),
    ("submodules", _soft_prompt(_set(num_transformer_submodules=2)), 422, "submodules 2"),
    ("multitask: too long", _multitask(_set(num_virtual_tokens=ABOVE_ANY_LIMIT)), 422, "--max-"),
    ("multitask: no tasks", _multitask(_set(num_tasks=0)), 422, "has num_tasks 0; expected a"),
    ("multitask: tasks null", _multitask(_set(num_tasks=None)), 422, "has num_tasks None"),
    ("multitask: tasks: text", _multitask(_set(num_tasks="3")), 422, "has num_tasks '3'"),
    ("multitask: other tasks", _multitask(_set(num_tasks=2)), 422, "has the shape (3, 4, 2)"),
    ("multitask: 4,300 digits", _multitask(_set(num_tasks=10**4299)), 422, "has the shape (3, "),
    ("multitask: ranks: bool", _multitask(_set(num_ranks=True)), 422, "has num_ranks True"),
    ("multitask: one rank", _multitask(_without("num_ranks")), 422, "expected (3, 4, 1)"),
    ("multitask: SEQ_2_SEQ_LM", _multitask(_set(task_type="SEQ_2_SEQ_LM")), 422, "task_type"),
    ("multitask: submodules", _multitask(_set(num_transformer_submodules=2)), 422, "modules 2"),
    ("CPT: too long", _cpt(_set(num_virtual_tokens=ABOVE_ANY_LIMIT)), 422, "has cpt_token_ids"),
    ("CPT: no ids", _cpt(_without("cpt_token_ids")), 422, "has cpt_token_ids None; expected a"),
    ("CPT: ids: a number", _cpt(_set(cpt_token_ids=3)), 422, "has cpt_token_ids 3; expected a"),
    ("CPT: ids: texts", _cpt(_set(cpt_token_ids=["a", "b", "c"])), 422, "a list of numbers"),
    ("CPT: more ids", _cpt(_set(cpt_token_ids=[1] * 4)), 422, "num_virtual_tokens, 3"),
    ("CPT: short mask", _cpt(_set(cpt_mask=[1])), 422, "has cpt_mask [1]; expected as many"),
    ("CPT: no types", _cpt(_set(cpt_tokens_type_mask=[])), 422, "has cpt_tokens_type_mask []"),
    (
        "CPT: a long list",
        _cpt(_set(num_virtual_tokens=100_000, cpt_token_ids=[1] * 100_000, cpt_mask=None)),
        422,
        "has cpt_tokens_type_mask [1, 1, 1]; expected as many numbers",
    ),
]

WRONG_WEIGHTS: list[tuple[str, Make, int, str]] = [
    ("weights: garbage", _weights_bytes(lambda content: b"\xff" * 1000), 422, NOT_SAFETENSORS),
    ("weights: 7 bytes", _weights_bytes(lambda content: content[:7]), 422, NOT_SAFETENSORS),
    ("weights: cut header", _weights_bytes(lambda content: content[:50]), 422, NOT_SAFETENSORS),
    ("weights: cut short", _weights_bytes(lambda content: content[:-1]), 422, NOT_SAFETENSORS),
    ("weights: more", _weights_bytes(lambda content: content + b"\0"), 422, NOT_SAFETENSORS),
    ("weights: not JSON", _weights_bytes(_flip_byte(0.001)), 422, NOT_SAFETENSORS),
    ("weights: overlap", _weights_bytes(lambda content: OVERLAP), 422, NOT_SAFETENSORS),
    ("weights: a zip", _weights_bytes(lambda content: EMPTY_ZIP), 422, NOT_SAFETENSORS),
    (
        "weights: header of exabytes",
        _weights_bytes(lambda content: struct.pack("<Q", 1 << 62) + content[8:]),
        422,
        NOT_SAFETENSORS,
    ),
    ("weights: header of 17 MiB", _huge_header, 413, "the limit is 16,777,216"),
    ("no tensors", _lora(lambda config, tensors: tensors.clear()), 422, "has no tensors"),
    ("no A", _lora(_halves(lambda tensors, a, b: tensors.pop(a))), 422, "has no lora_A"),
    ("no B", _lora(_halves(lambda tensors, a, b: tensors.pop(b))), 422, "has no lora_B"),
    ("no prefix", _lora(_rename_a("q_proj.lora_A.weight")), 422, "is not of a LoRA"),
    (
        "a bias",
        _lora(
            _halves(
                lambda tensors, a, b: tensors.update({b.replace("weight", "bias"): torch.zeros(3)})
            )
        ),
        422,
        "is not of a LoRA",
    ),
    (
        "no such module",
        _lora(_rename_a("base_model.model.model.layers.999.q.lora_A.weight")),
        422,
        "a module that the base model does not have",
    ),
    ("an embedding's names", _other_kind, 422, "is for an embedding module"),
    ("another vocabulary", _wrong_vocabulary, 422, "has the shape (2, 7); expected (2, "),
    ("a copy of the embedding", _base_copy, 422, "is a copy of the base model's own weights"),
    ("surplus module", _surplus, 422, "which target_modules does not name"),
    ("another rank", _lora(_set(r=3)), 422, "; expected (3, "),
    (
        "another rank by pattern",
        _lora(lambda config, tensors: config.update(rank_pattern={config["target_modules"][0]: 1})),
        422,
        "; expected (1, ",
    ),
    (
        "A too narrow",
        _lora(_halves(lambda tensors, a, b: tensors.update({a: tensors[a][:, 1:].contiguous()}))),
        422,
        "(rank, in_features)",
    ),
    ("B too short", _lora(_replace_b(lambda b: b[1:].contiguous())), 422, "(out_features, rank)"),
    ("B transposed", _lora(_replace_b(lambda b: b.T.contiguous())), 422, "(out_features, rank)"),
    ("one dimension", _lora(_replace_b(torch.flatten)), 422, "(out_features, rank)"),
    ("no elements", _lora(_replace_b(lambda b: b[:0])), 422, "has the shape (0, 2)"),
    ("FP64", _lora(_all(torch.Tensor.double)), 422, "is F64; expected F32, F16 or BF16"),
    ("INT8", _lora(_all(lambda t: t.to(torch.int8))), 422, "is I8; expected"),
    ("FP8", _lora(_all(lambda t: t.to(torch.float8_e4m3fn))), 422, "is F8_E4M3; expected"),
    ("NaN", _lora(_replace_b(_fill(float("nan")))), 422, "holds NaN"),
    ("infinity", _lora(_replace_b(_fill(float("inf")))), 422, "holds an infinite number"),
    ("BF16 infinity", _lora(_all(lambda t: _fill(float("-inf"))(t.bfloat16()))), 422, "infinite"),
    (
        "soft prompt: no tensors",
        _soft_prompt(lambda c, tensors: tensors.clear()),
        422,
        "no tensors",
    ),
    (
        "soft prompt: more tensors",
        _soft_prompt(lambda config, tensors: tensors.update(more=torch.zeros(1))),
        422,
        "tensor 'more' is not of a soft prompt",
    ),
    ("soft prompt: more rows", _soft_prompt(_set(num_virtual_tokens=2)), 422, "shape (3, "),
    ("soft prompt: FP64", _soft_prompt(_all(torch.Tensor.double)), 422, "is F64; expected"),
    ("soft prompt: NaN", _soft_prompt(_all(_fill(float("nan")))), 422, "holds NaN"),
    (
        "soft prompt: another hidden size",
        _soft_prompt(_all(lambda t: t[:, 1:].contiguous())),
        422,
        "(num_virtual_tokens, hidden_size)",
    ),
    *(
        (
            f"multitask: no {name}",
            _multitask(_drop(name)),
            422,
            f"it has no tensor {name}",
        )
        for name in ("prefix_task_cols", "prefix_task_rows", "prompt_embeddings")
    ),
    (
        "multitask: more tensors",
        _multitask(lambda config, tensors: tensors.update(more=torch.zeros(1))),
        422,
        "tensor 'more' is not of a soft prompt, which has prompt_embeddings and prefix_task_cols",
    ),
    (
        "multitask: flat",
        _multitask(_one("prefix_task_cols", torch.flatten)),
        422,
        "(num_tasks, num_virtual_tokens, num_ranks)",
    ),
    (
        "multitask: rows transposed",
        _multitask(_one("prefix_task_rows", lambda t: t.mT.contiguous())),
        422,
        "(num_tasks, num_ranks, hidden_size)",
    ),
    (
        "multitask: another hidden size",
        _multitask(_one("prefix_task_rows", lambda t: t[..., 1:].contiguous())),
        422,
        "(num_tasks, num_ranks, hidden_size)",
    ),
    (
        "multitask: rows of the tasks",
        _multitask(_one("prompt_embeddings", lambda t: t.repeat(3, 1))),
        422,
        "(num_virtual_tokens, hidden_size)",
    ),
    ("multitask: FP64", _multitask(_one("prefix_task_cols", torch.Tensor.double)), 422, "is F64"),
    ("multitask: NaN", _multitask(_one("prefix_task_rows", _fill(float("nan")))), 422, "holds NaN"),
    (
        "multitask: overflows",
        _multitask(_all(lambda t: t * 1e20)),
        422,
        "prefix_task_cols times prefix_task_rows is not finite",
    ),
    ("multitask: too large", _many_tasks, 413, "add it with one task"),
    (
        "CPT: more rows",
        _cpt(_one("prompt_embeddings", lambda t: t.repeat(2, 1))),
        422,
        "shape (6, ",
    ),
    (
        "CPT: its delta",
        _cpt(lambda config, tensors: tensors.update(delta_embedding=torch.zeros(1))),
        422,
        "tensor 'delta_embedding' is not of a soft prompt",
    ),
]

BAD_ADAPTERS = [
    BadAdapter(*case) for case in WRONG_UPLOAD + WRONG_ARCHIVE + WRONG_CONFIG + WRONG_WEIGHTS
]
