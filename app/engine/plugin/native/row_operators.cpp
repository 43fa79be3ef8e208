// RMSNorm, and SwiGLU's activation, on a CPU: out of each row alone.
//
// All is computed in FP32 and rounded once, at the end, and a sum's terms are added in the same
// order: a row's result depends neither on the batch nor on the number of threads.
//
// A few rows are one thread's work. The steps of a model wait for all threads wherever they share
// work, and on a busy machine a thread may be late.

#include <ATen/Parallel.h>
#include <torch/library.h>

#include <cmath>

#include "vectors.h"

namespace {

// Numbers that are worth a thread.
constexpr int64_t kMinParallel = 1 << 16;

// Calls f(row) for all rows, on as many threads as are worth it.
template <typename F>
void for_rows(int64_t rows, int64_t width, const F& f) {
  const auto step = std::max<int64_t>(1, kMinParallel / std::max<int64_t>(1, width));
  at::parallel_for(0, rows, step, [&](int64_t begin, int64_t end) {
    for (auto row = begin; row < end; ++row) {
      f(row);
    }
  });
}

// The error of the faster exponential, a few millionths, is lost where two bytes hold the result.
template <typename T>
C10_ALWAYS_INLINE Vector silu(const Vector& x) {
  const auto minus_x = x.neg();
  const auto power = std::is_same_v<T, float> ? minus_x.exp() : minus_x.exp_u20();
  return x / (Vector(1) + power);
}

// x is (rows, 2 * width), gates beside what they let through, and out is (rows, width).
void silu_and_mul(at::Tensor& out, const at::Tensor& x) {
  const auto width = out.size(-1);
  TORCH_CHECK(x.dim() == 2 && out.dim() == 2 && x.size(0) == out.size(0), "x and out have rows");
  TORCH_CHECK(x.size(1) == 2 * width && x.stride(1) == 1, "x is twice as wide as out");
  TORCH_CHECK(out.is_contiguous() && out.scalar_type() == x.scalar_type(), "out is as x is");
  with_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const auto* from = x.const_data_ptr<T>();
    auto* to = out.mutable_data_ptr<T>();
    for_rows(x.size(0), width, [&](int64_t row) {
      const auto* gate = from + row * x.stride(0);
      in_vectors(width, [&](int64_t first, int64_t count) {
        const auto gates = load(gate + first, count), ups = load(gate + width + first, count);
        const Floats product{silu<T>(gates[0]) * ups[0], silu<T>(gates[1]) * ups[1]};
        store<T>(product, to + row * width + first, count);
      });
    });
  });
}

// The vectors of `count` numbers, and zeros behind them.
C10_ALWAYS_INLINE Floats zeros_behind(const Floats& values, int64_t count) {
  const auto second = std::max<int64_t>(0, count - Vector::size());
  return {Vector::set(Vector(0), values[0], std::min<int64_t>(count, Vector::size())),
          Vector::set(Vector(0), values[1], second)};
}

// out = x / sqrt(mean(x^2) + epsilon) * weight, of `width` numbers. Where there is a residual, x is
// added to it first, and the sum, rounded, takes the place of x.
template <typename T>
void normalize(const T* x, T* residual, const T* weight, T* out, int64_t width, double epsilon) {
  const auto* from = residual == nullptr ? x : residual;
  Vector squares(0);
  in_vectors(width, [&](int64_t first, int64_t count) {
    if (residual != nullptr) {
      const auto added = load(x + first, count) + load(residual + first, count);
      store<T>(added, residual + first, count);
    }
    const auto values = zeros_behind(load(from + first, count), count);
    squares = at::vec::fmadd(values[1], values[1], at::vec::fmadd(values[0], values[0], squares));
  });
  const auto sum = at::vec::vec_reduce_all<float>(
      [](const Vector& a, const Vector& b) { return a + b; }, squares);
  const auto mean = sum / static_cast<float>(width);
  const Floats scale(1.0F / std::sqrt(mean + static_cast<float>(epsilon)));
  in_vectors(width, [&](int64_t first, int64_t count) {
    const auto scaled = load(from + first, count) * scale * load(weight + first, count);
    store<T>(scaled, out + first, count);
  });
}

void check(const at::Tensor& x, const at::Tensor& weight) {
  TORCH_CHECK(x.dim() == 2 && x.stride(1) == 1, "x is (rows, width)");
  TORCH_CHECK(weight.is_contiguous() && weight.numel() == x.size(1), "as many weights as columns");
  TORCH_CHECK(weight.scalar_type() == x.scalar_type(), "weights are of the type of x");
}

// x and out are (rows, width).
void rms_norm(at::Tensor& out, const at::Tensor& x, const at::Tensor& weight, double epsilon) {
  check(x, weight);
  TORCH_CHECK(out.sizes() == x.sizes() && out.is_contiguous(), "out has the shape of x");
  TORCH_CHECK(out.scalar_type() == x.scalar_type(), "out is of the type of x");
  with_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const auto* from = x.const_data_ptr<T>();
    const auto* weights = weight.const_data_ptr<T>();
    auto* to = out.mutable_data_ptr<T>();
    const auto width = x.size(1);
    for_rows(x.size(0), width, [&](int64_t row) {
      normalize<T>(from + row * x.stride(0), nullptr, weights, to + row * width, width, epsilon);
    });
  });
}

// residual += x, then x = the norm of that; both are (rows, width).
void add_rms_norm(
    at::Tensor& x, at::Tensor& residual, const at::Tensor& weight, double epsilon) {
  check(x, weight);
  TORCH_CHECK(residual.sizes() == x.sizes() && residual.stride(1) == 1, "a residual like x");
  TORCH_CHECK(residual.scalar_type() == x.scalar_type(), "a residual of the type of x");
  with_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    auto* rows = x.mutable_data_ptr<T>();
    auto* sums = residual.mutable_data_ptr<T>();
    const auto* weights = weight.const_data_ptr<T>();
    for_rows(x.size(0), x.size(1), [&](int64_t i) {
      auto* row = rows + i * x.stride(0);
      normalize<T>(row, sums + i * residual.stride(0), weights, row, x.size(1), epsilon);
    });
  });
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(softserve, library) {
  library.def("silu_and_mul(Tensor(a!) out, Tensor x) -> ()");
  library.def("rms_norm(Tensor(a!) out, Tensor x, Tensor weight, float epsilon) -> ()");
  library.def(
      "add_rms_norm(Tensor(a!) x, Tensor(b!) residual, Tensor weight, float epsilon) -> ()");
}

TORCH_LIBRARY_IMPL(softserve, CPU, library) {
  library.impl("silu_and_mul", silu_and_mul);
  library.impl("rms_norm", rms_norm);
  library.impl("add_rms_norm", add_rms_norm);
}
