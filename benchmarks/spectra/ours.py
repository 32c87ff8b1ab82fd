"""localhessian's part; also exports the weights and the data of a case for the others."""

import json
import sys

import jax
import numpy as np
from work import Sides, clock, mean_over_starts, megabytes

import localhessian as lh
from localhessian.lab import zoo


def export(name: str, path: str, seed: int) -> None:
    case = zoo.case(name, seed=seed)
    arrays = {"x": case.x, "y": case.y}
    for block in case.cut.chain.names:
        for place, leaf in jax.tree_util.tree_flatten_with_path(case.cut.params[block])[0]:
            arrays[f"{block}|{jax.tree_util.keystr(place)}"] = leaf
    np.savez(path, **{key: np.asarray(value) for key, value in arrays.items()})


def measure(name: str, seed: int) -> dict:
    method = lh.Lanczos(which="largest", k=1)
    case = zoo.case(name, seed=seed)
    imported = megabytes()
    begin = clock()
    chain, params, context = case.cut
    matching = jax.block_until_ready(lh.back_match(chain, params, case.x, case.y, case.loss, context))
    setup = clock() - begin
    tops, residuals = {}, []

    def run(start: int) -> tuple[Sides, Sides]:
        key, seconds, products = jax.random.key(start), {}, {"W": 0, "z": 0}
        for side, wrt in (("W", "params"), ("z", "input")):
            begin = clock()
            for block in chain.names:
                if wrt == "input" and chain.index(block) == 0 and not np.issubdtype(case.x.dtype, np.floating):
                    continue
                found = lh.spectrum(lh.local_hessian(matching, block, wrt), method, key=key)
                tops[f"{block} {side}"] = float(found.lambda_max)
                residuals.append(float(found.residual_norms[-1] / found.lambda_max))
                products[side] += int(found.matvecs)
            seconds[side] = clock() - begin
        return seconds, products

    first, _ = run(0)
    warm, products = mean_over_starts(run)
    return {
        "setup": setup,
        "first": first,
        "warm": warm,
        "top": tops,
        "residual": max(residuals),
        "products": products,
        "megabytes": megabytes() - imported,
    }


if __name__ == "__main__":
    if sys.argv[1] == "export":
        export(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        print(json.dumps(measure(sys.argv[2], int(sys.argv[4]))))
