"""Programs: how ours are compiled; traced ones walked, run by rules, rewritten, told apart. It knows `jax.extend`."""

from jax.extend.core import primitives as primitives

from localhessian._programs._compile import at_once as at_once
from localhessian._programs._compile import compiled as compiled
from localhessian._programs._compile import compiler_options as compiler_options
from localhessian._programs._compile import full_precision as full_precision
from localhessian._programs._compile import sums_go_wrong as sums_go_wrong
from localhessian._programs._evaluate import bind as bind
from localhessian._programs._evaluate import evaluate as evaluate
from localhessian._programs._evaluate import run as run
from localhessian._programs._evaluate import scanned as scanned
from localhessian._programs._evaluate import unrolled as unrolled
from localhessian._programs._inside import Equation as Equation
from localhessian._programs._inside import Program as Program
from localhessian._programs._inside import entered as entered
from localhessian._programs._inside import equations as equations
from localhessian._programs._inside import floating_types as floating_types
from localhessian._programs._inside import has_custom_rule as has_custom_rule
from localhessian._programs._inside import inside as inside
from localhessian._programs._inside import is_variable as is_variable
from localhessian._programs._inside import named_scopes as named_scopes
from localhessian._programs._inside import traced as traced
from localhessian._programs._inside import variables as variables
from localhessian._programs._inside import where as where
from localhessian._programs._order import after as after
from localhessian._programs._order import each as each
from localhessian._programs._rewrite import assemble as assemble
from localhessian._programs._rewrite import live as live
from localhessian._programs._rewrite import rewritten as rewritten
from localhessian._programs._rewrite import run_rewritten as run_rewritten
from localhessian._programs._text import MARKS as MARKS
from localhessian._programs._text import fingerprint as fingerprint
from localhessian._programs._text import program_text as program_text
from localhessian._programs._text import text_of as text_of
from localhessian._programs._text import text_of_rules as text_of_rules
