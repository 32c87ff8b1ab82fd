"""Figures of reports and of sweeps: each function takes and returns an `ax`."""

from localhessian.analysis.plot._canvas import COLORS as COLORS
from localhessian.analysis.plot._canvas import plain as plain
from localhessian.analysis.plot._canvas import png as png
from localhessian.analysis.plot._canvas import shown as shown
from localhessian.analysis.plot._canvas import style as style
from localhessian.analysis.plot._canvas import write_figure as write_figure
from localhessian.analysis.plot._compare import compare as compare
from localhessian.analysis.plot._density import density as density
from localhessian.analysis.plot._depth import depth as depth
from localhessian.analysis.plot._evolution import evolution as evolution
from localhessian.analysis.plot._figure import figure as figure
from localhessian.analysis.plot._spectrum import spectrum as spectrum
from localhessian.analysis.plot._sweep import sweep as sweep
