"""Bundles on the Hub: revisions, updates, snapshots made of links, uploads; against a Hub of folders on this disk."""

import hashlib
import inspect
import os
import shutil
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

import thalweg
from thalweg.bundle.bundle import Bundle
from thalweg.bundle.files import FILES, load
from thalweg.core import store
from thalweg.core.errors import DamagedFile, UserError

NAME = "someone/digits"
CLIENT = HfHubHTTPError.__bases__[0]


class Hub:
    """`snapshot_download` and `HfApi` as huggingface_hub has them: commits of files, a cache of blobs and links.

    The cache is models--OWNER--NAME/{blobs/HASH, refs/BRANCH, snapshots/COMMIT/FILE -> ../../blobs/HASH}. With
    `local_dir` files are copied over what is there, and what is there besides stays. Offline, the cache answers.
    """

    def __init__(self, place: Path):
        self.place, self.commits, self.branches = place, {}, {"main": None}
        self.online = True

    def commit(self, folder: Path, branch: str = "main") -> str:
        files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
        return self._add(files, branch)

    def _add(self, files: dict[str, bytes], branch: str) -> str:
        name = hashlib.sha1(repr(sorted(files.items())).encode() + branch.encode()).hexdigest()
        self.commits[name], self.branches[branch] = files, name
        return name

    def snapshot_download(self, repo_id, *, revision=None, allow_patterns=None, local_dir=None):
        assert repo_id == NAME
        home = self.place / f"models--{repo_id.replace('/', '--')}"
        revision = revision or "main"
        if not self.online:
            ref = home / "refs" / revision
            found = home / "snapshots" / (ref.read_text() if ref.exists() else revision)
            if found.exists():
                return str(found)
            raise LocalEntryNotFoundError("Cannot find an appropriate cached snapshot folder.\nSecond line.")
        commit = self.branches.get(revision) or revision
        if commit not in self.commits:
            raise CLIENT(f"404 Client Error.\nRevision Not Found: {revision}")
        files = self.commits[commit].items()
        files = {name: data for name, data in files if any(fnmatch(name, p) for p in allow_patterns or ["*"])}
        if local_dir is not None:
            for name, data in files.items():
                Path(local_dir).mkdir(parents=True, exist_ok=True)
                (Path(local_dir) / name).write_bytes(data)
            return str(local_dir)
        for part in ("blobs", "refs", f"snapshots/{commit}"):
            (home / part).mkdir(parents=True, exist_ok=True)
        (home / "refs" / revision).write_text(commit)
        for name, data in files.items():
            blob, link = home / "blobs" / hashlib.sha256(data).hexdigest(), home / "snapshots" / commit / name
            blob.write_bytes(data)
            if not link.is_symlink():
                link.symlink_to(os.path.relpath(blob, link.parent))
        return str(home / "snapshots" / commit)

    def api(self, token=None):
        assert token == "secret"
        return self

    def create_repo(self, repo_id, *, exist_ok, private):
        assert (repo_id, exist_ok, private) == (NAME, True, True)
        return f"https://hub/{repo_id}"

    def create_branch(self, repo_id, *, branch, exist_ok):
        assert exist_ok
        self.branches.setdefault(branch, self.branches["main"])

    def upload_folder(self, *, repo_id, folder_path, revision, commit_message, delete_patterns):
        branch = revision or "main"
        kept = self.commits.get(self.branches[branch], {})
        kept = {name: data for name, data in kept.items() if not any(fnmatch(name, p) for p in delete_patterns)}
        self._add(kept | {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}, branch)


@pytest.mark.parametrize("name", ["create_repo", "create_branch", "upload_folder", "snapshot_download"])
def test_the_library_takes_what_this_hub_takes(name):
    real = getattr(huggingface_hub.HfApi, name) if name != "snapshot_download" else huggingface_hub.snapshot_download
    mine = inspect.signature(getattr(Hub, name)).parameters.keys() - {"self"}
    assert mine <= inspect.signature(real).parameters.keys()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    fake = Hub(tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.snapshot_download", fake.snapshot_download)
    monkeypatch.setattr("huggingface_hub.HfApi", fake.api)
    monkeypatch.chdir(tmp_path)
    return fake


@pytest.fixture
def versions(digits, tmp_path):
    """Two versions of a bundle: the second has other weights, and no prior."""
    digits.save_pretrained(tmp_path / "first")
    second = load(tmp_path / "first")
    second.mixture_prior = None
    second.model.load_state_dict({name: 2 * value for name, value in second.model.state_dict().items()})
    second.save_pretrained(tmp_path / "second")
    return tmp_path / "first", tmp_path / "second"


def _same(a, b):
    weights = zip(a.model.state_dict().items(), b.model.state_dict().items(), strict=True)
    return all(x == y and torch.equal(v, w) for (x, v), (y, w) in weights)


def test_an_update_is_loaded_though_a_file_of_the_older_revision_is_gone(hub, versions):
    """Fault: one folder for all revisions kept prior.safetensors, which the new manifest does not list."""
    first, second = versions
    old = hub.commit(first)
    assert _same(load(NAME), load(first))
    hub.commit(second)
    new = load(NAME)
    assert _same(new, load(second))
    assert new.mixture_prior is None
    assert _same(load(NAME, revision=old), load(first))
    hub.online = False
    assert _same(load(NAME), load(second))
    assert _same(load(NAME, revision=old), load(first))


def test_branches_and_commits_are_named_by_revision(hub, versions):
    first, second = versions
    hub.commit(first)
    commit = hub.commit(second, "next")
    for revision in ("next", commit):
        assert _same(thalweg.load(NAME, revision=revision), load(second))
        assert _same(Bundle.from_pretrained(NAME, revision=revision), load(second))
    assert _same(thalweg.load(NAME), load(first))


def test_what_the_hub_refuses_is_one_line_and_a_fault_of_ours_is_not(hub, versions, monkeypatch):
    hub.commit(versions[0])
    with pytest.raises(UserError) as caught:
        load(NAME, revision="nothing")
    assert caught.value.argument == NAME
    assert "nothing" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    for error in (HFValidationError("x"), OSError("no network"), CLIENT("a proxy"), ConnectionError()):

        def failing(*_, error=error, **__):
            raise error

        monkeypatch.setattr("huggingface_hub.snapshot_download", failing)
        with pytest.raises(UserError):
            load(NAME)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name: name)  # called by other keywords than it has
    with pytest.raises(TypeError):
        load(NAME)


def test_a_revision_of_a_folder_that_is_here_is_refused(versions):
    with pytest.raises(UserError) as caught:
        load(versions[0], revision="main")
    assert (caught.value.argument, caught.value.value) == ("revision", "main")


def test_a_snapshot_of_links_is_read_where_it_lies(hub, versions):
    """As another program fetched it: the folder in the Hub's cache, by its path, or moved with its repository."""
    hub.commit(versions[0])
    snapshot = Path(hub.snapshot_download(NAME))
    assert all(path.is_symlink() for path in snapshot.iterdir())
    assert _same(load(snapshot), load(versions[0]))
    moved = snapshot.parents[2] / "elsewhere"
    snapshot.parents[1].rename(moved)
    assert _same(load(moved / "snapshots" / snapshot.name), load(versions[0]))


@pytest.mark.parametrize("name", FILES)
def test_a_changed_blob_is_refused(hub, versions, name):
    hub.commit(versions[0])
    snapshot = Path(hub.snapshot_download(NAME))
    blob = (snapshot / name).resolve()
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.write_bytes(data)
    with pytest.raises(DamagedFile) as caught:
        load(snapshot)
    assert caught.value.argument == str(snapshot / name)


def _outside(snapshot, secret):
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(secret)


def _manifest_outside(snapshot, secret):
    shutil.copy(snapshot / store.MANIFEST, secret)
    (snapshot / store.MANIFEST).unlink()
    (snapshot / store.MANIFEST).symlink_to(secret)


def _deeper(snapshot, secret):
    """In a folder below the blobs, which the Hub never makes."""
    below = snapshot.parents[1] / "blobs" / "below"
    below.mkdir()
    shutil.copy(secret, below)
    _outside(snapshot, below / secret.name)


def _blobs_elsewhere(snapshot, secret):
    """The folder of blobs is a link itself."""
    blobs = snapshot.parents[1] / "blobs"
    blobs.rename(secret.parent / "blobs")
    blobs.symlink_to(secret.parent / "blobs")


@pytest.mark.parametrize("change", [_outside, _manifest_outside, _deeper, _blobs_elsewhere])
def test_other_links_are_named_with_what_mends_them(hub, versions, tmp_path, change):
    """Even where the content is what was sealed: which files a folder leads to is not a stranger's to choose."""
    hub.commit(versions[0])
    snapshot, place = Path(hub.snapshot_download(NAME)), tmp_path / "place"
    place.mkdir()
    shutil.copy(versions[0] / "config.json", place / "secret")
    change(snapshot, place / "secret")
    with pytest.raises(DamagedFile) as caught:
        load(snapshot)
    assert Path(str(caught.value.argument)).parent == snapshot
    assert (snapshot / Path(str(caught.value.argument)).name).is_symlink()
    assert "cp -rL" in str(caught.value.hint)
    copied = tmp_path / "copied"
    shutil.copytree(snapshot, copied)  # which follows links, as the hint says
    assert _same(load(copied), load(versions[0]))


def test_a_folder_of_links_that_is_no_snapshot_is_refused(versions, tmp_path):
    made = tmp_path / "made" / "folder"
    made.mkdir(parents=True)
    for path in versions[0].iterdir():
        (made / path.name).symlink_to(path)
    with pytest.raises(DamagedFile) as caught:
        load(made)
    assert Path(str(caught.value.argument)).parent == made


def test_pushed_and_fetched_again(hub, versions):
    """A second push leaves none of the bundle's files that it has not, and what else the repository holds stays."""
    first, second = (load(folder) for folder in versions)
    options = {"token": "secret", "private": True}
    assert first.push_to_hub(NAME, **options) == f"https://hub/{NAME}"
    files = hub.commits[hub.branches["main"]]
    hub._add(files | {"README.md": b"mine", "other.bin": b"kept"}, "main")
    second.push_to_hub(NAME, **options, commit_message="better")
    files = hub.commits[hub.branches["main"]]
    assert {"README.md", "other.bin", store.MANIFEST} <= files.keys()
    assert "prior.safetensors" not in files
    assert _same(load(NAME), second)
    first.push_to_hub(NAME, revision="old", **options)
    assert _same(load(NAME, revision="old"), first)
    assert _same(load(NAME), second)
