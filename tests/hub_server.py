"""A server on this machine that behaves like the Hugging Face hub, well or badly.

    with Hub({"someone/model/model.safetensors": data}) as hub:
        hub.url                              for HF_ENDPOINT
        hub.faults = ["503", ("cut", 100)]   what goes wrong in the next requests for data

Large files (.safetensors) are redirected to a second port, whose answers do not tell what the hub
told on the way: size, digest, commit. Each request is noted in `hub.requests`.
"""
import hashlib
import json
import re
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

PROBE = "bytes=0-0"  # the first request for a file; faults do not count it


class Hub:
    def __init__(self, files):
        self.files, self.commits, self.faults, self.requests = dict(files), {}, [], []
        self.kept, self.sent, self.ranges, self.token = {}, 0, True, None

    def __enter__(self):
        self.servers = []
        for place in ("hub", "store"):
            handler = type("Handler", (Handler,), {"hub": self, "place": place})
            server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            self.servers.append(server)
        self.url, self.store = (f"http://127.0.0.1:{s.server_port}" for s in self.servers)
        return self

    def __exit__(self, *_):
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def commit(self, repo):
        """The commit that main is: it goes with the files' contents."""
        whole = b"".join(data for name, data in sorted(self.files.items()) if repo in name)
        commit = hashlib.sha1(whole).hexdigest()
        self.kept |= {(commit, name): data for name, data in self.files.items() if repo in name}
        return commit

    def asked(self, ending, place="store"):
        """The ranges asked for, without the probes."""
        return [headers.get("Range") for where, path, headers in self.requests
                if where == place and path.endswith(ending) and headers.get("Range") != PROBE]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        hub, path = self.hub, self.path.replace("http://hub.invalid", "")  # as a proxy is asked
        hub.requests.append((self.place, path, dict(self.headers)))
        try:
            if self.place == "store":
                _, commit, name = path.split("/", 2)
                return self.send_file(hub.kept[commit, name])
            repo, revision, file = re.fullmatch("/(.+?/.+?)/resolve/(.+?)/(.+)", path).groups()
            name, now = f"{repo}/{file}", hub.commit(repo)
            commit = now if revision not in {commit for commit, _ in hub.kept} else revision
            if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self.refuse(401)
            if (commit, name) not in hub.kept:
                return self.refuse(404)
            data = hub.kept[commit, name]
            if not name.endswith(".safetensors"):
                return self.send_file(data, {"X-Repo-Commit": commit})
            self.refuse(302, {
                "Location": f"{hub.store}/{commit}/{name}", "X-Repo-Commit": commit,
                "X-Linked-Size": str(len(data)),
                "X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"'})
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def refuse(self, code, headers=()):
        self.send_response(code)
        for key, value in dict(headers).items():
            self.send_header(key, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def fault(self):
        probe = self.headers.get("Range") == PROBE or not self.path.endswith(".safetensors")
        fault = self.hub.faults.pop(0) if self.hub.faults and not probe else None
        return fault if isinstance(fault, tuple) else (fault,)

    def send_file(self, data, headers=()):
        hub, (fault, *how), size = self.hub, self.fault(), len(data)
        if fault and fault.isdigit():
            return self.refuse(int(fault), {"Retry-After": "1"} if fault == "429" else {})
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        start, end = (int(span[1]), int(span[2]) + 1) if span else (0, size)
        ranged = span and hub.ranges and fault != "whole"
        if ranged and fault == "wrong range":
            start += 1
        if not ranged:
            start, end = 0, size
        if fault == "short":
            end -= how[0]
        body = data[start:end]
        if fault == "long":
            body += b"more" * 99
        if fault == "spoilt":
            at = len(body) // 2
            body = body[:at] + bytes([body[at] ^ 1]) + body[at + 1:]
        self.send_response(206 if ranged else 200)
        if ranged:
            whole = size + 1 if fault == "wrong length" else size
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{whole}")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'W/"{hashlib.sha256(b"xet" + data[:99]).hexdigest()}"')
        for key, value in dict(headers).items():
            self.send_header(key, value)
        self.end_headers()
        if fault == "cut":
            body = body[:how[0]]
        step, pause = how if fault == "trickle" else (len(body) or 1, 0)
        for i in range(0, len(body), step):
            self.wfile.write(body[i:i + step])
            hub.sent += len(body[i:i + step])
            time.sleep(pause)
        if fault == "cut":
            self.close_connection = True
            for name in how[1:]:  # and when it is asked for again, it is another file
                hub.files[name] = hub.files[name][:-1] + bytes([hub.files[name][-1] ^ 1])


# --------------------------------------------------------------------------------------------------
# Small weights of exactly the published names


def safetensors(tensors):
    """{name: array} -> the bytes of a safetensors file, in this order."""
    kinds, table, place = {"f4": "F32", "f2": "F16", "i8": "I64"}, {}, 0
    for name, x in tensors.items():
        table[name] = {"dtype": kinds[x.dtype.str[1:]], "shape": list(x.shape),
                       "data_offsets": [place, place + x.nbytes]}
        place += x.nbytes
    text = json.dumps({"__metadata__": {"format": "pt"}} | table).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(x.tobytes() for x in tensors.values())


def clip_shapes(width=16, layers=12, embed_dim=96):
    """The 197 tensors that the text tower of openai/clip-vit-large-patch14 has there."""
    shapes = {"embeddings.position_embedding.weight": (77, width),
              "embeddings.token_embedding.weight": (49408, width)}
    for i in range(layers):
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                     "self_attn.out_proj", "mlp.fc1", "mlp.fc2", "layer_norm1", "layer_norm2"):
            n, m = {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}.get(
                name, (width, width))
            weight = (n,) if "norm" in name else (n, m)
            shapes |= {f"encoder.layers.{i}.{name}.weight": weight,
                       f"encoder.layers.{i}.{name}.bias": (n,)}
    shapes |= {"final_layer_norm.weight": (width,), "final_layer_norm.bias": (width,)}
    return {f"text_model.{name}": shape for name, shape in sorted(shapes.items())} | {
        "text_projection.weight": (embed_dim, width)}


def published(keys):
    """The files of the three repositories. keys: golden/official_checkpoint_keys.json"""
    rng, files = np.random.default_rng(0), {}

    def random(shapes):
        return {name: (0.05 * rng.standard_normal(shape)).astype("f4")
                for name, shape in shapes.items()}

    for part in ("vae", "denoiser"):
        tensors = random({  # every width an eighth; features and tokens keep their numbers
            name: [n // 8 if n in (256, 512, 768, 1024, 1536) else n for n in shape]
            for name, shape in keys[f"hub_{part}_humanml3d"].items()})
        if part == "vae":
            tensors["std"] = abs(tensors["std"]) + 0.5
        repo = f"blanchon/motion-latent-diffusion-standalone-{part}"
        files[f"{repo}/model.safetensors"] = safetensors(tensors)
        files[f"{repo}/config.json"] = b'{"num_heads": 4, "activation": "gelu"}'
    image = random({"vision_model.embeddings.weight": (1000, 1000),
                    "visual_projection.weight": (9,)})
    clip = {"text_model.embeddings.position_ids": np.arange(77)[None],
            "logit_scale": np.ones((), "f4")} | random(clip_shapes()) | image
    files["openai/clip-vit-large-patch14/model.safetensors"] = safetensors(clip)
    files["openai/clip-vit-large-patch14/config.json"] = json.dumps(
        {"text_config": {"num_attention_heads": 2, "hidden_act": "quick_gelu"}}).encode()
    return files
