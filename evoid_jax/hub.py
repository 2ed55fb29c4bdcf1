"""Models by their name on the Hugging Face hub: `Wan-AI/Wan2.1-VACE-14B-diffusers`.

Whatever takes a model's folder takes such a name, with a branch, tag or commit behind an @ if
wanted; a folder of that name wins. What is needed of the model, and no more, is fetched once into
the hub's own cache (HF_HUB_CACHE) and used from there. The environment's HF_ENDPOINT, HF_TOKEN and
HF_HUB_OFFLINE are the library's own.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evoid_jax import files

NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")
COMMIT = re.compile(r"[0-9a-f]{40}")
INDEX = "model_index.json"
# What a diffusers pipeline is made of here; a repository may hold other layouts, pictures, videos.
MODELS = ("transformer", "vae", "text_encoder")
SMALL = (INDEX, "evoid.json", "README.md", "LICENSE*", "scheduler/*.json", "tokenizer/*")
SKETCHED = (".json", ".safetensors")
VARIANTS = ("*.fp16*", "*.bf16*", "*.non_ema*")  # second copies, which are not read


def is_id(name: str | Path) -> bool:
    """Tell whether a model's name is one on the hub: of its form, and nothing here is called so."""
    text = str(name)
    return bool(NAME.fullmatch(text)) and not os.path.lexists(text)


def repository(name: str | Path) -> str:
    """Return a hub name without its revision, such as Org/Name."""
    return _split(name)[0]


def same(one: str, other: str) -> bool:
    """Tell whether two hub names may mean the same files: of one repository, not of two commits."""
    if not (is_id(one) and is_id(other)):
        return False
    (first, a), (second, b) = _split(one), _split(other)
    return first == second and (a == b or not (COMMIT.fullmatch(a) and COMMIT.fullmatch(b)))


def pinned(name: str | Path, was: str = "") -> str | Path:
    """Return a hub name with the commit that it means now; any other name as it is.

    Args:
      was: the name that an earlier start pinned. Its commit stands where it fits, so that a run
        goes on with the files it began with, whatever its branch has become.

    Raises: as `folder`.
    """
    if not is_id(name):
        return name
    if was and same(name, was) and COMMIT.fullmatch(_split(was)[1]):
        return was
    repo, revision = _split(name)
    if COMMIT.fullmatch(revision):
        return name
    return f"{repo}@{_snapshot(name, (INDEX,)).name}"


def folder(name: str | Path, parts: tuple[str, ...] = MODELS, with_weights: bool = True) -> Path:
    """Return a model's folder: the one of this name, or a hub name's files, fetched if need be.

    Args:
      name: a folder, or a hub name. What is neither is returned as a path that is not there.
      parts: of MODELS, those that are needed of a hub's model.
      with_weights: whether their tensors are needed too, or settings, index and tokenizer alone.

    Raises:
      FileNotFoundError: the hub has no such model or revision, or it is no diffusers pipeline.
      PermissionError: its owner wants to be asked first.
      ConnectionError: it is not in the cache as a whole, and the hub cannot be reached.
      OSError: the disk has no room for it.
    """
    if not is_id(name):
        return files.user_path(name)
    wanted = [*SMALL, *(f"{part}/*.json" for part in parts)]
    if with_weights:
        wanted += [f"{part}/*.safetensors" for part in parts]
    found = _snapshot(name, tuple(wanted))
    if not (found / INDEX).is_file():
        raise FileNotFoundError(
            f"{repository(name)} on the hub has no {INDEX}: it is no pipeline in diffusers' "
            "layout; take the repository that is, or download it and use evoid_jax.convert"
        )
    return found


def sketch(name: str | Path) -> str | None:
    """Return a digest by which another model is known that has taken a model's place.

    Of its settings and weights, of large files of parts all over them; what else its folder holds,
    such as a LoRA or a run, counts for nothing. None for a hub name, which is held to its commit by
    `pinned`.
    """
    if is_id(name):
        return None
    model = files.user_path(name)
    places = [model]  # of a T2V teacher in the original layout
    parts = [file for file in (model / INDEX, model / "evoid.json") if file.is_file()]
    if model / INDEX in parts:
        places = [model / part for part in (*MODELS, "scheduler", "tokenizer")]
    parts += [file for place in places for file in place.glob("*") if file.suffix in SKETCHED]
    told = [[file.relative_to(model).as_posix(), files.sketch(file)] for file in sorted(parts)]
    return files.digest(told)[:16]


def _split(name: str | Path) -> tuple[str, str]:
    """Return (Org/Name, revision or "")."""
    match = NAME.fullmatch(str(name))
    return (match[1], match[2] or "") if match else (str(name), "")


def _snapshot(name: str | Path, patterns: tuple[str, ...]) -> Path:
    """Return the folder in the cache that holds a hub name's files of these patterns."""
    import huggingface_hub as hub  # takes a moment, and a model's folder needs none of it

    repo, revision = _split(name)
    asked = {
        "repo_id": repo,
        "revision": revision or "main",
        "allow_patterns": list(patterns),
        "ignore_patterns": list(VARIANTS),
        # Read here and not by the library, which reads it once and for all when it is imported.
        "endpoint": os.environ.get("HF_ENDPOINT") or None,
    }
    with _told(name):
        if not hub.constants.is_offline_mode():
            _check_room(name, asked)
        return Path(hub.snapshot_download(**asked))


def _check_room(name: str | Path, asked: dict) -> None:
    """Raise an OSError where the cache's disk cannot hold what is to be fetched."""
    import huggingface_hub as hub

    try:
        planned = hub.snapshot_download(**asked, dry_run=True)
    except hub.errors.DryRunError:
        return  # the hub cannot be reached: the cache may have it all
    needed = sum(file.file_size or 0 for file in planned if file.will_download)
    cache = Path(hub.constants.HF_HUB_CACHE).expanduser()
    nearest = next(place for place in (cache, *cache.parents) if place.exists())
    free = shutil.disk_usage(nearest).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"{name} needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} are free (HF_HUB_CACHE says "
            "where it goes)",
            str(cache),
        )


@contextmanager
def _told(name: str | Path) -> Iterator[None]:
    """Turn the library's errors into one line each: what is wrong, and what to do."""
    import httpx2
    from huggingface_hub import constants, errors

    endpoint = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
    here = f"{name} is no folder here"
    elsewhere = f"or fetch it elsewhere (hf download {repository(name)}) and give its folder"
    try:
        yield
    except errors.GatedRepoError:
        raise PermissionError(
            f"{here}, and on the hub its owner wants to be asked: accept the terms at "
            f"{endpoint}/{repository(name)}, then `hf auth login` or set HF_TOKEN"
        ) from None
    except errors.RepositoryNotFoundError:
        raise FileNotFoundError(
            f"{here}, and the hub ({endpoint}) has no model of this name, or a private one (then "
            "`hf auth login`, or set HF_TOKEN)"
        ) from None
    except errors.RevisionNotFoundError:
        raise FileNotFoundError(
            f"the hub ({endpoint}) has {repository(name)}, but no revision {_split(name)[1]}"
        ) from None
    except errors.LocalEntryNotFoundError as error:
        why = "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else _line(error.__cause__)
        raise ConnectionError(
            f"{here}, nor whole in the hub's cache ({constants.HF_HUB_CACHE}), and the hub "
            f"({endpoint}) cannot be asked: {why}. Try again with network, {elsewhere}"
        ) from error
    except (httpx2.HTTPError, errors.HfHubHTTPError) as error:
        raise ConnectionError(
            f"{name}: the hub ({endpoint}) failed while it was asked: {_line(error)}. The same "
            f"command goes on where it was, {elsewhere}"
        ) from error
    except errors.HFValidationError as error:
        raise ValueError(f"{here}, and no name for the hub: {error}") from None


def _line(error: BaseException | None) -> str:
    """Return the first line of an error's text, or its kind where it has none."""
    return next(iter(str(error or "").strip().splitlines()), "") or type(error).__name__
