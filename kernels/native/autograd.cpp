// Gradients of the projection ops on the CPU. The formulas are those of `padst_fx/ops`; here they
// cost no Python per call.
//
// Every op is a product of the three of its family: y = S x, its input gradient and its weight
// gradient. Each is linear in two operands, so their gradients are products of the family again.
#include "native/autograd.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/gelu_backward.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/silu_backward.h>
#include <ATen/ops/threshold_backward.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <string>

namespace padst {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

template <class Signature>
c10::TypedOperatorHandle<Signature> op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

int64_t features(const Tensor& tensor) {
  return tensor.sym_size(-1).guard_int(__FILE__, __LINE__);
}

using Product = Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                       int64_t, c10::string_view);
template <class... Integers>
using Gradient = Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, Integers...);

// A family is its three ops: `extent` is the integer of the product, `group` the G of values
// [R, E, G, V], and each op of a gradient takes those integers that its family needs.
struct Shift {
  static constexpr const char* kProduct = "padst::shift";

  static Tensor input_grad(const Tensor& grad, const Tensor& values, const Tensor& index,
                           const Tensor& perm, int64_t, int64_t in_features) {
    static const auto call = op<Gradient<int64_t>>("padst::shift_input_grad");
    return call.call(grad, values, index, perm, in_features);
  }
  static Tensor weight_grad(const Tensor& grad, const Tensor& x, const Tensor& index,
                            const Tensor& perm, int64_t, int64_t) {
    static const auto call = op<Gradient<>>("padst::shift_weight_grad");
    return call.call(grad, x, index, perm);
  }
  static int64_t group(const Tensor&) { return 0; }
};

struct GatherGemm {
  static constexpr const char* kProduct = "padst::gather_gemm";

  static Tensor input_grad(const Tensor& grad, const Tensor& values, const Tensor& index,
                           const Tensor& perm, int64_t extent, int64_t in_features) {
    static const auto call = op<Gradient<int64_t, int64_t>>("padst::gather_gemm_input_grad");
    return call.call(grad, values, index, perm, extent, in_features);
  }
  static Tensor weight_grad(const Tensor& grad, const Tensor& x, const Tensor& index,
                            const Tensor& perm, int64_t extent, int64_t group) {
    static const auto call = op<Gradient<int64_t, int64_t>>("padst::gather_gemm_weight_grad");
    return call.call(grad, x, index, perm, extent, group);
  }
  static int64_t group(const Tensor& values) {
    return values.sym_size(2).guard_int(__FILE__, __LINE__);
  }
};

struct ScatterGemm {
  static constexpr const char* kProduct = "padst::scatter_gemm";

  static Tensor input_grad(const Tensor& grad, const Tensor& values, const Tensor& index,
                           const Tensor& perm, int64_t, int64_t) {
    static const auto call = op<Gradient<>>("padst::scatter_gemm_input_grad");
    return call.call(grad, values, index, perm);
  }
  static Tensor weight_grad(const Tensor& grad, const Tensor& x, const Tensor& index,
                            const Tensor& perm, int64_t, int64_t group) {
    static const auto call = op<Gradient<int64_t>>("padst::scatter_gemm_weight_grad");
    return call.call(grad, x, index, perm, group);
  }
  static int64_t group(const Tensor& values) { return GatherGemm::group(values); }
};

// y = act(S x + bias), through the dispatcher.
template <class Family>
Tensor product_of(const Tensor& x, const Tensor& values, const Tensor& index, const Tensor& perm,
                  const Tensor& bias, int64_t extent, c10::string_view activation) {
  static const auto call = op<Product>(Family::kProduct);
  return call.call(x, values, index, perm, bias, extent, activation);
}

// The gradient at the activation's input `pre`.
Tensor activation_backward(const std::string& name, const Tensor& grad, const Tensor& pre) {
  if (name == "relu") return at::threshold_backward(grad, pre, 0);
  if (name == "gelu") return at::gelu_backward(grad, pre, "none");
  if (name == "gelu_tanh") return at::gelu_backward(grad, pre, "tanh");
  if (name == "silu" && !at::GradMode::is_enabled()) return at::silu_backward(grad, pre);
  if (name == "silu") {
    // `silu_backward` has no derivative of its own.
    const Tensor gate = at::sigmoid(pre);
    return grad * gate * (1 + pre * (1 - gate));
  }
  return grad;
}

Tensor bias_grad(const Tensor& grad, const Tensor& bias) {
  if (bias.sym_numel() == 0) return at::zeros_like(bias);
  return grad.dim() == 1 ? grad : grad.flatten(0, -2).sum(0);
}

template <class Family>
Tensor without_bias(const Tensor& x, const Tensor& values, const Tensor& index, const Tensor& perm,
                    int64_t extent) {
  return product_of<Family>(x, values, index, perm, at::empty({0}, x.options()), extent, "none");
}

template <class Family>
struct ProductFunction : torch::autograd::Function<ProductFunction<Family>> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& values,
                        const Tensor& index, const Tensor& perm, const Tensor& bias, int64_t extent,
                        const std::string& activation) {
    ctx->save_for_backward({x, values, index, perm, bias});
    ctx->saved_data["extent"] = extent;
    ctx->saved_data["activation"] = activation;
    const at::AutoDispatchBelowADInplaceOrView guard;
    return product_of<Family>(x, values, index, perm, bias, extent, activation);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &values = saved[1], &index = saved[2], &perm = saved[3];
    const Tensor& bias = saved[4];
    const int64_t extent = ctx->saved_data["extent"].toInt();
    const std::string activation = ctx->saved_data["activation"].toStringRef();
    Tensor grad = grads[0], dx, dvalues, dbias;
    if (activation != "none") {
      const Tensor pre = product_of<Family>(x, values, index, perm, bias, extent, "none");
      grad = activation_backward(activation, grad, pre);
    }
    if (ctx->needs_input_grad(0)) {
      dx = Family::input_grad(grad, values, index, perm, extent, features(x));
    }
    if (ctx->needs_input_grad(1)) {
      dvalues = Family::weight_grad(grad, x, index, perm, extent, Family::group(values));
    }
    if (ctx->needs_input_grad(4)) dbias = bias_grad(grad, bias);
    return {dx, dvalues, Tensor(), Tensor(), dbias, Tensor(), Tensor()};
  }
};

template <class Family>
struct InputGradFunction : torch::autograd::Function<InputGradFunction<Family>> {
  static Tensor forward(AutogradContext* ctx, const Tensor& grad, const Tensor& values,
                        const Tensor& index, const Tensor& perm, int64_t extent,
                        int64_t in_features) {
    ctx->save_for_backward({grad, values, index, perm});
    ctx->saved_data["extent"] = extent;
    const at::AutoDispatchBelowADInplaceOrView guard;
    return Family::input_grad(grad, values, index, perm, extent, in_features);
  }

  static variable_list backward(AutogradContext* ctx, variable_list cotangents) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &grad = saved[0], &values = saved[1], &index = saved[2], &perm = saved[3];
    const int64_t extent = ctx->saved_data["extent"].toInt();
    const Tensor& cotangent = cotangents[0];
    Tensor dgrad, dvalues;
    if (ctx->needs_input_grad(0)) {
      dgrad = without_bias<Family>(cotangent, values, index, perm, extent);
    }
    if (ctx->needs_input_grad(1)) {
      dvalues =
          Family::weight_grad(grad, cotangent, index, perm, extent, Family::group(values));
    }
    return {dgrad, dvalues, Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

template <class Family>
struct WeightGradFunction : torch::autograd::Function<WeightGradFunction<Family>> {
  static Tensor forward(AutogradContext* ctx, const Tensor& grad, const Tensor& x,
                        const Tensor& index, const Tensor& perm, int64_t extent, int64_t group) {
    ctx->save_for_backward({grad, x, index, perm});
    ctx->saved_data["extent"] = extent;
    const at::AutoDispatchBelowADInplaceOrView guard;
    return Family::weight_grad(grad, x, index, perm, extent, group);
  }

  static variable_list backward(AutogradContext* ctx, variable_list cotangents) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &grad = saved[0], &x = saved[1], &index = saved[2], &perm = saved[3];
    const int64_t extent = ctx->saved_data["extent"].toInt();
    const Tensor& cotangent = cotangents[0];
    Tensor dgrad, dx;
    if (ctx->needs_input_grad(0)) {
      dgrad = without_bias<Family>(x, cotangent, index, perm, extent);
    }
    if (ctx->needs_input_grad(1)) {
      dx = Family::input_grad(grad, cotangent, index, perm, extent, features(x));
    }
    return {dgrad, dx, Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

bool has_tangent(const Tensor& tensor) { return tensor._fw_grad(0).defined(); }

template <class... Tensors>
bool recorded(const Tensors&... tensors) {
  TORCH_CHECK_NOT_IMPLEMENTED(!(has_tangent(tensors) || ...),
                              "padst_fx has no forward-mode derivatives");
  return at::GradMode::is_enabled() && (tensors.requires_grad() || ...);
}

template <class Family>
Tensor product(const Tensor& x, const Tensor& values, const Tensor& index, const Tensor& perm,
               const Tensor& bias, int64_t extent, c10::string_view activation) {
  if (recorded(x, values, bias)) {
    return ProductFunction<Family>::apply(x, values, index, perm, bias, extent,
                                          std::string(activation));
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return product_of<Family>(x, values, index, perm, bias, extent, activation);
}

template <class Family>
Tensor input_grad(const Tensor& grad, const Tensor& values, const Tensor& index, const Tensor& perm,
                  int64_t extent, int64_t in_features) {
  if (recorded(grad, values)) {
    return InputGradFunction<Family>::apply(grad, values, index, perm, extent, in_features);
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return Family::input_grad(grad, values, index, perm, extent, in_features);
}

template <class Family>
Tensor weight_grad(const Tensor& grad, const Tensor& x, const Tensor& index, const Tensor& perm,
                   int64_t extent, int64_t group) {
  if (recorded(grad, x)) {
    return WeightGradFunction<Family>::apply(grad, x, index, perm, extent, group);
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return Family::weight_grad(grad, x, index, perm, extent, group);
}

Tensor shift_input_grad(const Tensor& grad, const Tensor& values, const Tensor& offsets,
                        const Tensor& perm, int64_t in_features) {
  return input_grad<Shift>(grad, values, offsets, perm, features(grad), in_features);
}

Tensor shift_weight_grad(const Tensor& grad, const Tensor& x, const Tensor& offsets,
                         const Tensor& perm) {
  return weight_grad<Shift>(grad, x, offsets, perm, features(grad), 0);
}

Tensor scatter_gemm_input_grad(const Tensor& grad, const Tensor& values, const Tensor& index,
                               const Tensor& perm) {
  return input_grad<ScatterGemm>(grad, values, index, perm, features(grad), 0);
}

Tensor scatter_gemm_weight_grad(const Tensor& grad, const Tensor& x, const Tensor& index,
                                const Tensor& perm, int64_t group) {
  return weight_grad<ScatterGemm>(grad, x, index, perm, features(grad), group);
}

}  // namespace

void register_autograd(torch::Library& autograd) {
  autograd.impl("shift", product<Shift>);
  autograd.impl("shift_input_grad", shift_input_grad);
  autograd.impl("shift_weight_grad", shift_weight_grad);
  autograd.impl("gather_gemm", product<GatherGemm>);
  autograd.impl("gather_gemm_input_grad", input_grad<GatherGemm>);
  autograd.impl("gather_gemm_weight_grad", weight_grad<GatherGemm>);
  autograd.impl("scatter_gemm", product<ScatterGemm>);
  autograd.impl("scatter_gemm_input_grad", scatter_gemm_input_grad);
  autograd.impl("scatter_gemm_weight_grad", scatter_gemm_weight_grad);
}

}  // namespace padst
