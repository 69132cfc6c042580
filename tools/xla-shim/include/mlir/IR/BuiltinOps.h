// Stands in for MLIR's header: a module is a pointer to an operation; erasing and printing are the library's.
// Hidden, for the reason that raw_ostream.h gives.
#pragma once
#include <string>

#include "llvm/Support/raw_ostream.h"

namespace mlir {
class Operation {
 public:
  void erase();
};

class __attribute__((visibility("hidden"))) ModuleOp {
 public:
  ModuleOp(Operation *operation = nullptr) : operation_(operation) {}
  explicit operator bool() const { return operation_ != nullptr; }
  void erase() { operation_->erase(); }
  inline void print(llvm::raw_string_ostream &out);

 private:
  Operation *operation_;
};
}  // namespace mlir

namespace tensorflow {
std::string MlirModuleToString(mlir::ModuleOp module, bool show_debug_info);
}  // namespace tensorflow

inline void mlir::ModuleOp::print(llvm::raw_string_ostream &out) {
  out << tensorflow::MlirModuleToString(*this, false);
}
