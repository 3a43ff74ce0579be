#include <algorithm>
#include <array>

#include "src/optimized/ops/device.h"
#include "src/optimized/ops/moe.h"

namespace dsv32::optimized::DSV32_BACKEND {
namespace {

/// Addresses of an expert's tensors, where the kernels can read them.
template <typename T>
at::Tensor address_table(const std::vector<const T*>& addresses, const at::Tensor& like) {
  static_assert(sizeof(const T*) == sizeof(int64_t));
  const at::Tensor table = at::empty({static_cast<int64_t>(addresses.size())}, at::kLong);
  std::copy(addresses.begin(), addresses.end(), static_cast<const T**>(table.mutable_data_ptr()));
  return table.to(like.device());
}

/// Everything that stays alive while the kernels run.
template <typename T>
class Call {
 public:
  explicit Call(const MoeArguments& a)
      : x_(a.x.contiguous()),
        experts_(a.experts.contiguous()),
        weights_(a.weights.contiguous()),
        gate_(a.gate),
        up_(a.up),
        down_(a.down),
        tables_{address_table(gate_.addresses(), x_), address_table(up_.addresses(), x_),
                address_table(down_.addresses(), x_)} {
    const int64_t entries = a.tokens() * a.k(), count = a.count();
    params_ = {.sort = {.chosen = pointer<int32_t>(experts_),
                        .counts = integers(count),
                        .offsets = integers(count + 1),
                        .tiles = integers(count + 1),
                        .order = integers(entries),
                        .position = integers(entries),
                        .tokens = a.tokens(),
                        .k = a.k(),
                        .experts = count},
               .x = pointer<T>(x_),
               .weights = pointer<float>(weights_),
               .gate = pointer<const T*>(tables_[0]),
               .up = pointer<const T*>(tables_[1]),
               .down = pointer<const T*>(tables_[2]),
               .inner = memory<T>({entries, a.width()}, x_.scalar_type()),
               .hidden = a.hidden(),
               .width = a.width()};
  }

  MoeParams<T> forward(const at::Tensor& out) {
    params_.out = mutable_pointer<T>(out);
    params_.y = memory<float>({params_.sort.entries(), params_.hidden}, at::kFloat);
    return params_;
  }

  MoeParams<T> addition(const at::Tensor& sum) {
    params_.sum = mutable_pointer<float>(sum);
    params_.y = memory<float>({params_.sort.entries(), params_.hidden}, at::kFloat);
    return params_;
  }

  MoeBackwardParams<T> backward(const at::Tensor& dout, const MoeGradients& out) {
    const int64_t entries = params_.sort.entries();
    const std::vector<int64_t> inner = {entries, params_.width};
    params_.gated = memory<float>(inner, at::kFloat);
    params_.upped = memory<float>(inner, at::kFloat);
    held_.push_back(dout.contiguous());
    const at::Tensor rows = held_.back();
    return {.forward = params_,
            .dout = pointer<T>(rows),
            .dx = out.dx.defined() ? mutable_pointer<T>(out.dx) : nullptr,
            .dx_sum = out.dx_sum.defined() ? mutable_pointer<float>(out.dx_sum) : nullptr,
            .dweights = mutable_pointer<float>(out.dweights),
            .dgate = writable(out.dgate),
            .dup = writable(out.dup),
            .ddown = writable(out.ddown),
            .dinner = memory<float>(inner, at::kFloat),
            .weighted = memory<T>(inner, x_.scalar_type()),
            .dgated = memory<T>(inner, x_.scalar_type()),
            .dupped = memory<T>(inner, x_.scalar_type()),
            .dx_entries = memory<float>({entries, params_.hidden}, at::kFloat)};
  }

 private:
  template <typename U>
  U* memory(at::IntArrayRef shape, at::ScalarType dtype) {
    held_.push_back(at::empty(shape, x_.options().dtype(dtype)));
    return mutable_pointer<U>(held_.back());
  }
  int32_t* integers(int64_t count) { return memory<int32_t>({count}, at::kInt); }
  T* const* writable(const std::vector<at::Tensor>& gradients) {
    held_.push_back(address_table(TensorTable<T>(gradients).addresses(), x_));
    return static_cast<T* const*>(held_.back().mutable_data_ptr());
  }

  at::Tensor x_, experts_, weights_;
  TensorTable<T> gate_, up_, down_;
  std::array<at::Tensor, 3> tables_;
  std::vector<at::Tensor> held_;
  MoeParams<T> params_;
};

at::Tensor moe(const at::Tensor& x, const at::Tensor& experts, const at::Tensor& weights,
               at::TensorList gate, at::TensorList up, at::TensorList down) {
  const MoeArguments arguments{x, experts, weights, gate, up, down};
  at::Tensor out = moe_output("moe", arguments);
  expect_experts("moe", arguments);
  if (experts.numel() == 0) return out.zero_();
  const DeviceScope device(x);
  dispatch_real({"moe", "x", x}, [&](auto type) {
    Call<decltype(type)> call(arguments);
    launch_moe(call.forward(out), device.stream());
  });
  return out;
}

void moe_add(const at::Tensor& sum, const at::Tensor& x, const at::Tensor& experts,
             const at::Tensor& weights, at::TensorList gate, at::TensorList up,
             at::TensorList down) {
  const MoeArguments arguments{x, experts, weights, gate, up, down};
  expect_sum("moe_add", sum, arguments);
  expect_experts("moe_add", arguments);
  if (experts.numel() == 0) return;
  const DeviceScope device(x);
  dispatch_real({"moe_add", "x", x}, [&](auto type) {
    Call<decltype(type)> call(arguments);
    launch_moe(call.addition(sum), device.stream());
  });
}

void fill(const char* op, const at::Tensor& dout, const MoeArguments& arguments,
          const MoeGradients& out) {
  expect_experts(op, arguments);
  const DeviceScope device(arguments.x);
  dispatch_real({op, "x", arguments.x}, [&](auto type) {
    Call<decltype(type)> call(arguments);
    launch_moe_backward(call.backward(dout, out), device.stream());
  });
}

std::tuple<at::Tensor, at::Tensor, std::vector<at::Tensor>, std::vector<at::Tensor>,
           std::vector<at::Tensor>>
moe_backward(const at::Tensor& dout, const at::Tensor& x, const at::Tensor& experts,
             const at::Tensor& weights, at::TensorList gate, at::TensorList up,
             at::TensorList down) {
  const MoeArguments arguments{x, experts, weights, gate, up, down};
  const MoeGradients out = moe_gradients(dout, arguments);
  if (experts.numel() == 0) out.dx.zero_();
  fill("moe_backward", dout, arguments, out);
  return out.tuple();
}

std::tuple<at::Tensor, at::Tensor, std::vector<at::Tensor>, std::vector<at::Tensor>,
           std::vector<at::Tensor>>
moe_backward_add(const at::Tensor& sum, const at::Tensor& dout, const at::Tensor& x,
                 const at::Tensor& experts, const at::Tensor& weights, at::TensorList gate,
                 at::TensorList up, at::TensorList down) {
  const MoeArguments arguments{x, experts, weights, gate, up, down};
  const MoeGradients out = moe_added_gradients(sum, dout, arguments);
  fill("moe_backward_add", dout, arguments, out);
  return out.tuple();
}

}  // namespace

DSV32_DEVICE_OPS(m) {
  m.impl("moe", &moe);
  m.impl("moe_add", &moe_add);
  m.impl("moe_backward", &moe_backward);
  m.impl("moe_backward_add", &moe_backward_add);
}

}  // namespace dsv32::optimized::DSV32_BACKEND
