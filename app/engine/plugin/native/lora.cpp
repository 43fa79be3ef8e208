// LoRA on a CPU: y[row] += scale * x[row] A^T B^T, each row with the A and B of its own slot.
//
// Two rounds of independent tasks: `shrink` makes x A^T of every row, in FP32, and `expand` adds
// the products with B^T to y. A task is some rows of one slot, and some ranks or outputs of one
// slice; A and B stay in the cache while they go through its rows.
//
// Whatever a sum's neighbours are, its terms are added in the same order by the same instructions:
// a row's result depends neither on the other rows of the batch nor on the number of threads.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <type_traits>
#include <vector>

#include "vectors.h"

namespace {

using Sum = Vector;

// Bytes of a cache line.
constexpr int64_t kLine = 64;
// Rows, ranks and outputs of a task, at most.
constexpr int64_t kRows = 32, kRanks = 16, kOutputs = 1024;
// Fewer multiplications than these are sooner done than shared among threads.
constexpr int64_t kMinParallel = 1 << 16;

// kWidth factors of a sum of products.
template <typename T>
struct Factors {
  Floats values;

  C10_ALWAYS_INLINE static Factors loaded(const T* from, int64_t count) {
    return {load(from, count)};
  }

  C10_ALWAYS_INLINE Sum add_products(const Factors& others, const Sum& sum) const {
    const auto half = at::vec::fmadd(values[0], others.values[0], sum);
    return at::vec::fmadd(values[1], others.values[1], half);
  }
};

#ifdef __AVX512BF16__
// One instruction multiplies pairs, and adds them in FP32.
template <>
struct Factors<at::BFloat16> {
  __m512bh values;

  C10_ALWAYS_INLINE static Factors loaded(const at::BFloat16* from, int64_t count) {
    const auto pairs = at::vec::Vectorized<at::BFloat16>::loadu(from, count);
    return {reinterpret_cast<__m512bh>(static_cast<__m512i>(pairs))};
  }

  C10_ALWAYS_INLINE Sum add_products(const Factors& others, const Sum& sum) const {
    return _mm512_dpbf16_ps(sum, values, others.values);
  }
};
#endif

// Calls f(size, first) for tiles that cover [begin, end): so many of kSize, then those of halves.
template <int kSize, typename F>
void in_tiles(int64_t begin, int64_t end, const F& f) {
  for (; end - begin >= kSize; begin += kSize) {
    f(std::integral_constant<int, kSize>{}, begin);
  }
  if constexpr (kSize > 1) {
    in_tiles<kSize / 2>(begin, end, f);
  }
}

// `count` sorted rows from `first` on, of one slot; ranks or outputs [begin, end) of one slice.
struct Task {
  int64_t slot, first, count, slice, begin, end;
};

// The rows of a batch, sorted by slot: runs (n, 3) have a slot, its first row, the one behind its
// last. Ranks are (slices, slots).
struct Batch {
  const at::Tensor &rows, &runs, &ranks;

  int64_t num_rows() const { return rows.size(0); }

  int64_t rank(int64_t slice, int64_t slot) const {
    return ranks.const_data_ptr<int64_t>()[slice * ranks.size(1) + slot];
  }

  // Tasks of up to `step` of the `size_of(slice, slot)` ranks or outputs.
  template <typename F>
  std::vector<Task> tasks(int64_t step, const F& size_of) const {
    std::vector<Task> tasks;
    const auto* run = runs.const_data_ptr<int64_t>();
    for (int64_t i = 0; i < runs.size(0); ++i, run += 3) {
      for (int64_t first = run[1]; first < run[2]; first += kRows) {
        const auto count = std::min(kRows, run[2] - first);
        for (int64_t slice = 0; slice < ranks.size(0); ++slice) {
          const auto size = size_of(slice, run[0]);
          for (int64_t begin = 0; begin < size; begin += step) {
            tasks.push_back({run[0], first, count, slice, begin, std::min(size, begin + step)});
          }
        }
      }
    }
    return tasks;
  }
};

// Weights of a task: `rows` rows of `width` elements that lie together.
template <typename W>
struct Weights {
  const W* first;
  int64_t rows, width, stride;

  // Slots are too far apart for the hardware to foresee the next one.
  void prefetch() const {
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t i = 0; i < width; i += kLine / static_cast<int64_t>(sizeof(W))) {
        __builtin_prefetch(first + row * stride + i);
      }
    }
  }
};

// Calls f(task, its weights) for all tasks, on as many threads as are worth it.
template <typename WeightsOf, typename F>
void run(const std::vector<Task>& tasks, int64_t multiplications, const WeightsOf& weights_of,
         const F& f) {
  const auto size = static_cast<int64_t>(tasks.size());
  const auto grain = size * multiplications < kMinParallel ? size : 1;
  at::parallel_for(0, size, grain, [&](int64_t begin, int64_t end) {
    for (auto i = begin; i < end; ++i) {
      if (i + 1 < end) {
        weights_of(tasks[i + 1]).prefetch();
      }
      f(tasks[i], weights_of(tasks[i]));
    }
  });
}

// A tile of the product with A^T: shrunk[t][r] = scale * sum over k of x[t][k] a[r][k].
template <int kTokens, int kTileRanks, typename W>
void shrink_tile(
    const W* const* x, const Weights<W>& a, int64_t begin, float scale, float* const* shrunk) {
  Sum sums[kTokens][kTileRanks];
  for (auto& of_token : sums) {
    std::fill_n(of_token, kTileRanks, Sum(0));
  }
  in_vectors(a.width, [&](int64_t k, auto count) {
    Factors<W> xs[kTokens];
    for (int t = 0; t < kTokens; ++t) {
      xs[t] = Factors<W>::loaded(x[t] + k, count);
    }
    for (int r = 0; r < kTileRanks; ++r) {
      const auto row = Factors<W>::loaded(a.first + (begin + r) * a.stride + k, count);
      for (int t = 0; t < kTokens; ++t) {
        sums[t][r] = xs[t].add_products(row, sums[t][r]);
      }
    }
  });
  const auto plus = [](const Sum& a, const Sum& b) { return a + b; };
  for (int t = 0; t < kTokens; ++t) {
    for (int r = 0; r < kTileRanks; ++r) {
      shrunk[t][begin + r] = scale * at::vec::vec_reduce_all<float>(plus, sums[t][r]);
    }
  }
}

// A tile of the product with B^T, whose rows are ranks: y[t] += sum over r of shrunk[t][r] b[r].
template <int kTokens, typename W, typename Y>
void expand_tile(const float* const* shrunk, const Weights<W>& b, Y* const* y) {
  in_vectors(b.width, [&](int64_t o, auto count) {
    Floats sums[kTokens];
    std::fill_n(sums, kTokens, Floats(0.0f));
    for (int64_t r = 0; r < b.rows; ++r) {
      const auto row = load(b.first + r * b.stride + o, count);
      for (int t = 0; t < kTokens; ++t) {
        const Sum factor(shrunk[t][r]);
        sums[t][0] = at::vec::fmadd(factor, row[0], sums[t][0]);
        sums[t][1] = at::vec::fmadd(factor, row[1], sums[t][1]);
      }
    }
    for (int t = 0; t < kTokens; ++t) {
      store(load(y[t] + o, count) + sums[t], y[t] + o, count);
    }
  });
}

// (slices, rows of the batch, highest rank) in FP32. What is beyond a slot's rank is not set.
template <typename W>
at::Tensor shrink(const at::Tensor& x, at::TensorList lora_a, float scale, const Batch& batch) {
  const auto width = x.size(1), max_rank = lora_a[0].size(2);
  auto shrunk = at::empty(
      {batch.ranks.size(0), batch.num_rows(), max_rank}, x.options().dtype(at::kFloat));
  const auto* rows = batch.rows.const_data_ptr<int64_t>();
  const auto tasks = batch.tasks(
      kRanks, [&](int64_t slice, int64_t slot) { return batch.rank(slice, slot); });
  const auto weights_of = [&](const Task& task) {
    const auto* a = lora_a[task.slice].const_data_ptr<W>();
    const auto row = task.slot * max_rank + task.begin;
    return Weights<W>{a + row * width, task.end - task.begin, width, width};
  };
  run(tasks, kRanks * width, weights_of, [&](const Task& task, const Weights<W>& a) {
    const W* x_of[kRows];
    float* shrunk_of[kRows];
    for (int64_t t = 0; t < task.count; ++t) {
      const auto row = task.first + t;
      x_of[t] = x.const_data_ptr<W>() + rows[row] * x.stride(0);
      shrunk_of[t] = shrunk.mutable_data_ptr<float>()
          + (task.slice * batch.num_rows() + row) * max_rank + task.begin;
    }
    in_tiles<4>(0, task.count, [&](auto tokens, int64_t t) {
      // As many sums as stay in registers.
      constexpr int kTile = tokens() == 1 ? 8 : 4;
      in_tiles<kTile>(0, a.rows, [&](auto ranks, int64_t r) {
        shrink_tile<tokens(), ranks()>(x_of + t, a, r, scale, shrunk_of + t);
      });
    });
  });
  return shrunk;
}

template <typename W, typename Y>
void expand(at::Tensor& y, const at::Tensor& shrunk, at::TensorList lora_b, const Batch& batch) {
  const auto* rows = batch.rows.const_data_ptr<int64_t>();
  std::vector<int64_t> offsets{0};
  for (const auto& stacked : lora_b) {
    offsets.push_back(offsets.back() + stacked.size(2));
  }
  const auto tasks = batch.tasks(kOutputs, [&](int64_t slice, int64_t slot) {
    return batch.rank(slice, slot) > 0 ? lora_b[slice].size(2) : 0;
  });
  const auto weights_of = [&](const Task& task) {
    const auto& stacked = lora_b[task.slice];
    const auto* b = stacked.const_data_ptr<W>() + task.slot * stacked.stride(0) + task.begin;
    const auto rank = batch.rank(task.slice, task.slot);
    return Weights<W>{b, rank, task.end - task.begin, stacked.stride(3)};
  };
  run(tasks, kOutputs * shrunk.size(2), weights_of, [&](const Task& task, const Weights<W>& b) {
    const float* shrunk_of[kRows];
    Y* y_of[kRows];
    for (int64_t t = 0; t < task.count; ++t) {
      const auto row = task.first + t;
      shrunk_of[t] = shrunk.const_data_ptr<float>() + task.slice * shrunk.stride(0)
          + row * shrunk.stride(1);
      y_of[t] = y.mutable_data_ptr<Y>() + rows[row] * y.stride(0) + offsets[task.slice]
          + task.begin;
    }
    in_tiles<8>(0, task.count, [&](auto tokens, int64_t t) {
      expand_tile<tokens()>(shrunk_of + t, b, y_of + t);
    });
  });
}

void check(
    const at::Tensor& y, const at::Tensor& x, at::TensorList lora_a, at::TensorList lora_b,
    const Batch& batch) {
  TORCH_CHECK(x.dim() == 2 && y.dim() == 2 && y.stride(1) == 1, "x and y are (rows, width)");
  TORCH_CHECK(lora_a.empty() || lora_a.size() == lora_b.size(), "as many A as B");
  TORCH_CHECK(batch.ranks.is_contiguous() && batch.runs.is_contiguous(), "ranks, runs");
  TORCH_CHECK(batch.ranks.size(0) == static_cast<int64_t>(lora_b.size()), "ranks of each slice");
  int64_t outputs = 0;
  for (size_t i = 0; i < lora_b.size(); ++i) {
    const auto& b = lora_b[i];
    TORCH_CHECK(b.dim() == 4 && b.scalar_type() == x.scalar_type(), "B has the type of x");
    TORCH_CHECK(b.stride(2) == 1, "the outputs of B lie together");
    outputs += b.size(2);
    if (lora_a.empty()) {
      TORCH_CHECK(b.size(3) == x.size(1), "x is as wide as B has ranks");
    } else {
      const auto& a = lora_a[i];
      TORCH_CHECK(a.dim() == 4 && a.scalar_type() == x.scalar_type(), "A has the type of x");
      TORCH_CHECK(a.is_contiguous() && a.size(3) == x.size(1), "A is as wide as x");
    }
  }
  TORCH_CHECK(outputs <= y.size(1), "y is as wide as all B");
  const auto* rows = batch.rows.const_data_ptr<int64_t>();
  const auto num_rows = std::min(x.size(0), y.size(0));
  TORCH_CHECK(
      std::all_of(rows, rows + batch.num_rows(), [&](int64_t row) { return row < num_rows; }),
      "the batch has more rows than x or y");
}

// See NativeProducts in app/engine/plugin/lora_products.py.
void add_lora(
    at::Tensor& y, const at::Tensor& given_x, at::TensorList lora_a, at::TensorList lora_b,
    double scale, const at::Tensor& rows, const at::Tensor& runs, const at::Tensor& ranks) {
  const auto x = given_x.contiguous();
  const Batch batch{rows, runs, ranks};
  check(y, x, lora_a, lora_b, batch);
  with_type(x.scalar_type(), [&](auto weight) {
    using W = decltype(weight);
    const auto shrunk = lora_a.empty() ? x.index_select(0, rows).to(at::kFloat).unsqueeze(0)
                                       : shrink<W>(x, lora_a, static_cast<float>(scale), batch);
    with_type(y.scalar_type(), [&](auto output) {
      expand<W, decltype(output)>(y, shrunk, lora_b, batch);
    });
  });
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(softserve, library) {
  library.def(
      "add_lora(Tensor(a!) y, Tensor x, Tensor[] lora_a, Tensor[] lora_b, float scale, "
      "Tensor rows, Tensor runs, Tensor ranks) -> ()");
}

TORCH_LIBRARY_IMPL(softserve, CPU, library) {
  library.impl("add_lora", add_lora);
}
