"""Published weights by one word: fetched once from the Hugging Face hub, checked, and kept.

    model, clip = fetch("humanml3d")    for checkpoint.load_model and load_clip
    print("\n".join(listing()))          the words, and what each needs

A safetensors file begins with a table of what lies where in it, so only the text half of CLIP is
fetched: 0.5 of 1.7 GB. The first fetch pins each file's commit and SHA-256 in assets.lock in the
cache; with a lock file to share (`lock`), what differs from that is refused. Files put into the
cache by hand are used. Nothing in a download is ever run. HF_ENDPOINT names a mirror.
"""
import glob
import hashlib
import json
import os
from typing import NamedTuple

from files import atomic_write
from formats import safetensors_part
from formats.download import download, held, say


class File(NamedTuple):
    folder: str  # in the cache
    repo: str
    name: str
    size: int  # bytes to fetch, about
    revision: str = "main"
    sha256: str = ""  # of the whole file, where it is known
    part: tuple = ()  # how the names of the only tensors wanted begin


class Word(NamedTuple):
    what: str
    model: str  # path in the cache
    files: tuple
    page: str = ""  # where to get the model by hand, if it is not on the hub


# UNVERIFIED: the hub was out of reach where this was written. Names, sizes, and CLIP's commit and
# digest are as public sources give them; for the rest, the first fetch pins what "main" is then.
HUB, TEXT = "https://huggingface.co", "clip-vit-large-patch14-text"
CLIP, COMMIT = "openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41"
DIGEST = "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb"
TOWER = (File(TEXT, CLIP, "config.json", 4519, COMMIT),
         File(TEXT, CLIP, "model.safetensors", 494_700_000, COMMIT, DIGEST,
              ("text_model.", "text_projection.")))
NETWORKS = tuple(
    File(f"humanml3d/{part}", f"blanchon/motion-latent-diffusion-standalone-{part}", name, size)
    for part, weights in (("vae", 72_200_000), ("denoiser", 33_500_000))
    for name, size in (("config.json", 500), ("model.safetensors", weights)))
DRIVE = "https://drive.google.com/drive/folders/1U93wvPsqaSzb5waZfGFVYc4tLCAOmB4C"
WORDS = {
    "humanml3d": Word("MLD for HumanML3D, text to motion", "humanml3d", NETWORKS + TOWER),
    "kit": Word("MLD for KIT-ML, text to motion", "kit/mld_kit.ckpt", TOWER, DRIVE),
    "novae": Word("HumanML3D without a VAE", "novae/novae_humanml3d.ckpt", TOWER, DRIVE),
    "humanact12": Word("MLD for 12 actions", "humanact12/mld_humanact12.ckpt", (), DRIVE),
}


def fetch(word, cache="", lock="", clip_dtype="float32", offline=False, clip=True):
    """(path of the model, path of CLIP's text tower or None) for one of WORDS, fetching what the
    cache lacks; without CLIP if not `clip`.

    cache       folder; "" = $XDG_CACHE_HOME/nanomld
    lock        lock file to obey and to add to, beside the cache's own
    clip_dtype  float32, or float16: half the disk
    FileNotFoundError or ConnectionError, in one sentence with addresses and folders, if a file must
    be put there by hand or cannot be had; ValueError for a file that is not the pinned one."""
    cache, entry = cache or default_cache(), WORDS[word]
    locks = [path for path in (lock, os.path.join(cache, "assets.lock")) if path]
    model, tower = os.path.join(cache, entry.model), TEXT + "-float16" * (clip_dtype == "float16")
    places = {file: os.path.join(cache, tower if file.folder == TEXT else file.folder, file.name)
              for file in entry.files if clip or file.folder != TEXT}

    def lacking():
        return {file: path for file, path in places.items() if not good(file, path, locks)}

    if entry.page and not os.path.exists(model):
        raise FileNotFoundError(f"{word} ({entry.what}) is not on the hub: get it by hand from "
                                f"{entry.page} and put it at {model}.")
    if lacking():
        try:
            if offline or os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
                raise ConnectionError("offline, as asked for")
            with held(cache):
                size = sum(file.size for file in lacking()) / 1e6
                say(f"Fetching {word}, once, from {endpoint()} into {cache}: {size:.0f} MB.")
                for file, path in lacking().items():
                    get(file, path, locks, clip_dtype)
        except ConnectionError as problem:
            where = dict.fromkeys(f"{endpoint()}/{file.repo} into {os.path.dirname(path)}"
                                  for file, path in lacking().items())
            again = "run it without --offline" if offline else (
                "try again, which goes on where this one stopped")
            raise ConnectionError(
                f"{word} cannot be fetched ({problem}): {again}, or put config.json and "
                "model.safetensors there by hand, from "
                f"{', from '.join(where)}.") from None
    return model, os.path.join(cache, tower) if TOWER[0] in places else None


def listing(cache=""):
    """A line for each word: what it is, and what it still needs."""
    cache = cache or default_cache()
    for word, (what, model, files, page) in WORDS.items():
        size = sum(file.size for file in files
                   if not os.path.exists(os.path.join(cache, file.folder, file.name)))
        what_comes = "CLIP, " if page else ""
        needs = [f"{what_comes}{size / 1e6:.0f} MB, is fetched at first use"] * (size > 0)
        if page and not os.path.exists(os.path.join(cache, model)):
            needs.append(f"put {os.path.join(cache, model)} there by hand, from {page}")
        yield f"{word:12s}{what:34s}{'; '.join(needs) or 'is here'}"


def default_cache():
    """$XDG_CACHE_HOME/nanomld or ~/.cache/nanomld. FileNotFoundError where neither is a place."""
    for base in (os.environ.get("XDG_CACHE_HOME", ""), os.path.expanduser("~/.cache")):
        if os.path.isabs(base):
            return os.path.join(base, "nanomld")
    raise FileNotFoundError("There is no home folder to keep fetched weights in: name a folder "
                            "with --assets.cache.")


def endpoint():
    mirror = os.environ.get("HF_ENDPOINT", "").rstrip("/") or HUB
    if not mirror.startswith(("http://", "https://")):
        raise ValueError(f"HF_ENDPOINT is {mirror}; expected an address that begins with http:// "
                         "or https://.")
    return mirror


def pinned(file, lock):
    """(all of a lock file, its entry for this file: "commit", "sha256" of what is fetched, and
    "whole", that of the whole file where the hub tells it)"""
    if not os.path.exists(lock):
        return {}, None
    try:
        with open(lock, encoding="utf-8") as opened:
            entries = dict(json.load(opened))
        entry = entries.get(f"{file.repo}/{file.name}")
        if entry is not None:
            entry = {key: str(entry[key]) for key in ("commit", "sha256", "whole")}
        return entries, entry
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{lock} is no lock file of ours; name another or delete it.") from None


def good(file, path, locks):
    """Whether the file is there, and is the one that the first lock names, if it names one."""
    pin = pinned(file, locks[0])[1]
    if not os.path.exists(path) or not pin:
        return os.path.exists(path)
    fetched = pinned(file, locks[-1])[1]  # without an entry it came by hand
    return (fetched["sha256"] if fetched else sha256(path)) in (pin["sha256"], pin["whole"])


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while data := file.read(1 << 20):
            digest.update(data)
    return digest.hexdigest()


def get(file, path, locks, clip_dtype):
    """Fetch one file to its place, whole or not at all, and pin it in the locks."""
    pins = [pin for lock in locks if (pin := pinned(file, lock)[1])]
    pin = pins[0] if pins else {"commit": file.revision, "whole": file.sha256, "sha256": ""}
    url = "/".join((endpoint(), file.repo, "resolve", pin["commit"], file.name))
    os.makedirs(os.path.dirname(path), exist_ok=True)

    def same(found, wanted):
        if found and wanted and found != wanted:
            how = f"; to take it all the same, delete its entry from {locks[0]}" * bool(pins)
            raise ValueError(f"its SHA-256 is {found}, and {wanted} was expected{how}")

    def layout(remote, opened):
        same(remote.sha256, pin["whole"])
        all_of_it = [(0, remote.size)]
        return safetensors_part.layout(remote.size, opened, file.part) if file.part else all_of_it

    try:
        remote, part, spans = download(url, path, layout)
        whole = remote.sha256 or pin["whole"]
        if spans == [(0, remote.size)]:
            same(found := sha256(part), whole)
            whole = found
            if file.part:
                safetensors_part.cut(part, part + ".part", file.part, remote.size)
                part += ".part"
        same(digest := sha256(part), pin["sha256"])
        if file.part:
            safetensors_part.write(part, path, file.part, remote.size, clip_dtype == "float16")
        else:
            os.replace(part, path)
    except ValueError as error:
        discard(path)
        raise ValueError(f"{url} cannot be used: {error}.") from None
    discard(path)
    entry = {"commit": remote.commit or pin["commit"], "sha256": digest, "whole": whole}
    for lock in locks:
        entries = pinned(file, lock)[0]
        if entries.get(f"{file.repo}/{file.name}") != entry:
            with atomic_write(lock, "w") as opened:
                json.dump(entries | {f"{file.repo}/{file.name}": entry}, opened, indent=1)


def discard(path):
    for part in glob.glob(glob.escape(path) + ".*.part"):
        os.unlink(part)
