"""The store loses nothing that `add` returned for, whatever happens to the process, the disk or the file."""

import errno
import gc
import json
import multiprocessing
import os
import random
import subprocess
import sys
import time
import warnings

import pytest

from lib import UserError, store
from lib.experiment import VERSION, Cell, Record
from lib.store import Store
from lib.study import Answer, Study

posix = pytest.mark.skipif(os.name == "nt", reason="needs fork and POSIX limits")


def cell(seed=0):
    return Cell("digits", "cnn", "SNIP", 4, seed, 1, 1e-3)


def record(seed=0, precision="float32", top1=7):
    history = [{"epoch": epoch, "train_loss": None, "test_loss": 2.3, "top1": top1, "top5": 50} for epoch in (0, 1)]
    run = {"precision": precision}
    return Record(cell(seed).key, VERSION, cell(seed), {"compression": 4.0}, history, 100, run)


def answer(seed=0):
    study = Study("signed", "digits", "cnn", "GraSP", seed)
    return Answer(study.key, VERSION, study, [{"below": 0.5}], {"precision": "float32"})


def lines(*records):
    return "".join(each.to_json() + "\n" for each in records)


def other_version(version):
    return json.dumps({"key": "k", "version": version, "unheard": "of"}) + "\n"


def filled(path, *records):
    path.write_text(lines(*records))
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results.jsonl"


def test_what_is_added_is_read_back(path):
    with Store(path).writing() as one:
        one.add(record(0))
        one.add(record(1))
    assert one.records == Store(path).records and len(Store(path)) == 2
    assert cell(1) in Store(path) and Store(path).get(cell(1)) == record(1)
    assert cell(2) not in Store(path) and Store(path).get(cell(2)) is None


def test_a_missing_file_is_an_empty_store_and_adding_makes_its_folder(tmp_path):
    path = tmp_path / "a" / "b" / "results.jsonl"
    assert len(Store(path)) == 0 and cell() not in Store(path) and not path.exists()
    with Store(path).writing() as empty:
        empty.add(record())
    assert len(Store(path)) == 1


def test_adding_needs_the_lock(path):
    with pytest.raises(RuntimeError, match="writing"):
        Store(path).add(record())
    with Store(path).writing() as closed:
        pass
    with pytest.raises(RuntimeError, match="writing"):
        closed.add(record())


def test_a_last_line_torn_anywhere_is_dropped_and_cut_off_before_the_next(path):
    whole, last = lines(record(0)).encode(), lines(record(1)).encode()
    for length in (1, 2, *range(3, len(last) - 1, 11), len(last) - 1):
        path.write_bytes(whole + last[:length])
        with pytest.warns(UserWarning, match="line 2.*torn"):
            torn = Store(path)
        assert list(torn.records) == [cell(0).key]
        assert path.read_bytes() == whole + last[:length], "reading changed the file"
        with torn.writing() as writer:
            writer.add(record(2))
        assert path.read_text() == lines(record(0), record(2))


@pytest.mark.parametrize("torn", [b'{"key": \n', b"\0\0\0\0", b"\xff\xfe\n"])
def test_a_last_line_that_is_no_json_is_torn(path, torn):
    filled(path, record()).write_bytes(path.read_bytes() + torn)
    with pytest.warns(UserWarning, match="torn"):
        assert len(Store(path)) == 1


@pytest.mark.parametrize("bad", ['{"key": 1,\n', "\n", "<<<<<<< A\n", "[1]\n", "{}\n", '{"version": null}\n',
                                 lines(record()).replace('{"precision":"float32"}', "null")])
def test_a_corrupt_line_in_the_middle_is_named(path, bad):
    path.write_text(lines(record(0)) + bad + lines(record(1)))
    with pytest.raises(UserError, match=r"results\.jsonl, line 2 "):
        Store(path)


@pytest.mark.parametrize("kind, made, flipped", [(Record, record, '"seed":0'), (Answer, answer, '"seed":0')])
def test_a_line_whose_key_is_not_that_of_its_cell_is_named(path, kind, made, flipped):
    good = made().to_json() + "\n"
    assert flipped in good
    path.write_text(good + good.replace(flipped, '"seed":1'))
    with pytest.raises(UserError, match=r"results\.jsonl, line 2 cannot be used: .*its key is not that of what it says"):
        Store(path, kind)


def test_a_last_line_of_whole_json_that_is_no_record_is_an_error_not_torn(path):
    path.write_text(lines(record()) + '{"name": "of another file"}\n')
    with pytest.raises(UserError, match="line 2"):
        Store(path)


def test_a_newer_version_is_refused_with_advice(path):
    path.write_text(lines(record()) + other_version(VERSION + 1))
    with pytest.raises(UserError, match=r"line 2 is of a newer version.*update"):
        Store(path)


def test_a_newer_version_is_refused_even_where_it_reads_like_ours(path):
    path.write_text(lines(record()).replace(f'"version":{VERSION}', f'"version":{VERSION + 1}'))
    with pytest.raises(UserError, match="newer version"):
        Store(path)


def test_older_versions_are_skipped_with_one_warning_and_stay_in_the_file(path):
    old = other_version(VERSION - 1)
    path.write_text(old + lines(record(0)) + old)
    with pytest.warns(UserWarning, match="2 records were made by an older version") as caught:
        new = Store(path)
    with new.writing():
        new.add(record(1))
    assert len(caught) == 1 and list(new.records) == [cell(0).key, cell(1).key]
    assert path.read_text() == old + lines(record(0)) + old + lines(record(1))


def test_records_of_unknown_methods_are_left_aside_with_a_warning_and_stay_through_a_merge(path):
    foreign = lines(record(0)).replace(cell(0).method, "Mine")
    path.write_text(foreign + lines(record(0)))
    with pytest.warns(UserWarning, match="1 records are of methods that are not in the table"):
        assert list(Store(path).records) == [cell(0).key]
    with pytest.warns(UserWarning, match="not in the table"):
        store.merge(path.with_name("out.jsonl"), [path])
    assert path.with_name("out.jsonl").read_text() == foreign + lines(record(0))


def test_float32_beats_bf16_whichever_comes_first(path):
    low, high = record(0, "bf16", 1), record(0, "float32", 2)
    assert Store(filled(path, low, high)).get(cell()) == Store(filled(path, high, low)).get(cell()) == high


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_of_equals_the_first_counts(path, precision):
    first, second = record(0, precision, 1), record(0, precision, 2)
    assert Store(filled(path, first, second)).get(cell()) == first


def test_adding_a_known_key_follows_the_same_rule(path):
    with Store(path).writing() as one:
        for each in (record(0, "bf16", 1), record(0, "float32", 2), record(0, "float32", 3)):
            one.add(each)
    assert one.get(cell()) == Store(path).get(cell()) == record(0, "float32", 2)


def test_a_writer_sees_what_another_wrote_since_it_read(path):
    early = Store(path)
    with Store(path).writing() as other:
        other.add(record(0))
    with early.writing():
        assert cell(0) in early
        early.add(record(1))
    assert path.read_text() == lines(record(0), record(1))


def hold(path, seconds, pipe):
    with Store(path).writing() as held:
        pipe.send("held")
        time.sleep(seconds)
        held.add(record(0))


def start(target, *arguments):
    """A forked process, and the end of a pipe that it writes to."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads; the child only writes
        process = multiprocessing.get_context("fork").Process(target=target, args=(*arguments, theirs))
        process.start()
    theirs.close()
    return process, ours


@posix
def test_a_second_process_is_refused_while_the_first_writes(path):
    process, pipe = start(hold, path, 60)
    assert pipe.recv() == "held"
    with pytest.raises(UserError, match="another run"), Store(path).writing():
        pass
    process.kill()  # the lock goes with its holder
    process.join()
    with Store(path).writing() as free:
        free.add(record(1))


@posix
def test_a_second_process_waits_where_it_is_told_to(path):
    process, pipe = start(hold, path, 0.2)
    assert pipe.recv() == "held"
    with Store(path).writing(wait=True) as second:
        assert cell(0) in second
    process.join()


def add_for_ever(path, first, pipe):
    with Store(path).writing() as running:
        for seed in range(first, first + 10 ** 6):
            running.add(record(seed))
            pipe.send(seed)


@posix
@pytest.mark.filterwarnings("ignore:.*torn")
def test_a_kill_at_a_random_moment_loses_nothing_that_was_added(path):
    moments, added = random.Random(0), []
    for attempt in range(15):
        process, pipe = start(add_for_ever, path, 10 ** 6 * attempt)
        added.append(pipe.recv())
        time.sleep(moments.uniform(0, 0.02))
        process.kill()
        while True:
            try:
                added.append(pipe.recv())
            except EOFError:
                break
        process.join()
        after = Store(path)
        assert all(after.get(cell(seed)) == record(seed) for seed in added)
        assert len(after) - len(added) in range(attempt + 2), "at most the record in flight is there besides"


class FillingUp:
    """A file on a disk that has room for `room` more bytes."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, data):
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        data, self.room = data[:self.room], self.room - len(data[:self.room])
        return self.file.write(data)


@pytest.mark.parametrize("room", [0, 1, 40])
def test_a_full_disk_leaves_the_file_as_it_was(path, room):
    with Store(filled(path, record(0))).writing() as full:
        real, full._file = full._file, FillingUp(full._file, room)
        with pytest.raises(UserError, match="No space left.*no cell that had finished is lost"):
            full.add(record(1))
        assert path.read_text() == lines(record(0)) and cell(1) not in full
        full._file = real  # there is room again
        full.add(record(2))
    assert path.read_text() == lines(record(0), record(2))


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_line_that_does_not_reach_the_disk_is_taken_back(path, monkeypatch, error):
    def fail(_):
        raise error
    with Store(filled(path, record(0))).writing() as store_:
        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(UserError if isinstance(error, OSError) else KeyboardInterrupt):
            store_.add(record(1))
    assert path.read_text() == lines(record(0)) and cell(1) not in store_


@posix
def test_a_write_that_the_kernel_cuts_short_is_taken_back(path):
    import resource
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Store(filled(path, record(0))).writing() as full:
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 40, limits[1]))
        try:
            with pytest.raises(UserError, match="cannot be written"):
                full.add(record(1))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == lines(record(0))


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder_is_an_error_before_any_work(path):
    filled(path, record())
    path.parent.chmod(0o500)
    try:
        with pytest.raises(UserError, match="writable"), Store(path).writing():
            pass
    finally:
        path.parent.chmod(0o700)


def test_a_file_where_the_folder_should_be_is_an_error(path):
    path.write_text("")
    with pytest.raises(UserError, match="cannot be"), Store(path / "results.jsonl").writing():
        pass


def test_a_folder_where_the_file_should_be_is_an_error(path):
    path.mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        Store(path)


def test_merge_writes_the_union_and_keeps_what_was_there(tmp_path, path):
    one = filled(tmp_path / "one", record(1, "bf16"), record(0))
    two = filled(tmp_path / "two", record(2), record(1))
    filled(path, record(5))
    assert store.merge(path, [one, two]) == 4 and store.merge(path, [two]) == 4
    assert path.read_text() == lines(record(5), record(1), record(0), record(2))
    assert one.read_text() == lines(record(1, "bf16"), record(0)), "an input changed"


@pytest.mark.parametrize("kind, made", [(Record, record), (Answer, answer)])
def test_the_command_merges_records_or_answers(tmp_path, path, kind, made):
    filled(path, made(5))
    one, two = filled(tmp_path / "one", made(1), made(0)), filled(tmp_path / "two", made(2), made(1))
    (tmp_path / "empty").touch()
    (tmp_path / "torn").write_text('{"key":')
    with pytest.warns(UserWarning, match="torn"):
        assert store.main(["merge", *map(str, (path, tmp_path / "empty", tmp_path / "torn", one, two))]) == 0
    assert path.read_text() == lines(made(5), made(1), made(0), made(2)) and len(Store(path, kind)) == 4


@pytest.mark.parametrize("text", ["my precious line", "{}"])
def test_merge_replaces_nothing_that_is_no_store(tmp_path, path, text):
    filled(path, record(0))
    (other := tmp_path / "mine.txt").write_text(text)
    with warnings.catch_warnings(), pytest.raises(UserError):
        warnings.simplefilter("ignore")
        store.merge(other, [path])
    assert other.read_text() == text
    with pytest.raises(UserError, match="no file that could be a store"):
        store.merge(tmp_path, [path])


def test_merge_writes_through_a_link(tmp_path, path):
    filled(path, record(0))
    (link := tmp_path / "link.jsonl").symlink_to(path)
    assert store.merge(link, [filled(tmp_path / "b.jsonl", record(1))]) == 2
    assert link.is_symlink() and len(Store(path)) == 2


@pytest.mark.parametrize("damage", [
    lambda made: made.update(history=None), lambda made: made.update(test_images=None),
    lambda made: made["history"][0].pop("top1"), lambda made: made["history"][0].update(top1=101),
    lambda made: made["history"][0].update(top1="7"), lambda made: made["history"][0].update(top5=6),
    lambda made: made.update(history=[]), lambda made: made["history"].pop(),
    lambda made: made["run"].update(diverged=0), lambda made: made.update(report={}),
    lambda made: made["report"].update(compression=None), lambda made: made["report"].update(compression=0.5)])
def test_a_record_with_other_contents_than_its_cell_has_is_refused_with_its_line(path, damage):
    made = json.loads(record(1).to_json())
    damage(made)
    path.write_text(lines(record(0)) + json.dumps(made) + "\n")
    with pytest.raises(UserError, match="line 2 cannot be used"):
        Store(path)


@pytest.mark.parametrize("kept, other", [(record(0), answer(1)), (answer(0), record(1))])
def test_merge_refuses_records_beside_answers(tmp_path, path, kept, other):
    filled(path, kept)
    with pytest.raises(UserError, match="merge them apart"):
        store.merge(path, [filled(tmp_path / "other", other)])
    with pytest.raises(UserError, match="merge them apart"):
        store.merge(tmp_path / "new", [path, tmp_path / "other"])
    assert path.read_text() == lines(kept) and not (tmp_path / "new").exists()


@pytest.mark.parametrize("enabled", [True, False])
def test_reading_and_merging_leave_the_garbage_collector_as_it_was(tmp_path, path, enabled):
    corrupt = filled(tmp_path / "corrupt", record())
    corrupt.write_text("nonsense\n" + corrupt.read_text())
    before = gc.isenabled()
    try:
        gc.enable() if enabled else gc.disable()
        store.merge(path, [filled(tmp_path / "one", record())])
        assert Store(path).records and gc.isenabled() == enabled
        for fails in (lambda: Store(corrupt), lambda: store.merge(path, [corrupt])):
            with pytest.raises(UserError, match="line 1"):
                fails()
            assert gc.isenabled() == enabled
    finally:
        gc.enable() if before else gc.disable()


def test_merge_on_a_full_disk_leaves_everything_as_it_was(tmp_path, path, monkeypatch):
    one = filled(tmp_path / "one", record(1))
    filled(path, record(5))
    monkeypatch.setattr(store, "_write", lambda file, data: FillingUp(file, 0).write(data))
    with pytest.raises(UserError, match="No space left"):
        store.merge(path, [one])
    assert path.read_text() == lines(record(5)) and not list(tmp_path.glob("*.partial"))


def test_merge_is_refused_while_a_run_writes_its_output(tmp_path, path):
    one = filled(tmp_path / "one", record(1))
    with Store(path).writing() as running:
        with pytest.raises(UserError, match="another run"):
            store.merge(path, [one])
        running.add(record(0))
    assert path.read_text() == lines(record(0))


def test_the_command_merges(tmp_path, path):
    one, two = filled(tmp_path / "one", record(1)), filled(tmp_path / "two", record(2))
    command = [sys.executable, "-m", "lib.store", "merge", path, one, two]
    assert "2 records" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert path.read_text() == lines(record(1), record(2))


def test_the_command_says_what_is_wrong_and_exits_with_2(tmp_path, path, capsys):
    corrupt = tmp_path / "corrupt"
    corrupt.write_text("nonsense\n" + lines(record()))
    assert store.main(["merge", str(path), str(tmp_path / "missing")]) == 2
    assert store.main(["merge", str(path), str(corrupt)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert "missing" in errors[0] and "corrupt, line 1" in errors[1] and not path.exists()
