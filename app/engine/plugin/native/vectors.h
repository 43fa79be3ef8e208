// Rows of numbers as vectors in FP32, whatever their type is in memory.

#pragma once

#include <ATen/Dispatch.h>
#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <type_traits>

namespace {

using Vector = at::vec::Vectorized<float>;
using Floats = at::vec::VectorizedN<float, 2>;

constexpr int64_t kWidth = Floats::size();

template <typename T>
C10_ALWAYS_INLINE Floats load(const T* from, int64_t count) {
  if constexpr (std::is_same_v<T, float>) {
    // Floats::loadu fills up with ones.
    const auto second = count - Vector::size();
    return {Vector::loadu(from, std::min<int64_t>(count, Vector::size())),
            second > 0 ? Vector::loadu(from + Vector::size(), second) : Vector(0)};
  } else {
    return at::vec::convert<float, 2, T, 1>(at::vec::VectorizedN<T, 1>::loadu(from, count));
  }
}

template <typename T>
C10_ALWAYS_INLINE void store(const Floats& values, T* to, int64_t count) {
  if constexpr (std::is_same_v<T, float>) {
    values.store(to, static_cast<int>(count));
#ifdef __AVX512BF16__
  } else if constexpr (std::is_same_v<T, at::BFloat16>) {
    const auto rounded = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(values[1], values[0]));
    at::vec::Vectorized<T>(rounded).store(to, static_cast<int>(count));
#endif
  } else {
    at::vec::convert<T, 1, float, 2>(values).store(to, static_cast<int>(count));
  }
}

// Calls f(first, count) for the vectors of a row, of which the last may be short.
template <typename F>
void in_vectors(int64_t width, const F& f) {
  int64_t first = 0;
  for (; width - first >= kWidth; first += kWidth) {
    f(first, std::integral_constant<int64_t, kWidth>{});
  }
  if (first < width) {
    f(first, width - first);
  }
}

template <typename F>
void with_type(at::ScalarType type, const F& f) {
  AT_DISPATCH_SWITCH(
      type, "softserve",
      AT_DISPATCH_CASE(at::kFloat, [&] { f(scalar_t()); })
      AT_DISPATCH_CASE(at::kBFloat16, [&] { f(scalar_t()); })
      AT_DISPATCH_CASE(at::kHalf, [&] { f(scalar_t()); }));
}

}  // namespace
