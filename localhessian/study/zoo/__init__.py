"""Families of networks in flax nnx, to study: one builder each, with the family's sizes as parameters."""

from localhessian.study.zoo._cases import CASES as CASES
from localhessian.study.zoo._cases import Case as Case
from localhessian.study.zoo._cases import case as case
from localhessian.study.zoo._cases import token_loss as token_loss
from localhessian.study.zoo._families import gpt as gpt
from localhessian.study.zoo._families import mlp as mlp
from localhessian.study.zoo._families import resnet as resnet
from localhessian.study.zoo._families import vgg as vgg
from localhessian.study.zoo._families import vit as vit
from localhessian.study.zoo._layers import ACTIVATIONS as ACTIVATIONS
from localhessian.study.zoo._layers import INITIALIZERS as INITIALIZERS
