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

using Product = decltype(shift_op);
template <class... Integers>
using Gradient = Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, Integers...);

// A family is its three ops: `extent` is the integer of the product, `group` the G of values
// [R, E, G, V], and each op of a gradient takes those integers that its family needs.
struct Family {
  c10::TypedOperatorHandle<Product> product;
  Tensor (*input_grad)(const Tensor& grad, const Tensor& values, const Tensor& index,
                       const Tensor& perm, int64_t extent, int64_t in_features);
  Tensor (*weight_grad)(const Tensor& grad, const Tensor& x, const Tensor& index,
                        const Tensor& perm, int64_t extent, int64_t group);
  bool grouped;

  int64_t group(const Tensor& values) const {
    return grouped ? values.sym_size(2).guard_int(__FILE__, __LINE__) : 0;
  }
};

Family shift_family() {
  return {op<Product>("padst::shift"),
          [](const Tensor& grad, const Tensor& values, const Tensor& index, const Tensor& perm,
             int64_t, int64_t in_features) {
            static const auto call = op<Gradient<int64_t>>("padst::shift_input_grad");
            return call.call(grad, values, index, perm, in_features);
          },
          [](const Tensor& grad, const Tensor& x, const Tensor& index, const Tensor& perm, int64_t,
             int64_t) {
            static const auto call = op<Gradient<>>("padst::shift_weight_grad");
            return call.call(grad, x, index, perm);
          },
          false};
}

Family gather_gemm_family() {
  return {op<Product>("padst::gather_gemm"),
          [](const Tensor& grad, const Tensor& values, const Tensor& index, const Tensor& perm,
             int64_t extent, int64_t in_features) {
            static const auto call =
                op<Gradient<int64_t, int64_t>>("padst::gather_gemm_input_grad");
            return call.call(grad, values, index, perm, extent, in_features);
          },
          [](const Tensor& grad, const Tensor& x, const Tensor& index, const Tensor& perm,
             int64_t extent, int64_t group) {
            static const auto call =
                op<Gradient<int64_t, int64_t>>("padst::gather_gemm_weight_grad");
            return call.call(grad, x, index, perm, extent, group);
          },
          true};
}

Family scatter_gemm_family() {
  return {op<Product>("padst::scatter_gemm"),
          [](const Tensor& grad, const Tensor& values, const Tensor& index, const Tensor& perm,
             int64_t, int64_t) {
            static const auto call = op<Gradient<>>("padst::scatter_gemm_input_grad");
            return call.call(grad, values, index, perm);
          },
          [](const Tensor& grad, const Tensor& x, const Tensor& index, const Tensor& perm, int64_t,
             int64_t group) {
            static const auto call = op<Gradient<int64_t>>("padst::scatter_gemm_weight_grad");
            return call.call(grad, x, index, perm, group);
          },
          true};
}

// A family's place in the table below: a number, which a node of the graph can save. As template
// arguments families would make the compiler expand torch's `Function` for each of them.
enum : int64_t { kShift, kGatherGemm, kScatterGemm };

const Family& family_at(int64_t place) {
  static const Family families[] = {shift_family(), gather_gemm_family(), scatter_gemm_family()};
  return families[place];
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

Tensor without_bias(const Family& family, const Tensor& x, const Tensor& values,
                    const Tensor& index, const Tensor& perm, int64_t extent) {
  return family.product.call(x, values, index, perm, at::empty({0}, x.options()), extent, "none");
}

// The family and the extent, as a node of the graph saves them.
void save(AutogradContext* ctx, int64_t place, int64_t extent) {
  ctx->saved_data["family"] = place;
  ctx->saved_data["extent"] = extent;
}

const Family& saved_family(AutogradContext* ctx) {
  return family_at(ctx->saved_data["family"].toInt());
}

int64_t saved_extent(AutogradContext* ctx) { return ctx->saved_data["extent"].toInt(); }

struct ProductFunction : torch::autograd::Function<ProductFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& values,
                        const Tensor& index, const Tensor& perm, const Tensor& bias, int64_t extent,
                        const std::string& activation, int64_t place) {
    ctx->save_for_backward({x, values, index, perm, bias});
    save(ctx, place, extent);
    ctx->saved_data["activation"] = activation;
    const at::AutoDispatchBelowADInplaceOrView guard;
    return family_at(place).product.call(x, values, index, perm, bias, extent, activation);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &values = saved[1], &index = saved[2], &perm = saved[3];
    const Tensor& bias = saved[4];
    const Family& family = saved_family(ctx);
    const int64_t extent = saved_extent(ctx);
    const std::string activation = ctx->saved_data["activation"].toStringRef();
    Tensor grad = grads[0], dx, dvalues, dbias;
    if (activation != "none") {
      const Tensor pre = family.product.call(x, values, index, perm, bias, extent, "none");
      grad = activation_backward(activation, grad, pre);
    }
    if (ctx->needs_input_grad(0)) {
      dx = family.input_grad(grad, values, index, perm, extent, features(x));
    }
    if (ctx->needs_input_grad(1)) {
      dvalues = family.weight_grad(grad, x, index, perm, extent, family.group(values));
    }
    if (ctx->needs_input_grad(4)) dbias = bias_grad(grad, bias);
    return {dx, dvalues, Tensor(), Tensor(), dbias, Tensor(), Tensor(), Tensor()};
  }
};

struct InputGradFunction : torch::autograd::Function<InputGradFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& grad, const Tensor& values,
                        const Tensor& index, const Tensor& perm, int64_t extent,
                        int64_t in_features, int64_t place) {
    ctx->save_for_backward({grad, values, index, perm});
    save(ctx, place, extent);
    const at::AutoDispatchBelowADInplaceOrView guard;
    return family_at(place).input_grad(grad, values, index, perm, extent, in_features);
  }

  static variable_list backward(AutogradContext* ctx, variable_list cotangents) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &grad = saved[0], &values = saved[1], &index = saved[2], &perm = saved[3];
    const Family& family = saved_family(ctx);
    const int64_t extent = saved_extent(ctx);
    const Tensor& cotangent = cotangents[0];
    Tensor dgrad, dvalues;
    if (ctx->needs_input_grad(0)) {
      dgrad = without_bias(family, cotangent, values, index, perm, extent);
    }
    if (ctx->needs_input_grad(1)) {
      dvalues = family.weight_grad(grad, cotangent, index, perm, extent, family.group(values));
    }
    return {dgrad, dvalues, Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

struct WeightGradFunction : torch::autograd::Function<WeightGradFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& grad, const Tensor& x,
                        const Tensor& index, const Tensor& perm, int64_t extent, int64_t group,
                        int64_t place) {
    ctx->save_for_backward({grad, x, index, perm});
    save(ctx, place, extent);
    const at::AutoDispatchBelowADInplaceOrView guard;
    return family_at(place).weight_grad(grad, x, index, perm, extent, group);
  }

  static variable_list backward(AutogradContext* ctx, variable_list cotangents) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &grad = saved[0], &x = saved[1], &index = saved[2], &perm = saved[3];
    const Family& family = saved_family(ctx);
    const int64_t extent = saved_extent(ctx);
    const Tensor& cotangent = cotangents[0];
    Tensor dgrad, dx;
    if (ctx->needs_input_grad(0)) {
      dgrad = without_bias(family, x, cotangent, index, perm, extent);
    }
    if (ctx->needs_input_grad(1)) {
      dx = family.input_grad(grad, cotangent, index, perm, extent, features(x));
    }
    return {dgrad, dx, Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

bool has_tangent(const Tensor& tensor) { return tensor._fw_grad(0).defined(); }

template <class... Tensors>
bool recorded(const Tensors&... tensors) {
  TORCH_CHECK_NOT_IMPLEMENTED(!(has_tangent(tensors) || ...),
                              "padst_fx has no forward-mode derivatives");
  return at::GradMode::is_enabled() && (tensors.requires_grad() || ...);
}

Tensor product(int64_t place, const Tensor& x, const Tensor& values, const Tensor& index,
               const Tensor& perm, const Tensor& bias, int64_t extent,
               c10::string_view activation) {
  if (recorded(x, values, bias)) {
    return ProductFunction::apply(x, values, index, perm, bias, extent, std::string(activation),
                                  place);
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return family_at(place).product.call(x, values, index, perm, bias, extent, activation);
}

Tensor input_grad(int64_t place, const Tensor& grad, const Tensor& values, const Tensor& index,
                  const Tensor& perm, int64_t extent, int64_t in_features) {
  if (recorded(grad, values)) {
    return InputGradFunction::apply(grad, values, index, perm, extent, in_features, place);
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return family_at(place).input_grad(grad, values, index, perm, extent, in_features);
}

Tensor weight_grad(int64_t place, const Tensor& grad, const Tensor& x, const Tensor& index,
                   const Tensor& perm, int64_t extent, int64_t group) {
  if (recorded(grad, x)) {
    return WeightGradFunction::apply(grad, x, index, perm, extent, group, place);
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return family_at(place).weight_grad(grad, x, index, perm, extent, group);
}

}  // namespace

Tensor shift_autograd(const Tensor& x, const Tensor& values, const Tensor& offsets,
                      const Tensor& perm, const Tensor& bias, int64_t out_features,
                      c10::string_view activation) {
  return product(kShift, x, values, offsets, perm, bias, out_features, activation);
}

Tensor shift_input_grad_autograd(const Tensor& grad, const Tensor& values, const Tensor& offsets,
                                 const Tensor& perm, int64_t in_features) {
  return input_grad(kShift, grad, values, offsets, perm, features(grad), in_features);
}

Tensor shift_weight_grad_autograd(const Tensor& grad, const Tensor& x, const Tensor& offsets,
                                  const Tensor& perm) {
  return weight_grad(kShift, grad, x, offsets, perm, features(grad), 0);
}

Tensor gather_gemm_autograd(const Tensor& x, const Tensor& values, const Tensor& index,
                            const Tensor& perm, const Tensor& bias, int64_t window,
                            c10::string_view activation) {
  return product(kGatherGemm, x, values, index, perm, bias, window, activation);
}

Tensor gather_gemm_input_grad_autograd(const Tensor& grad, const Tensor& values,
                                       const Tensor& index, const Tensor& perm, int64_t window,
                                       int64_t in_features) {
  return input_grad(kGatherGemm, grad, values, index, perm, window, in_features);
}

Tensor gather_gemm_weight_grad_autograd(const Tensor& grad, const Tensor& x, const Tensor& index,
                                        const Tensor& perm, int64_t window, int64_t group) {
  return weight_grad(kGatherGemm, grad, x, index, perm, window, group);
}

Tensor scatter_gemm_autograd(const Tensor& x, const Tensor& values, const Tensor& index,
                             const Tensor& perm, const Tensor& bias, int64_t out_features,
                             c10::string_view activation) {
  return product(kScatterGemm, x, values, index, perm, bias, out_features, activation);
}

Tensor scatter_gemm_input_grad_autograd(const Tensor& grad, const Tensor& values,
                                        const Tensor& index, const Tensor& perm) {
  return input_grad(kScatterGemm, grad, values, index, perm, features(grad), 0);
}

Tensor scatter_gemm_weight_grad_autograd(const Tensor& grad, const Tensor& x, const Tensor& index,
                                         const Tensor& perm, int64_t group) {
  return weight_grad(kScatterGemm, grad, x, index, perm, features(grad), group);
}

}  // namespace padst
