"""Sweeps: the same numbers as case by case, compiled once for each shape, in a dataset that plain xarray opens."""

import gc
import json
import re
import weakref

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
import sweep_cases
import xarray

import localhessian as lh
from localhessian.analysis.sweeps import _compiled as compiled_programs
from localhessian.analysis.sweeps import _hosted as hosted_cases
from localhessian.analysis.sweeps import _journal as journal

pytestmark = pytest.mark.once

SCALES = (0.5, 1.0, 2.0)


def spectrum_case(scale, width):
    diagonal = scale ** jnp.arange(width, dtype=float)
    return lh.condition_number(lh.spectrum(lh.symmetric_operator(lambda v: diagonal * v, width), lh.Dense()))


def network_case(scale, depth):
    case = networks.mlp(widths=(3,) * depth + (2,), n=4)
    params = jax.tree.map(lambda leaf: scale * leaf, case.params)
    return lh.measure(case.chain, params, *case[2:], wrt="input")


def swept(axes=None, **more):
    return lh.sweep(spectrum_case, axes or {"scale": SCALES, "width": (2, 3)}, "width", **more)


def same(one, two):
    """To the bit, whatever the attributes say of time and device."""
    return one.drop_attrs().identical(two.drop_attrs())


def test_every_point_is_the_case_alone_and_each_shape_is_compiled_once(count_compilations):
    swept({"scale": SCALES, "width": (4,)})  # whatever is compiled once and for all
    with count_compilations() as seen:
        found = swept()
    assert found.attrs["compilations"] == 2
    assert seen.count == 2, seen.names
    assert found.value.dims == ("scale", "width")
    for scale in SCALES:
        for width in (2, 3):
            at = found.sel(scale=scale, width=width)
            # The eigenvalues are scale^i, whose ratio is exact; H without a factor is known to eps of its largest.
            np.testing.assert_allclose(at.value, max(scale, 1 / scale) ** (width - 1), rtol=1e-5)
            assert at["rank"] == width
    assert found.finished.all()
    assert (found.error == "").all()


def test_depth_changes_which_blocks_there_are():
    found = lh.sweep(network_case, {"depth": [2, 1], "scale": [1.0, 0.5]}, compiled=False)
    assert found.kappa_plus.dims == ("depth", "scale", "block", "wrt")
    assert list(found.block.values) == ["layer0", "head"]
    # A network without a first block has no figures there.
    assert np.isnan(found.kappa_plus.sel(depth=1, block="layer0")).all()
    assert (found.status.sel(depth=1, block="layer0") == -1).all()
    alone = lh.measure(*networks.mlp(widths=(3, 3, 2), n=4), wrt="input")
    for block in ("layer0", "head"):
        at = found.sel(depth=2, scale=1.0, block=block, wrt="input")
        assert at.kappa_plus == alone[block, "input"].kappa_plus
        assert at["rank"] == alone[block, "input"].rank
        assert at["size"] == 3
    compiled = lh.sweep(network_case, {"depth": [1], "scale": [1.0, 0.5, 3.0]}, "depth")
    at = {"depth": 1, "block": "head", "scale": [1.0, 0.5]}
    np.testing.assert_allclose(compiled.kappa_plus.sel(at), found.kappa_plus.sel(at), rtol=1e-4)
    assert (compiled.status.sel(depth=1) == 0).all()


def test_keys_are_by_the_number_of_the_case():
    key = jax.random.key(7)
    for compiled in (True, False):
        found = lh.sweep(sweep_cases.random, {"a": [0.0, 1.0, 2.0]}, key=key, compiled=compiled)
        expected = [jax.random.normal(jax.random.fold_in(key, i), (2,)) + float(i) for i in range(3)]
        np.testing.assert_allclose(found.result, np.array(expected), rtol=1e-6)


@pytest.mark.parametrize("ending", [".zarr", ".nc"])
def test_plain_xarray_opens_what_is_written(tmp_path, ending):
    out = tmp_path / f"s{ending}"
    found = swept(out=out)
    read = xarray.open_dataset(out)
    assert read.identical(found)
    assert json.loads(read.attrs["axes"]) == {"scale": list(SCALES), "width": [2, 3]}
    assert read.attrs["dtype"] == jnp.result_type(float).name
    again = swept(out=out)
    assert again.attrs["compilations"] == 0
    assert same(again, found)


def test_another_sweep_on_the_same_path_is_refused_with_the_difference(tmp_path):
    out = tmp_path / "s.zarr"
    swept(out=out)
    with pytest.raises(ValueError, match=r"holds another sweep \(axes: .*\[2, 3\].* there, .*\[2, 4\].* here\)"):
        swept({"scale": SCALES, "width": (2, 4)}, out=out)
    with pytest.raises(ValueError, match=r'holds another sweep \(key: \["threefry2x32", 0, 0\] there'):
        swept(out=out, key=jax.random.key(1))
    with pytest.raises(ValueError, match=r"holds another sweep \(case: .*; code: "):
        lh.sweep(lambda scale, width: scale * width, {"scale": SCALES, "width": (2, 3)}, "width", out=out)
    factor = 2.0
    closed = lambda a: factor * a
    lh.sweep(closed, {"a": [1.0]}, out=tmp_path / "c.zarr", compiled=False)
    factor = 3.0
    with pytest.raises(ValueError, match=r"holds another sweep \(code: "):
        lh.sweep(closed, {"a": [1.0]}, out=tmp_path / "c.zarr", compiled=False)
    place = out.with_name("s.zarr.cases") / "sweep.json"
    place.write_text(place.read_text().replace(lh.__version__, "0.0.1"))
    with pytest.raises(ValueError, match=rf'localhessian: "0.0.1" there, "{re.escape(lh.__version__)}" here'):
        swept(out=out)


def test_interrupted_it_returns_what_is_done_and_goes_on_to_the_same_bits(tmp_path):
    whole = swept()
    calls = []

    def interrupt(done, total, what):
        calls.append((done, total, what))
        if len(calls) == 2:
            raise KeyboardInterrupt

    out = tmp_path / "s.zarr"
    part = swept(out=out, progress=interrupt)
    assert calls == [(0, 6, "sweep"), (3, 6, "scale=2, width=2")]
    assert part.attrs["interrupted"] == 1
    assert part.finished.sum() == 3
    assert np.isnan(part.value.sel(width=3)).all()
    assert xarray.open_dataset(out).identical(part)
    rest = swept(out=out)
    assert rest.attrs["compilations"] == 1
    assert same(rest, whole)


def test_a_failing_case_is_an_entry_and_is_tried_again(tmp_path):
    out = tmp_path / "s.zarr"
    with pytest.warns(UserWarning, match="1 of 3 cases failed, the first by: RuntimeError: two is not allowed"):
        found = lh.sweep(sweep_cases.failing, {"a": [1, 2, 3]}, compiled=False, out=out)
    assert found.error.values.tolist() == ["", "RuntimeError: two is not allowed", ""]
    np.testing.assert_array_equal(found.result, [1, np.nan, 3])
    assert found.attrs["failed"] == 1
    assert found.finished.all()
    with pytest.warns(UserWarning, match="1 of 3 cases failed"):
        lh.sweep(sweep_cases.failing, {"a": [1, 2, 3]}, compiled=False, out=out)


def test_a_shape_that_cannot_be_traced_fails_alone(tmp_path):
    def case(scale, width):
        return jnp.full((2,), scale).reshape(width)

    with pytest.warns(UserWarning, match="3 of 6 cases failed"):
        found = lh.sweep(case, {"scale": SCALES, "width": [3, 2]}, "width", out=tmp_path / "s.nc")
    np.testing.assert_array_equal(found.result.sel(width=2)[:, 0], SCALES)
    assert np.isnan(found.result.sel(width=3)).all()
    assert all("TypeError" in error for error in found.error.sel(width=3).values)


def test_a_case_that_fails_while_it_runs_fails_alone():
    def refuse(scale):
        if scale == 1:
            raise ValueError("one is not allowed")
        return np.asarray(scale)

    def case(scale):
        return jax.pure_callback(refuse, jax.ShapeDtypeStruct((), scale.dtype), scale, vmap_method="sequential")

    with pytest.warns(UserWarning, match="1 of 3 cases failed"):
        found = lh.sweep(case, {"scale": SCALES})
    np.testing.assert_array_equal(found.result, [0.5, np.nan, 2.0])
    assert "one is not allowed" in found.error.values[1]


def test_memory_bounds_how_many_cases_run_at_once(monkeypatch):
    widths = []
    lower = compiled_programs._bytes

    def watched(program):
        widths.append(lower(program))
        return widths[-1]

    monkeypatch.setattr(compiled_programs, "_bytes", watched)

    def case(scale):
        matrix = jnp.sin(scale * jnp.arange(64.0)[:, None] * jnp.arange(64.0)[None])
        return jnp.linalg.svd(matrix, compute_uv=False)[0]  # of a matrix that is there as a whole

    axes = {"scale": np.linspace(0.1, 1.0, 10)}
    free, tight = lh.sweep(case, axes), lh.sweep(case, axes, max_bytes=1e5)
    assert widths[0] > 1e5
    assert widths[-1] <= 1e5
    assert (free.attrs["compilations"], tight.attrs["compilations"]) == (1, len(widths) - 1)
    assert len(widths) > 2
    np.testing.assert_allclose(free.result, tight.result, rtol=1e-6)


def test_convolutions_are_not_run_over_several_networks_at_once():
    case = networks.convolutional()

    def of(scale):
        kernel = scale * case.params["conv"]["kernel"]
        return jax.lax.conv_general_dilated(
            case.x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ).sum()

    found = lh.sweep(of, {"scale": SCALES})
    np.testing.assert_allclose(found.result, np.array(SCALES) * float(of(1.0)), rtol=1e-5)


def test_the_dataset_is_written_as_cases_finish(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "LEAST", 0.0)
    monkeypatch.setattr(journal, "SHARE", 0.0)
    out, seen = tmp_path / "s.nc", []

    def look(done, total, what):
        if out.exists():
            with xarray.open_dataset(out) as found:
                seen.append(int(found.finished.sum()))

    lh.sweep(sweep_cases.product, {"a": range(3), "b": [1.0]}, compiled=False, out=out, progress=look)
    assert seen == [1, 2]


def test_what_is_no_sweep_is_not_overwritten(tmp_path):
    out = tmp_path / "s.nc"
    out.write_text("mine")
    with pytest.raises(ValueError, match="is there, and no sweep of ours"):
        swept(out=out)
    assert out.read_text() == "mine"


def test_names_of_something_else_are_told():
    with pytest.warns(UserWarning, match="must not return `a`, which is the name of something else"):
        lh.sweep(lambda a: {"a": a}, {"a": [1.0]}, compiled=False)


def test_what_comes_back_keeps_its_names():
    point = {"a": 2, "b": 1.5}
    found = lh.sweep(sweep_cases.product, {name: [value] for name, value in point.items()}, compiled=False)
    assert found["product"].values.tolist() == [[3.0]]
    assert found["powers"].dims == ("a", "b", "powers_0")
    measured, deeper = network_case(1.0, 1), network_case(1.0, 2)
    nested = lambda net, other: lh.sweep(lambda scale: {"net": net, "other": other}, {"scale": [1.0]}, compiled=False)
    found = nested(measured, measured)
    assert found["net.kappa_plus"].dims == found["other.kappa_plus"].dims == ("scale", "block", "wrt")
    found = nested(measured, deeper)
    assert found["net.kappa_plus"].dims == ("scale", "net.block", "net.wrt")
    assert found["other.kappa_plus"].dims == ("scale", "other.block", "other.wrt")
    # Of the same Hessians in one case, of different ones in the next.
    case = lambda depth: {"net": deeper if depth == 2 else measured, "other": measured}
    for depths in ([1, 2], [2, 1]):
        found = lh.sweep(case, {"depth": depths}, compiled=False)
        assert found["error"].values.tolist() == ["", ""]
        assert found["net.status"].sel({"net.block": "layer0", "depth": 1}).values.tolist() == [-1]
        assert found["other.kappa_plus"].dims == ("depth", "other.block", "other.wrt")
        one, two = (found["other.kappa_plus"].sel(depth=depth, drop=True) for depth in (1, 2))
        assert one.equals(two)


def test_models_and_programs_of_finished_shapes_are_freed(monkeypatch):
    """JAX holds what it has traced, and with it the model that a program closes over, until it is told to forget."""
    monkeypatch.setattr(compiled_programs, "KEPT", 2)
    alive = []

    def case(scale, width):
        model = lambda x: jnp.tanh(scale * x).sum()
        alive.append(weakref.ref(model))
        return jax.jit(model)(jnp.ones(width))

    lh.sweep(case, {"scale": [1.0], "width": range(1, 8)}, "width")
    gc.collect()
    assert len(alive) >= 7
    assert sum(model() is not None for model in alive) <= 2


def test_cases_that_differ_in_kind_are_told():
    case = lambda a: {"x": 1.0} if a == 1 else {"y": 1.0}
    with pytest.warns(UserWarning, match="`y` is not among what every case returns|`x` is not among"):
        found = lh.sweep(case, {"a": [1, 2]}, compiled=False)
    assert found.x.values.tolist()[0] == 1.0


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: lh.sweep(lambda q: q, {"a": [1.0]}), r"`case` must take each of `axes` by name \(a; and `key`"),
        (lambda: lh.sweep(spectrum_case, {"scale": [1.0], "width": ["a"]}), "`axes` holds words for `width`"),
        (lambda: lh.sweep(len, {"a": [1.0, 1.0]}), "none twice"),
        (lambda: lh.sweep(len, {"a": []}), "at least one value for `a`"),
        (lambda: lh.sweep(len, {"a": [jnp.nan]}), "finite numbers or words for `a`"),
        (lambda: lh.sweep(len, {"key": [1.0]}), "none of key, block"),
        (lambda: lh.sweep(len, {"a": [1.0]}, "b"), "`static_axes` names `b`, which `axes` does not have: a."),
        (lambda: swept(out="s.txt"), r"`out` must end in .zarr or .nc, got `s.txt`"),
        (lambda: swept(executor=3), "`executor` must be one of `concurrent.futures`"),
    ],
)
def test_messages(call, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        call()


def test_plain_cases_run_shape_by_shape_and_what_finished_shapes_leave_is_freed(monkeypatch):
    ran = []
    monkeypatch.setattr(hosted_cases, "forget", lambda: ran.append("freed"))

    def case(scale, width):
        ran.append((scale, width))
        return {"product": scale * width}

    widths = range(hosted_cases.KEPT + 1)
    found = lh.sweep(case, {"scale": [1.0, 2.0], "width": widths}, "width", compiled=False)
    expected = [(scale, width) for width in widths for scale in (1.0, 2.0)]
    assert ran == [*expected[:-2], "freed", *expected[-2:]]
    np.testing.assert_array_equal(found["product"], np.outer([1, 2], widths))


def test_a_file_tells_what_the_status_of_a_condition_number_means(tmp_path):
    H = lh.symmetric_operator(lambda v: jnp.array([1.0, 2.0]) * v, 2)
    kappa = lh.condition_number(lh.spectrum(H, lh.Dense()))
    lh.sweep(lambda a: {"kappa": kappa, "status": a}, {"a": [1.0]}, compiled=False, out=tmp_path / "s.nc")
    with xarray.open_dataset(tmp_path / "s.nc") as found:
        code = int(np.squeeze(found["kappa.status"]))
        assert found["kappa.status"].attrs["flag_meanings"].split()[code] == "CONVERGED"
        assert "flag_meanings" not in found["status"].attrs
