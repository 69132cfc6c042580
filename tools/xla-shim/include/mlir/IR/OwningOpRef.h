// Stands in for MLIR's header: an operation that is erased with its owner. Hidden, for the reason that
// raw_ostream.h gives.
#pragma once

namespace mlir {
template <typename Op>
class __attribute__((visibility("hidden"))) OwningOpRef {
 public:
  OwningOpRef(Op op = Op()) : op_(op) {}
  OwningOpRef(OwningOpRef &&other) : op_(other.release()) {}
  OwningOpRef &operator=(OwningOpRef &&other) {
    if (op_) op_.erase();
    op_ = other.release();
    return *this;
  }
  ~OwningOpRef() {
    if (op_) op_.erase();
  }
  Op get() const { return op_; }
  Op operator*() const { return op_; }
  Op *operator->() { return &op_; }
  explicit operator bool() const { return static_cast<bool>(op_); }
  Op release() {
    Op op = op_;
    op_ = Op();
    return op;
  }

 private:
  Op op_;
};
}  // namespace mlir
