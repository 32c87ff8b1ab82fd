"""The blocks of the zoo's cases as functions of torch, for libraries that know no other framework."""

import numpy as np
import torch
import torch.nn.functional as F
from work import DEVICE


def load(path: str):
    """Parameters by block, inputs and labels."""
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    x, y = torch.tensor(arrays.pop("x")).to(DEVICE), torch.tensor(arrays.pop("y")).long().to(DEVICE)
    params: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in arrays.items():
        block, place = key.split("|")
        name = ".".join(part.strip("'") for part in place.strip("[]").split("]["))
        array = np.ascontiguousarray(value.transpose(3, 2, 0, 1)) if value.ndim == 4 else value  # HWIO to OIHW
        params.setdefault(block, {})[name] = torch.tensor(array).to(DEVICE)
    order = sorted(params, key=lambda name: int(name.split(".")[1]))
    return {name: params[name] for name in order}, x, y


def blocks(case: str, params: dict):
    """A function (params, z) -> z for each block; images are NCHW here."""
    names = list(params)
    if case == "mlp":
        return {name: (_affine if name == names[-1] else _tanh) for name in names}
    if case.startswith("vgg13-bn"):
        pooled = {names[i] for i in (1, 3, 5, 7, 9)}
        return {name: _pooled_head if name == names[-1] else _conv(name in pooled) for name in names}
    return {name: _embed if i == 0 else _token_head if name == names[-1] else _layer for i, name in enumerate(names)}


def inputs(case: str, x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, 3, 1, 2).contiguous() if case.startswith("vgg") else x


def _affine(p, z):
    return z @ p["kernel"] + p["bias"]


def _tanh(p, z):
    return torch.tanh(_affine(p, z))


def _conv(pool: bool):
    def apply(p, z):
        u = F.conv2d(z, p["conv.kernel"], padding=1)
        mean = u.mean((0, 2, 3), keepdim=True)
        variance = ((u - mean) ** 2).mean((0, 2, 3), keepdim=True)
        scale, bias = p["norm.scale"][None, :, None, None], p["norm.bias"][None, :, None, None]
        u = torch.relu((u - mean) * torch.rsqrt(variance + 1e-5) * scale + bias)
        return F.max_pool2d(u, 2) if pool else u

    return apply


def _pooled_head(p, z):
    return _affine(p, z.mean((2, 3)))


def _embed(p, tokens):
    return p["tokens.embedding"][tokens] + p["positions"][None]


def _norm(z, scale, bias):
    mean = z.mean(-1, keepdim=True)
    variance = ((z - mean) ** 2).mean(-1, keepdim=True)
    return (z - mean) * torch.rsqrt(variance + 1e-6) * scale + bias


def _layer(p, z, heads=4):
    n, tokens, dim = z.shape
    h = _norm(z, p["norm1.scale"], p["norm1.bias"])
    q, k, v = (h @ p["qkv.kernel"]).reshape(n, tokens, 3 * heads, dim // heads).split(heads, dim=2)
    scores = torch.einsum("nqhd,nkhd->nhqk", q, k) / (dim // heads) ** 0.5
    seen = torch.tril(torch.ones(tokens, tokens, dtype=torch.bool, device=z.device))
    mixed = torch.einsum("nhqk,nkhd->nqhd", torch.softmax(torch.where(seen, scores, -1e9), -1), v)
    z = z + mixed.reshape(n, tokens, dim) @ p["out.kernel"]
    h = _norm(z, p["norm2.scale"], p["norm2.bias"])
    h = F.gelu(h @ p["up.kernel"] + p["up.bias"], approximate="tanh")
    return z + h @ p["down.kernel"] + p["down.bias"]


def _token_head(p, z):
    return _norm(z, p["norm.scale"], p["norm.bias"]) @ p["linear.kernel"] + p["linear.bias"]
