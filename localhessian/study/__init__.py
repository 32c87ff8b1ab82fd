"""Studies with the public names of the rooms above: analyze and Report, models, data, figures, the command line."""

from localhessian.study._analyze import analyze as analyze
from localhessian.study._data import Images as Images
from localhessian.study._data import digits as digits
from localhessian.study._figure import figure as figure
from localhessian.study._findings import findings as findings
from localhessian.study._html import html as html
from localhessian.study._models import MODELS as MODELS
from localhessian.study._models import Model as Model
from localhessian.study._models import digits_network as digits_network
from localhessian.study._report import Report as Report
from localhessian.study._row import Row as Row
from localhessian.study._row import RowSpectrum as RowSpectrum
from localhessian.study._table import table as table
from localhessian.study._train import Trained as Trained
from localhessian.study._train import train as train
