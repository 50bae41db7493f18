"""sentence-transformers' CrossEncoder on each of the backends that its manual advises for speed."""

import importlib.util

from cappy.errors import InputError

OPENVINO = ('openvino', 'optimum.intel'), 'sentence-transformers[openvino]'
# {backend: (what it is called in the output, modules it needs, what installs them)}
BACKENDS = {
    'torch': ('CrossEncoder', (), ''),
    'bfloat16': ('CrossEncoder, bfloat16', (), ''),
    'onnx': ('CrossEncoder, ONNX O3', ('onnxruntime', 'optimum.onnxruntime'), 'sentence-transformers[onnx]'),
    'openvino': ('CrossEncoder, OpenVINO', *OPENVINO),
    'openvino_float32': ('CrossEncoder, OpenVINO float32', *OPENVINO),
}


def load_cross_encoders(directory, backends, device='cpu'):
    """The CrossEncoder of a model directory on each backend, without a sigmoid, for pairs of up to 512 tokens.

    backends: names in BACKENDS; device: as PyTorch names it, for its own two. ONNX's has the optimisations O3, and its
    files are written into the directory; OpenVINO chooses its precision itself, or is told to take float32.
    Returns ({what it is called: CrossEncoder}, a line for each backend whose packages are not there).
    Raises InputError for another backend, or without sentence-transformers.
    """
    unknown = [backend for backend in backends if backend not in BACKENDS]
    if unknown:
        raise InputError(f'backends: found {unknown[0]!r}; choose of {",".join(BACKENDS)}')
    if not _is_installed('sentence_transformers'):
        raise InputError('the comparison with CrossEncoder needs it: pip install torch sentence-transformers')
    loaded, skipped = {}, []
    for backend in backends:
        name, modules, requirement = BACKENDS[backend]
        missing = [module for module in modules if not _is_installed(module)]
        if missing:
            skipped.append(f'{name}: left out, no {missing[0]} (pip install "{requirement}")')
            continue
        try:
            loaded[name] = _load(str(directory), backend, device)
        except ImportError as error:  # packages whose versions do not fit together
            skipped.append(f'{name}: left out, {" ".join(str(error).split())[:200]} (pip install "{requirement}")')
    return loaded, skipped


def _load(directory, backend, device):
    import torch
    from sentence_transformers import CrossEncoder

    def load(**options):
        return CrossEncoder(directory, num_labels=1, max_length=512, activation_fn=torch.nn.Identity(), **options)

    if backend in ('torch', 'bfloat16'):
        dtype = {'torch': 'float32', 'bfloat16': 'bfloat16'}[backend]
        return load(device=device, model_kwargs={'dtype': dtype, 'attn_implementation': 'sdpa'})
    if backend.startswith('openvino'):
        precision = {'ov_config': {'INFERENCE_PRECISION_HINT': 'f32'}} if backend == 'openvino_float32' else {}
        return load(device='cpu', backend='openvino', model_kwargs={'export': True, **precision})
    from sentence_transformers import export_optimized_onnx_model

    provider = {'provider': 'CPUExecutionProvider'}
    plain = load(device='cpu', backend='onnx', model_kwargs={**provider, 'export': True})
    export_optimized_onnx_model(plain, 'O3', directory)
    return load(device='cpu', backend='onnx', model_kwargs={**provider, 'file_name': 'onnx/model_O3.onnx'})


def _is_installed(module):
    """Whether a module can be found, those above it included."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
