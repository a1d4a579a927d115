// What happens to a sum before it is stored.
#pragma once

#include "native/activation.h"
#include "native/scalar.h"

namespace padst {

// + bias (null: none), then the activation.
template <class T>
struct Epilogue {
  const T* bias;
  Activation activation;
};

// The epilogue on `count` neighbouring features of a token, from `feature` on.
template <class V, class T>
V finished(V sums, const Epilogue<T>& epilogue, int64_t feature, int64_t count) {
  if (epilogue.bias) sums += load_first<V>(epilogue.bias + feature, count);
  return activate(sums, epilogue.activation);
}

}  // namespace padst
