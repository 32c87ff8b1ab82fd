"""The other libraries' part: the same work in torch."""

import json
import math
import sys

import numpy as np
import scipy.sparse.linalg
import torch
from torch_networks import blocks, inputs, load
from work import DEVICE, TOLERANCE, Sides, clock, mean_over_starts, megabytes

torch.set_num_threads(1)
torch.backends.cudnn.allow_tf32 = False  # as matrix products are by default, and ours


class Problem(torch.nn.Module):
    """One block as a function of its parameters, or of its input; output in rows."""

    def __init__(self, apply, params, z, side, last):
        super().__init__()
        self.apply_block, self.side, self.last = apply, side, last
        free = {name.replace(".", "_"): value for name, value in (params if side == "W" else {"z": z}).items()}
        self.free = torch.nn.ParameterDict({name: torch.nn.Parameter(value.clone()) for name, value in free.items()})
        self.names = {name.replace(".", "_"): name for name in params}
        self.fixed, self.z = params, z

    def function(self, free, z):
        if self.side == "W":
            out = self.apply_block({self.names[name]: value for name, value in free.items()}, z)
        else:
            out = self.apply_block(self.fixed, free["z"])
        return out.reshape(-1, out.shape[-1]) if self.last else out.reshape(out.shape[0], -1)

    def forward(self, z):
        return self.function(dict(self.free.items()), z)


def problems(case: str, path: str):
    """(name, module, loss or None, labels, scale): H = scale * J^T S J, S of the loss, or I."""
    params, x, y = load(path)
    applies, z = blocks(case, params), inputs(case, x)
    names, found = list(params), []
    for i, name in enumerate(names):
        last = i == len(names) - 1
        for side in ("W", "z"):
            if side == "z" and not z.is_floating_point():
                continue
            n = len(x)
            tokens = y.numel() // n
            scale = (1 / n if side == "W" else 1.0) / (tokens if last else 1)
            found.append(
                (f"{name} {side}", Problem(applies[name], params[name], z, side, last), last, y.reshape(-1), scale)
            )
        with torch.no_grad():
            z = applies[name](params[name], z)
    return sorted(found, key=lambda one: one[0][-1])


def by_hand(module, last, y):
    """torch.func: linearize once, products by its jvp and vjp."""
    free = {name: value.detach() for name, value in module.free.items()}
    out, jvp = torch.func.linearize(lambda free: module.function(free, module.z), free)
    _, vjp = torch.func.vjp(lambda free: module.function(free, module.z), free)
    shapes = {name: value.shape for name, value in free.items()}
    sizes = [value.numel() for value in free.values()]
    p = torch.softmax(out, -1) if last else None

    def product(v):
        vector = torch.from_numpy(np.ascontiguousarray(v, np.float32).reshape(-1)).to(DEVICE)
        parts = torch.split(vector, sizes)
        u = jvp({name: part.reshape(shapes[name]) for name, part in zip(shapes, parts, strict=True)})
        if last:
            u = p * u - p * (p * u).sum(-1, keepdim=True)
        back = vjp(u)[0]
        return torch.cat([back[name].reshape(-1) for name in shapes]).cpu().numpy()

    return product, sum(sizes)


def curvlinops_product(module, last, y):
    import curvlinops  # noqa: PLC0415  only its own process loads it

    loss = torch.nn.CrossEntropyLoss(reduction="sum") if last else torch.nn.MSELoss(reduction="sum")
    with torch.no_grad():
        target = y if last else module(module.z).detach()
    operator = curvlinops.GGNLinearOperator(module, loss, list(module.parameters()), [(module.z, target)])
    wrapped = operator.to_scipy()
    return (lambda v: wrapped.matvec(v.reshape(-1))), wrapped.shape[0]


def by_arpack(product, size, seed):
    count = [0]

    def counted(v):
        count[0] += 1
        return product(v)

    operator = scipy.sparse.linalg.LinearOperator((size, size), matvec=counted, dtype=np.float32)
    start = np.random.default_rng(seed).normal(size=size).astype(np.float32)
    values, vectors = scipy.sparse.linalg.eigsh(operator, 1, which="LA", tol=TOLERANCE, v0=start)
    return float(values[0]), vectors[:, 0], count[0]


def run_arpack(make, halve):
    setups = {}

    def setup(items):
        for name, module, last, y, _ in items:
            setups[name] = make(module, last, y)

    def solve(name, last, seed):
        product, size = setups[name]
        value, vector, count = by_arpack(product, size, seed)
        return (value / (2 if halve and not last else 1)), vector, count

    def residual(name, vector, value, last):
        product, _ = setups[name]
        back = product(vector).reshape(-1) / (2 if halve and not last else 1)
        return float(np.linalg.norm(back - value * vector) / value)

    return setup, solve, residual


def eigenthings():
    import hessian_eigenthings as h  # noqa: PLC0415

    made = {}

    def setup(items):
        for name, module, last, y, _ in items:
            target = y if last else module(module.z).detach()

            def loss_of_output(out, batch, last=last):
                if last:
                    return torch.nn.functional.cross_entropy(out, batch[1], reduction="sum")
                return 0.5 * ((out - batch[1]) ** 2).sum()

            made[name] = h.GGNOperator(
                module, [(module.z, target)], lambda m, batch: m(batch[0]), loss_of_output, full_dataset=False
            )

    def solve(name, last, seed):
        operator, count = made[name], [0]
        plain = operator.matvec

        def counted(v):
            count[0] += 1
            return plain(v)

        operator.matvec = counted
        try:
            found = h.lanczos(operator, k=1, max_iter=100, tol=TOLERANCE, which="LA", seed=seed)
        finally:
            operator.matvec = plain
        vector = np.asarray(
            found.eigenvectors.detach() if hasattr(found.eigenvectors, "detach") else found.eigenvectors
        )
        return float(found.eigenvalues[0]), vector.reshape(-1), count[0]

    def residual(name, vector, value, last):
        back = made[name].matvec(torch.from_numpy(np.ascontiguousarray(vector))).detach().numpy().reshape(-1)
        return float(np.linalg.norm(back - value * vector) / value)

    return setup, solve, residual


def pyhessian():
    import pyhessian as p  # noqa: PLC0415

    made, hand = {}, {}

    def setup(items):
        for name, module, last, y, _ in items:
            target = y if last else module(module.z).detach()
            if last:
                criterion = torch.nn.CrossEntropyLoss(reduction="sum")
            else:
                criterion = lambda out, t: 0.5 * ((out - t) ** 2).sum()
            made[name] = p.hessian(module, criterion, data=(module.z, target), cuda=False)
            hand[name] = by_hand(module, last, y)

    def solve(name, last, seed):
        torch.manual_seed(seed)
        values, vectors = made[name].eigenvalues(maxIter=500, tol=TOLERANCE, top_n=1)
        vector = torch.cat([part.reshape(-1) for part in vectors[0]]).detach().numpy()
        return float(values[0]), vector, -1

    def residual(name, vector, value, last):
        return float(np.linalg.norm(hand[name][0](vector) - value * vector) / value)

    return setup, solve, residual


CONTENDERS = {
    "torch by hand": lambda: run_arpack(by_hand, False),
    "curvlinops": lambda: run_arpack(curvlinops_product, True),
    "hessian-eigenthings": eigenthings,
    "PyHessian": pyhessian,
}


def main(contender: str, case: str, path: str) -> dict:
    items = problems(case, path)
    setup, solve, residual = CONTENDERS[contender]()
    imported = megabytes()
    begin = clock()
    setup(items)
    seconds = {"setup": clock() - begin}
    tops, worst = {}, 0.0

    def run(seed: int, check: bool = True) -> tuple[Sides, Sides]:
        nonlocal worst
        taken, counts = {"W": 0.0, "z": 0.0}, {"W": 0, "z": 0}
        for name, _, last, _, scale in items:
            begin = clock()
            value, vector, count = solve(name, last, seed)
            taken[name[-1]] += clock() - begin
            counts[name[-1]] += count
            tops[name] = value * scale
            if check:
                worst = max(worst, residual(name, vector, value, last))
        return taken, counts

    first, _ = run(0, check=False)
    peak = megabytes() - imported
    warm, products = mean_over_starts(run)
    assert math.isfinite(worst)
    return {
        **seconds,
        "first": first,
        "warm": warm,
        "top": tops,
        "residual": worst,
        "products": products,
        "megabytes": peak,
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:4])))
