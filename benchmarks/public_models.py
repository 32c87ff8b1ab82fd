"""Cut models that others wrote, unedited, check the identities, and analyze their first and last block.

With clones of google/flax, patrick-kidger/equinox and google-research/vision_transformer (18f8f311, 9336d82 and c6de1e5
were tried), and einops installed:

    python benchmarks/public_models.py --flax flax --equinox equinox --vit vision_transformer [--cases gemma ...]

The models are those of these repositories, narrow, some with fewer layers: classes and functions are taken out of the
files and notebooks as they are, without what trains them.
"""

import __future__

import argparse
import ast
import json
import pathlib
import sys
import time
import types
import warnings
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import localhessian as lh

cross_entropy = optax.softmax_cross_entropy_with_integer_labels
CASES: dict[str, Callable] = {}
RANDOM = np.random.default_rng(0)
FOLDERS: dict[str, pathlib.Path] = {}


def case(function: Callable) -> Callable:
    CASES[function.__name__] = function
    return function


def load(library: str, path: str, **names) -> types.ModuleType:
    """The imports, classes and functions of a file or notebook; what needs a package that is not here is left out."""
    text = (FOLDERS[library] / path).read_text()
    if path.endswith(".ipynb"):
        cells = [cell["source"] for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        text = "\n".join("".join(cell) for cell in cells)
        text = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith(("!", "%")))
    module = types.ModuleType(pathlib.Path(path).stem)
    module.__dict__.update(names)
    sys.modules[module.__name__] = module
    kinds = (ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef)
    for node in ast.parse(text).body:
        if not isinstance(node, kinds) and (path.endswith(".ipynb") or not isinstance(node, ast.Assign)):
            continue
        code = compile(ast.Module([node], []), path, "exec", flags=__future__.annotations.compiler_flag)
        try:
            exec(code, module.__dict__)
        except (ImportError, NameError):  # data sets, torch, and what is typed by them
            continue
    return module


def images(*shape: int):
    return jnp.asarray(RANDOM.normal(size=shape), jnp.float32)


def tokens(*shape: int):
    return jnp.asarray(RANDOM.integers(1, 30, shape))


def of_tokens(logits, labels):
    return cross_entropy(logits, labels).mean(1)


def squared(z, y):
    return 0.5 * ((z - y) ** 2).reshape(len(z), -1).sum(1)


@case
def imagenet_resnet50():
    model = load("flax", "examples/imagenet/models.py").ResNet50(num_classes=10, num_filters=4)
    x = images(4, 32, 32, 3)
    variables = jax.jit(lambda key: model.init(key, x, train=False))(jax.random.key(0))
    call = lambda model, x: model(x, train=False)
    return lh.chain_from_linen(model, variables, x, call=call), x, jnp.arange(4), cross_entropy


@case
def vision_transformer_of_24_layers():
    sys.path.insert(0, str(FOLDERS["vit"]))
    patches = types.SimpleNamespace(size=(4, 4))
    settings = {"num_layers": 24, "mlp_dim": 16, "num_heads": 2}
    module = load("vit", "vit_jax/models_vit.py")
    model = module.VisionTransformer(num_classes=10, patches=patches, transformer=settings, hidden_size=8)
    x = images(4, 8, 8, 3)
    variables = jax.jit(lambda key: model.init(key, x, train=False))(jax.random.key(0))
    call = lambda model, x: model(x, train=False)
    return lh.chain_from_linen(model, variables, x, call=call), x, jnp.arange(4), cross_entropy


def decoder(**settings):
    module = load("flax", "examples/lm1b/models.py")
    sizes = {"emb_dim": 16, "num_heads": 2, "num_layers": 2, "qkv_dim": 16, "mlp_dim": 32, "max_len": 16}
    return module.TransformerLM(module.TransformerConfig(30, 30, **sizes, **settings))


@case
def lm1b():
    model, x = decoder(deterministic=True), tokens(4, 8)
    return lh.chain_from_linen(model, model.init(jax.random.key(0), x), x), x, x, of_tokens


@case
def lm1b_tied_embeddings_and_dropout():
    model, x = decoder(logits_via_embedding=True), tokens(4, 8)
    rngs = {"dropout": jax.random.key(1)}
    variables = model.init({"params": jax.random.key(0), **rngs}, x)
    cut = lh.chain_from_linen(model, variables, x, at="decoder.encoderdecoderblock_*", rngs=rngs)
    return cut, x, x, of_tokens


@case
def wmt_encoder_and_decoder():
    module = load("flax", "examples/wmt/models.py")
    sizes = {"emb_dim": 16, "num_heads": 2, "num_layers": 2, "qkv_dim": 16, "mlp_dim": 32, "max_len": 16}
    model = module.Transformer(module.TransformerConfig(30, 30, deterministic=True, **sizes))
    x = tokens(4, 7), tokens(4, 6)
    at = ["encoder.encoderblock_*", "decoder.encoderdecoderblock_*"]
    call = lambda model, pair: model(*pair)
    variables = model.init(jax.random.key(0), *x)
    return lh.chain_from_linen(model, variables, x, at=at, call=call, carry=True), x, x[1], of_tokens


@case
def ppo():
    model, x = load("flax", "examples/ppo/models.py").ActorCritic(num_outputs=4), images(2, 84, 84, 4)
    y = jnp.arange(2), jnp.ones(2)

    def loss(outputs, y):
        chosen = jnp.take_along_axis(outputs[0], y[0][:, None], 1)[:, 0]
        return -chosen + 0.5 * (outputs[1][:, 0] - y[1]) ** 2

    return lh.chain_from_linen(model, model.init(jax.random.key(0), x), x), x, y, loss


@case
def vae():
    model, x, key = load("flax", "examples/vae/models.py").VAE(4), jax.nn.sigmoid(images(4, 784)), jax.random.key(2)

    def loss(outputs, x):
        logits, mean, log_variance = outputs
        divergence = -0.5 * jnp.sum(1 + log_variance - mean**2 - jnp.exp(log_variance), -1)
        return divergence + optax.sigmoid_binary_cross_entropy(logits, x).sum(-1)

    variables = model.init(jax.random.key(0), x, key)
    return lh.chain_from_linen(model, variables, x, call=lambda model, x: model(x, key)), x, x, loss


@case
def nnx_scan_over_layers():
    module = load("flax", "examples/nnx_toy_examples/06_scan_over_layers.py")
    model, x = module.ScanMLP(8, n_layers=3, rngs=nnx.Rngs(0)), images(6, 8)
    return lh.chain_from_nnx(model, x), x, jnp.zeros((6, 8)), squared


@case
def gemma():
    sys.path.insert(0, str(FOLDERS["flax"] / "examples/gemma"))
    import transformer  # noqa: PLC0415
    import transformer_cfg  # noqa: PLC0415

    kind = transformer_cfg.AttentionType
    config = transformer_cfg.TransformerConfig(
        num_layers=2,
        num_embed=30,
        embed_dim=16,
        hidden_dim=32,
        num_heads=2,
        head_dim=8,
        num_kv_heads=1,
        final_logit_softcap=30.0,
        use_post_attn_norm=True,
        use_post_ffw_norm=True,
        attention_types=(kind.LOCAL_SLIDING, kind.GLOBAL),
        use_qk_norm=True,
        sliding_window_size=4,
    )
    model, x = transformer.Transformer(config, rngs=nnx.Rngs(0)), tokens(3, 8)
    model.eval()

    def call(model, x):
        mask = x > 0
        positions = transformer.build_positions_from_mask(mask)
        return model(x, positions, None, transformer.make_causal_attn_mask(mask))[0]

    return lh.chain_from_nnx(model, x, call=call), x, x, of_tokens


@case
def equinox_cnn():
    model, x = load("equinox", "docs/examples/mnist.ipynb").CNN(jax.random.key(0)), images(4, 1, 28, 28)
    loss = lambda logs, y: -jnp.take_along_axis(logs, y[:, None], 1)[:, 0]
    return lh.chain_from_equinox(model, x), x, jnp.arange(4), loss


@case
def equinox_rnn():
    model, x = load("equinox", "docs/examples/train_rnn.ipynb").RNN(2, 1, 8, key=jax.random.key(0)), images(6, 16, 2)
    loss = lambda p, y: -(y * jnp.log(p) + (1 - y) * jnp.log(1 - p)).sum(1)
    return lh.chain_from_equinox(model, x), x, jnp.ones((6, 1)), loss


@case
def equinox_stateful():
    module = load("equinox", "docs/examples/stateful.ipynb")
    model, state = eqx.nn.make_with_state(module.Model)(jax.random.key(0))
    x = images(8, 3)

    def call(model, x, state):
        return jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, state)

    cut = lh.chain_from_equinox(model, x, call=call, context=state, has_aux=True)
    return cut, x, jnp.sin(x) + 1, squared


@case
def equinox_vision_transformer():
    module = load("equinox", "docs/examples/vision_transformer.ipynb", channels=3)
    model = module.VisionTransformer(16, 32, 2, 2, 0.1, 4, 16, 10, jax.random.key(0))
    x, keys = images(3, 3, 16, 16), jax.random.split(jax.random.key(1), 3)
    call = lambda model, x, keys: jax.vmap(model, in_axes=(0, None, 0))(x, True, keys)
    return lh.chain_from_equinox(model, x, call=call, context=keys), x, jnp.arange(3), cross_entropy


@case
def equinox_bert():
    config = {
        "vocab_size": 30,
        "max_position_embeddings": 20,
        "type_vocab_size": 2,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
    }
    model = load("equinox", "docs/examples/bert.ipynb").BertClassifier(config, 2, jax.random.key(0))
    x = {
        "token_ids": tokens(4, 8),
        "position_ids": jnp.tile(jnp.arange(8), (4, 1)),
        "segment_ids": jnp.zeros((4, 8), jnp.int32),
    }
    call = lambda model, x: jax.vmap(lambda one: model(one, enable_dropout=False, key=None))(x)
    return lh.chain_from_equinox(model, x, call=call), x, jnp.arange(4) % 2, cross_entropy


@case
def equinox_unet():
    model = load("equinox", "docs/examples/unet.ipynb").UNet(
        data_shape=(1, 8, 8),
        is_biggan=False,
        dim_mults=[1, 2],
        hidden_size=8,
        heads=2,
        dim_head=4,
        dropout_rate=0.0,
        num_res_blocks=2,
        attn_resolutions=[4],
        key=jax.random.key(0),
    )
    x, times = images(2, 1, 8, 8), jnp.asarray([0.1, 0.5])
    call = lambda model, x, times: jax.vmap(model)(times, x)
    return lh.chain_from_equinox(model, x, call=call, context=times), x, x, squared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flax", type=pathlib.Path, required=True, help="a clone of flax")
    parser.add_argument("--equinox", type=pathlib.Path, required=True, help="a clone of equinox")
    parser.add_argument("--vit", type=pathlib.Path, required=True, help="a clone of vision_transformer")
    parser.add_argument("--cases", nargs="*", default=list(CASES))
    options = parser.parse_args()
    FOLDERS.update(flax=options.flax, equinox=options.equinox, vit=options.vit)
    warnings.filterwarnings("ignore", module="equinox")
    for name in options.cases:
        begin = time.perf_counter()
        (chain, params, context), x, y, loss = CASES[name]()
        identities = lh.check_identities(chain, params, x, y, loss, context)
        worst = max(identities.errors.values())
        ends = [chain.names[0], chain.names[-1]]
        report = lh.analyze(chain, params, x, y, loss, context, blocks=ends, samples_per_block=2)
        routes = ", ".join(row.method.split("(")[0] or "none" for row in report.rows)
        seconds = time.perf_counter() - begin
        print(f"{name:34s} {len(chain):2d} blocks   identities {worst:.0e}   {routes:50s} {seconds:5.0f} s")
        print(f"    {' '.join(chain.names)}", flush=True)
        jax.clear_caches()  # the programs of so many models exceed what the system maps into one process


if __name__ == "__main__":
    main()
