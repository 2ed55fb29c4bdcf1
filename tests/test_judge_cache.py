"""Answers that are kept: the same question has the same name, and a broken file stops nobody."""

import threading

from evoid_jax.rewards import judge_cache
from evoid_jax.rewards.judge_cache import Cache, digest


def test_a_name_is_of_all_that_is_asked():
    asked = {"model": "a", "content": [{"text": "b"}], "extra": {"x": 1, "y": 2}}
    assert digest(asked) == digest({"extra": {"y": 2, "x": 1}, **asked})
    others = [asked | {"model": "c"}, asked | {"content": [{"text": "c"}]}, asked | {"extra": {}}]
    assert len({digest(asked), *map(digest, others)}) == 4


def test_what_was_read_is_there_again(tmp_path):
    file = tmp_path / "new" / judge_cache.FILE
    cache = Cache(file)
    assert cache.get("a") is None
    cache.put("a", [1, 2.5])
    cache.put("b", ["A man nods."])
    cache.put("a", [3])
    assert cache.get("a") == [3] and cache.get("b") == ["A man nods."]
    cache.close()
    assert cache.get("a") is None  # and does not fail
    again = Cache(file)
    assert again.get("a") == [3]
    again.close()


def test_threads_share_it(tmp_path):
    cache = Cache(tmp_path / judge_cache.FILE)
    put = lambda first: [cache.put(str(i), [i]) for i in range(first, first + 50)]
    threads = [threading.Thread(target=put, args=(50 * k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [cache.get(str(i)) for i in range(200)] == [[i] for i in range(200)]
    cache.close()


def test_a_file_that_cannot_be_used_is_told_of_once(tmp_path, caplog):
    broken = tmp_path / judge_cache.FILE
    broken.write_text("no database at all, and long enough to be taken for a header" * 100)
    (tmp_path / "file").write_text("")
    for file in (broken, tmp_path / "file" / judge_cache.FILE):
        caplog.clear()
        cache = Cache(file)
        cache.put("a", [1])
        assert cache.get("a") is None
        assert caplog.text.count("cannot be used") == 1 and str(file) in caplog.text
        cache.close()
    nothing = Cache(None)
    nothing.put("a", [1])
    assert nothing.get("a") is None
