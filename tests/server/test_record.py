"""Archives that must not come in: too large, not what they say, or made to reach beyond themselves."""

from __future__ import annotations

import io
import json
import stat
import zipfile
from pathlib import Path

import pytest
from controls import control_files, renamed, sealed

from meet_bundle import Bundle, open_bundle
from meet_server.errors import MeetError, RequestError
from meet_server.registry.checking import check
from meet_server.registry.record import RECORD, files_in, files_of, pack, unpack

MAX = 1 << 20


@pytest.fixture(scope="module")
def opened(bundle: Path) -> Bundle:
    return open_bundle(bundle)


def archive(*entries: tuple[str | zipfile.ZipInfo, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in entries:
            file.writestr(name, content)
    return buffer.getvalue()


def special(name: str, kind: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (kind | 0o777) << 16
    return info


def encrypted() -> bytes:
    data = bytearray(archive(("README.md", b"x")))
    data[6] |= 1  # the flag, in the local header and in the directory
    data[data.index(b"PK\x01\x02") + 8] |= 1
    return bytes(data)


def lying() -> bytes:
    """Says that it holds one byte, and holds 4 MB."""
    data = bytearray(archive(("README.md", b"0" * (4 << 20)), compression=zipfile.ZIP_DEFLATED))
    data[data.index(b"PK\x01\x02") + 24 : data.index(b"PK\x01\x02") + 28] = (1).to_bytes(4, "little")
    return bytes(data)


def test_there_and_back(opened: Bundle, tmp_path: Path) -> None:
    files = files_of(opened, "concise")
    assert unpack(pack(files), MAX) == files
    assert check(files, opened) == opened.manifest.preference("concise")
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert files_in(tmp_path, MAX) == files
    (tmp_path / "more").symlink_to("/etc/passwd")
    with pytest.raises(RequestError, match="'more' is a link"):
        files_in(tmp_path, MAX)
    (tmp_path / "more").unlink()
    (tmp_path / "more").mkdir()
    with pytest.raises(RequestError, match="'more' is a link, a folder or a device"):
        files_in(tmp_path, MAX)
    (tmp_path / "more").rmdir()
    (tmp_path / "adapter_model.bin").touch()
    with pytest.raises(RequestError, match=r"holds 'adapter_model\.bin'"):
        files_in(tmp_path, MAX)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no zip archive"),
        (b"PK\x03\x04nonsense", "no zip archive"),
        (archive(("../meet.json", b"x")), "holds '../meet.json'"),
        (archive(("/etc/passwd", b"x")), "holds '/etc/passwd'"),
        (archive(("control\\..\\x", b"x")), "and no folders"),
        (archive(("controls/README.md", b"x")), "and no folders"),
        (archive(("adapter_model.bin", b"x")), "holds 'adapter_model.bin'"),
        (archive(("adapter_model.pt", b"x")), "holds 'adapter_model.pt'"),
        (archive(("README.md?.safetensors", b"x")).replace(b"md?", b"md\x00"), "holds"),
        (archive((special("README.md", stat.S_IFLNK), b"/etc/passwd")), "is a link"),
        (archive((special("README.md", stat.S_IFIFO), b"")), "is a link"),
        (archive(*((f"{number}.md", b"") for number in range(64))), "holds '0.md'"),
        (archive(*((f"{number}.md", b"") for number in range(65))), "lists more files than there may be"),
        (archive(("adapter_model.safetensors", b"0" * (2 << 20)), compression=zipfile.ZIP_DEFLATED), "are allowed"),
        (archive(("README.md", b"0" * (8 << 20)), compression=zipfile.ZIP_DEFLATED), "are allowed"),
        (archive(("adapter_model.safetensors", b"0" * (MAX - 1)), ("README.md", b"xx")), "2 bytes; 1 are allowed"),
        (encrypted(), "is encrypted"),
        (lying(), "cannot come in"),
    ],
)
def test_archives_that_are_refused(data: bytes, words: str) -> None:
    with pytest.raises(RequestError, match="the control cannot come in") as caught:
        unpack(data, MAX)
    assert words in caught.value.message
    assert caught.value.code == "invalid_upload"


def test_as_much_as_is_allowed_comes_in_and_no_more(tmp_path: Path) -> None:
    files = {"README.md": b"x", "adapter_model.safetensors": b"0" * (MAX - 1)}
    assert unpack(pack(files), MAX) == files
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert files_in(tmp_path, MAX) == files
    with pytest.raises(RequestError, match=f"'adapter_model.safetensors' has {MAX - 1} bytes; {MAX - 2} are allowed"):
        files_in(tmp_path, MAX - 1)


def test_what_is_no_tensor_has_a_bound_of_its_own() -> None:
    largest = 4 << 20
    files = {"README.md": bytes(largest), "adapter_model.safetensors": bytes(2 * largest)}
    assert unpack(pack(files), 8 * largest) == files
    with pytest.raises(RequestError, match=f"'README.md' has {largest + 1} bytes; {largest} are allowed"):
        unpack(pack({"README.md": bytes(largest + 1)}), 8 * largest)


def test_one_control_is_one_archive_whenever_it_is_packed() -> None:
    packed = pack({"README.md": b"x", "adapter_config.json": b"{}"})
    assert packed == pack({"adapter_config.json": b"{}", "README.md": b"x"})
    with zipfile.ZipFile(io.BytesIO(packed)) as file:
        assert {entry.date_time for entry in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_a_long_name_is_not_said_whole() -> None:
    with pytest.raises(RequestError) as caught:
        unpack(archive(("x" * 60_000, b"")), MAX)
    assert len(caught.value.message) < 500


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_whatever_byte_is_damaged_it_is_refused_or_does_not_matter(compression: int) -> None:
    whole = archive(("README.md", bytes(range(256)) * 2), compression=compression)
    num_refused = 0
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        try:
            unpack(bytes(damaged), MAX)
        except RequestError:
            num_refused += 1
    assert num_refused > len(whole) / 2


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_the_same_name_twice() -> None:
    with pytest.raises(RequestError, match="twice"):
        unpack(archive(("README.md", b"x"), ("README.md", b"y")), MAX)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e308", "-1e7"])
@pytest.mark.parametrize("place", ["strength_range", "recommended"])
def test_strengths_that_nothing_can_be_served_by(opened: Bundle, number: str, place: str) -> None:
    """It would be committed, and be an error of ours for each request, and of the bundle's default at each start."""
    files = files_of(opened, "concise")
    record = json.loads(files[RECORD])
    record["preference"][place] = [-1.0, float(number)] if place == "strength_range" else None
    if place == "recommended":
        del record["preference"][place]
        record["preference"]["calibration"]["recommended"] = float(number)
    with pytest.raises(RequestError, match=place) as caught:
        check({**files, RECORD: json.dumps(record).encode()}, opened)
    assert caught.value.code == "invalid_upload"


def test_an_archive_of_many_names_is_not_read() -> None:
    import tracemalloc

    whole = archive(("README.md", b""))
    begin, end = whole.index(b"PK\x01\x02"), whole.index(b"PK\x05\x06")
    num = 60_000
    closing = bytearray(whole[end:])
    closing[8:12] = num.to_bytes(2, "little") * 2
    closing[12:16] = (num * (end - begin)).to_bytes(4, "little")
    many = whole[:begin] + whole[begin:end] * num + bytes(closing)
    with zipfile.ZipFile(io.BytesIO(many)) as file:
        assert len(file.infolist()) == num
    tracemalloc.start()
    with pytest.raises(RequestError, match="more files than there may be"):
        unpack(many, MAX)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_bomb_is_not_unpacked(opened: Bundle) -> None:
    import tracemalloc

    bomb = archive(("adapter_model.safetensors", bytes(200 << 20)), compression=zipfile.ZIP_DEFLATED)
    tracemalloc.start()
    with pytest.raises(RequestError, match="209715200 bytes; 1048576 are allowed"):
        unpack(bomb, MAX)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def altered(opened: Bundle, name: str, content: bytes) -> dict[str, bytes]:
    """A control with another file, and a record that agrees with it."""
    files = {**control_files(opened, "concise"), name: content}
    return sealed(opened.manifest.preference("concise"), files, opened.manifest.model_digest)


def test_what_was_trained_for_another_model_or_altered_since(opened: Bundle) -> None:
    files = control_files(opened, "concise")
    with pytest.raises(RequestError, match="was trained for the model 0000"):
        check(sealed(opened.manifest.preference("concise"), files, "0" * 64), opened)
    with pytest.raises(RequestError, match="its files have the digest"):
        check({**files_of(opened, "concise"), "README.md": b"more"}, opened)
    with pytest.raises(RequestError, match=f"it has no {RECORD}"):
        check(files, opened)
    with pytest.raises(RequestError, match=r"preference\.json: preference\.name: Value error"):
        check({**files, RECORD: files_of(opened, "concise")[RECORD].replace(b'"concise"', b'"a b"')}, opened)
    for nonsense in (b"", b"\xff", b"[" * 10_000, b"null"):
        with pytest.raises(RequestError, match=RECORD):
            check({**files, RECORD: nonsense}, opened)


def test_tensors_that_do_not_fit(opened: Bundle) -> None:
    import torch
    from safetensors.torch import load, save

    good = load(control_files(opened, "concise")["adapter_model.safetensors"])
    first_a = next(name for name in good if "lora_A" in name)
    first_b = next(name for name in good if "lora_B" in name)
    wrong = {
        "is not the A that all": {**good, first_a: good[first_a] + 1},
        "has shape": {**good, first_b: good[first_b][:, :4].contiguous()},
        "belongs to no layer": {**good, "base_model.model.extra": torch.zeros(1)},
        "tensors are missing": {name: tensor for name, tensor in good.items() if name != first_b},
        "is F64": {**good, first_b: good[first_b].double()},
    }
    for words, tensors in wrong.items():
        with pytest.raises(MeetError, match=words):
            check(altered(opened, "adapter_model.safetensors", save(tensors)), opened)
    for nonsense in (b"", b"\x80\x04pickle", b"\xff" * 64, (1 << 60).to_bytes(8, "little") + b"{}"):
        with pytest.raises(MeetError, match="is no safetensors file"):
            check(altered(opened, "adapter_model.safetensors", nonsense), opened)


def test_configurations_that_cannot_be_served(opened: Bundle) -> None:
    config = json.loads(control_files(opened, "concise")["adapter_config.json"])
    for field, value in (("r", 64), ("use_dora", True), ("lora_alpha", 1), ("target_modules", ["q_proj"])):
        with pytest.raises(MeetError, match=field):
            check(altered(opened, "adapter_config.json", json.dumps({**config, field: value}).encode()), opened)
    for nonsense in (b"", b"[]", b"[" * 10_000):
        with pytest.raises(MeetError, match=r"adapter_config\.json"):
            check(altered(opened, "adapter_config.json", nonsense), opened)


def test_a_soft_prompt_among_adapters(opened: Bundle) -> None:
    with pytest.raises(MeetError, match="it is a soft prompt"):
        check(renamed(opened, "concise", "other", first_token_id=7), opened)
