"""What a report holds: labels, rows, and the spectra behind them."""

from localhessian.analysis.rows._curve import FLOOR as FLOOR
from localhessian.analysis.rows._curve import curve as curve
from localhessian.analysis.rows._label import Label as Label
from localhessian.analysis.rows._label import Labeled as Labeled
from localhessian.analysis.rows._label import labeled as labeled
from localhessian.analysis.rows._label import stored_label as stored_label
from localhessian.analysis.rows._names import apart as apart
from localhessian.analysis.rows._names import distinct as distinct
from localhessian.analysis.rows._names import fitted as fitted
from localhessian.analysis.rows._names import several as several
from localhessian.analysis.rows._names import shortened as shortened
from localhessian.analysis.rows._row import COLUMNS as COLUMNS
from localhessian.analysis.rows._row import INTERVALS as INTERVALS
from localhessian.analysis.rows._row import SYMBOLS as SYMBOLS
from localhessian.analysis.rows._row import Analyzed as Analyzed
from localhessian.analysis.rows._row import Key as Key
from localhessian.analysis.rows._row import Row as Row
from localhessian.analysis.rows._row import RowSpectrum as RowSpectrum
