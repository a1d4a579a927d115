#include "native/packed_weights.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace padst {
namespace {

constexpr int kSamples = 64;

// Content and version of a tensor, as far as they can be seen without reading all of it.
struct Stamp {
  const void* data;
  int64_t elements;
  at::ScalarType type;
  uint32_t version;
  std::array<uint64_t, kSamples> samples;

  bool operator==(const Stamp& other) const {
    return data == other.data && elements == other.elements && type == other.type &&
           version == other.version && samples == other.samples;
  }
};

bool has_version(const at::Tensor& tensor) {
  return tensor.unsafeGetTensorImpl()->version_counter().enabled();
}

Stamp stamp(const at::Tensor& tensor) {
  const auto* impl = tensor.unsafeGetTensorImpl();
  const auto* bytes = static_cast<const char*>(tensor.const_data_ptr());
  const size_t size = tensor.element_size();
  Stamp result{bytes, tensor.numel(), tensor.scalar_type(),
               impl->version_counter().current_version(), {}};
  for (int i = 0; i < kSamples && result.elements; ++i) {
    const int64_t element = (result.elements - 1) * i / (kSamples - 1);
    std::memcpy(&result.samples[i], bytes + element * size, std::min(size, sizeof(uint64_t)));
  }
  return result;
}

using Owner = c10::weak_intrusive_ptr<c10::StorageImpl>;

// The owners are held weakly: a new tensor at an old address is not taken for the old one. `packed`
// is null where the tensors were met once as they are.
struct Entry {
  Owner values_owner;
  Owner index_owner;
  PackedForm form;
  Stamp values;
  Stamp index;
  Packed packed;
};

struct Found {
  bool met;
  KeptForm form;
};

class Cache {
 public:
  Found find(const void* key, const PackedForm& form, const Stamp& values, const Stamp& index) {
    const std::lock_guard<std::mutex> guard(mutex_);
    const auto [first, last] = entries_.equal_range(key);
    for (auto it = first; it != last; ++it) {
      const Entry& entry = it->second;
      if (entry.form == form && entry.values == values && entry.index == index &&
          !entry.values_owner.expired() && !entry.index_owner.expired()) {
        return {true, entry.packed.form};
      }
    }
    return {false, nullptr};
  }

  void keep(const void* key, Entry entry) {
    const std::lock_guard<std::mutex> guard(mutex_);
    drop_if([&](const void* other, const Entry& old) {
      return other == key && old.form == entry.form && old.values.data == entry.values.data;
    });
    entries_.emplace(key, std::move(entry));
  }

  void count() {
    const std::lock_guard<std::mutex> guard(mutex_);
    ++made_;
  }

  int64_t bytes() {
    const std::lock_guard<std::mutex> guard(mutex_);
    drop_if([](const void*, const Entry&) { return false; });
    int64_t total = 0;
    for (const auto& [key, entry] : entries_) total += entry.packed.bytes;
    return total;
  }

  int64_t made() {
    const std::lock_guard<std::mutex> guard(mutex_);
    return made_;
  }

 private:
  // Drops what is renewed, and what has lost its values or its index.
  template <class F>
  void drop_if(const F& renewed) {
    for (auto it = entries_.begin(); it != entries_.end();) {
      const Entry& entry = it->second;
      const bool lost = entry.values_owner.expired() || entry.index_owner.expired();
      it = lost || renewed(it->first, entry) ? entries_.erase(it) : std::next(it);
    }
  }

  std::mutex mutex_;
  std::unordered_multimap<const void*, Entry> entries_;
  int64_t made_ = 0;
};

Cache& cache() {
  // Never destroyed: threads may still call kernels while the process ends.
  static Cache* const instance = new Cache;
  return *instance;
}

// `at_once`: made also where the tensors are met for the first time.
KeptForm find_or_make(const at::Tensor& values, const at::Tensor& index, const PackedForm& form,
                      const MakeForm& make, bool at_once) {
  if (!has_version(values) || !has_version(index)) return nullptr;
  const Stamp values_stamp = stamp(values);
  const Stamp index_stamp = stamp(index);
  c10::StorageImpl* const owner = values.storage().unsafeGetStorageImpl();
  const Found found = cache().find(owner, form, values_stamp, index_stamp);
  if (found.form) return found.form;
  Packed packed;
  if (at_once || found.met) {
    packed = make();
    cache().count();
  }
  cache().keep(owner, {values.storage().getWeakStorageImpl(), index.storage().getWeakStorageImpl(),
                       form, values_stamp, index_stamp, found.met ? packed : Packed{}});
  return packed.form;
}

}  // namespace

KeptForm packed_weights(const at::Tensor& values, const at::Tensor& index, const PackedForm& form,
                        const MakeForm& make) {
  return find_or_make(values, index, form, make, true);
}

KeptForm kept_weights(const at::Tensor& values, const at::Tensor& index, const PackedForm& form,
                     const MakeForm& make) {
  return find_or_make(values, index, form, make, false);
}

int64_t packed_bytes() { return cache().bytes(); }

int64_t packed_count() { return cache().made(); }

}  // namespace padst
