"""Families of networks in flax nnx, to study: one builder each, with the family's sizes as parameters."""

from localhessian.lab.zoo._cases import CASES as CASES
from localhessian.lab.zoo._cases import Case as Case
from localhessian.lab.zoo._cases import case as case
from localhessian.lab.zoo._cases import token_loss as token_loss
from localhessian.lab.zoo._families import gpt as gpt
from localhessian.lab.zoo._families import mlp as mlp
from localhessian.lab.zoo._families import resnet as resnet
from localhessian.lab.zoo._families import vgg as vgg
from localhessian.lab.zoo._families import vit as vit
from localhessian.lab.zoo._layers import ACTIVATIONS as ACTIVATIONS
from localhessian.lab.zoo._layers import INITIALIZERS as INITIALIZERS
