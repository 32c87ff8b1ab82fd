"""The claims of the paper and the objections of its reviewers, each a program that decides about it."""

from localhessian.lab.claims._claim import SIZES as SIZES
from localhessian.lab.claims._claim import Claim as Claim
from localhessian.lab.claims._claim import Frame as Frame
from localhessian.lab.claims._claim import Judgement as Judgement
from localhessian.lab.claims._claim import Setting as Setting
from localhessian.lab.claims._claim import Size as Size
from localhessian.lab.claims._claim import Verdict as Verdict
from localhessian.lab.claims._claim import Work as Work
from localhessian.lab.claims._claims import CLAIMS as CLAIMS
from localhessian.lab.claims._evidence import evidence as evidence
from localhessian.lab.claims._evidence import read as read
