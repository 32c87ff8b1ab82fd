"""One of two processes, each with two devices and half of the batch: `test_devices.py` starts both and compares.

python two_processes.py RANK PORT FILE
"""

import faulthandler
import json
import pathlib
import sys

import jax
import networks
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import localhessian as lh

PROCESSES = 2
PATIENCE = 240
"""Seconds after which every thread says where it waits, and the process ends."""


def case():
    """With batch normalization, whose statistics are those of the whole batch; of as many samples as devices divide."""
    found = networks.normalized()
    again = lambda rows: np.concatenate([rows, rows[::-3] / 2 if rows.ndim > 1 else rows[::-3]])
    return found._replace(x=again(found.x), y=again(found.y))


def spread(one):
    """Over the devices: of the batch each process gives its own half, of parameters what divides is divided."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    rows, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))

    def own(batch):
        half = np.split(np.asarray(batch), PROCESSES)[jax.process_index()]
        return jax.make_array_from_process_local_data(rows, half)

    def laid(leaf):
        where = rows if leaf.shape[0] % jax.device_count() == 0 else whole
        return jax.make_array_from_callback(leaf.shape, where, lambda index: np.asarray(leaf)[index])

    return one._replace(params=jax.tree.map(laid, one.params), x=own(one.x), y=own(one.y))


def figures(one):
    """Of every kind of answer, as numbers."""
    matching = lh.back_match(*one)
    H = lh.local_hessian(matching, "dense")
    report = lh.analyze(*one, blocks="norm")
    return {
        "objective": float(matching.objective),
        "coupled": [bool(flag) for flag in matching.coupled.values()],
        "trace": float(lh.trace(H).value),
        "eigenvalues": np.asarray(lh.spectrum(H, lh.Dense()).eigenvalues).tolist(),
        "rows": [[row.rank, row.lambda_max, row.kappa_q05, row.trace] for row in report.rows],
        "status": [row.status for row in report.rows],
        "fingerprint": report.meta["fingerprint"],
    }


def sentences(one):
    """What is refused, and how."""
    H = lh.local_hessian(lh.back_match(*one), "dense")
    asked = {
        "plan": lambda: lh.plan(*one),
        "explain": lambda: lh.explain(H),
        "check_identities": lambda: lh.check_identities(*one),
        "max_seconds": lambda: lh.analyze(*one, max_seconds=1.0),
        "batches": lambda: lh.analyze(*one, batches=2),
        "batch_size": lambda: lh.local_hessian(lh.back_match(*one), "dense", batch_size=2),
        "Stream": lambda: lh.analyze(one.chain, one.params, lh.Stream([(one.x, one.y)]), None, one.loss),
        "not finite": lambda: lh.back_match(*one._replace(x=one.x / 0)),
    }
    found = {}
    for name, ask in asked.items():
        try:
            ask()
        except ValueError as error:
            found[name] = str(error)
    return found


def main(rank, port, file):
    faulthandler.dump_traceback_later(PATIENCE, exit=True)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", PROCESSES, int(rank))
    one = spread(case())
    pathlib.Path(file).write_text(json.dumps({**figures(one), "sentences": sentences(one)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
