"""The networks to study: families in flax nnx, chains of pure functions, by name, and cases with data to measure on."""

from localhessian.lab.zoo._cases import CASES as CASES
from localhessian.lab.zoo._cases import Case as Case
from localhessian.lab.zoo._cases import case as case
from localhessian.lab.zoo._cases import token_loss as token_loss
from localhessian.lab.zoo._chains import MODELS as MODELS
from localhessian.lab.zoo._chains import Model as Model
from localhessian.lab.zoo._chains import dense_network as dense_network
from localhessian.lab.zoo._chains import digits_network as digits_network
from localhessian.lab.zoo._families import gpt as gpt
from localhessian.lab.zoo._families import mlp as mlp
from localhessian.lab.zoo._families import resnet as resnet
from localhessian.lab.zoo._families import vgg as vgg
from localhessian.lab.zoo._families import vit as vit
from localhessian.lab.zoo._layers import ACTIVATIONS as ACTIVATIONS
from localhessian.lab.zoo._layers import INITIALIZERS as INITIALIZERS
from localhessian.lab.zoo._names import network as network
from localhessian.lab.zoo._network import Network as Network
from localhessian.lab.zoo._network import built as built
from localhessian.lab.zoo._network import nnx_network as nnx_network
