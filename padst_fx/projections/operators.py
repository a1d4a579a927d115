"""What each ATen operator does to the tokens of its inputs, as tables of operator names."""

from __future__ import annotations


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# One input read through; a weight that has only gone through these is still the weight.
VIEWS = _names(
    """t transpose permute view reshape _unsafe_view view_as unsqueeze squeeze split
    split_with_sizes chunk tensor_split unbind select slice narrow to _to_copy contiguous clone
    alias detach expand expand_as unflatten flatten movedim moveaxis swapaxes swapdims numpy_T mT
    adjoint type_as lift_fresh_copy lift_fresh float half bfloat16 double _reshape_alias"""
)

# Reorderings, normalisations, reductions and functions of one tensor that keep what it stands for.
TRANSPARENT = _names(
    """dropout native_dropout feature_dropout alpha_dropout repeat repeat_interleave tile
    roll flip rot90 pad constant_pad_nd gather index index_select take_along_dim masked_select
    as_strided unfold diagonal tril triu sort topk max min amax amin mean sum var std var_mean
    cumsum logsumexp layer_norm native_layer_norm rms_norm _fused_rms_norm group_norm
    native_group_norm batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training
    instance_norm linalg_vector_norm norm normalize neg abs sqrt rsqrt square reciprocal
    exp log pow float_power clamp clamp_min clamp_max masked_fill view_as_complex view_as_real
    complex real imag softmax _softmax log_softmax _log_softmax _safe_softmax nan_to_num round
    floor ceil sign adaptive_avg_pool1d avg_pool1d"""
)

ACTIVATIONS = _names(
    """relu relu6 gelu silu mish tanh sigmoid erf leaky_relu elu selu celu hardswish hardtanh
    hardsigmoid hardshrink softshrink softplus prelu rrelu glu log_sigmoid threshold
    _prelu_kernel"""
)

SUMS = _names("add sub rsub addcmul addcdiv lerp")
PRODUCTS = _names("mul div divide multiply true_divide")
JOINS = _names(
    """cat concat stack hstack vstack where maximum minimum copy index_copy index_put index_add
    slice_scatter select_scatter masked_scatter scatter scatter_add copy_"""
)

SOFTMAXES = _names("softmax _softmax _safe_softmax")

# The position of the two factors among the arguments; for linear the second is always the weight.
MATMULS = {
    "linear": (0, 1),
    "mm": (0, 1),
    "bmm": (0, 1),
    "mv": (0, 1),
    "matmul": (0, 1),
    "tensordot": (0, 1),
    "inner": (0, 1),
    "_grouped_mm": (0, 1),
    "transformers::grouped_mm_fallback": (0, 1),
    "addmm": (1, 2),
    "baddbmm": (1, 2),
    "addbmm": (1, 2),
    "addmv": (1, 2),
}
MATMUL_BIAS = {"linear": 2, "addmm": 0, "baddbmm": 0, "addbmm": 0, "addmv": 0}

# Operators whose first three arguments are query, key and value.
ATTENTIONS = _names(
    """scaled_dot_product_attention _scaled_dot_product_attention_math
    _scaled_dot_product_attention_math_for_mps _scaled_dot_product_flash_attention
    _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_efficient_attention
    _scaled_dot_product_cudnn_attention _scaled_dot_product_fused_attention_overrideable
    flex_attention"""
)
