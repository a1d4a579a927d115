// Packed forms of weights, kept between calls until the values or their index change.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>

#include "native/packed.h"

namespace padst {

// The product that reads a packed form.
enum class PackedFor { forward, input_grad };

// The product and the shape that a packed form was made for. `layout` tells apart the forms of one
// product and shape.
struct PackedForm {
  PackedFor product;
  int64_t in_features;
  int64_t out_features;
  int64_t window = 0;
  int64_t layout = 0;

  bool operator==(const PackedForm& other) const {
    return product == other.product && in_features == other.in_features &&
           out_features == other.out_features && window == other.window && layout == other.layout;
  }
};

using MakeForm = std::function<Packed()>;
using KeptForm = std::shared_ptr<const void>;

// The packed form of `values` under `index`, made by `make` when there is none of the tensors'
// present versions. It is kept when it is asked for a second time: a training step asks once for
// each form and would hold memory for nothing. Null for tensors without versions (made under
// inference mode): these are packed in every call. A form of values that are gone is freed when the
// next one is asked for in vain.
//
// Samples of the values are compared as well: a write to all of them that goes around versions
// (`values.data.mul_(2)`) is noticed, a write to a few of them is not.
KeptForm packed_weights(const at::Tensor& values, const at::Tensor& index, const PackedForm& form,
                        const MakeForm& make);

// The same where a single call does as well without: null when it is asked for the first time.
KeptForm kept_weights(const at::Tensor& values, const at::Tensor& index, const PackedForm& form,
                     const MakeForm& make);

// What packed forms hold now, and how many were made so far.
int64_t packed_bytes();
int64_t packed_count();

}  // namespace padst
