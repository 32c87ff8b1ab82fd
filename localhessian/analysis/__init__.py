"""What a user asks, by the public names of the rooms above: analyze, Report, figures, pages, findings."""

from localhessian.analysis import plot as plot
from localhessian.analysis._analyze import analyze as analyze
from localhessian.analysis._figure import COLORS as COLORS
from localhessian.analysis._figure import SEPARATOR as SEPARATOR
from localhessian.analysis._figure import figure as figure
from localhessian.analysis._figure import write_figure as write_figure
from localhessian.analysis._figures import Figures as Figures
from localhessian.analysis._findings import findings as findings
from localhessian.analysis._html import html as html
from localhessian.analysis._measure import measure as measure
from localhessian.analysis._measurement import Entry as Entry
from localhessian.analysis._measurement import Measurement as Measurement
from localhessian.analysis._probe import Probe as Probe
from localhessian.analysis._report import Report as Report
from localhessian.analysis._row import Row as Row
from localhessian.analysis._row import RowSpectrum as RowSpectrum
from localhessian.analysis._table import number as number
from localhessian.analysis._table import table as table
from localhessian.analysis.sweeps import sweep as sweep
