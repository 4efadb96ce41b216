"""Checkpoints: whatever happens, what loads is exactly one of the generations that were saved."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_victim import Killer, changed, content, save
from torch import nn

from finerank.errors import UserError
from finerank.training import checkpoint
from finerank.training.checkpoint import Checkpoint, Checkpoints, restore


def assert_is_step(found: Checkpoint | None, step: int) -> None:
    """Every bit of what was loaded is what was saved at this step."""
    assert found is not None
    assert found.step == step
    tensors, state, table = content(step)
    assert list(found.tensors) == [*tensors, "table"]
    assert found.state == state
    for name, tensor in {**tensors, "table": table}.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name], tensor), name


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ------------------------------------------------------------------------------------------------ kills


@pytest.fixture(scope="module")
def victim() -> Iterator[Callable[[dict[str, Any]], int]]:
    """Carry out an order in a process that may be killed; the signal that ended it."""
    script = Path(__file__).with_name("checkpoint_victim.py")
    process = subprocess.Popen([sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"

    def run(order: dict[str, Any]) -> int:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
        answer = json.loads(process.stdout.readline())
        assert answer["signal"] or answer["exit"] == 0
        return int(answer["signal"])

    yield run
    process.stdin.close()
    process.stdout.close()
    process.wait(10)


@pytest.mark.parametrize(("start", "steps"), [(0, 1), (4, 2)])
def test_kill_at_every_point(victim: Callable[[dict[str, Any]], int], tmp_path: Path, start: int, steps: int) -> None:
    """The very first save, then one that folds a chain of four and one that prunes it, killed before each deed."""
    (tmp_path / "start").mkdir()
    checkpoints = Checkpoints(tmp_path / "start")
    for step in range(1, start + 1):
        save(checkpoints, step)

    def copy(name: str) -> Path:
        return Path(shutil.copytree(tmp_path / "start", tmp_path / name))

    killer = Killer(None)
    undisturbed = Checkpoints(copy("undisturbed"), at=killer)
    undisturbed.load()
    for step in range(start + 1, start + steps + 1):
        save(undisturbed, step)
    points = killer.points
    assert {"write", "sync", "rename"} <= set(points)
    assert points.count("prune") == start
    for kill_at in range(len(points)):
        folder = copy(f"kill {kill_at}")
        assert victim({"folder": str(folder), "steps": steps, "kill_at": kill_at}) == signal.SIGKILL
        # A save commits where a rename follows the text of CURRENT; the first one of all puts `none` into it.
        passed = points[:kill_at]
        commits = sum(passed[i : i + 3] == ["write", "sync", "rename"] for i in range(kill_at))
        lasting = start + commits if start else max(commits - 1, 0)
        found = Checkpoints(folder).load()
        if lasting:
            assert_is_step(found, lasting)
        else:
            assert found is None
        again = Checkpoints(folder)
        again.load()
        save(again, lasting + 1)
        assert_is_step(Checkpoints(folder).load(), lasting + 1)
        assert not [name for name in names(folder) if "partial" in name]


def test_kill_at_random_moments(victim: Callable[[dict[str, Any]], int], tmp_path: Path) -> None:
    """Ten kills and more from outside, one after the other on the same run, which goes on each time from where it was."""
    moments, last, kills = random.Random(2018), 0, 0
    while kills < 10 or (last <= 10 and kills < 100):  # a machine that is busy gets less far between two
        kills += 1
        assert victim({"folder": str(tmp_path), "delay": moments.uniform(0.01, 0.4)}) == signal.SIGKILL
        found = Checkpoints(tmp_path).load()
        if found is not None:
            assert found.step >= last
            last = found.step
            assert_is_step(found, last)
    assert last > 10
    checkpoints = Checkpoints(tmp_path)
    checkpoints.load()
    save(checkpoints, last + 1)
    assert_is_step(Checkpoints(tmp_path).load(), last + 1)


def test_everything_is_synced_before_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut is a kill that also forgets what was not synced: look at the order of the system's calls."""
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    log: list[str] = []
    fsync, replace = os.fsync, os.replace

    def inode(path: Path) -> tuple[int, str]:
        return path.stat().st_ino, path.name.replace("generation-000002.partial", "new")

    def log_sync(handle: int) -> None:
        everything = dict(map(inode, [tmp_path, *tmp_path.rglob("*")]))
        log.append(f"sync {everything[os.fstat(handle).st_ino]}")
        fsync(handle)

    def log_replace(source: Path, target: Path) -> None:
        log.append(f"name {target.name}")
        replace(source, target)

    monkeypatch.setattr(checkpoint.os, "fsync", log_sync)
    monkeypatch.setattr(checkpoint.os, "replace", log_replace)
    save(checkpoints, 2)
    files = sorted(path.name for path in (tmp_path / "generation-000002").iterdir())
    assert files == ["rows.safetensors", "state.json", "tensors.safetensors", "values.safetensors"]
    assert sorted(log[:4]) == [f"sync {file}" for file in files]
    top = f"sync {tmp_path.name}"
    assert log[4:] == ["sync new", "name generation-000002", top, "sync CURRENT.partial", "name CURRENT", top]


# ------------------------------------------------------------------------------------------------ failures


@pytest.mark.parametrize("point", ["write", "sync", "rename"])
@pytest.mark.parametrize("nth", [0, 1])
def test_full_disk(tmp_path: Path, point: str, nth: int) -> None:
    calls: list[str] = []

    def full(name: str) -> None:
        calls.append(name)
        if calls.count(point) == nth + 1 and name == point and armed:
            raise OSError(errno.ENOSPC, "No space left on device")

    armed = False
    checkpoints = Checkpoints(tmp_path, at=full)
    save(checkpoints, 1)
    calls.clear()
    armed = True
    with pytest.raises(UserError, match=r"step 2 is not saved: No space left on device; free some disk space"):
        save(checkpoints, 2)
    assert_is_step(Checkpoints(tmp_path).load(), 1)
    assert not list(tmp_path.glob("generation-*.partial"))  # what would not fit does not stay in the way
    armed = False
    # The failed save must not count as the base of the next: rows changed at step 2 are given again with those of 3.
    tensors, state, table = content(3)
    checkpoints.save(tensors, state, 3, rows={"table": (table, torch.cat([changed(2), changed(3)]))})
    assert_is_step(Checkpoints(tmp_path).load(), 3)


@pytest.mark.parametrize("resumed", [True, False])
def test_left_overs_of_a_kill_make_room_before_anything_is_written(tmp_path: Path, resumed: bool) -> None:
    """They may hold the very space that is missing."""
    present: list[list[str]] = []

    def look(point: str) -> None:
        if point == "write":
            present.append(names(tmp_path))

    save(Checkpoints(tmp_path), 1)
    for left in ("generation-000000.partial", "generation-000002", "generation-000003.partial"):  # not in force
        shutil.copytree(tmp_path / "generation-000001", tmp_path / left)
    (tmp_path / "generation-mine").mkdir()
    checkpoints = Checkpoints(tmp_path, at=look)
    if resumed:
        checkpoints.load()
    assert save(checkpoints, 2).name == "generation-000002"
    assert present[0] == ["CURRENT", "generation-000001", "generation-000002.partial", "generation-mine"]
    assert names(tmp_path) == ["CURRENT", "generation-000001", "generation-000002", "generation-mine"]
    assert_is_step(Checkpoints(tmp_path).load(), 2)


def test_failure_to_prune_does_not_unsay_the_save(tmp_path: Path) -> None:
    def stuck(point: str) -> None:
        if point == "prune":
            raise OSError(errno.EACCES, "Permission denied")

    checkpoints = Checkpoints(tmp_path, keep=1, at=stuck)
    checkpoints.save({"a": torch.zeros(1)}, {}, 1)
    with pytest.raises(UserError, match="step 2 is saved, but an older generation cannot be removed: Permission"):
        checkpoints.save({"a": torch.ones(1)}, {}, 2)
    found = Checkpoints(tmp_path).load()
    assert found is not None
    assert found.step == 2


def test_a_write_that_the_system_refuses(tmp_path: Path) -> None:
    """A true refusal, inside the library that writes the tensors, and not one of our hooks."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save({"a": torch.zeros(10)}, {}, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(UserError, match="step 2 is not saved: File too large; raise the limit on file sizes"):
            checkpoints.save({"a": torch.zeros(100_000)}, {}, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    found = Checkpoints(tmp_path).load()
    assert found is not None
    assert found.step == 1


@contextmanager
def without_privileges() -> Iterator[None]:
    """The superuser may write into read-only folders; be somebody else for a moment."""
    superuser = os.geteuid() == 0
    if superuser:
        os.seteuid(65534)
    try:
        yield
    finally:
        if superuser:
            os.seteuid(0)


def test_read_only_folder() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o555)
        for place in (folder, folder / "run"):
            with without_privileges(), pytest.raises(UserError) as refused:
                save(Checkpoints(place), 1)
            assert str(refused.value) == (
                f"checkpoint folder {place}: step 1 is not saved: Permission denied; "
                "make the folder writable or name another one"
            )
        folder.chmod(0o755)


def test_file_in_place_of_the_folder(tmp_path: Path) -> None:
    file = tmp_path / "run"
    file.write_text("mine")
    for place in (file, file / "checkpoints"):
        with pytest.raises(UserError, match="a file stands where the folder belongs"):
            save(Checkpoints(place), 1)
        with pytest.raises(UserError, match="a file stands where the folder belongs"):
            Checkpoints(place).load()
    assert file.read_text() == "mine"


# ------------------------------------------------------------------------------------------------ damage


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("damage", [flip, halve, Path.unlink])
@pytest.mark.parametrize("file", ["tensors.safetensors", "rows.safetensors", "values.safetensors", "state.json"])
def test_damage_is_named_and_an_intact_generation_offered(
    tmp_path: Path, damage: Callable[[Path], None], file: str
) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    newest = save(checkpoints, 2)
    damage(newest / file)
    with pytest.raises(UserError, match=rf"generation-000002/{file}.*load\(generation='generation-000001'\) is intact"):
        Checkpoints(tmp_path).load()
    resumed = Checkpoints(tmp_path)
    assert_is_step(resumed.load(generation="generation-000001"), 1)
    assert save(resumed, 2).name == "generation-000003"
    assert_is_step(Checkpoints(tmp_path).load(), 2)
    assert names(tmp_path) == ["CURRENT", "generation-000001", "generation-000003"]  # the line goes past the damage


def test_every_single_byte_counts(tmp_path: Path) -> None:
    """No bit of a generation can change unnoticed."""
    folder = Checkpoints(tmp_path).save({"a": torch.tensor([1.0, 2.0])}, {"epoch": 1, "name": "din"}, 7)
    for path in folder.iterdir():
        whole = path.read_bytes()
        for i in range(len(whole)):
            path.write_bytes(whole[:i] + bytes([whole[i] ^ 2]) + whole[i + 1 :])
            try:
                found = Checkpoints(tmp_path).load()
            except UserError:
                continue
            assert found is not None  # white space between JSON tokens, at most
            assert found.state == {"epoch": 1, "name": "din"}
            assert found.tensors["a"].tolist() == [1.0, 2.0]
            assert path.name == "state.json"
        path.write_bytes(whole)


def test_damaged_base_of_a_chain(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        save(checkpoints, step)
    flip(tmp_path / "generation-000001" / "tables.safetensors")
    with pytest.raises(
        UserError, match=r"generation-000001/tables.safetensors: damaged.*no other generation is intact"
    ):
        Checkpoints(tmp_path).load()


def test_lost_or_nonsensical_current(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "nothing yet").load() is None
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        save(checkpoints, step)
    for text in ("generation-000009\n", "", "\xff", None):
        if text is None:
            (tmp_path / "CURRENT").unlink()
        else:
            (tmp_path / "CURRENT").write_text(text, encoding="latin-1")
        with pytest.raises(UserError, match=r"CURRENT: .*load\(generation='generation-000002'\) is intact"):
            Checkpoints(tmp_path).load()
        with pytest.raises(UserError, match="CURRENT"):
            save(Checkpoints(tmp_path), 3)  # a new run does not walk over what may be wanted
    resumed = Checkpoints(tmp_path)
    assert_is_step(resumed.load(generation="generation-000002"), 2)
    save(resumed, 3)
    assert_is_step(Checkpoints(tmp_path).load(), 3)
    with pytest.raises(UserError, match="no generation 'generation-7'"):
        Checkpoints(tmp_path).load(generation="generation-7")


def test_a_newer_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    save(Checkpoints(tmp_path), 1)
    monkeypatch.undo()
    with pytest.raises(UserError, match="format 2; accepted: 1"):
        Checkpoints(tmp_path).load()


# ------------------------------------------------------------------------------------------------ content and chains


def test_round_trip_of_kinds(tmp_path: Path) -> None:
    shared = torch.arange(6.0).reshape(2, 3)
    tensors = {
        "strided": shared.t(),
        "tied": shared,
        "tied again": shared,
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 4),
        "half": torch.tensor([1.5, float("nan")], dtype=torch.bfloat16),
        "mask": torch.tensor([True, False]),
        "parameter": nn.Parameter(torch.ones(2)),
        "名": torch.tensor([2**62 + 1]),
    }
    state = {"best": float("-inf"), "nan": [float("nan")], "text": 'é"\n', "deep": {"a": [{}, [], None, True, 0.1]}}
    Checkpoints(tmp_path).save(tensors, state, 0)
    found = Checkpoints(tmp_path).load()
    assert found is not None
    assert list(found.tensors) == list(tensors)
    for name, tensor in tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name].nan_to_num(7), tensor.nan_to_num(7)), name
    assert repr(found.state) == repr(state)


@pytest.mark.parametrize(("state", "place"), [({"a": {"b": (1, 2)}}, "state.a.b"), ({"a": [{1: 2}]}, r"state.a\[0\]")])
def test_state_that_json_would_change(tmp_path: Path, state: dict[str, Any], place: str) -> None:
    with pytest.raises(TypeError, match=place):
        Checkpoints(tmp_path).save({}, state, 0)
    assert names(tmp_path) == []


def test_deltas_equal_full_and_fold(tmp_path: Path) -> None:
    """A long run with few changes per save, each generation loaded by a fresh object and compared with the whole."""
    checkpoints = Checkpoints(tmp_path)
    full = []
    for step in range(1, 11):
        folder = save(checkpoints, step)
        assert_is_step(Checkpoints(tmp_path).load(), step)
        if (folder / "tables.safetensors").exists():
            full.append(step)
    # By hand: a step changes three distinct rows of 20, so three deltas are 9 rows, and a fourth would make 12 > 10.
    assert full == [1, 5, 9]


def test_a_delta_holds_only_the_changed_rows_and_is_applied(tmp_path: Path) -> None:
    table = torch.zeros(100, 2)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save({}, {}, 1, rows={"t": (table, torch.tensor([], dtype=torch.int64))})
    table = table.clone()
    table[[3, 5]] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    table[7] = 9  # changed, but not said to be: must not appear
    folder = checkpoints.save({}, {}, 2, rows={"t": (table, torch.tensor([5, 3, 5]))})
    assert names(folder) == ["rows.safetensors", "state.json", "values.safetensors"]
    found = Checkpoints(tmp_path).load()
    assert found is not None
    assert found.tensors["t"][[3, 5, 7]].tolist() == [[1, 2], [3, 4], [0, 0]]
    base = (tmp_path / "generation-000001" / "tables.safetensors").read_bytes()
    found.tensors["t"].fill_(5)  # what was loaded is the caller's own
    assert (tmp_path / "generation-000001" / "tables.safetensors").read_bytes() == base
    nothing = checkpoints.save({}, {}, 3, rows={"t": (table, torch.tensor([], dtype=torch.int64))})
    assert names(nothing) == ["state.json"]
    last = Checkpoints(tmp_path).load()
    assert last is not None
    assert last.tensors["t"][5].tolist() == [3, 4]


def test_a_chain_follows_what_this_object_knows(tmp_path: Path) -> None:
    """Without a load, with another shape, with another dtype: no delta can be right, the table is written in full."""
    none = torch.tensor([], dtype=torch.int64)
    first = Checkpoints(tmp_path)
    first.save({}, {}, 1, rows={"t": (torch.zeros(10, 2), none)})
    stranger = Checkpoints(tmp_path)
    for table in (torch.ones(10, 2), torch.ones(12, 2), torch.ones(12, 2, dtype=torch.float64)):
        stranger.save({}, {}, 2, rows={"t": (table, none)})
        found = Checkpoints(tmp_path).load()
        assert found is not None
        assert torch.equal(found.tensors["t"], table)
        assert found.tensors["t"].dtype == table.dtype


def test_chains_do_not_grow_without_end(tmp_path: Path) -> None:
    table, checkpoints = torch.zeros(10_000, 1), Checkpoints(tmp_path)
    for step in range(20):
        table[step] = step + 1
        checkpoints.save({}, {}, step, rows={"t": (table, torch.tensor([step]))})
        assert len(checkpoints.generations()) <= checkpoint.LONGEST_CHAIN + 1
        found = Checkpoints(tmp_path).load()
        assert found is not None
        assert torch.equal(found.tensors["t"], table)


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_keeps_so_many_and_every_one_loads(tmp_path: Path, keep: int) -> None:
    checkpoints = Checkpoints(tmp_path, keep=keep)
    for step in range(1, 7):
        save(checkpoints, step)
        for back in range(min(keep, step)):
            assert_is_step(Checkpoints(tmp_path).load(generation=f"generation-{step - back:06}"), step - back)
    plain = Checkpoints(tmp_path / "plain", keep=keep)
    for step in range(5):
        plain.save({"a": torch.zeros(1)}, {}, step)
    assert plain.generations() == [f"generation-{n:06}" for n in range(6 - keep, 6)]
    with pytest.raises(UserError, match="keep = 0"):
        Checkpoints(tmp_path, keep=0)


def test_one_name_in_one_place(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="table given in tensors and in rows"):
        Checkpoints(tmp_path).save({"table": torch.ones(2)}, {}, 1, rows={"table": (torch.ones(2), torch.tensor([0]))})


# ------------------------------------------------------------------------------------------------ restore


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 3)
        self.register_buffer("mean", torch.zeros(3))


def test_restore_copies_in_place(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained, fresh = Base(), Base()
    trained.mean.fill_(4)
    Checkpoints(tmp_path).save(trained.state_dict(), {}, 1)
    found = Checkpoints(tmp_path).load()
    assert found is not None
    weight = fresh.first.weight
    restore(fresh, found.tensors, "model")
    assert fresh.first.weight is weight  # an optimiser that holds it still does
    assert weight.requires_grad
    for name, tensor in trained.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], tensor)
    moments = {"m": torch.zeros(2)}
    held = moments["m"]
    restore(moments, {"m": torch.tensor([1.0, 2.0])}, "optimiser")
    assert held.tolist() == [1, 2]


def test_restore_lists_all_that_does_not_fit_and_touches_nothing() -> None:
    model = Base()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    given = {"first.weight": torch.ones(3, 3), "first.bais": torch.ones(3), "mean": torch.ones(3, dtype=torch.float64)}
    with pytest.raises(UserError) as refused:
        restore(model, given, "model")
    message = str(refused.value)
    assert message.startswith("model: the checkpoint does not fit: missing first.bias; unexpected first.bais (did you")
    assert "first.weight is float32 [3, 3], the model has float32 [3, 2]" in message
    assert "mean is float64 [3], the model has float32 [3]" in message
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_subclass_that_forgot_the_state_of_its_base() -> None:
    """MODELS.md 2.44: half of the state was never saved, and the model went on from random numbers at an AUC of .5."""
    half = {name: tensor for name, tensor in Base().state_dict().items() if name != "first.weight"}
    with pytest.raises(UserError, match=r"missing first\.weight"):
        restore(Base(), half, "model")
