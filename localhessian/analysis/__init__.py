"""What a user asks, by the public names of the rooms above: analyze, Report, figures, pages, findings."""

from localhessian.analysis import plot as plot
from localhessian.analysis._analyze import analyze as analyze
from localhessian.analysis._figures import Figures as Figures
from localhessian.analysis._findings import Finding as Finding
from localhessian.analysis._findings import Findings as Findings
from localhessian.analysis._findings import findings as findings
from localhessian.analysis._html import html as html
from localhessian.analysis._measure import measure as measure
from localhessian.analysis._measurement import Entry as Entry
from localhessian.analysis._measurement import Measurement as Measurement
from localhessian.analysis._report import Report as Report
from localhessian.analysis._table import number as number
from localhessian.analysis._table import table as table
from localhessian.analysis.plot import COLORS as COLORS
from localhessian.analysis.plot import figure as figure
from localhessian.analysis.plot import plain as plain
from localhessian.analysis.plot import shown as shown
from localhessian.analysis.plot import style as style
from localhessian.analysis.plot import write_figure as write_figure
from localhessian.analysis.rows import Label as Label
from localhessian.analysis.rows import Row as Row
from localhessian.analysis.rows import RowSpectrum as RowSpectrum
from localhessian.analysis.rows import stored_label as stored_label
from localhessian.analysis.sweeps import sweep as sweep
